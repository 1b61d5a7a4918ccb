"""Looking into a model: the tensors of its files, and one forward of each of its parts."""
