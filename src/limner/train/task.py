"""The interface between the training loop and a task: trained modules, data, loss and result."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from limner.data.collection import Collection

if TYPE_CHECKING:
    from PIL.Image import Image


class Result(Protocol):
    """The finished model of a run."""

    def save(self, folder: Path) -> None: ...


class Task(Protocol):
    """A training task. Its constructor is cheap; slow work (encoding a cache) belongs in `dataset`, called once."""

    parts: nn.ModuleDict
    """The trained modules, by their folder in a checkpoint."""
    to_compile: list[nn.Module]
    """The modules to compile, each by itself."""

    @property
    def loss(self) -> nn.Module:
        """loss(*inputs) -> the loss of each picture (B,). One module with all `parts`, since DDP wraps one forward."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups, each with "scale", a multiplier of the learning rate."""
        ...

    def dataset(self, pictures: Collection, device: torch.device, log: Callable[[str], None]) -> Collection:
        """The collection that batches are drawn from: the pictures, or a cache of their latents."""
        ...

    def inputs(self, batch: dict[str, Any], generator: torch.Generator, device: torch.device) -> tuple:
        """The arguments of the loss for a batch (see `Batches.batch`); random draws come from `generator`."""
        ...

    def build_result(self, average: Any, device: torch.device) -> Result:
        """The result, built on `average`, the averaged copy of `parts`, and sharing its weights."""
        ...

    def sheet(self, result: Any) -> "Image | None":
        """A sheet of sample pictures."""
        ...

    def measure(self, result: Any) -> dict[str, float]:
        """Validation metrics by name."""
        ...
