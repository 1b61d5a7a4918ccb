"""Pictures with captions: `captions` (what is said), `sources` (pictures read), `batches` (tensors, by step)."""
