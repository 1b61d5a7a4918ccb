"""Loading and saving weights, with a strict check of every tensor."""
