"""Batches: from pictures to tensors, addressed by step.

`Batches` keeps no state, so that a resumed run, and a run split over several processes, see exactly the pictures,
captions and flips of the run that was never interrupted.
"""

import sys
from dataclasses import dataclass
from random import Random

from limner.data import captions as words
from limner.data.collection import Collection
from limner.errors import LimnerError


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a training run, by step: a map-style data set without state.

    Step k takes the positions k*batch_size to (k+1)*batch_size of the concatenated epochs. Of several processes,
    process `rank` of `world` gets its share of each batch, and the shares together are the batch of one process. With
    prefetch: `DataLoader(batches, batch_size=None, sampler=range(start, stop), num_workers=2)`.
    """

    pictures: Collection
    batch_size: int  # over all processes
    size: int
    channels: int
    seed: int = 0
    flip: bool = False  # turn half of the pictures left to right
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        size, world = self.batch_size, self.world
        if size < 1 or size % world:
            raise LimnerError(f"a batch of {size} cannot be shared by {world} processes: take a multiple of {world}")
        if self.seed < 0:
            raise LimnerError(f"the seed of the data order is {self.seed}; expected 0 or more")

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> dict:
        return self.batch(step)

    def batch(self, step: int) -> dict:
        """The batch of `step`, B = batch_size / world pictures of it:

        images uint8 (B, C, H, W) · captions: list of B str, one drawn for each picture, "" without captions ·
        labels int64 (B,) or None · indices int64 (B,) · broken: names of unreadable pictures, for each of which the
        next readable one of the data set stands in.
        """
        import numpy as np
        import torch

        share = self.batch_size // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        draws = np.random.default_rng([self.seed, 1, step]).random((2, self.batch_size))[:, mine]
        first = step * self.batch_size + mine.start
        indices = [self.pictures.index_at(position, self.seed) for position in range(first, first + share)]
        images, indices, broken = self.pictures.load(indices, self.size, self.channels)
        if self.flip:
            turned = torch.from_numpy(draws[1] < 0.5)
            images[turned] = images[turned].flip(-1)
        labels = self.pictures.labels
        return {
            "images": images,
            "captions": [
                self.pictures.draw_caption(index, Random(u)) for index, u in zip(indices, draws[0], strict=True)
            ],
            "labels": None if labels is None else torch.tensor([labels[index] for index in indices]),
            "indices": torch.tensor(indices),
            "broken": broken,
        }


class BrokenCount:
    """Counts the unreadable pictures of a run over `total` pictures, and stops it when they are too many."""

    def __init__(self, total: int, max_broken: float) -> None:
        self.total, self.max_broken = total, max_broken
        self.seen, self.names = 0, dict[str, None]()

    def add(self, batch: dict) -> None:
        """Count `batch`. LimnerError when more than the share `max_broken` of the pictures seen are broken.

        At least 1000 pictures, or all where there are fewer, are the measure, so that early bad luck stops nothing.
        """
        self.seen += len(batch["indices"])
        self.names.update(dict.fromkeys(batch["broken"]))
        measure = min(self.total, max(self.seen, 1000))
        if len(self.names) > self.max_broken * measure:
            many = f"{len(self.names)} pictures cannot be read, more than the share {self.max_broken:g}"
            raise LimnerError(f"{many} that --data.max-broken allows: {words.few(self.names)}")
