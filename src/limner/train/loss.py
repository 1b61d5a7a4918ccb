"""The loss: noise pictures to random times, ask the network what it predicts, compare."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.dit import DiT
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
        self, denoiser: DiT, text_encoder: CLIPTextModel | None, path: Path, predicts: str, times: str = "uniform"
    ) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = denoiser, text_encoder
        self.path, self.predicts, self.time_law = path, prediction(predicts), times

    def forward(
        self, x0: Tensor, generator: torch.Generator, labels: Tensor | None = None, words: Words | None = None
    ) -> Tensor:
        """x0 (B, C, H, W) in [-1, 1] -> the mean squared error of each picture (B,), float32.

        `generator` is a CPU generator: times and noise are the same on every device.
        """
        u = torch.rand(len(x0), generator=generator)
        if self.time_law == "logit_normal":
            u = torch.sigmoid(torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))
        t = self.path.times(u).to(x0.device)
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


def check_finite(loss: Tensor, module: nn.Module, step: int) -> None:
    """Raises LimnerError on a loss that is not a number, naming the first tensor that is not."""
    if bool(torch.isfinite(loss).all()):
        return
    guilty = next((name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())), None)
    where = f"the weights {guilty} are not finite" if guilty else "the weights are finite, so it arose in this step"
    raise LimnerError(
        f"the loss is {loss.detach().mean().item()} at step {step}: {where}. Resume from the last checkpoint with a "
        f"lower --lr, a smaller --clip or without mixed precision"
    )
