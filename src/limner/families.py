"""The table of model families: everything that differs between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limner.errors import unknown
from limner.nets.network import Condition
from limner.text.conditioner import Combine, masked_text, no_text, padded_text
from limner.text.encoder import Reads

# (encode: pictures in [-1, 1] -> latents, picture (B, C, H, W), mask (B, 1, H, W), mask of the latents (B, 1, h, w))
PictureCondition = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor], Condition]


class Family(NamedTuple):
    """`network` is the folder of the denoising network, `encoders` the hidden states used of each text encoder,
    `combine` joins those states into one condition, `defaults` are the sampling settings of last resort, and with
    `tolerates_bf16` the dtype "auto" is bfloat16 where that is native. `picture` is the condition of networks that are
    given a picture and its mask, `network_class` the class of a network that the model's index does not list."""

    network: str
    encoders: tuple[Reads, ...]
    combine: Combine
    defaults: dict[str, Any]
    tolerates_bf16: bool = False
    picture: PictureCondition | None = None
    network_class: str = "DiT"


def masked_picture(encode: Callable[[Tensor], Tensor], picture: Tensor, mask: Tensor, latent_mask: Tensor) -> Condition:
    """{"concat": (B, 1 + c, h, w)}: the mask of the latents, 1 where they are repainted, then the latents of the
    picture with the repainted pixels grey (Stable Diffusion inpainting)."""
    latents = encode(torch.where(mask, 0.0, picture))
    return {"concat": torch.cat([latent_mask.to(latents.dtype), latents], dim=1)}


STABLE_DIFFUSION = Family(
    "unet",
    (Reads(padded=True),),
    padded_text,
    {"steps": 50, "guidance_scale": 7.5},
    tolerates_bf16=True,
    picture=masked_picture,
    network_class="UNet2DConditionModel",
)
# Keyed by (_class_name in model_index.json, kind of condition).
FAMILIES: dict[tuple[str, str], Family] = {
    ("LimnerPipeline", "text"): Family("denoiser", (Reads(),), masked_text, {"steps": 20, "guidance_scale": 3.0}),
    ("LimnerPipeline", "class"): Family("denoiser", (), no_text, {"steps": 20, "guidance_scale": 3.0}),
    ("LimnerPipeline", "none"): Family("denoiser", (), no_text, {"steps": 20, "guidance_scale": 1.0}),
    # 1.x and 2.x: SD 2's folders differ in their configurations alone.
    ("StableDiffusionPipeline", "text"): STABLE_DIFFUSION,
    ("StableDiffusionImg2ImgPipeline", "text"): STABLE_DIFFUSION,
    ("StableDiffusionInpaintPipeline", "text"): STABLE_DIFFUSION,
}


def family(pipeline: str, condition: str) -> Family:
    """The family of a pipeline class name and a kind of condition: text, class or none."""
    names = {name for name, _ in FAMILIES}
    if pipeline not in names:
        raise unknown("family of models", pipeline, names)
    kinds = {kind: row for (name, kind), row in FAMILIES.items() if name == pipeline}
    if condition not in kinds:
        raise unknown(f"condition of a {pipeline}", condition, kinds)
    return kinds[condition]
