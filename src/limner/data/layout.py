"""What lies in a folder of training data, and which of it belongs to a split: docs/data.md has the table."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

from limner.data.captions import few
from limner.errors import LimnerError, unknown

SPLITS = {  # the words by which `datasets` finds splits too
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".jp2", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SYSTEM_NAMES = ("__macosx", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini")
_SPLIT = {word: split for split, words in SPLITS.items() for word in words}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_SPLIT)})(?:sets?|images|imgs|data)?(?![a-z])")


def canonical_split(split: str) -> str | None:
    """The split that a word means, in any case: test for Testing; None for other words."""
    return _SPLIT.get(split.strip().lower())


def split_of(name: str) -> str | None:
    """The split that the name of a folder or file tells, as mnist-testing and test2017 do; None without one, or with
    two."""
    told = {_SPLIT[word] for word in _WORD.findall(name.lower())}
    return told.pop() if len(told) == 1 else None


def check_split(split: str, inside: set[str], where: object) -> str:
    """The split, canonical, if it is one of those `inside`; data without splits are training data."""
    wanted = canonical_split(split)
    if wanted is None or wanted not in (inside or {"train"}):
        raise LimnerError(f"{where}: {unknown('split', split, inside or ['train'])}")
    return wanted


@dataclass
class Contents:
    """The files of a folder and of those inside it, links followed; names are relative to `root` and sorted."""

    root: Path
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)  # .parquet
    metadata: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)  # folders and pictures
    empty: list[Path] = field(default_factory=list)  # folders
    loops: list[Path] = field(default_factory=list)  # links to a folder above them


def look_into(root: Path) -> Contents:
    """What is in a folder. LimnerError where a folder cannot be read."""
    found = Contents(root)
    folders: list[tuple[Path, tuple[str, ...]]] = [(Path(), (os.path.realpath(root),))]
    while folders:
        folder, above = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            raise LimnerError(f"cannot read the folder {root / folder}: {error.strerror or error}") from error
        if not any(not _is_hidden(entry.name) for entry in entries):
            found.empty.append(folder)
        for entry in entries:
            name = folder / entry.name
            is_folder = entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
            if _is_hidden(entry.name):
                if is_folder or name.suffix.lower() in SUFFIXES:
                    found.hidden.append(name)
            elif not is_folder:
                _kind(found, name, entry).append(name)
            elif (real := os.path.realpath(entry.path)) in above:
                found.loops.append(name)
            else:
                folders.append((name, (*above, real)))
    for names in (found.pictures, found.tables, found.metadata, found.others, found.hidden, found.empty, found.loops):
        names.sort()
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _kind(found: Contents, name: Path, entry: os.DirEntry) -> list[Path]:
    """The list that a file belongs to."""
    if not (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):  # a link to nowhere, a pipe
        return found.others
    if name.name.lower() in METADATA:
        return found.metadata
    if name.suffix.lower() == ".parquet":
        return found.tables
    return found.pictures if name.suffix.lower() in SUFFIXES else found.others


@dataclass
class Chosen:
    """The files of one split."""

    names: list[Path]
    split: str | None  # None: the folder has no splits
    depth: int | None  # of the folders that are splits; None: files are split by their own names, or not at all
    left_out: list[str]  # what was left out, counted

    def holds(self, name: Path) -> bool:
        """Whether a file that may belong to any split, as metadata do, has a part in this one."""
        if self.depth is None or len(name.parts) <= self.depth + 1:
            return True
        return split_of(name.parts[self.depth]) == self.split

    def classes(self) -> list[str | None]:
        """The class folder of each file: the first below those that all files share, splits aside; None for a file in
        none."""
        folders = [self._folders(name) for name in self.names]
        shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
        return [each[shared] if len(each) > shared else None for each in folders]

    def _folders(self, name: Path) -> tuple[str, ...]:
        parts = name.parts[:-1]
        return parts if self.depth is None else parts[: self.depth] + parts[self.depth + 1 :]


def choose(contents: Contents, names: Sequence[Path], split: str, each_named: bool) -> Chosen:
    """Those of `names` that belong to `split`: by the folder they are in, else by their own names, which count where
    one of them tells a split, or with `each_named` where all do and of several.

    LimnerError for a split that is not there, and for a folder that may be a split or a class.
    """
    root = contents.root
    depth = _split_depth(root, names)
    if depth is not None:
        told = [split_of(name.parts[depth]) if len(name.parts) > depth + 1 else None for name in names]
        bare = {split_of(folder.parts[depth]) for folder in contents.empty if len(folder.parts) > depth}
    else:
        told, bare = [split_of(name.stem) for name in names], set()
        if each_named and (None in told or len(set(told)) < 2):
            told = [None] * len(names)
    inside = {each for each in (*told, *bare) if each is not None}
    wanted = check_split(split, inside, root)
    if not inside:
        return Chosen(list(names), None, None, [])
    chosen = [name for name, each in zip(names, told, strict=True) if each == wanted]
    if not chosen:
        raise LimnerError(f"{root}: the folder of the split {wanted!r} is empty; expected at least one picture")
    what = "picture" if each_named else "file"
    left_out = []
    for each in (*SPLITS, None):
        files = [name for name, own in zip(names, told, strict=True) if own == each]
        if files and each != wanted:
            of = f"of the split {each}" if each else "of no split"
            left_out.append(counted(files, f"{what} {of}", f"{what}s {of}"))
    return Chosen(chosen, wanted, depth, left_out)


def _split_depth(root: Path, names: Sequence[Path]) -> int | None:
    """The depth of the folders that are splits: the least with folders of two splits, or with no others than one's."""
    branched = False  # several folders at a lesser depth
    for depth in count():
        folders = {name.parts[depth] for name in names if len(name.parts) > depth + 1}
        if not folders:
            return None
        plain = {folder for folder in folders if re.sub("[^a-z]", "", folder.lower()) in _SPLIT}
        if len({split_of(folder) for folder in folders} - {None}) > 1 or plain == folders:
            return depth
        if plain and not branched:
            folder = next(Path(*name.parts[: depth + 1]) for name in names if set(name.parts[depth:-1][:1]) & plain)
            raise LimnerError(
                f"{root}: {folder}/ may be a split or a class, as it lies beside {few(sorted(folders - plain))}: for "
                f"the split give --data.path {root / folder}, for the class give the folder another name"
            )
        branched = branched or len(folders) > 1
    return None


def counted(names: Sequence[Path], one: str, many: str) -> str:
    """The number of `names` and the first ones: 2 empty folders (a, b)."""
    return f"{len(names)} {one if len(names) == 1 else many} ({few(map(str, names))})"
