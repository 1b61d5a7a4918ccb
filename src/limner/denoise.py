"""Denoisers `(x, level) -> x0`: a network with its condition, and guidance, clipping and inpainting that wrap one."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from limner.errors import LimnerError
from limner.noise.level import Level
from limner.noise.predict import pair, prediction

Denoise = Callable[[Tensor, Level], Tensor]
# (x (B, C, H, W), t (B,), **condition) -> F (B, C, H, W)
NetworkFunction = Callable[..., Tensor]


class Denoiser:
    """A network with its condition, as a denoiser: float32 in and out, the network evaluated in `dtype`.

    `predicts` is the prediction type of the output F (eps, sample, v, flow). x is repeated `copies` times, for a
    condition of that many rows a picture, e.g. 2 for [uncond; cond].
    """

    def __init__(
        self,
        network: NetworkFunction,
        predicts: str,
        condition: Mapping[str, Any] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        copies: int = 1,
    ) -> None:
        prediction(predicts)
        self.network, self.predicts, self.condition = network, predicts, condition or {}
        self.dtype, self.copies = dtype, copies

    def pair(self, level: Level) -> tuple[float, float]:
        """(a, b) with x0 = a*x + b*F."""
        return pair(self.predicts, level.alpha, level.sigma)

    @torch.inference_mode()
    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """x (B, C, H, W) float32 -> x0 (copies*B, C, H, W) float32."""
        x = x.repeat(self.copies, 1, 1, 1) if self.copies > 1 else x
        a, b = self.pair(level)
        t = torch.full((x.shape[0],), level.t, device=x.device, dtype=torch.float32)
        return a * x + b * self.network(x.to(self.dtype), t, **self.condition).float()


def cfg(both: Denoiser, scale: float, rescale: float = 0.0) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, equation 6) on a denoiser of [uncond; cond] (copies=2).

    Guidance on x0 equals guidance on F, since their relation is affine and the weights sum to 1. `rescale` in [0, 1]
    moves the standard deviation of the guided F towards that of the conditional one (Lin et al. 2024, equations 14 to
    16); it is not affine, so it acts on F.
    """
    if both.copies != 2:
        raise LimnerError("guidance needs a denoiser of two rows a picture: [uncond; cond]")

    def guided(x: Tensor, level: Level) -> Tensor:
        uncond, cond = both(x, level).chunk(2)
        x0 = uncond + scale * (cond - uncond)
        if not rescale:
            return x0
        a, b = both.pair(level)
        f, f_cond = (x0 - a * x) / b, (cond - a * x) / b
        dims = tuple(range(1, x.ndim))
        std = f.std(dim=dims, keepdim=True).clamp_min(torch.finfo(f.dtype).tiny)  # an untrained network may give zeros
        matched = f * (f_cond.std(dim=dims, keepdim=True) / std)
        return a * x + b * (rescale * matched + (1 - rescale) * f)

    return guided


def interval(guided: Denoise, plain: Denoise, low: float, high: float) -> Denoise:
    """`guided` where low < sigma/alpha <= high, elsewhere `plain` (Kynkaanniemi et al. 2024)."""
    return lambda x, level: (guided if low < level.rho <= high else plain)(x, level)


def clip(denoise: Denoise, bound: float) -> Denoise:
    """x0 clipped to [-bound, bound], for pixel-space models; it acts after guidance.

    Samplers derive eps from the clipped x0, as diffusers does with `use_clipped_model_output=True`.
    """
    return lambda x, level: denoise(x, level).clamp(-bound, bound)


def keep(denoise: Denoise, known: Tensor, mask: Tensor, noise: Tensor, first: Level) -> Denoise:
    """Inpainting: x0 is `known` (B, C, H, W) outside the mask (B, 1, H, W), bool, True where it is repainted.

    At every level after the `first` the denoiser sees `known` with `noise` there, whatever the sampler has made of it,
    as if it were put back after every step (Lugmayr et al. 2022, equation 8; Avrahami et al. 2023, algorithm 1).
    """

    def kept(x: Tensor, level: Level) -> Tensor:
        if level != first:
            x = torch.where(mask, x, level.alpha * known + level.sigma * noise)
        return torch.where(mask, denoise(x, level), known)

    return kept
