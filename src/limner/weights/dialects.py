"""Mappings from other formats' tensor names to the networks' own: the `rename` of `load`."""


def clip_text(name: str) -> str | None:
    """CLIP's text encoder: transformers 5 omits the `text_model.` prefix, old versions also saved `position_ids`."""
    if name.endswith("embeddings.position_ids"):
        return None
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name
