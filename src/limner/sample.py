"""Samplers: generators that yield `(x, x0)` after every step, all built on one update rule, `step`.

A sampler is a pure function of (denoise, x, grid, draw): `denoise(x, level)` returns x0, `grid` is a list of N+1
levels from noise to data, `draw(i)` returns the unit noise of step i.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from limner.errors import LimnerError
from limner.noise.level import Level

Denoise = Callable[[Tensor, Level], Tensor]
Draw = Callable[[int], Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]


class Sampler(Protocol):
    """The signature of all samplers; deterministic ones ignore `draw` and `eta`, all but heun and pndm `kappa`."""

    def __call__(
        self, denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 1.0
    ) -> Steps: ...


def step(x: Tensor, x0: Tensor, s: Level, t: Level, std: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """x at level s -> x at level t, given x0, with fresh noise of deviation `std` (Song et al. 2021, equation 12).

    Coefficients are python floats, so float64.
    """
    down = math.sqrt(max(t.sigma**2 - std**2, 0.0))
    x = down / s.sigma * x + (t.alpha - s.alpha * down / s.sigma) * x0
    return x + std * noise if std and noise is not None else x


def posterior_std(s: Level, t: Level) -> float:
    """The standard deviation of q(x_t | x_s, x0), DDPM's "fixed_small" variance (Ho et al. 2020, equation 7)."""
    if not t.sigma:
        return 0.0
    return t.sigma * math.sqrt(max(0.0, 1.0 - (t.sigma * s.alpha) ** 2 / (s.sigma * t.alpha) ** 2))


def ddim(denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 0.0) -> Steps:
    """eta 0: DDIM, Euler, flow Euler, DPM-Solver++(1). eta 1: DDPM, Euler-ancestral, SDE-DPM++(1)."""
    for i, (s, t) in enumerate(pairwise(grid)):
        x0 = denoise(x, s)
        std = eta * posterior_std(s, t)
        x = step(x, x0, s, t, std, draw(i) if std else None)
        yield x, x0


def euler(denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 0.0) -> Steps:
    """Euler's method (Karras et al. 2022, algorithm 1 without churn), deterministic whatever `eta`."""
    return ddim(denoise, x, grid, draw, eta=0.0)


def ancestral(
    denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 1.0
) -> Steps:
    """Ancestral sampling: the full posterior noise at eta 1 (Ho et al. 2020, algorithm 2)."""
    return ddim(denoise, x, grid, draw, eta=eta)


def _scale(level: Level, kappa: int) -> float:
    """The factor between x and its coordinate x/scale, in which Heun and PLMS integrate along sigma/scale."""
    return level.alpha + kappa * level.sigma


def _slope(x: Tensor, x0: Tensor, level: Level, kappa: int) -> Tensor:
    """d(x/scale) / d(sigma/scale) = eps - kappa*x0."""
    return (x - level.alpha * x0) / level.sigma - kappa * x0


def _along(x: Tensor, slope: Tensor, s: Level, t: Level, kappa: int) -> Tensor:
    """x at level s -> x at level t along a constant slope."""
    run = t.sigma / _scale(t, kappa) - s.sigma / _scale(s, kappa)
    return _scale(t, kappa) * (x / _scale(s, kappa) + run * slope)


def heun(denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 0.0) -> Steps:
    """Heun's second-order method, two evaluations a step, one in the last (Karras et al. 2022, algorithm 1).

    The average of two slopes depends on the coordinates; the path's `kappa` selects them.
    """
    for s, t in pairwise(grid):
        x0 = denoise(x, s)
        if not t.sigma or not _scale(s, kappa):
            x = step(x, x0, s, t)
        else:
            ahead = step(x, x0, s, t)
            mean = (_slope(x, x0, s, kappa) + _slope(ahead, denoise(ahead, t), t, kappa)) / 2
            x = _along(x, mean, s, t, kappa)
        yield x, x0


# Weights of the last slopes, the newest first: Adams-Bashforth of order 1 to 4.
PLMS_WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def pndm(denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 0.0) -> Steps:
    """PLMS, the pseudo linear multistep of PNDM (Liu et al. 2022, equation 12): N+1 evaluations in N > 1 steps.

    The first step is Heun's, whose slope ahead is not kept, instead of Runge-Kutta's (`skip_prk_steps` of diffusers).
    The slopes are those of Heun's method, eps for kappa 0; diffusers combines outputs, for v another method.
    """
    slopes: list[Tensor] = []  # at the last four levels, the newest first
    for i, (s, t) in enumerate(pairwise(grid)):
        x0 = denoise(x, s)
        if not _scale(s, kappa):
            x = step(x, x0, s, t)
        else:
            slopes = [_slope(x, x0, s, kappa), *slopes[:3]]
            weights = PLMS_WEIGHTS[len(slopes) - 1]
            mean = sum((w * slope for w, slope in zip(weights, slopes, strict=True)), x.new_zeros(()))
            if len(slopes) == 1 and i + 2 < len(grid):  # nothing is evaluated at the last level
                ahead = step(x, x0, s, t)
                mean = (mean + _slope(ahead, denoise(ahead, t), t, kappa)) / 2
            x = _along(x, mean, s, t, kappa)
        yield x, x0


def _extrapolated(x0: Tensor, previous: Tensor | None, r: Level | None, s: Level, t: Level) -> Tensor:
    """x0 extrapolated in lambda to the middle of the step s -> t (Lu et al. 2023, algorithm 2), if that is finite."""
    if previous is None or r is None:
        return x0
    h, h_previous = t.lam - s.lam, s.lam - r.lam
    if not (math.isfinite(h) and math.isfinite(h_previous)):
        return x0
    return x0 + h / (2 * h_previous) * (x0 - previous)


def dpmpp_2m(
    denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 0.0
) -> Steps:
    """DPM-Solver++(2M), with eta 1 its SDE variant (Lu et al. 2023, algorithm 2).

    The first step and, where the grid ends at sigma = 0, the last one are of first order.
    """
    previous, r = None, None
    for i, (s, t) in enumerate(pairwise(grid)):
        x0 = denoise(x, s)
        std = eta * posterior_std(s, t)
        x = step(x, _extrapolated(x0, previous, r, s, t), s, t, std, draw(i) if std else None)
        previous, r = x0, s
        yield x, x0


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 1.0
) -> Steps:
    """SDE-DPM-Solver++(2M) (Lu et al. 2023, section 5)."""
    return dpmpp_2m(denoise, x, grid, draw, eta=eta)


def _corrected(new: Tensor, x0: Tensor, previous: Tensor | None, q: Level | None, r: Level, s: Level) -> Tensor:
    """UniC-2 with B(h) = expm1(-h): the corrected x0 of the step r -> s (Zhao et al. 2023, theorem 3.1).

    `new` is x0 at s, `x0` at r, `previous` at q, the level before r.
    """
    if previous is None or q is None or not math.isfinite(r.lam - q.lam):
        return (x0 + new) / 2
    hh = r.lam - s.lam
    ratio = (q.lam - r.lam) / (s.lam - r.lam)
    phi1 = math.expm1(hh)
    phi2 = phi1 / hh - 1.0
    phi3 = phi2 / hh - 0.5
    b1, b2 = phi2 / phi1, 2.0 * phi3 / phi1
    c_previous = (b1 - b2) / (1.0 - ratio)  # solves c_previous + c_new = b1, ratio*c_previous + c_new = b2
    return x0 + c_previous / ratio * (previous - x0) + (b1 - c_previous) * (new - x0)


def unipc(denoise: Denoise, x: Tensor, grid: Sequence[Level], draw: Draw, *, kappa: int = 0, eta: float = 0.0) -> Steps:
    """UniPC of order 2 (Zhao et al. 2023): UniP-2 equals the step of 2M; UniC repeats the last step, corrected."""
    x0s: list[Tensor] = []  # x0 at the last two levels, the newer last
    start = x
    for i, (s, t) in enumerate(pairwise(grid)):
        new = denoise(x, s)
        if i and math.isfinite(s.lam - grid[i - 1].lam):
            previous, q = (x0s[-2], grid[i - 2]) if i > 1 else (None, None)
            x = step(start, _corrected(new, x0s[-1], previous, q, grid[i - 1], s), grid[i - 1], s)
        start = x
        x = step(x, _extrapolated(new, x0s[-1] if i else None, grid[i - 1] if i else None, s, t), s, t)
        x0s = [*x0s[-1:], new]
        yield x, new


def check_grid(grid: Sequence[Level]) -> None:
    """Raises LimnerError unless the grid has two levels or more and sigma/alpha falls strictly.

    The last two may be equal, as where a table's first level is the final one, too; then the last step is the identity.
    """
    if len(grid) < 2:
        raise LimnerError("a grid needs at least two levels")
    for i, (s, t) in enumerate(pairwise(grid)):
        stays = i + 2 == len(grid) and 0 < s.rho < math.inf and math.isclose(s.rho, t.rho, rel_tol=1e-6)
        if not (s.rho > t.rho or stays):
            raise LimnerError(f"a grid must fall from noise to data, but sigma/alpha goes from {s.rho:g} to {t.rho:g}")
