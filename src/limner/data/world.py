"""The captioned world as a collection: pictures are rendered when loaded, deterministically by the seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image

from limner.data.collection import Loaded
from limner.errors import LimnerError, unknown
from limner.files import write_atomically
from limner.world import ENDLESS, KINDS, Scene, caption_at, draw_caption, pictures_at, scene_at

LUMA = (0.299, 0.587, 0.114)


class World:
    """A collection of `count` pictures; picture k depends on (seed, k) alone.

    No picture shows a held-out composition (`limner.world.held_out`). `kind` is one of `limner.world.KINDS`,
    or None for all.
    """

    labels: list[int] | None = None
    label_names: list[str] | None = None

    def __init__(self, count: int = ENDLESS, seed: int = 0, kind: str | None = None) -> None:
        if kind is not None and kind not in KINDS:
            raise unknown("kind of world", kind, KINDS)
        if count < 1 or seed < 0:
            raise LimnerError(f"a world needs at least one picture and a seed from 0, not {count} and {seed}")
        self.count, self.seed, self.kind = count, seed, kind
        self.name = "the captioned world" + (f" ({kind})" if kind else "")

    def __len__(self) -> int:
        return self.count

    def picture_name(self, index: int) -> str:
        """The name of a picture in messages."""
        return f"picture {index} of {self.name}"

    def index_at(self, position: int, seed: int) -> int:
        """In order, since the pictures are independent random draws."""
        return position % self.count

    def order(self, seed: int, epoch: int) -> None:
        """Pictures are independent random draws."""

    def scene(self, index: int) -> Scene:
        """The complete scene of picture `index`."""
        return scene_at(self.seed, index, self.kind)

    def draw_caption(self, index: int, random: Random) -> str:
        """A caption of picture `index`."""
        return draw_caption(self.scene(index), random)

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The pictures at `indices`, rendered in one batch."""
        import torch

        pictures = pictures_at(self.seed, indices, size, self.kind)
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # (B, 3, H, W)
        if channels == 1:  # ITU-R 601 luma, as Pillow converts
            images = torch.tensordot(torch.tensor(LUMA), images.float(), ([0], [1]))[:, None].round().to(torch.uint8)
        return Loaded(images.contiguous(), list(indices), [])

    def fingerprint(self, index: int) -> bytes:
        return f"{self.name}|{self.seed}|{index}".encode()

    def captioned(self, caption: str) -> str:
        return self.name

    def all_captions(self) -> list[str]:
        """A caption of each of the first 4000 pictures, to train a tokenizer on."""
        return [caption_at(self.seed, index, self.kind) for index in range(min(self.count, 4000))]


def write_folder(folder: Path, count: int, size: int, seed: int) -> None:
    """Write `count` PNG pictures and metadata.jsonl (file_name, text), an imagefolder of `datasets`."""
    if folder.exists() and any(folder.iterdir()):
        raise LimnerError(f"{folder} is not empty; choose another --out")
    World(count, seed)  # validates both
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for start in range(0, count, 100):
        indices = range(start, min(count, start + 100))
        for index, picture in zip(indices, pictures_at(seed, indices, size), strict=True):
            name = f"{index:07d}.png"
            Image.fromarray(picture).save(folder / name)
            rows.append(json.dumps({"file_name": name, "text": caption_at(seed, index)}))
    write_atomically(folder / "metadata.jsonl", lambda path: path.write_text("\n".join(rows) + "\n", "utf-8"))
