"""Training from nothing: a recipe, the loss, the loop, checkpoints."""
