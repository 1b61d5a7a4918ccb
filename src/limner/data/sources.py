"""Sources of training pictures: the captioned world, a dataset of the Hugging Face Hub, Parquet files, a folder of
pictures, or a weighted mixture of these. Opening a source decodes no picture.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from limner.checks import as_number, as_whole
from limner.data import captions as words
from limner.data.captions import few
from limner.data.collection import Collection
from limner.data.layout import SPLITS, SUFFIXES, Chosen, Contents, check_split, choose, counted, look_into
from limner.data.mixture import Mixture
from limner.data.pictures import Pictures
from limner.data.tables import check_one_file, from_hub, from_parquet
from limner.errors import LimnerError, LimnerWarning, unknown, warn_no_effect
from limner.files import expand

HUB_NAMES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
NAMES = ("world", *HUB_NAMES)


@dataclass(frozen=True)
class Source:
    """The pictures to train on."""

    name: str = "mnist"  # world (world:one for one kind of scene), mnist, cifar10, a data set of the Hub
    # (owner/name[:config]), or a mixture of names and paths, with weights that sum to 1: world=0.8,mnist=0.2.
    # Not used where a path is given
    path: str | None = None  # local pictures: a folder of Parquet files, one .parquet file, or a folder of pictures
    split: str = "train"  # of the Hub data set, or of what the names of folders and files tell (docs/data.md)
    image_column: str | None = None  # column of pictures; None: found by its type
    caption_column: str | None = None  # None: text, caption, captions or prompt
    label_column: str | None = None  # labels become captions where there is no caption column
    templates: tuple[str, ...] = ()  # captions for labels: {} is the name, {a} the name with a or an
    pad: int = 0  # black pixels on each side of every picture, within its size: 2 makes 32x32 of MNIST's 28x28
    max_broken: float = 0.01  # largest share of unreadable pictures

    def __post_init__(self) -> None:
        if as_whole("pad", self.pad) < 0:
            raise LimnerError(f"pad must be at least 0, not {self.pad}")
        if not 0 <= as_number("max_broken", self.max_broken) <= 1:
            raise LimnerError(f"max_broken must be from 0 to 1, not {self.max_broken}")


def open_source(config: Source, captions: bool = True) -> Collection:
    """Open a source; `captions=False` for training without text. Warns of what is left out.

    LimnerError for an unknown name, path, split or column, a picture without a caption, or weights that do not sum
    to 1.
    """
    if config.path is None:
        return _named(config, captions)
    path = expand(config.path)
    if not path.exists():
        raise LimnerError(f"--data.path {config.path}: there is no such file or folder")
    if path.is_file():
        check_one_file(path, config.split)
        return _finished(from_parquet([path], str(path), config, captions), config, captions)
    contents = look_into(path)
    if not contents.tables and not contents.pictures:  # then it is no table beside pictures
        contents.tables = [name for name in contents.metadata if name.suffix.lower() == ".parquet"]
    opened = _from_tables(contents, config, captions) if contents.tables else _from_folder(contents, config, captions)
    return _finished(opened, config, captions)


def _named(config: Source, captions: bool) -> Collection:
    if "=" in config.name:
        return _mixture(config, captions)
    name, _, kind = config.name.partition(":")
    if name == "world":
        from limner.data.world import World

        if config.pad:
            raise LimnerError("--data.pad is for pictures in files; those of the world are drawn at their size")
        split = check_split(config.split, set(SPLITS), "world")
        return World(seed=list(SPLITS).index(split), kind=kind or None)
    if "/" not in config.name and config.name not in HUB_NAMES:
        raise LimnerError(f"{unknown('data set', config.name, NAMES)}, owner/name on the Hub, or --data.path")
    opened = from_hub(config, HUB_NAMES.get(config.name, config.name), captions)
    return _finished(opened, config, captions)


def _mixture(config: Source, captions: bool) -> Collection:
    """world=0.6,mnist=0.2,PATH=0.2 -> a Mixture."""
    parts, weights = [], []
    for entry in config.name.split(","):
        name, _, weight = entry.strip().rpartition("=")
        try:
            weights.append(float(weight if name else ""))
        except ValueError:
            raise LimnerError(f"{entry!r} in the mixture {config.name!r} is not NAME=WEIGHT") from None
        if not 0 < weights[-1] <= 1:
            raise LimnerError(f"the weight of {name} must be over 0 and at most 1, not {weight}")
        path = name if name not in NAMES and expand(name).exists() else None
        parts.append(open_source(replace(config, name=name, path=path), captions))
    if abs(sum(weights) - 1) > 1e-6:
        raise LimnerError(f"the weights of {config.name!r} sum to {sum(weights):g}; they must sum to 1")
    return Mixture(parts, weights)


def _from_tables(contents: Contents, config: Source, captions: bool) -> Pictures:
    root = contents.root
    chosen = choose(contents, contents.tables, config.split, each_named=False)
    opened = from_parquet([root / name for name in chosen.names], str(root), config, captions)
    beside = contents.metadata + contents.others
    if (opened.images[0] or {}).get("bytes"):  # else the tables may name the pictures beside them
        beside += contents.pictures
    _warn_left_out(contents, chosen, [name for name in beside if name not in contents.tables])
    return opened


def _from_folder(contents: Contents, config: Source, captions: bool) -> Pictures:
    root = contents.root
    if not contents.pictures:
        raise LimnerError(f"{root} holds no picture ({' '.join(SUFFIXES)}) and no .parquet file")
    columns = {"image_column": config.image_column, "label_column": config.label_column}
    warn_no_effect("a folder of pictures", **columns)
    chosen = choose(contents, contents.pictures, config.split, each_named=True)
    files = [root / name for name in chosen.names]
    name = f"{root}, split {chosen.split}" if chosen.split else str(root)
    pictures = Pictures([{"bytes": None, "path": str(file)} for file in files], name)
    folders = chosen.classes()
    named = sorted({folder for folder in folders if folder is not None})
    loose = [file for file, folder in zip(chosen.names, folders, strict=True) if folder is None]
    if len(named) > 1 and not loose:
        pictures.labels, pictures.label_names = words.encode_labels(folders, None, str(root))
    every = [root / name for name in contents.pictures]
    metadata = [root / name for name in contents.metadata if chosen.holds(name)]
    if captions:
        if not metadata:
            warn_no_effect("no metadata", caption_column=config.caption_column)
        pictures.captions = words.from_metadata(
            root, metadata, files, every, config.caption_column
        ) or words.from_sidecars(files)
    if len(named) > 1 and loose:
        mixed = f"{name}: {few(map(str, loose))} in no class folder, beside those of {few(named)}"
        if captions and pictures.captions is None:
            raise LimnerError(f"{mixed}: give each picture its class folder. {words.HOW_TO_CAPTION}")
        warnings.warn(f"{mixed}: the folders are not taken as classes", LimnerWarning, stacklevel=2)
    stems = {name.with_suffix("") for name in contents.pictures} if not metadata else set()
    texts = [name for name in contents.others if name.suffix.lower() == ".txt" and name.with_suffix("") in stems]
    _warn_left_out(contents, chosen, sorted(set(contents.others) - set(texts)))
    return pictures


def _warn_left_out(contents: Contents, chosen: Chosen, others: list[Path]) -> None:
    """Say what of a folder is not trained on."""
    kinds = [
        (others, "other file", "other files"), (contents.hidden, "hidden file or folder", "hidden files or folders"),
        (contents.empty, "empty folder", "empty folders"),
        (contents.loops, "link to a folder above it", "links to folders above them"),
    ]  # fmt: skip
    left_out = chosen.left_out + [counted(names, one, many) for names, one, many in kinds if names]
    if left_out:
        warnings.warn(f"{contents.root}: left out: {'; '.join(left_out)}", LimnerWarning, stacklevel=2)


def _finished(pictures: Pictures, config: Source, captions: bool) -> Pictures:
    pictures.pad = config.pad
    return _captioned(pictures, config.templates) if captions else pictures


def _captioned(pictures: Pictures, templates: tuple[str, ...]) -> Pictures:
    """`pictures` with captions, made from labels if absent. LimnerError where a picture has none."""
    if pictures.captions is None:
        if pictures.labels is None or not pictures.label_names:
            raise LimnerError(f"{pictures.name} has pictures, but nothing says what they show. {words.HOW_TO_CAPTION}")
        pictures.captions = words.from_labels(pictures.labels, pictures.label_names, templates, pictures.name)
    else:
        warn_no_effect(f"the captions of {pictures.name}", templates=templates)
    uncaptioned = [pictures.picture_name(row) for row, captions in enumerate(pictures.captions) if not captions]
    if uncaptioned:
        counts = f"{len(uncaptioned)} of {len(pictures)} pictures have no caption"
        raise LimnerError(f"{pictures.name}: {counts}: {words.few(uncaptioned)}. Caption them or take them out")
    return pictures
