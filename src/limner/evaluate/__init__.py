"""Evaluation of a model on the captioned world: `report`."""
