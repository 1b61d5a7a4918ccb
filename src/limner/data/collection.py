"""The interface of a collection of captioned pictures, and the order of an epoch."""

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Loaded(NamedTuple):
    """Pictures as tensors, with their indices, which differ from the requested ones where a picture is unreadable."""

    images: "Tensor"  # uint8 (B, C, H, W)
    indices: list[int]
    broken: list[str]  # names of unreadable pictures, each replaced by another


class Collection(Protocol):
    """A collection of captioned pictures, addressed by index."""

    name: str  # of the collection, in messages
    labels: list[int] | None
    label_names: list[str] | None

    def __len__(self) -> int: ...
    def picture_name(self, index: int) -> str: ...
    def index_at(self, position: int, seed: int) -> int: ...
    def order(self, seed: int, epoch: int) -> "np.ndarray | None":
        """The pictures of an epoch in their order; None where each is an independent draw."""
        ...

    def draw_caption(self, index: int, random: Random) -> str: ...
    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded: ...
    def fingerprint(self, index: int) -> bytes:
        """What changes with the content of a picture, found without decoding it."""
        ...

    def all_captions(self) -> list[str]: ...
    def captioned(self, caption: str) -> str:
        """The name of the first picture with one of `all_captions`."""
        ...


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> "np.ndarray":
    """The order of the `n` pictures in `epoch`: a permutation (n,), determined by the arguments. Not writeable."""
    import numpy as np

    order = np.random.default_rng([seed, 0, epoch]).permutation(n)
    order.flags.writeable = False
    return order
