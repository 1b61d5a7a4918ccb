"""Captioned pictures: `sources` opens collections (`pictures`, `world`, `mixture`), `batches` cuts them by step."""
