"""The world as training data: any number of pictures, each drawn when it is asked for, the same for the same seed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from limner.data.collection import Loaded
from limner.errors import LimnerError, unknown
from limner.files import write_atomically
from limner.world.grammar import caption
from limner.world.scene import KINDS, Scene, partial, random_held_out, random_scene

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

ENDLESS = 2**40  # pictures in a world of no stated size
LUMA = (0.299, 0.587, 0.114)
# How much a caption says of what may be left open. Mostly all, as what is not said can only be guessed (Betker et al.
# 2023 train on 95% long captions): with a sixth of the backgrounds unsaid a small denoiser had no idea of places after
# 47,000 pictures; with all of them said it got 97% right.
SHARES = (0.5, *[1.0] * 15)
ASKED = (0.5, 1.0, 1.0)  # the same of the prompts that are graded


class World:
    """A map-style data set of `count` pictures; picture k is drawn from (seed, k) alone.

    No picture shows what `scene.held_out` names. `kind` is one of scene.KINDS, or None for all of them.
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

    def __getitem__(self, index: int) -> tuple["Image", str, Scene]:
        """The picture at 64x64, one caption and the scene of `index`."""
        index = range(self.count)[index]  # IndexError beyond the end, so that a loop over the world ends
        return self.image(index), self.draw_caption(index, self._random(index, 2)), self.scene(index)

    def _random(self, index: int, stream: int) -> Random:
        return Random((self.seed * 4 + stream) * ENDLESS + index)

    def scene(self, index: int) -> Scene:
        """The whole scene of picture `index`."""
        return random_scene(self._random(index, 0), self.kind)

    def draw_caption(self, index: int, random: Random) -> str:
        """One of the many captions of picture `index`, which says some of what it shows."""
        return caption(partial(self.scene(index), random, random.choice(SHARES)), random)

    def index_at(self, position: int, seed: int) -> int:
        """Each picture is drawn at random, so they come as they are."""
        return position % self.count

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The pictures at `indices`, drawn together at this size."""
        import torch

        images = torch.from_numpy(self.render(indices, size)).permute(0, 3, 1, 2)  # (B, 3, H, W)
        if channels == 1:  # ITU-R 601 luma, as Pillow converts
            images = torch.tensordot(torch.tensor(LUMA), images.float(), ([0], [1]))[:, None].round().to(torch.uint8)
        return Loaded(images.contiguous(), list(indices), [])

    def render(self, indices: Sequence[int], size: int) -> "np.ndarray":
        """The pictures, uint8 (B, size, size, 3)."""
        from limner.world.render import draw, layout

        return draw([layout(self.scene(index), self._random(index, 1)) for index in indices], size)

    def image(self, index: int, size: int = 64) -> "Image":
        """Picture `index` for the eye."""
        from PIL import Image

        return Image.fromarray(self.render([index], size)[0])

    def picture_name(self, index: int) -> str:
        """What to call a picture in a message."""
        return f"picture {index} of {self.name}"

    def all_captions(self) -> list[str]:
        """What a tokenizer is trained on: captions of the first pictures, enough to hold every word many times."""
        return [self.draw_caption(index, self._random(index, 2)) for index in range(min(self.count, 4000))]


def prompts(kind: str, count: int, held_out: bool, seed: int = 0) -> list[str]:
    """Fresh prompts of one kind (scene.KINDS), for grading: of one object all is said but the background, which half
    of the prompts name; of others what may be left open is said in five of six."""
    random = Random(f"{kind} {held_out} {seed}")
    make = random_held_out if held_out else random_scene
    asked = []
    for _ in range(count):
        scene = make(random, kind)
        if kind == "one":
            scene = replace(scene, background=random.choice((scene.background, None)))
        asked.append(caption(scene if kind == "one" else partial(scene, random, random.choice(ASKED)), random))
    return asked


def write_folder(folder: Path, count: int, size: int, seed: int) -> None:
    """Write `count` PNG pictures and metadata.jsonl (file_name, text), as `datasets` imagefolder reads them."""
    from PIL import Image

    if folder.exists() and any(folder.iterdir()):
        raise LimnerError(f"{folder} is not empty; choose another --out")
    world = World(count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for start in range(0, count, 100):
        indices = range(start, min(count, start + 100))
        for index, picture in zip(indices, world.render(indices, size), strict=True):
            name = f"{index:07d}.png"
            Image.fromarray(picture).save(folder / name)
            rows.append(json.dumps({"file_name": name, "text": world.draw_caption(index, world._random(index, 2))}))
    write_atomically(folder / "metadata.jsonl", lambda path: path.write_text("\n".join(rows) + "\n", "utf-8"))
