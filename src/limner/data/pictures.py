"""Collections of pictures: what training asks of them, those that are decoded from files, and mixtures."""

import bisect
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, NamedTuple, Protocol

from limner.errors import LimnerError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from limner.data.sources import _Column


class Item(NamedTuple):
    image: "Image"  # PIL, mode L or RGB
    captions: Sequence[str]
    label: int | None
    index: int  # type: ignore[assignment]


class BrokenPicture(LimnerError):
    """A picture that cannot be decoded."""


class Loaded(NamedTuple):
    """Pictures as tensors, and which they turned out to be."""

    images: "Tensor"  # uint8 (B, C, H, W)
    indices: list[int]
    broken: list[str]  # names of unreadable pictures, for each of which another stands in


class Collection(Protocol):
    """What a training run asks of its pictures."""

    where: str  # what to call the whole in a message
    labels: list[int] | None
    label_names: list[str] | None

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def order(self, position: int, seed: int) -> int: ...
    def say(self, index: int, random: Random) -> str: ...
    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded: ...
    def all_captions(self) -> list[str]: ...


@dataclass(eq=False, repr=False)
class Pictures:
    """A map-style data set of pictures, decoded when asked for."""

    images: "Sequence[dict] | _Column"  # {"bytes": the file's content or None, "path": the file or None}
    where: str  # what to call the whole in a message
    captions: list[list[str]] | None = None  # one or more for each picture; None: training without text
    labels: list[int] | None = None
    label_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        captions = self.captions[index] if self.captions else ("",)
        return Item(self.image(index), captions, self.labels[index] if self.labels else None, index)

    def order(self, position: int, seed: int) -> int:
        """Which picture stands at `position` of all epochs laid end to end, each epoch in an order of its own."""
        n = len(self)
        return int(epoch_order(n, seed, position // n)[position % n])

    def say(self, index: int, random: Random) -> str:
        """A caption of the picture at `index`, drawn; "" where there are none."""
        return random.choice(self.captions[index]) if self.captions else ""

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The pictures at `indices`; where one is unreadable the next good one stands in."""
        import torch

        loaded = Loaded(torch.empty(len(indices), channels, size, size, dtype=torch.uint8), list(indices), [])
        for row, index in enumerate(indices):
            loaded.indices[row], image = self._good(index, loaded.broken)
            loaded.images[row] = to_tensor(image, size, channels)
        return loaded

    def _good(self, index: int, broken: list[str], tries: int = 100) -> tuple[int, "Image"]:
        """The picture at `index`, or the next one that can be read; the names of the others go to `broken`."""
        n = len(self)
        for candidate in range(index, index + min(n, tries)):
            try:
                return candidate % n, self.image(candidate % n)
            except BrokenPicture as error:
                broken.append(self.name(candidate % n))
                last = error
        raise LimnerError(f"{min(n, tries)} pictures in a row cannot be read; the last: {last}")

    def image(self, index: int) -> "Image":
        """The picture, in mode L or RGB, upright, on white where it is transparent. BrokenPicture if unreadable."""
        from PIL.Image import DecompressionBombError

        entry = self.images[index]
        try:
            return _decode(entry)
        except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, DecompressionBombError) as error:
            raise BrokenPicture(f"{self.name(index)} cannot be read as a picture: {error}") from error

    def name(self, index: int) -> str:
        """What to call a picture in a message: its file, or its row."""
        entry = self.images[index] or {}
        return f"{self.where}, row {index}" if entry.get("bytes") or not entry.get("path") else str(entry["path"])

    def all_captions(self) -> list[str]:
        """Every distinct caption, in order of first appearance: what a tokenizer is trained on."""
        lists = {id(captions): captions for captions in self.captions or []}  # a label's pictures share one list
        return list(dict.fromkeys(caption for captions in lists.values() for caption in captions))


def _decode(entry: dict | None) -> "Image":
    import numpy as np
    from PIL import Image, ImageOps

    source = entry and (entry["bytes"] or entry["path"])
    if not source:
        raise ValueError("the row has no picture")
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip them to 255
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


class Mixture:
    """Several collections in one, the share of each drawn by its weight, pictures at random with replacement."""

    labels: list[int] | None = None
    label_names: list[str] | None = None

    def __init__(self, parts: Sequence[Collection], weights: Sequence[float]) -> None:
        self.parts = list(parts)
        self.where = " and ".join(part.where for part in parts)
        self.heaps = list(accumulate(weights))  # cumulative
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def at(self, index: int) -> tuple[int, int]:
        """Which part picture `index` is of, and its index there."""
        part = bisect.bisect_right(self.ends, index)
        return part, index - (self.ends[part - 1] if part else 0)

    def name(self, index: int) -> str:
        part, inner = self.at(index)
        return self.parts[part].name(inner)

    def order(self, position: int, seed: int) -> int:
        """The picture at `position`: its part and its place there are drawn anew for each position."""
        random = Random(seed * 2**64 + position)
        part = min(bisect.bisect_right(self.heaps, random.random() * self.heaps[-1]), len(self.parts) - 1)
        return self.ends[part] - 1 - random.randrange(len(self.parts[part]))

    def say(self, index: int, random: Random) -> str:
        part, inner = self.at(index)
        return self.parts[part].say(inner, random)

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The pictures at `indices`, each part's read together."""
        import torch

        loaded = Loaded(torch.empty(len(indices), channels, size, size, dtype=torch.uint8), list(indices), [])
        for number, part in enumerate(self.parts):
            rows = [row for row, index in enumerate(indices) if self.at(index)[0] == number]
            if rows:
                images, inner, broken = part.load([self.at(indices[row])[1] for row in rows], size, channels)
                loaded.images[rows] = images
                loaded.broken.extend(broken)
                for row, index in zip(rows, inner, strict=True):
                    loaded.indices[row] = index + self.ends[number] - len(part)
        return loaded

    def all_captions(self) -> list[str]:
        return [caption for part in self.parts for caption in part.all_captions()]


def to_tensor(image: "Image", size: int, channels: int) -> "Tensor":
    """`image` as a uint8 tensor (channels, size, size); channels is 1 (grey) or 3 (RGB).

    The largest centred square is resized (Lanczos, antialiased); a picture that has the size is left as it is.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise LimnerError(f"pictures have 1 channel (grey) or 3 (RGB), not {channels}")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).view(size, size, channels).permute(2, 0, 1).contiguous()  # (C, H, W)


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> "np.ndarray":
    """The order of the `n` pictures in `epoch`: a permutation (n,), the same for the same arguments. Read only."""
    import numpy as np

    order = np.random.default_rng([seed, 0, epoch]).permutation(n)
    order.flags.writeable = False
    return order
