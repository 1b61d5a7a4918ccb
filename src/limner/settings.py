"""Sampling settings shared by the command line and the pipeline."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limner.checks import as_bool, as_number, as_text, as_whole
from limner.errors import LimnerError, unknown


@dataclass(frozen=True)
class Settings:
    """Sampling settings; None means the model's default."""

    steps: int | None = None
    """Sampling steps."""
    guidance_scale: float | None = None
    """1 is the plain model; more follows the prompt more closely."""
    guidance_rescale: float = 0.0
    """From 0 to 1: how far the guided output's contrast is brought back to the plain one's."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only between these two noise-to-signal ratios sigma/alpha."""
    sampler: str | None = None
    """ddpm, ddim, pndm, euler, euler_a, heun, dpmpp_2m, dpmpp_2m_sde or unipc."""
    schedule: str | None = None
    """normal, karras or exponential."""
    eta: float | None = None
    """Share of fresh noise in each step: 0 none, 1 as much as DDPM."""
    shift: float | None = None
    """Flow models: more than 1 spends more steps at high noise."""
    strength: float | None = None
    """With a picture: the share of the steps that run on it, from 0 (unchanged) to 1; 0.8, or 1 with a mask."""
    extend: str | None = None
    """Pixels to add to the picture's sides, such as left=128,top=64."""
    feather: int | None = None
    """Pixels over which a kept area fades into the repainted one; 0, or for an extension half its overlap."""
    paste: bool = True
    """Paste the kept pixels of the picture into the result."""
    variation_seed: int | None = None
    """Seed of another picture, towards which the noise is turned; variation k has variation_seed + k."""
    variation_strength: float | None = None
    """How far: 0 is the picture of the seed, 1 that of the variation seed."""
    width: int | None = None
    height: int | None = None
    rng: Literal["keyed", "torch"] = "keyed"
    """keyed: a picture depends on its own seed alone; torch: diffusers' CPU generator, one for the batch."""
    truncate: bool = False
    """Cut a prompt that is too long instead of refusing it."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Settings":
        """The settings of these keywords. Raises LimnerError for a name that is none."""
        wrong = sorted(options.keys() - cls.__dataclass_fields__.keys())
        if wrong:
            raise unknown("setting", wrong[0], cls.__dataclass_fields__)
        return cls(**options)

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            object.__setattr__(self, name, default if value is None else check(name, value))  # of any library's type
        for name in ("guidance_rescale", "eta", "strength", "variation_strength"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise LimnerError(f"{name} must be from 0 to 1, not {value:g}")
        for name in ("guidance_scale", "shift"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise LimnerError(f"{name} must be finite, not {value:g}")
        if self.guidance_scale is not None and self.guidance_scale < 0:
            raise LimnerError(f"guidance_scale must be at least 0, not {self.guidance_scale:g}")
        if self.variation_seed is not None and not 0 <= self.variation_seed < 2**64:
            raise LimnerError(f"variation_seed {self.variation_seed} must be a whole number from 0 to 2^64 - 1")
        if self.guidance_interval is not None and not self.guidance_interval[0] < self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise LimnerError(f"guidance between {low:g} and {high:g} is nowhere: give the lower ratio first")
        if self.feather is not None and self.feather < 0:
            raise LimnerError(f"feather must be at least 0 pixels, not {self.feather}")
        if (self.variation_seed is None) != (self.variation_strength is None):
            raise LimnerError("a variation needs both: a variation seed and a variation strength from 0 to 1")


def _interval(name: str, value: Any) -> tuple[float, float]:
    """Two numbers."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise LimnerError(f"{name} must be two numbers, not {value!r:.60}")
    return as_number(name, value[0]), as_number(name, value[1])


WHOLE = ("steps", "feather", "variation_seed", "width", "height")
NUMBERS = ("guidance_scale", "guidance_rescale", "eta", "shift", "strength", "variation_strength")
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(WHOLE, as_whole),
    **dict.fromkeys(NUMBERS, as_number),
    **dict.fromkeys(("sampler", "schedule", "extend", "rng"), as_text),
    **dict.fromkeys(("paste", "truncate"), as_bool),
    "guidance_interval": _interval,
}
