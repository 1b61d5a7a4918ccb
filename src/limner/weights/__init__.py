"""Reading and writing weights, every tensor accounted for."""
