"""The loss: noise pictures to random times, ask the network what it predicts, compare."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.dit import DiT
from limner.noise.grids import towards_noise
from limner.noise.paths import Path
from limner.noise.predict import prediction
from limner.text.clip import CLIPTextModel


class Words(NamedTuple):
    """The distinct captions of a batch and which picture has which, so that each is encoded once."""

    ids: Tensor  # (C, L) token ids, or frozen states (C, L, D)
    mask: Tensor  # (C, L)
    which: Tensor  # (B,) rows of `ids`


class DiffusionLoss(nn.Module):
    """Everything that is trained, and the loss it is trained by; one module, so that wrappers see one forward."""

    def __init__(
        self,
        denoiser: DiT,
        text_encoder: CLIPTextModel | None,
        path: Path,
        predicts: str,
        times: str = "uniform",
        shift: float = 1.0,
    ) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = denoiser, text_encoder
        self.path, self.predicts, self.time_law = path, prediction(predicts), times
        self.shift = shift

    def forward(
        self, x0: Tensor, generator: torch.Generator, labels: Tensor | None = None, words: Words | None = None
    ) -> Tensor:
        """x0 (B, C, H, W) in [-1, 1] -> the mean squared error of each picture (B,), float32.

        `generator` is a CPU generator: times and noise are the same on every device.
        """
        u = torch.rand(len(x0), generator=generator)
        if self.time_law == "logit_normal":
            u = torch.sigmoid(torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))
        t = self.path.times(towards_noise(u, self.shift)).to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        alpha, sigma = (c[:, None, None, None] for c in self.path.coefficients(t))
        f0, f1 = self.predicts.target(alpha, sigma)
        target = f0 * x0 + f1 * eps
        text = None
        if words is not None:
            states = words.ids if self.text_encoder is None else self.text_encoder(words.ids).hidden
            text = self.denoiser.read(states[words.which], words.mask[words.which])
        output = self.denoiser(alpha * x0 + sigma * eps, t, labels, text)
        return (output.float() - target).square().mean(dim=(1, 2, 3))


def check_finite(loss: Tensor, norm: Tensor, module: nn.Module, step: int) -> None:
    """Raises LimnerError where the gradient's norm is not a number, naming the first tensor that is not.

    A loss that is not a number makes the norm one; so one look at the norm, before the optimiser moves, is enough.
    """
    if bool(torch.isfinite(norm)):
        return

    def first(kind: str) -> str | None:
        tensors = ((n, p if kind == "weights" else p.grad) for n, p in module.named_parameters())
        return next((n for n, t in tensors if t is not None and not bool(torch.isfinite(t).all())), None)

    guilty = next((f"the {kind} of {first(kind)}" for kind in ("weights", "gradients") if first(kind)), "nothing else")
    raise LimnerError(
        f"the loss is {loss.detach().item():.4g} and the gradient's norm {norm.item()} at step {step}; not finite: "
        f"{guilty}. Resume from the last checkpoint with a lower --lr, a smaller --clip or without mixed precision"
    )
