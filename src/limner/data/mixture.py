"""A weighted mixture of collections."""

import bisect
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from limner.data.collection import Collection, Loaded


class Mixture:
    """Collections joined: each position draws a part by its weight, and a picture of it, with replacement."""

    labels: list[int] | None = None
    label_names: list[str] | None = None

    def __init__(self, parts: Sequence[Collection], weights: Sequence[float]) -> None:
        self.parts = list(parts)
        self.name = " and ".join(part.name for part in parts)
        self.cumulative = list(accumulate(weights))
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """(part, index within the part) of picture `index`."""
        part = bisect.bisect_right(self.ends, index)
        return part, index - (self.ends[part - 1] if part else 0)

    def picture_name(self, index: int) -> str:
        part, inner = self.locate(index)
        return self.parts[part].picture_name(inner)

    def index_at(self, position: int, seed: int) -> int:
        """The index of the picture at `position`, drawn by (seed, position) alone."""
        random = Random(seed * 2**64 + position)
        part = bisect.bisect_right(self.cumulative, random.random() * self.cumulative[-1])
        part = min(part, len(self.parts) - 1)
        return self.ends[part] - 1 - random.randrange(len(self.parts[part]))

    def order(self, seed: int, epoch: int) -> None:
        """Pictures are drawn with replacement."""

    def draw_caption(self, index: int, random: Random) -> str:
        part, inner = self.locate(index)
        return self.parts[part].draw_caption(inner, random)

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The pictures at `indices`, those of each part loaded together."""
        import torch

        loaded = Loaded(torch.empty(len(indices), channels, size, size, dtype=torch.uint8), list(indices), [])
        for number, part in enumerate(self.parts):
            rows = [row for row, index in enumerate(indices) if self.locate(index)[0] == number]
            if rows:
                images, inner, broken = part.load([self.locate(indices[row])[1] for row in rows], size, channels)
                loaded.images[rows] = images
                loaded.broken.extend(broken)
                for row, index in zip(rows, inner, strict=True):
                    loaded.indices[row] = index + self.ends[number] - len(part)
        return loaded

    def fingerprint(self, index: int) -> bytes:
        part, inner = self.locate(index)
        return self.parts[part].fingerprint(inner)

    def all_captions(self) -> list[str]:
        return [caption for part in self.parts for caption in part.all_captions()]

    def captioned(self, caption: str) -> str:
        return next(part.captioned(caption) for part in self.parts if caption in part.all_captions())
