"""The denoising loss: pictures are noised to random times, and the network's output is regressed on its target."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.network import Network
from limner.noise.grids import shift_sigma
from limner.noise.paths import Path
from limner.noise.predict import prediction
from limner.text.conditioner import Conditioner

MODE_SCALE = 1.29  # as in Esser et al. 2024, table 1
MIN_SIGMA = 0.05  # of the velocity's denominator (Li & He 2025)


def _normal(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))


def _mode(u: Tensor) -> Tensor:
    """Esser et al. 2024, equation 20: times concentrated at the middle of the path."""
    return (1 - u - MODE_SCALE * (torch.cos(math.pi / 2 * u).square() - 1 + u)).clamp(0, 1)


# Distributions of training times: u (B,) uniform in [0, 1) -> times (B,) of a path, shifted towards noise.
TIME_DISTRIBUTIONS: dict[str, Callable[[Path, Tensor, float], Tensor]] = {
    "uniform": lambda path, u, shift: path.times(shift_sigma(u, shift)),
    # Esser et al. 2024, equation 19.
    "logit_normal": lambda path, u, shift: path.times(shift_sigma(torch.sigmoid(_normal(u)), shift)),
    "mode": lambda path, u, shift: path.times(shift_sigma(_mode(u), shift)),
    # log(sigma/alpha) ~ N(-1.2, 1.2^2) (Karras et al. 2022, table 1); a shift multiplies sigma/alpha.
    "log_normal": lambda path, u, shift: path.times_at(shift * torch.exp(1.2 * _normal(u) - 1.2)),
}
Encode = Callable[[Sequence[str | None]], list[Any]]
Weight = Callable[[Tensor, Tensor], Tensor]  # of the squared error of x0 at (alpha, sigma), which are (B, 1, 1, 1)


def velocity_weight(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The flow path's velocity v = eps - x0 = (x - x0) / sigma, so ||v' - v||^2 = ||x0' - x0||^2 / sigma^2 for the v'
    that follows from a predicted x0' (Li & He 2025)."""
    return sigma.clamp(min=MIN_SIGMA) ** -2


def min_snr_weight(gamma: float) -> Weight:
    """min(SNR, gamma), SNR = alpha^2 / sigma^2 (Hang et al. 2023, section 3.4)."""
    return lambda alpha, sigma: (alpha / sigma).square().clamp(max=gamma)


def loss_weight(loss: str, snr_gamma: float | None) -> Weight | None:
    """The weight of a recipe's `loss` and `snr_gamma`; None for the plain error of the prediction."""
    if snr_gamma is not None:
        return min_snr_weight(snr_gamma)
    return velocity_weight if loss == "velocity" else None


class DiffusionLoss(nn.Module):
    """A network, its conditioner and their training loss: one module, since DDP wraps one forward.

    `encode` replaces conditioner.encode, e.g. by `Cached`. `weight` is that of the error of x0, which is b times the
    error of the output F, as x0 = a*x + b*F: the loss is weight * b^2 * ||F' - F||^2. Without it, ||F' - F||^2.
    """

    def __init__(
        self,
        network: Network,
        conditioner: Conditioner,
        path: Path,
        predicts: str,
        times: str = "uniform",
        shift: float = 1.0,
        encode: Encode | None = None,
        weight: Weight | None = None,
    ) -> None:
        super().__init__()
        self.network, self.conditioner = network, conditioner
        self.path, self.predicts, self.times = path, prediction(predicts), times
        self.shift, self.encode, self.weight = shift, encode or conditioner.encode, weight

    def forward(self, x0: Tensor, generator: torch.Generator, prompts: Sequence[str | None]) -> Tensor:
        """x0 (B, C, H, W) and its prompts -> the mean squared error of each picture (B,), weighted, float32.

        `generator` is a CPU generator, so that times and noise are the same on every device.
        """
        u = torch.rand(len(x0), generator=generator)
        t = TIME_DISTRIBUTIONS[self.times](self.path, u, self.shift).to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        alpha, sigma = (c[:, None, None, None] for c in self.path.coefficients(t))
        f0, f1 = self.predicts.target(alpha, sigma)
        condition = self.network.prepare(self.conditioner.combine(self.encode(prompts)))
        output = self.network(alpha * x0 + sigma * eps, t, **condition)
        error = (output.float() - (f0 * x0 + f1 * eps)).square()
        if self.weight is not None:
            _, b = self.predicts.pair(alpha, sigma)
            error = self.weight(alpha, sigma) * b**2 * error
        return error.mean(dim=(1, 2, 3))


class Cached:
    """`encode` of a frozen conditioner with a cache of the last `size` distinct prompts."""

    def __init__(self, conditioner: Conditioner, size: int = 4096, batch_size: int = 64) -> None:
        self.conditioner, self.size, self.batch_size = conditioner, size, batch_size
        self.cache: dict[str, Any] = {}

    def __call__(self, prompts: Sequence[str | None]) -> list[Any]:
        learned = self.conditioner.null is not None  # a learned null changes at each step
        missing = [p for p in dict.fromkeys(p or "" for p in prompts) if p not in self.cache and (p or not learned)]
        with torch.no_grad():
            for start in range(0, len(missing), self.batch_size):
                chunk = missing[start : start + self.batch_size]
                self.cache |= zip(chunk, self.conditioner.encode(chunk), strict=True)
        null = self.conditioner.encode([""])[0] if learned and not all(prompts) else None
        encoded = [self.cache.get(prompt or "", null) for prompt in prompts]
        for prompt in list(self.cache)[: max(0, len(self.cache) - self.size)]:
            del self.cache[prompt]
        return encoded


def check_finite(loss: Tensor, norm: Tensor, module: nn.Module, step: int) -> None:
    """LimnerError where the gradient's norm is not finite, naming the first tensor that is not.

    A loss that is not finite makes the norm so: one check before the optimiser's step suffices.
    """
    if bool(torch.isfinite(norm)):
        return

    def first(kind: str) -> str | None:
        tensors = ((n, p if kind == "weights" else p.grad) for n, p in module.named_parameters())
        return next((n for n, t in tensors if t is not None and not bool(torch.isfinite(t).all())), None)

    culprit = next((f"the {kind} of {first(kind)}" for kind in ("weights", "gradients") if first(kind)), "nothing else")
    raise LimnerError(
        f"the loss is {loss.detach().item():.4g} and the gradient's norm {norm.item()} at step {step}; not finite: "
        f"{culprit}. Resume from the last checkpoint with a lower --lr, a smaller --clip or without mixed precision"
    )
