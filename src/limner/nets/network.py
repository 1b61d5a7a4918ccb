"""What every denoising network is: called as `network(x, t, **network.prepare(condition))`, in training too."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import LimnerError

# Row k of every entry belongs to picture k: tensors (B, ...), or tuples of them.
Condition = Mapping[str, Any]


class Network(nn.Module):
    """x (B, C, H, W), t (B,) in [0, 1000] and what `prepare` gave -> the network's output F (B, C, H, W)."""

    config: Any
    latent_channels: int
    """C of what is painted."""
    multiple: int
    """H and W must divide by it."""
    embeds_guidance: bool = False
    """Whether the guidance scale is an input of the network (Meng et al. 2023), instead of two evaluations."""

    @property
    def repeated(self) -> list[nn.Module]:
        """The blocks that torch.compile compiles one by one: they are alike, so that one compilation serves all."""
        return [self]

    def prepare(self, condition: Condition) -> Condition:
        """What all steps of a picture share, in the network's dtype: keys and values of the text, projections."""
        raise NotImplementedError

    def misfit(self, text_width: int, classes: int) -> str | None:
        """What is wrong with a conditioner whose states have this width (0: no text) and that knows so many classes."""
        return None

    def tokens(self, height: int, width: int) -> int:
        """Length of the sequence for a picture of this height and width, for shifts that depend on it."""
        return height * width // self.multiple**2


def take(condition: Condition, rows: slice | Tensor) -> Condition:
    """The rows of a condition."""
    return {
        name: tuple(part[rows] for part in entry) if isinstance(entry, tuple) else entry[rows]
        for name, entry in condition.items()
    }


def cat(conditions: Sequence[Condition]) -> Condition:
    """The conditions one below the other; LimnerError unless their names and shapes agree. Nothing is padded."""
    if len({tuple(sorted(condition)) for condition in conditions}) != 1:
        raise LimnerError(f"conditions of other names cannot be joined: {[sorted(c) for c in conditions]}")

    def join(*entries: Any) -> Any:
        if isinstance(entries[0], tuple):
            return tuple(join(*parts) for parts in zip(*entries, strict=True))
        shapes = {tuple(entry.shape[1:]) for entry in entries}
        if len(shapes) != 1:
            raise LimnerError(f"conditions of other shapes cannot be joined: {sorted(shapes)}")
        return torch.cat(entries)

    return {name: join(*(condition[name] for condition in conditions)) for name in conditions[0]}
