"""Where sampling starts: unit noise, or the noised latents of a picture, and what of it is kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from limner.canvas import Canvas, latent_mask
from limner.denoise import Denoise, keep
from limner.families import family
from limner.model import Model
from limner.nets.network import Condition
from limner.noise.draws import Draws
from limner.noise.level import Level
from limner.schedulers import Schedule


class Start(NamedTuple):
    """x at the first level, the unit noise in it, and the latents of the picture if there is one, each (B, C, H, W).

    `mask` (B, 1, H, W), bool, is True where x is repainted, None where nothing is kept. `condition` is what networks
    are told that are given a picture and its mask.
    """

    x: Tensor
    noise: Tensor
    known: Tensor | None = None
    mask: Tensor | None = None
    condition: Condition | None = None

    def keep(self, denoise: Denoise, first: Level) -> Denoise:
        """The denoiser with x0 kept where the mask is False."""
        if self.known is None or self.mask is None:
            return denoise
        return keep(denoise, self.known, self.mask, self.noise, first)

    def put_back(self, x: Tensor) -> Tensor:
        """x with the latents of the picture where the mask is False; a grid may end above sigma = 0."""
        return x if self.known is None or self.mask is None else torch.where(self.mask, x, self.known)


def start_from_noise(schedule: Schedule, draws: Draws) -> Start:
    """Text to image."""
    noise = draws.start()
    return Start(schedule.start * noise, noise)


@torch.inference_mode()
def start_from_picture(model: Model, canvas: Canvas, schedule: Schedule, strength: float, draws: Draws) -> Start:
    """The noised latents of the canvas at the first level of the schedule, which is cut to the `strength`.

    With masks and strength 1 it is unit noise, so that a mask without black is text to image. Drawn in diffusers'
    order: the posterior of the picture, the noise, the posterior of the masked picture.
    """
    pixels, area = canvas.pixels().to(model.device), canvas.mask().to(model.device)
    small = latent_mask(area, model.factor, nearest=draws.like_diffusers)
    concat, pure = bool(model.network.concat_channels), bool(canvas.masks) and strength == 1.0

    def encode(x: Tensor) -> Tensor:
        return model.encode(x, draws.posterior(len(x)))

    known = None if concat and pure else encode(pixels)
    noise = draws.start()
    condition: Condition = {}
    picture = family(model.pipeline, model.conditioner.kind).picture
    if concat and picture is not None:
        condition = picture(encode, pixels, area, small)
    elif canvas.masks:
        draws.posterior(len(pixels))  # diffusers encodes the masked picture for any network
    rows = len(noise) // len(pixels)
    condition = {name: entry.repeat_interleave(rows, dim=0) for name, entry in condition.items()}
    if known is not None:
        known = known.repeat_interleave(rows, dim=0)
    level = schedule.grid[0]
    x = schedule.start * noise if pure or known is None else level.alpha * known + level.sigma * noise
    mask = small.repeat_interleave(rows, dim=0) if canvas.masks and not concat else None
    return Start(x, noise, known, mask, condition)
