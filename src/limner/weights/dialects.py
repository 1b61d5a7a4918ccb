"""Mappings from other formats' tensor names to the networks' own: the `rename` of `load`."""

# diffusers before 0.15 named the projections of an autoencoder's attention so, and Stable Diffusion 1 is saved so.
OLD_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def clip_text(name: str) -> str | None:
    """CLIP's text encoder: transformers 5 omits the `text_model.` prefix, old versions also saved `position_ids`."""
    if name.endswith("embeddings.position_ids"):
        return None
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name


def autoencoder_kl(name: str) -> str:
    """AutoencoderKL: the projections of its attention had other names."""
    path, _, kind = name.rpartition(".")
    block, _, layer = path.rpartition(".")
    return f"{block}.{OLD_PROJECTIONS[layer]}.{kind}" if ".attentions." in block and layer in OLD_PROJECTIONS else name
