"""What a request is told about its noise levels: steps, guidance or a picture that would have no effect."""

import warnings
from collections.abc import Sequence

from limner.errors import LimnerError, LimnerWarning
from limner.noise.grids import Grid

WASTED = 0.05  # a step that starts with less of the first noise is hardly seen


def warn_wasted(grid: Grid) -> None:
    """Warn where the second of two steps starts so close to the data that it changes next to nothing."""
    if len(grid) == 3 and grid[1].sigma < WASTED * grid[0].sigma:
        _warn(
            f"the second of these 2 steps starts at a noise of {grid[1].sigma:.2g} and changes next to nothing; take 1 "
            "step, or more than 2"
        )


def warn_noise_alone(grid: Grid, strength: float) -> None:
    """Warn where a picture is started from at a level that holds nothing of it, though the strength is below 1."""
    if 0 < strength < 1 and not grid[0].alpha:
        _warn(
            f"strength {strength:g} of {len(grid) - 1} steps starts from noise alone, without the picture; take more "
            "steps or less strength"
        )


def warn_unguided(prompts: Sequence[str], negative: str | None, asked: float | None) -> None:
    """Warn where guidance from the negative prompt to the prompts leaves the prompts, or itself, without effect."""
    if asked == 0:
        _warn("with guidance 0 the prompt has no effect, only the negative one; 1 is the plain model")
    elif any(prompt == (negative or "") for prompt in prompts) and (negative or asked is not None):
        _warn("guidance has no effect where the negative prompt is the prompt")


def check_interval(interval: tuple[float, float] | None, grid: Grid) -> None:
    """Raises LimnerError for a guidance interval that holds none of the levels."""
    ratios = [level.rho for level in grid[:-1]]
    if interval is not None and ratios and not any(interval[0] < rho <= interval[1] for rho in ratios):
        raise LimnerError(
            f"guidance between {interval[0]:g} and {interval[1]:g} acts at none of the {len(ratios)} steps, whose "
            f"noise-to-signal ratios are from {min(ratios):.3g} to {max(ratios):.3g}"
        )


def _warn(message: str) -> None:
    warnings.warn(message, LimnerWarning, stacklevel=5)
