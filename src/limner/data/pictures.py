"""Collections of encoded pictures (PNG, JPEG ...), decoded to tensors when loaded."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from limner.data.collection import Loaded, epoch_order
from limner.errors import BrokenPicture, LimnerError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor


@dataclass(eq=False, repr=False)
class Pictures:
    """A collection of encoded pictures, decoded by `load`."""

    images: Sequence[dict | None]  # {"bytes": the file's content or None, "path": the file or None}
    name: str  # of the collection, in messages
    captions: list[list[str]] | None = None  # one or more for each picture; None: training without text
    labels: list[int] | None = None
    label_names: list[str] | None = None
    pad: int = 0
    """Black pixels on each side of a picture, within the size that it is loaded at."""

    def __len__(self) -> int:
        return len(self.images)

    def index_at(self, position: int, seed: int) -> int:
        """The index of the picture at `position` of the concatenated epochs, each in its own `epoch_order`."""
        n = len(self)
        return int(epoch_order(n, seed, position // n)[position % n])

    def order(self, seed: int, epoch: int) -> "np.ndarray":
        return epoch_order(len(self), seed, epoch)

    def draw_caption(self, index: int, random: Random) -> str:
        """A caption of the picture at `index`, drawn at random; "" where there are none."""
        return random.choice(self.captions[index]) if self.captions else ""

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The pictures at `indices`; an unreadable one is replaced by the next readable."""
        import torch

        if size <= 2 * self.pad:
            raise LimnerError(f"--data.pad {self.pad} leaves nothing of pictures with a side of {size}")
        loaded = Loaded(torch.zeros(len(indices), channels, size, size, dtype=torch.uint8), list(indices), [])
        inner = slice(self.pad, size - self.pad)
        for row, index in enumerate(indices):
            loaded.indices[row], image = self._readable(index, loaded.broken)
            loaded.images[row, :, inner, inner] = to_tensor(image, size - 2 * self.pad, channels)
        return loaded

    def _readable(self, index: int, broken: list[str], tries: int = 100) -> tuple[int, "Image"]:
        """The picture at `index` or the next readable one; names of unreadable ones are appended to `broken`."""
        n = len(self)
        for candidate in range(index, index + min(n, tries)):
            try:
                return candidate % n, self.image(candidate % n)
            except BrokenPicture as error:
                broken.append(self.picture_name(candidate % n))
                last = error
        raise LimnerError(f"{min(n, tries)} pictures in a row cannot be read; the last: {last}")

    def image(self, index: int) -> "Image":
        """The picture in mode L or RGB, as `read_image` gives it. BrokenPicture if unreadable."""
        from limner.images import read_image

        entry = self.images[index] or {}
        source = entry.get("bytes") or entry.get("path")
        if not source:
            raise BrokenPicture(f"{self.picture_name(index)} cannot be read as a picture: the row has no picture")
        return read_image(source, self.picture_name(index))

    def picture_name(self, index: int) -> str:
        """The name of a picture in messages: its file, or its row."""
        entry = self.images[index] or {}
        return f"{self.name}, row {index}" if entry.get("bytes") or not entry.get("path") else str(entry["path"])

    def fingerprint(self, index: int) -> bytes:
        """The SHA-256 of bytes; path, size and time of change (ns) of a file, path alone where it is absent."""
        entry = self.images[index] or {}
        if entry.get("bytes"):
            return hashlib.sha256(entry["bytes"]).digest()
        path = str(entry.get("path") or "")
        try:
            stat = os.stat(path)
        except (OSError, ValueError):
            return os.fsencode(path)
        return os.fsencode(f"{path}|{stat.st_size}|{stat.st_mtime_ns}")

    def all_captions(self) -> list[str]:
        """Every distinct caption in order of first appearance, to train a tokenizer on."""
        lists = {id(captions): captions for captions in self.captions or []}  # pictures of one label share a list
        return list(dict.fromkeys(caption for captions in lists.values() for caption in captions))

    def captioned(self, caption: str) -> str:
        return next(self.picture_name(row) for row, held in enumerate(self.captions or []) if caption in held)


def to_tensor(image: "Image", size: int, channels: int) -> "Tensor":
    """`image` as a uint8 tensor (channels, size, size); channels is 1 (grey) or 3 (RGB).

    The largest centred square is resized (Lanczos, antialiased); a picture of that size is unchanged.
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
