"""Names of tensors in files that others wrote, turned into the networks' own: the `rename` of `load`."""


def clip_text(name: str) -> str | None:
    """CLIP's text encoder: transformers 5 writes no `text_model.`, old versions wrote the positions' numbers too."""
    if name.endswith("embeddings.position_ids"):
        return None
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name
