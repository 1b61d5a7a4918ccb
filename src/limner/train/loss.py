"""The loss: noise pictures to random times, ask the network what it predicts, compare."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.network import Network
from limner.noise.grids import towards_noise
from limner.noise.paths import Path
from limner.noise.predict import prediction
from limner.text.conditioner import Conditioner


def _normal(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))


# Training times (B,) of a path for u (B,) uniform in [0, 1), shifted towards noise.
TIME_LAWS: dict[str, Callable[[Path, Tensor, float], Tensor]] = {
    "uniform": lambda path, u, shift: path.times(towards_noise(u, shift)),
    # Esser et al. 2024, equation 19.
    "logit_normal": lambda path, u, shift: path.times(towards_noise(torch.sigmoid(_normal(u)), shift)),
    # log(sigma/alpha) is normal with mean -1.2 and deviation 1.2 (Karras et al. 2022, table 1); a shift multiplies.
    "log_normal": lambda path, u, shift: path.times_at(shift * torch.exp(1.2 * _normal(u) - 1.2)),
}
Encode = Callable[[Sequence[str | None]], list[Any]]


class DiffusionLoss(nn.Module):
    """A network and its conditioner, and the loss they are trained by; one module, so that DDP sees one forward.

    `encode` stands for the conditioner's where encoded prompts are kept (`Cached`).
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
    ) -> None:
        super().__init__()
        self.network, self.conditioner = network, conditioner
        self.path, self.predicts, self.time_law = path, prediction(predicts), times
        self.shift, self.encode = shift, encode or conditioner.encode

    def forward(self, x0: Tensor, generator: torch.Generator, prompts: Sequence[str | None]) -> Tensor:
        """x0 (B, C, H, W) in [-1, 1] and its prompts -> the mean squared error of each picture (B,), float32.

        `generator` is a CPU generator: times and noise are the same on every device.
        """
        u = torch.rand(len(x0), generator=generator)
        t = TIME_LAWS[self.time_law](self.path, u, self.shift).to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        alpha, sigma = (c[:, None, None, None] for c in self.path.coefficients(t))
        f0, f1 = self.predicts.target(alpha, sigma)
        condition = self.network.prepare(self.conditioner.combine(self.encode(prompts)))
        output = self.network(alpha * x0 + sigma * eps, t, **condition)
        return (output.float() - (f0 * x0 + f1 * eps)).square().mean(dim=(1, 2, 3))


class Cached:
    """A frozen conditioner's `encode`, each distinct prompt once; the last `size` of them are kept."""

    def __init__(self, conditioner: Conditioner, size: int = 4096, at_once: int = 64) -> None:
        self.conditioner, self.size, self.at_once = conditioner, size, at_once
        self.kept: dict[str, Any] = {}

    def __call__(self, prompts: Sequence[str | None]) -> list[Any]:
        learned = self.conditioner.null is not None  # a null that learns is encoded anew
        missing = [p for p in dict.fromkeys(p or "" for p in prompts) if p not in self.kept and (p or not learned)]
        with torch.no_grad():
            for start in range(0, len(missing), self.at_once):
                some = missing[start : start + self.at_once]
                self.kept |= zip(some, self.conditioner.encode(some), strict=True)
        null = self.conditioner.encode([""])[0] if learned and not all(prompts) else None
        encoded = [self.kept.get(prompt or "", null) for prompt in prompts]
        for prompt in list(self.kept)[: max(0, len(self.kept) - self.size)]:
            del self.kept[prompt]
        return encoded


def check_finite(loss: Tensor, norm: Tensor, module: nn.Module, step: int) -> None:
    """Raises LimnerError where the gradient's norm is not a number, naming the first tensor that is not.

    A loss that is not a number makes the norm one; so one look at the norm, before the optimiser moves, is enough.
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
