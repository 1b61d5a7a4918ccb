"""Tokenizers, text encoders and the conditioning of networks."""
