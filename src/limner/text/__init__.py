"""From words to vectors: tokenizers and text encoders."""
