"""The interface of denoising networks: `network(x, t, **network.prepare(condition))`, in training too."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import LimnerError

# Entries are tensors (B, ...) or tuples of them; row k belongs to picture k.
Condition = Mapping[str, Any]


class Network(nn.Module):
    """x (B, C, H, W), t (B,) in [0, 1000] and the entries that `prepare` returned -> the output F (B, C, H, W)."""

    config: Any
    latent_channels: int
    """C of x and of the output."""
    multiple: int
    """H and W must be multiples of it."""
    largest: int | None = None
    """The largest H and W, if there is one."""
    concat_channels: int = 0
    """Channels of the entry "concat" of its condition: a mask and the latents of the masked picture."""
    text_width: int = 0
    """C of the text states that it takes, where an encoder of them can be left out."""

    @property
    def repeated(self) -> list[nn.Module]:
        """The modules to torch.compile one by one; identical blocks share one compilation."""
        return [self]

    def tokens(self, height: int, width: int) -> int:
        """The number of tokens of x: its patches."""
        return (height // self.multiple) * (width // self.multiple)

    def prepare(self, condition: Condition) -> Condition:
        """Compute what does not depend on x or t, once for all steps, in the network's dtype."""
        raise NotImplementedError

    def misfit(self, text_width: int, classes: int) -> str | None:
        """Why a conditioner with this text width (0 without text) and number of classes is incompatible, or None."""
        return None


def take(condition: Condition, rows: slice | Tensor) -> Condition:
    """The rows of a condition."""
    return {
        name: tuple(part[rows] for part in entry) if isinstance(entry, tuple) else entry[rows]
        for name, entry in condition.items()
    }


def cat(conditions: Sequence[Condition]) -> Condition:
    """Conditions concatenated along the batch, without padding. Raises LimnerError unless names and shapes agree."""
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
