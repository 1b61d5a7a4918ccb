"""What the training loop asks of a task: what is trained, on what, by which loss, and what comes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from limner.data.collection import Collection

if TYPE_CHECKING:
    from PIL.Image import Image


class Result(Protocol):
    """What a run makes: a folder of weights."""

    def save(self, folder: Path) -> None: ...


class Task(Protocol):
    """A task is cheap to make. What takes long (encoding a cache) happens in `dataset`, which the loop calls once."""

    parts: nn.ModuleDict
    """The trained modules, by the folder of a checkpoint that each is saved in."""
    to_compile: list[nn.Module]
    """The modules that torch.compile compiles, one by one."""

    @property
    def loss(self) -> nn.Module:
        """Calls `parts`: loss(*inputs) -> the loss of each picture (B,). One module, so that DDP sees one forward."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups; "scale" multiplies the learning rate."""
        ...

    def dataset(self, pictures: Collection, device: torch.device, log: Callable[[str], None]) -> Collection:
        """What the batches are made of."""
        ...

    def inputs(self, batch: dict[str, Any], generator: torch.Generator, device: torch.device) -> tuple:
        """The arguments of the loss for a batch; `generator` draws what is random in it."""
        ...

    def build_result(self, average: Any, device: torch.device) -> Result:
        """The result of the run, sharing the averaged weights (a copy of `parts`)."""
        ...

    def sheet(self, result: Any) -> "Image | None":
        """Pictures that show how far the run is."""
        ...

    def measure(self, result: Any) -> dict[str, float]:
        """Numbers that tell how far the run is, by name."""
        ...
