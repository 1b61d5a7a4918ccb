"""The sampling trajectory as pictures: x and the predicted x0 along the steps."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from limner.model import Model
from limner.picture import labelled_sheet, save, save_animation, to_pictures
from limner.pipeline import Progress

KINDS = {"sheet": (".path.png", 8), "apng": (".apng", 50)}  # the suffix of the file, and the most steps that it shows


class Frame(NamedTuple):
    """x and x0 of each picture of the batch after step `step` of `steps`, decoded."""

    step: int
    steps: int
    x: list[Image]
    x0: list[Image]

    @property
    def label(self) -> str:
        """Equally long for each step, as the pages of an animation are equally large."""
        return f"step {self.step:0{len(str(self.steps))}} of {self.steps}"


class Trajectory:
    """The frames of a run for one of the KINDS of picture: evenly spaced, the first and the last step among them."""

    def __init__(self, model: Model, kind: str) -> None:
        self.model, (self.suffix, self.most) = model, KINDS[kind]
        self.frames: list[Frame] = []

    def add(self, state: Progress) -> None:
        """Decode the state after a step, if it is one of those that are shown."""
        if state.step in shown_steps(state.steps, self.most):
            x, x0 = (to_pictures(self.model.decode(each)) for each in (state.x, state.x0))
            self.frames.append(Frame(state.step, state.steps, x, x0))

    def sheet(self, captions: Sequence[str] = ()) -> Image:
        """A column for each step, and two rows, x and x0, for each picture, labelled with its caption if it has one."""
        texts = captions or [""] * len(self.frames[0].x)
        labels = [label for text in texts for label in (f"{text}\nx".strip(), "x0")]
        rows = [[getattr(frame, name)[k] for frame in self.frames] for k in range(len(texts)) for name in ("x", "x0")]
        return labelled_sheet(list(chain.from_iterable(rows)), labels, [frame.label for frame in self.frames])

    def animation(self, captions: Sequence[str] = ()) -> list[Image]:
        """A page for each step, x and x0 of a picture in each of its rows."""
        texts = captions or [""] * len(self.frames[0].x)
        rows = [[f"{frame.label}\n{text}".strip() for text in texts] for frame in self.frames]
        pairs = [list(chain.from_iterable(zip(frame.x, frame.x0, strict=True))) for frame in self.frames]
        return [labelled_sheet(pair, labels, ["x", "x0"]) for pair, labels in zip(pairs, rows, strict=True)]

    def save(self, path: Path, captions: Sequence[str] = ()) -> None:
        """Write the picture of this kind."""
        if self.suffix == ".apng":
            pages = self.animation(captions)
            save_animation(pages, path, [100] * (len(pages) - 1) + [2000])
        else:
            save(self.sheet(captions), path)


def shown_steps(steps: int, most: int) -> set[int]:
    """Of the steps 1 to `steps`, `most` or all; the step 0 of a run without steps."""
    shown = min(steps, most)
    return {1 + round(k * (steps - 1) / max(1, shown - 1)) for k in range(shown)} if steps else {0}
