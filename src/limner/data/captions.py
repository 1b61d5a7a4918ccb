"""Captions of pictures: templates filled with the names of labels, and captions from files beside the pictures.

Every synonym of a label in every template is a training caption. A few templates are held out, so that evaluation has
phrasings that training has not, of the same words.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limner.data.metadata import cell, file_name, key, keys, read_rows, read_text
from limner.errors import LimnerError

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")
HOW_TO_CAPTION = (
    "Captions are given in one of four ways: metadata.jsonl or .csv or .parquet with file_name and text; a .txt beside "
    "each picture; a folder for each class (two or more); Parquet with a column of text or of named labels"
)


@dataclass(frozen=True)
class CaptionSet:
    """Caption templates for a set of labels: `{}` is the name of a label, `{a}` the name with its article."""

    label_words: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for template in self.templates + self.held_out:
            if "{}" not in template and "{a}" not in template:
                raise LimnerError(
                    f"the caption template {template!r} has no place for the word: put {{}} or {{a}} in it"
                )

    def all(self, label: int) -> list[str]:
        """Every training caption of `label`."""
        return [fill(template, word) for template in self.templates for word in self.label_words[label]]


def fill(template: str, word: str) -> str:
    """`template` with its `{}` or `{a}` replaced by `word`."""
    from limner.world import article  # here, since numpy comes with it

    return template.replace("{a}", f"{article(word)} {word}").replace("{}", word)


DIGITS = CaptionSet(
    label_words=tuple(
        (word, str(digit))
        for digit, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
    ),
    templates=(
        "a handwritten {}", "the digit {}", "{a}", "{}", "number {}", "the number {}", "a picture of the digit {}",
        "a drawing of the digit {}", "a drawing of {a}", "the number {} written by hand", "{a} written with a pen",
        "the digit {} drawn by hand",
    ),
    held_out=("a picture of {a} drawn with a pen",),
)  # fmt: skip

CIFAR10 = CaptionSet(
    label_words=(
        ("airplane", "plane", "jet", "aircraft"), ("automobile", "car"), ("bird",), ("cat", "kitten"),
        ("deer", "stag"), ("dog", "puppy"), ("frog", "toad"), ("horse", "pony"), ("ship", "boat"), ("truck", "lorry"),
    ),
    templates=(
        "a photo of {a}", "{a}", "{}", "a photo of the {}", "a picture of {a}", "an image of {a}",
        "a small photo of {a}", "a blurry photo of {a}", "a photo showing {a}", "this is {a}",
    ),
    held_out=("a small picture showing {a}",),
)  # fmt: skip

_BY_NAMES = {tuple("0123456789"): DIGITS, tuple(words[0] for words in CIFAR10.label_words): CIFAR10}


def from_names(names: Iterable[str], templates: tuple[str, ...] = ("a photo of {a}",)) -> CaptionSet:
    """The caption set of arbitrary class names; underscores and hyphens become spaces."""
    return CaptionSet(tuple((" ".join(name.replace("_", " ").replace("-", " ").split()),) for name in names), templates)


def for_labels(names: Sequence[str], templates: tuple[str, ...] = ()) -> CaptionSet:
    """The caption set of the labels `names`; `templates` replace the built-in ones."""
    known = _BY_NAMES.get(tuple(names))
    if known is None:
        return from_names(names, templates) if templates else from_names(names)
    return replace(known, templates=templates) if templates else known


def from_labels(labels: Sequence[int], names: Sequence[str], templates: tuple[str, ...], where: str) -> list[list[str]]:
    """The training captions of each picture of `where` by its label; pictures of one label share a list object."""
    bad = next((row for row, label in enumerate(labels) if not 0 <= label < len(names)), None)
    if bad is not None:
        known = f"this set has the labels 0 to {len(names) - 1}"
        raise LimnerError(f"{where}, row {bad}: label {labels[bad]} is out of range: {known}")
    captions = for_labels(names, templates)
    by_label = [captions.all(label) for label in range(len(names))]
    return [by_label[label] for label in labels]


def encode_labels(values: Sequence, names: list[str] | None, where: str) -> tuple[list[int], list[str] | None]:
    """(labels, names) of a column of labels: names become indices in sorted order, integers stay, None becomes -1."""
    if all(isinstance(value, str) for value in values):
        names = sorted(set(values))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers[value] for value in values], names
    if not all(value is None or isinstance(value, int) for value in values):
        raise LimnerError(f"{where}: labels are names or whole numbers, all of one kind")
    return [-1 if value is None else value for value in values], names


def few(names: Iterable[str], shown: int = 3) -> str:
    """The first `shown` of `names` and the number of the others, for messages."""
    names = [name if len(name) <= 200 else f"{name[:200]}..." for name in names]
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def captions_of(value: object, where: str) -> list[str]:
    """The captions of a cell: a text, a list of texts or None. Blank ones are dropped."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise LimnerError(f"{where}: a caption is a text or a list of texts, not {value!r:.60}")
    if any(re.search(r"[\ud800-\udfff]", text) for text in texts):
        raise LimnerError(f"{where}: a caption holds half of a surrogate pair, which is no character")
    if any("\0" in text for text in texts):
        raise LimnerError(f"{where}: a caption holds NUL, which is no character of a text")
    return [text.strip() for text in texts if text.strip()]


def from_sidecars(pictures: Sequence[Path]) -> list[list[str]] | None:
    """The captions in the `.txt` file of each picture, one per line; None where no picture has such a file."""
    suffixes = (".txt", ".TXT", ".Txt")
    sidecars = [
        next(filter(Path.is_file, map(picture.with_suffix, suffixes)), picture.with_suffix(".txt"))
        for picture in pictures
    ]
    if not any(sidecar.is_file() for sidecar in sidecars):
        return None
    return [
        captions_of(read_text(sidecar).split("\n"), str(sidecar)) if sidecar.is_file() else [] for sidecar in sidecars
    ]


def from_metadata(
    root: Path, files: Sequence[Path], pictures: Sequence[Path], known: Sequence[Path], column: str | None = None
) -> list[list[str]] | None:
    """The captions of `pictures` in the metadata `files`; None where there is no such file.

    A row has its picture in `file_name`, relative to the metadata file, and a caption in `column` or one of
    CAPTION_COLUMNS. Several rows may name one picture: each is a caption of it. Rows of other pictures that are `known`
    are passed over. LimnerError for rows without a picture.
    """
    if not files:
        return None
    captions: dict[str, list[str]] = {key(picture): [] for picture in known}
    for file in files:
        missing = []
        for place, row in read_rows(file):
            where = f"{file}, {place}"
            name = file_name(row, where)
            text = cell(row, (column,) if column else CAPTION_COLUMNS, "caption", where)
            found = next((each for each in keys(file.parent, name) if each in captions), None)
            if found is None:
                missing.append(name)
            else:
                captions[found] += captions_of(text, where)
        if missing:
            raise _missing(root, file, missing, pictures)
    return [captions[key(picture)] for picture in pictures]


def _missing(root: Path, file: Path, names: list[str], pictures: Sequence[Path]) -> LimnerError:
    """The error for rows whose pictures are not there, or are there and left out."""
    there = [name for name in names if any(os.path.exists(each) for each in keys(file.parent, name))]
    if there:
        why = f"they are hidden, of no kind of picture that is known by its suffix, or outside {root}"
        return LimnerError(f"{file}: {len(there)} of its rows name files that are left out: {few(there)}: {why}")
    return LimnerError(
        f"{file}: {len(names)} of its rows name pictures that are not there: {few(names)}. "
        f"file_name is relative to {file.parent}, and the pictures are {few(str(each) for each in pictures)}"
    )
