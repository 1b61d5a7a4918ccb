"""Probability paths: from a timestep t in [0, 1000] to its noise level and back."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from limner.errors import LimnerError, unknown
from limner.noise.level import Level


class Path(Protocol):
    """A probability path from data to noise.

    `kappa` selects the coordinates in which Heun averages slopes: 0 for `x/alpha` against rho, whose slope is
    eps; 1 for `x/(alpha+sigma)` against sigma/(alpha+sigma), whose slope is eps - x0.
    """

    kappa: int

    def level(self, t: float) -> Level:
        """The level at time t."""
        ...

    def level_at(self, rho: float) -> Level:
        """The level whose sigma/alpha is rho (`inf` for pure noise, if the path reaches it)."""
        ...

    def times(self, u: Tensor) -> Tensor:
        """Training times for u (B,) uniform in [0, 1): (B,) in [0, 1000]."""
        ...

    def times_at(self, rho: Tensor) -> Tensor:
        """Training times at which sigma/alpha is nearest to rho (B,): (B,) in [0, 1000]."""
        ...

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), float32 (B,), at training times t (B,)."""
        ...


class Discrete:
    """T variance-preserving noise levels from betas: `alpha^2 = cumprod(1 - beta)` (Ho et al. 2020, equation 4).

    The cumulative product is float32, as the published models were trained with it; the rest is float64.
    """

    kappa = 0

    def __init__(self, betas: Tensor) -> None:
        """betas (T,) in (0, 1]; raises LimnerError for others."""
        if betas.ndim != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise LimnerError("betas must be a list of numbers in (0, 1]")
        self.betas = betas.float()
        self._tabulate(torch.cumprod(1.0 - self.betas, dim=0))

    def _tabulate(self, alphas_bar: Tensor) -> None:
        self.alphas_bar = alphas_bar
        exact = alphas_bar.double().numpy()
        self.alpha, self.sigma = np.sqrt(exact), np.sqrt(1.0 - exact)
        # float32: diffusers interpolates fractional timesteps in a float32 table.
        self.rho = (((1 - alphas_bar) / alphas_bar) ** 0.5).numpy()

    def clamp_terminal_snr(self) -> None:
        """Set the last alpha-bar to 2^-24, as diffusers' sigma-based solvers do for a zero terminal SNR."""
        self._tabulate(torch.cat([self.alphas_bar[:-1], torch.tensor([2.0**-24])]))

    @property
    def steps(self) -> int:
        """T, the number of levels in the table."""
        return len(self.alpha)

    def level(self, t: float) -> Level:
        if not 0 <= t <= self.steps - 1:
            raise LimnerError(f"time {t} is outside the path's table 0..{self.steps - 1}")
        if t == int(t):
            return Level(float(t), float(self.alpha[int(t)]), float(self.sigma[int(t)]))
        return from_rho(float(t), self.rho_at(t))

    def rho_at(self, t: float) -> float:
        """sigma/alpha at time t, linearly interpolated in sigma/alpha as k-diffusion and diffusers do."""
        return float(np.interp(t, np.arange(self.steps), self.rho))

    def level_at(self, rho: float) -> Level:
        """The level at rho, its t interpolated linearly in log rho (k-diffusion's `sigma_to_t`)."""
        if math.isinf(rho) and math.isinf(self.rho[-1]):
            return self.level(self.steps - 1)
        log_rho = np.log(self.rho[np.isfinite(self.rho)])
        log_target = math.log(max(rho, 1e-10))
        i = int(np.searchsorted(log_rho, log_target, side="right").clip(1, len(log_rho) - 1))
        low, high = log_rho[i - 1], log_rho[i]
        t = i - 1 + min(max((log_target - float(low)) / float(high - low), 0.0), 1.0)
        return from_rho(t, rho)

    def times(self, u: Tensor) -> Tensor:
        return (u * self.steps).floor().clamp(max=self.steps - 1)

    def times_at(self, rho: Tensor) -> Tensor:
        table = torch.from_numpy(self.rho).log()
        between = (table[1:] + table[:-1]) / 2
        return torch.searchsorted(between, rho.float().log()).float()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (torch.as_tensor(a, dtype=torch.float32, device=t.device) for a in (self.alpha, self.sigma))
        return alpha[t.long()], sigma[t.long()]


class Flow:
    """The linear (rectified-flow) path `alpha = 1 - t/1000, sigma = t/1000` (Lipman et al. 2023; Liu et al. 2023)."""

    kappa = 1

    def level(self, t: float) -> Level:
        if not 0 <= t <= 1000:
            raise LimnerError(f"time {t} is outside the flow path's 0..1000")
        return Level(float(t), 1.0 - t / 1000.0, t / 1000.0)

    def level_at(self, rho: float) -> Level:
        sigma = rho / (1.0 + rho) if math.isfinite(rho) else 1.0
        return Level(1000.0 * sigma, 1.0 - sigma, sigma)

    def times(self, u: Tensor) -> Tensor:
        return 1000.0 * u

    def times_at(self, rho: Tensor) -> Tensor:
        return 1000.0 * rho / (1.0 + rho)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = t.float() / 1000.0
        return 1.0 - sigma, sigma


def from_rho(t: float, rho: float) -> Level:
    """The variance-preserving level (alpha^2 + sigma^2 = 1) with noise ratio rho and timestep t."""
    if math.isinf(rho):
        return Level(t, 0.0, 1.0)
    alpha = 1.0 / math.sqrt(1.0 + rho * rho)
    return Level(t, alpha, rho * alpha)


def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Discrete:
    """Betas evenly spaced (Ho et al. 2020, section 4)."""
    return Discrete(torch.linspace(start, end, steps, dtype=torch.float32))


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Discrete:
    """Square roots of betas evenly spaced: Stable Diffusion's (Rombach et al. 2022)."""
    return Discrete(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2)


def cosine(steps: int = 1000, max_beta: float = 0.999) -> Discrete:
    """alpha-bar follows a squared cosine (Nichol & Dhariwal 2021, equation 17)."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta) for i in range(steps)]
    return Discrete(torch.tensor(betas, dtype=torch.float32))


def zero_terminal_snr(path: Discrete) -> Discrete:
    """Betas rescaled to a zero terminal SNR, the first level unchanged (Lin et al. 2024, algorithm 1)."""
    alpha = torch.cumprod(1.0 - path.betas, dim=0).sqrt()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    bar = alpha**2
    return Discrete(1 - torch.cat([bar[:1], bar[1:] / bar[:-1]]))


PATHS: dict[str, Callable[[], Path]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "flow": Flow,
}


def path(name: str) -> Path:
    """The path called `name`, with its default parameters."""
    if name not in PATHS:
        raise unknown("path", name, PATHS)
    return PATHS[name]()
