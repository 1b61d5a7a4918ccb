"""A model graded: `report`."""
