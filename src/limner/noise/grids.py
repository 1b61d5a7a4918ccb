"""Grids: the N+1 noise levels at which a sampler evaluates, from noise to data."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from limner.errors import LimnerError, unknown
from limner.noise.level import Level
from limner.noise.paths import Path

CLEAN = Level(0.0, 1.0, 0.0)
Rounding = Literal["nearest", "down"] | None
Grid = list[Level]


def spaced(
    steps: int, spacing: str, *, length: int = 1000, offset: int = 0, endpoint: bool = True, integer: bool = True
) -> list[float]:
    """N timesteps, descending, of a table with `length` entries (Lin et al. 2024, table 2); the last entry for N = 1.

    `endpoint` False takes N+1 points and drops the last, as DPM-Solver++ and UniPC do for "linspace" and "leading".
    `integer` rounds "linspace" to whole timesteps.
    """
    points = steps if endpoint else steps + 1
    if not 1 <= steps <= length:
        raise LimnerError(f"steps must be from 1 to {length}, not {steps}")
    if spacing == "linspace":
        even = np.linspace(0, length - 1, points)[::-1]
        times = even.round().tolist() if integer else even.astype(np.float32).tolist()
    elif spacing == "leading":
        times = ((np.arange(points) * (length // points))[::-1] + offset).tolist()
    elif spacing == "trailing":
        times = (np.arange(length, 0, -length / steps).round() - 1).tolist()
    else:
        raise unknown("timestep spacing", spacing, ["linspace", "leading", "trailing"])
    # A single step has to start from noise, which "leading", and "linspace" rounded up to t = 0, would not.
    times = [float(t) for t in times[:steps]] if steps > 1 else [length - 1.0]
    if max(times) > length - 1 or len(set(times)) < steps:
        raise LimnerError(
            f"{steps} steps with {spacing} spacing do not fit a table of {length} levels; take fewer steps"
        )
    return times


def karras(steps: int, low: float, high: float) -> list[float]:
    """N noise ratios, evenly spaced in their 7th root, from high to low (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(high ** (1 / 7), low ** (1 / 7), steps)
    return [float(rho) for rho in ramp**7]


def exponential(steps: int, low: float, high: float) -> list[float]:
    """N noise ratios, evenly spaced in their logarithm, from high to low."""
    return [float(rho) for rho in np.exp(np.linspace(math.log(high), math.log(low), steps))]


def shifted(steps: int, shift: float = 1.0, low: float = 1 / 1000, high: float = 1.0) -> list[float]:
    """N flow sigmas evenly spaced from high to low, then shifted (Esser et al. 2024, equation 23)."""
    return [shift_sigma(s, shift) for s in np.linspace(high, low, steps).tolist()]


def shift_sigma(sigma: Any, shift: float) -> Any:
    """Timestep shift of a flow sigma, or of an array of them (Esser et al. 2024, equation 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def at_times(path: Path, times: Iterable[float], final: Level = CLEAN) -> Grid:
    """The levels at these times, and `final`."""
    return [*(path.level(t) for t in times), final]


def at_ratios(path: Path, ratios: Iterable[float], final: Level = CLEAN, rounding: Rounding = None) -> Grid:
    """The levels with these noise ratios sigma/alpha, and `final`.

    Rounding changes only the timestep given to the network; alpha and sigma stay exact.
    """
    return [*(round_timestep(path.level_at(rho), rounding) for rho in ratios), final]


def round_timestep(level: Level, rounding: Rounding) -> Level:
    """The level with an integer timestep, as schedulers that index a table of timesteps use."""
    if rounding is None:
        return level
    return level._replace(t=float(np.round(level.t) if rounding == "nearest" else math.floor(level.t)))
