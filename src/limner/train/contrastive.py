"""A contrastive start for a text encoder: CLIP's own training (Radford et al. 2021, figure 3), small, before the run.

A text encoder that is trained with the denoiser alone hears little but noise for long, since what the words are worth
shows only once pictures are half painted. Here it first learns which caption belongs to which picture of a batch. The
small network that looks at the pictures, or at their latents where those are painted, is thrown away after.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.data.batches import Batches
from limner.errors import LimnerError
from limner.nets.layers import conv3, masked_mean
from limner.text.clip import CLIPTextModel
from limner.train.loss import Words

BATCH = 256  # pictures, each told from all the others
RATE = 3e-3  # the highest learning rate
SIDE = 4  # of the last features, which still know what is where
LARGEST_SCALE = 100.0  # of the cosines, as CLIP has it


class PictureReader(nn.Module):
    """Pictures or latents (B, C, H, W) -> (B, D): convolutions at the full size, then halving down to 4 x 4."""

    def __init__(self, channels: int, side: int, dim: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv3(channels, width)])
        while side > SIDE:
            wider = min(2 * width, 128) if len(self.layers) > 1 else width
            self.layers.append(conv3(width, wider, stride=2))
            width, side = wider, -(-side // 2)
        self.hidden = nn.Linear(width * side * side, 2 * dim)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.silu(layer(x))
        return self.out(F.silu(self.hidden(x.flatten(1))))


class ContrastiveLoss(nn.Module):
    """Each picture against all captions of the batch and each caption against all pictures of it."""

    def __init__(self, encoder: CLIPTextModel, channels: int, side: int) -> None:
        super().__init__()
        dim = encoder.config.hidden_size
        self.encoder = encoder
        self.pictures, self.words = PictureReader(channels, side, dim), nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, x: Tensor, words: Words, indices: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W), their captions and which pictures they are (B,) -> the loss, and the share found (both 0-d).

        Two of the same picture or with the same caption are not told apart, and so are not asked about.
        """
        states = masked_mean(self.encoder(words.ids).hidden, words.mask)  # (captions, D)
        told = F.normalize(self.words(states).float(), dim=-1)[words.which]
        seen = F.normalize(self.pictures(x).float(), dim=-1)
        same = (words.which[:, None] == words.which) | (indices[:, None] == indices)
        same.fill_diagonal_(False)
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        scores = (scale * seen @ told.T).masked_fill(same, float("-inf"))  # (B, B)
        right = torch.arange(len(x), device=x.device)
        loss = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
        return loss, (scores.argmax(dim=1) == right).float().mean()


def rate(step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) as a share of the highest: a rise over a twentieth, and a half cosine."""
    return min(1.0, (step + 1) / max(1, steps // 20)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def learn_to_read(
    encoder: CLIPTextModel,
    channels: int,
    side: int,
    batches: Batches,
    ask: Callable[[dict], tuple[Tensor, Words]],
    steps: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
) -> None:
    """Give `encoder` what `steps` batches teach it.

    `ask` makes of a batch what is painted, (B, channels, side, side), and its words. Of several processes each does all
    of it, with the same draws. Raises LimnerError where a gradient is not a number.
    """
    pupil = copy.deepcopy(encoder).requires_grad_(True)
    loss_of = ContrastiveLoss(pupil, channels, side).to(device).train()
    optimizer = torch.optim.AdamW(loss_of.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    for step in range(1, steps + 1):
        batch = batches.batch(step - 1)
        with autocast():  # anew for each step: within one, torch keeps the weights it has once cast
            loss, found = loss_of(*ask(batch), batch["indices"].to(device))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(loss_of.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise LimnerError(
                f"the text encoder's contrastive start has a gradient of norm {norm.item()} at step {step}: "
                "try another --seed or --precision no, or leave it out (--text.contrastive 0)"
            )
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        if step == steps or step % 100 == 0:
            say(f"reading, step {step} of {steps}: loss {loss.item():.3f}, {found.item():.0%} of captions found")
    encoder.load_state_dict(pupil.state_dict())
