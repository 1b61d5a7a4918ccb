"""The table of model families: everything that differs between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limner.errors import LimnerError, unknown
from limner.nets.network import Condition
from limner.text.conditioner import Combine, Width, joint_text, joint_width, masked_text, no_text, padded_text
from limner.text.encoder import Reads

# (encode: pictures in [-1, 1] -> latents, picture (B, C, H, W), mask (B, 1, H, W), mask of the latents (B, 1, h, w))
PictureCondition = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor], Condition]


class Family(NamedTuple):
    """`network` is the folder of the denoising network, `encoders` the hidden states used of each text encoder,
    `combine` joins those states into one condition, `defaults` are the sampling settings of last resort, and with
    `tolerates_bf16` the dtype "auto" is bfloat16 where that is native. `picture` is the condition of networks that are
    given a picture and its mask, `network_class` the class of a network that the model's index does not list, `width`
    the width of the combined states from those of each encoder."""

    network: str
    encoders: tuple[Reads, ...]
    combine: Combine
    defaults: dict[str, Any]
    tolerates_bf16: bool = False
    picture: PictureCondition | None = None
    network_class: str = "DiT"
    width: Width = max


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
UNCONDITIONAL = Family("unet", (), no_text, {"steps": 50, "guidance_scale": 1.0}, network_class="UNet2DModel")
STABLE_DIFFUSION_3 = Family(
    "transformer",
    (
        Reads("", layer=-2, norm=False, padded=True, name="clip_l"),
        Reads("_2", layer=-2, norm=False, padded=True, name="clip_g"),
        Reads("_3", padded=True, length=256, name="t5"),
    ),
    joint_text,
    {"steps": 28, "guidance_scale": 7.0},
    tolerates_bf16=True,
    picture=masked_picture,
    network_class="SD3Transformer2DModel",
    width=joint_width,
)
# Keyed by (_class_name in model_index.json, kind of condition).
FAMILIES: dict[tuple[str, str], Family] = {
    ("LimnerPipeline", "text"): Family("denoiser", (Reads(),), masked_text, {"steps": 20, "guidance_scale": 3.0}),
    ("LimnerPipeline", "class"): Family("denoiser", (), no_text, {"steps": 20, "guidance_scale": 3.0}),
    ("LimnerPipeline", "none"): Family("denoiser", (), no_text, {"steps": 20, "guidance_scale": 1.0}),
    # Ho et al. 2020 and Song et al. 2021, whose numbers of steps these are.
    ("DDPMPipeline", "none"): UNCONDITIONAL._replace(defaults={"steps": 1000, "guidance_scale": 1.0}),
    ("DDIMPipeline", "none"): UNCONDITIONAL,
    # 1.x and 2.x: SD 2's folders differ in their configurations alone.
    ("StableDiffusionPipeline", "text"): STABLE_DIFFUSION,
    ("StableDiffusionImg2ImgPipeline", "text"): STABLE_DIFFUSION,
    ("StableDiffusionInpaintPipeline", "text"): STABLE_DIFFUSION,
    ("StableDiffusion3Pipeline", "text"): STABLE_DIFFUSION_3,
    ("StableDiffusion3Img2ImgPipeline", "text"): STABLE_DIFFUSION_3,
    ("StableDiffusion3InpaintPipeline", "text"): STABLE_DIFFUSION_3,
}


def family(pipeline: str, condition: str) -> Family:
    """The family of a pipeline class name and a kind of condition: text, class or none."""
    names = {name for name, _ in FAMILIES}
    if pipeline not in names:
        # No nearest name: the row of another family opens none of its models.
        raise LimnerError(
            f"models of the class {pipeline!r:.60} are not supported; supported: {', '.join(sorted(names))}"
        )
    kinds = {kind: row for (name, kind), row in FAMILIES.items() if name == pipeline}
    if condition not in kinds:
        raise unknown(f"condition of a {pipeline}", condition, kinds)
    return kinds[condition]
