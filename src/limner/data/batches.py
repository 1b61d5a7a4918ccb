"""Batches of pictures and captions as tensors, indexed by step.

`Batches` has no state, so that a resumed run, or one on several processes, gets exactly the pictures, captions and
flips of an uninterrupted run on one.
"""

import sys
from dataclasses import dataclass
from random import Random

from limner.data.captions import few
from limner.data.collection import Collection
from limner.errors import LimnerError

VALIDATION_STEP = 2**20  # beyond any run on the world; of finite data its batch is of training pictures


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a training run: a map-style dataset indexed by step.

    Step k has the positions k*batch_size to (k+1)*batch_size of the concatenated epochs, of which process `rank` of
    `world` gets its slice. With prefetching:
    `DataLoader(batches, batch_size=None, sampler=range(start, stop), num_workers=2)`.
    """

    pictures: Collection
    batch_size: int  # over all processes
    size: int
    channels: int
    seed: int = 0
    flip: bool = False  # mirror half of the pictures
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
        """The batch of `step`, B = batch_size / world:

        images uint8 (B, C, H, W) · captions: list of B str, drawn at random of each picture's, "" without captions ·
        labels int64 (B,) or None · indices int64 (B,) · broken: names of unreadable pictures, each replaced by
        the next readable one.
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
            flipped = torch.from_numpy(draws[1] < 0.5)
            images[flipped] = images[flipped].flip(-1)
        labels = self.pictures.labels
        return {
            "images": images,
            "captions": [self.pictures.draw_caption(k, Random(u)) for k, u in zip(indices, draws[0], strict=True)],
            "labels": None if labels is None else torch.tensor([labels[index] for index in indices]),
            "indices": torch.tensor(indices),
            "broken": broken,
        }


def resumed_epoch(
    pictures: Collection, step: int, before: tuple[int, int] | None, now: tuple[int, int], steps: int | None = None
) -> tuple[int, int]:
    """How many pictures of the current epoch are not shown, and how many twice, by a run that goes on at `step`.

    `before` and `now` are (batch_size, seed); `before` is None where the pictures were others. The current epoch is the
    one that was begun before; at the end of one, that in which the run goes on. With `steps`, what is after them is not
    shown. (0, 0) where the pictures have no epochs.
    """
    import numpy as np

    n, (size, seed) = len(pictures), now
    if pictures.order(seed, 0) is None:
        return 0, 0
    first, done = step * size, step * before[0] if before is not None else 0
    epoch = (done if done % n else first) // n

    def order(seed: int, begin: int, end: int) -> np.ndarray:
        """The pictures of the epoch between two positions of the concatenated epochs."""
        shuffled = pictures.order(seed, epoch)
        assert shuffled is not None
        return shuffled[max(0, begin - epoch * n) : max(0, end - epoch * n)]

    shown = order(seed if before is None else before[1], 0, done)
    coming = order(seed, first, (epoch + 1) * n if steps is None else steps * size)
    return n - len(np.union1d(shown, coming)), len(np.intersect1d(shown, coming))


class BrokenCount:
    """Counts the unreadable pictures of a run over `total` pictures."""

    def __init__(self, total: int, max_broken: float) -> None:
        self.total, self.max_broken = total, max_broken
        self.count, self.names = 0, dict[str, None]()

    def add(self, batch: dict) -> None:
        """Count `batch`. LimnerError where more than the share `max_broken` of the pictures so far are unreadable,
        of at least 1000 or all, so that few early ones do not stop a run."""
        self.count += len(batch["indices"])
        self.names.update(dict.fromkeys(batch["broken"]))
        base = min(self.total, max(self.count, 1000))
        if len(self.names) > self.max_broken * base:
            many = f"{len(self.names)} pictures cannot be read, more than the share {self.max_broken:g}"
            raise LimnerError(f"{many} that --data.max-broken allows: {few(self.names)}")
