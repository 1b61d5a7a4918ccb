"""The networks. Each is one file, read top to bottom, biggest class last; each receives times and tensors only."""
