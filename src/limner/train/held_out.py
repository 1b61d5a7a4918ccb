"""Pictures held out of training, and their loss."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import numpy as np
from torch import nn

from limner.data.batches import Batches
from limner.data.collection import Collection, Loaded, epoch_order
from limner.errors import LimnerError
from limner.train.recipe import Run


class Subset:
    """The pictures at `indices` of a collection, which keep their indices."""

    def __init__(self, pictures: Collection, indices: Sequence[int]) -> None:
        self.pictures, self.indices = pictures, np.asarray(indices)
        self.name, self.labels, self.label_names = pictures.name, pictures.labels, pictures.label_names

    def __len__(self) -> int:
        return len(self.indices)

    def picture_name(self, index: int) -> str:
        return self.pictures.picture_name(index)

    def index_at(self, position: int, seed: int) -> int:
        n = len(self)
        return int(self.order(seed, position // n)[position % n])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return self.indices[epoch_order(len(self), seed, epoch)]

    def draw_caption(self, index: int, random: Random) -> str:
        return self.pictures.draw_caption(index, random)

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The pictures at `indices`; one that is unreadable is replaced by the next of the whole collection."""
        return self.pictures.load(indices, size, channels)

    def fingerprint(self, index: int) -> bytes:
        return self.pictures.fingerprint(index)

    def all_captions(self) -> list[str]:
        return self.pictures.all_captions()

    def captioned(self, caption: str) -> str:
        return self.pictures.captioned(caption)


def split(pictures: Collection, count: int, seed: int) -> tuple[Collection, Subset | None]:
    """The pictures to train on, and `count` others drawn by the seed; all and None for 0."""
    if not count:
        return pictures, None
    if pictures.order(seed, 0) is None:
        raise LimnerError(f"--held-out {count}: {pictures.name} draws each picture anew, so that none can be kept out")
    if count >= len(pictures):
        raise LimnerError(
            f"--held-out {count} leaves nothing to train on: {pictures.name} has {len(pictures)} pictures"
        )
    chosen = set(Random(seed).sample(range(len(pictures)), count))
    rest = [index for index in range(len(pictures)) if index not in chosen]
    return Subset(pictures, rest), Subset(pictures, sorted(chosen))


@contextmanager
def averaged(trained: nn.Module, average: nn.Module) -> Iterator[None]:
    """The averaged weights in place of the trained ones."""
    pairs = list(zip(trained.parameters(), average.parameters(), strict=True))

    def swap() -> None:
        for ours, theirs in pairs:
            ours.data, theirs.data = theirs.data, ours.data

    swap()
    try:
        yield
    finally:
        swap()


def held_out_batches(pictures: Subset, recipe: Run) -> Iterator[dict[str, Any]]:
    """The pictures in batches of equal size, the same at every call; the last is filled up with pictures again."""
    steps = -(-len(pictures) // recipe.batch_size)
    batches = Batches(pictures, -(-len(pictures) // steps), recipe.size, recipe.channels, recipe.seed)
    return map(batches.batch, range(steps))
