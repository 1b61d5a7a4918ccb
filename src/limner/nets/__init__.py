"""Network architectures, one file each, the largest class last."""
