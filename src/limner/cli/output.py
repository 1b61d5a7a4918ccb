"""Where painted pictures go: one file, or a folder with a file for each."""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from limner.errors import LimnerError
from limner.files import check_writable, expand

if TYPE_CHECKING:
    from PIL.Image import Image


class Output(NamedTuple):
    """A file, or a `folder` whose files are numbered on from those that are in it."""

    path: Path
    folder: bool

    def write(self, pictures: Sequence["Image"], captions: Sequence[str]) -> tuple["Image", list[Path]]:
        """Save one file per picture, one picture, or a sheet of them; returns what to show, and the files."""
        from limner.picture import save, sheet

        several = len(pictures) > 1
        shown = sheet(pictures) if several else pictures[0]
        if self.folder:
            first = _next_number(self.path)
            paths = [self.path / f"{first + i:05d}.png" for i in range(len(pictures))]
            for path, picture in zip(paths, pictures, strict=True):
                save(picture, path)
            return shown, paths
        page = sheet(pictures, captions, scale=max(1, 96 // pictures[0].width)) if several else pictures[0]
        save(page, self.path, "\n\n".join(picture.info["parameters"] for picture in pictures))
        return shown, [self.path]


def open_output(text: str) -> Output:
    """The output that `text` names: a folder if it ends in / or is one, else a file.

    Raises LimnerError where nothing can be written, before the time for painting is spent.
    """
    from limner.picture import check_format

    if not text:
        raise LimnerError("--output is empty; give a file such as out.png, or a folder ending in /")
    path = expand(text)
    folder = text.endswith("/") or path.is_dir()
    if not folder:
        check_format(path)
    check_writable(path / "00000.png" if folder else path)
    return Output(path, folder)


def say_overwritten(path: Path) -> None:
    """Say that the file at `path`, if there is one, is about to be overwritten."""
    if path.exists():
        with suppress(OSError):  # of a stderr that is full, which is no reason to lose the picture
            print(f"limner: {path} is overwritten", file=sys.stderr, flush=True)


def _next_number(folder: Path) -> int:
    """One more than the largest number that a file of the folder has as its name; 0 if there is none."""
    names = (name.lower() for name in (os.listdir(folder) if folder.exists() else ()))  # in any case, as some systems
    numbers = [int(match[1]) for name in names if (match := re.fullmatch(r"(\d{5,99})\.png", name))]
    return max(numbers, default=-1) + 1
