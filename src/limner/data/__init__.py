"""Captioned pictures: `sources` opens collections (`pictures`, `world`, `mixture`); `batches` are indexed by step."""
