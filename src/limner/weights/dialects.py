"""Mappings from other formats' tensor names to those of a network with this configuration: the `rename` of a part.

None for a tensor that the network does not use.
"""

from typing import Any

from limner.text.clip import CLIPTextConfig

# diffusers before 0.15 named the projections of an autoencoder's attention so, and Stable Diffusion 1 is saved so.
OLD_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


# Of a CLIPModel: its image encoder, and the scale of its logits.
CLIP_VISION = ("vision_model.", "visual_projection.", "logit_scale")


def clip_text(name: str, config: CLIPTextConfig | None = None) -> str | None:
    """CLIP's text encoder, alone or of a CLIPModel: transformers 5 omits the `text_model.` prefix, old versions also
    saved `position_ids`."""
    if name.endswith("embeddings.position_ids") or name.startswith(CLIP_VISION):
        return None
    if config is not None and config.projection_dim is None and name.startswith("text_projection."):
        return None
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name


def autoencoder_kl(name: str, config: Any = None) -> str:
    """AutoencoderKL: the projections of its attention had other names."""
    path, _, kind = name.rpartition(".")
    block, _, layer = path.rpartition(".")
    return f"{block}.{OLD_PROJECTIONS[layer]}.{kind}" if ".attentions." in block and layer in OLD_PROJECTIONS else name
