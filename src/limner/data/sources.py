"""Sources of training pictures: the captioned world, a dataset of the Hugging Face Hub, Parquet files, a folder of
pictures, or a weighted mixture of these. Opening a source decodes no picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limner.data import captions as words
from limner.data.collection import Collection
from limner.data.mixture import Mixture
from limner.data.pictures import Pictures
from limner.errors import LimnerError, unknown
from limner.files import expand

HUB_NAMES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
NAMES = ("world", *HUB_NAMES)
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".jp2", ".bmp", ".gif", ".tif", ".tiff")
SPLITS = ("train", "test", "validation", "valid", "val")
IMAGE_COLUMNS = ("image", "img", "picture", "png", "jpg", "webp")
LABEL_COLUMNS = ("label", "labels", "class")


@dataclass(frozen=True)
class Source:
    """The pictures to train on."""

    name: str = "mnist"  # world (world:one for one kind of scene), mnist, cifar10, a data set of the Hub
    # (owner/name[:config]), or a mixture of names and paths, with weights that sum to 1: world=0.8,mnist=0.2.
    # Not used where a path is given
    path: str | None = None  # local pictures: a folder of Parquet files, one .parquet file, or a folder of pictures
    split: str = "train"  # of the Hub data set, of files called SPLIT-*.parquet, or the folder SPLIT/
    image_column: str | None = None  # column of pictures; None: found by its type
    caption_column: str | None = None  # None: text, caption, captions or prompt
    label_column: str | None = None  # labels become captions where there is no caption column
    templates: tuple[str, ...] = ()  # captions for labels: {} is the name, {a} the name with a or an
    max_broken: float = 0.01  # largest share of unreadable pictures


def open_source(config: Source, captions: bool = True) -> Collection:
    """Open a source; `captions=False` for training without text.

    LimnerError for an unknown name, path, split or column, a picture without a caption, or weights that do not sum
    to 1.
    """
    if config.path is None:
        return _named(config, captions)
    path = expand(config.path)
    if not path.exists():
        raise LimnerError(f"--data.path {config.path}: there is no such file or folder")
    files = [path] if path.is_file() else sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    if not files:
        return _from_folder(path, config, captions)
    return _from_table(_parquet_table(files, path, config.split), str(path), config, captions)


def _named(config: Source, captions: bool) -> Collection:
    if "=" in config.name:
        return _mixture(config, captions)
    name, _, kind = config.name.partition(":")
    if name == "world":
        from limner.data.world import World

        return World(seed=SPLITS.index(config.split) if config.split in SPLITS else 0, kind=kind or None)
    return _from_table(_hub_table(config), config.name, config, captions)


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


def _import_datasets():
    """The package `datasets`, imported here since only Parquet files and the Hub need it."""
    try:
        import datasets
    except ImportError as error:
        needs = f"Parquet files and data sets of the Hub need {error.name}"
        raise LimnerError(f"{needs}; install it with: pip install 'limner[train]'") from error
    return datasets


def _hub_table(config: Source):
    if "/" not in config.name and config.name not in HUB_NAMES:
        raise LimnerError(f"{unknown('data set', config.name, NAMES)}, owner/name on the Hub, or --data.path")
    name, _, variant = HUB_NAMES.get(config.name, config.name).partition(":")
    datasets = _import_datasets()
    try:
        return datasets.load_dataset(name, variant or None, split=config.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise LimnerError(
            f"the data set {name!r}, split {config.split!r}, could not be fetched from the Hugging Face Hub ({error}). "
            "Local files need no network: --data.path takes Parquet files or a folder of pictures"
        ) from error


def _parquet_table(files: list[Path], path: Path, split: str):
    datasets = _import_datasets()
    splits = {file: file.stem.split("-")[0] for file in files}
    inside = set(splits.values()) & set(SPLITS)
    if path.is_dir():
        _check_split(split, inside, path)
        files = [file for file in files if not inside or splits[file] == split]
    try:
        return datasets.Dataset.from_parquet([str(file) for file in files])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        failed = f"{words.few(map(str, files))} cannot be read as Parquet ({error.__cause__ or error})"
        raise LimnerError(f"{failed}; --data.path takes Parquet files or a folder of pictures") from error


class _Column(Sequence):
    """A column of a table as a sequence; its rows cost an eighth of `Dataset[i]`."""

    def __init__(self, table, column: str) -> None:
        self.table = table.select_columns([column])

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index):
        return self.table.data.column(0)[int(index)].as_py()


def _from_table(table, where: str, config: Source, captions: bool) -> Pictures:
    datasets = _import_datasets()
    features, columns = table.features, table.column_names

    def find(kind: str, given: str | None, known: Sequence[str], feature: type | None = None) -> str | None:
        if given is not None and given not in columns:
            raise LimnerError(f"{where}: {unknown(f'{kind} column', given, columns)}")
        typed = [column for column in columns if feature and isinstance(features[column], feature)]
        return given or next(iter(typed + [column for column in known if column in columns]), None)

    image = find("image", config.image_column, IMAGE_COLUMNS, datasets.Image)
    text = find("caption", config.caption_column, words.CAPTION_COLUMNS)
    label = find("label", config.label_column, LABEL_COLUMNS, datasets.ClassLabel)
    stored = features.get(image)
    is_picture = isinstance(stored, datasets.Image) or getattr(stored, "dtype", None) in ("binary", "string")
    if image is None or not is_picture:
        raise LimnerError(f"{where}: no column of pictures; name one of {', '.join(columns)} with --data.image-column")
    if not len(table):
        raise LimnerError(f"{where}: the split {config.split!r} is empty; expected at least one picture")
    pictures = Pictures(_Column(table.cast_column(image, datasets.Image(decode=False)), image), where)
    if label:
        names = getattr(features[label], "names", None)
        pictures.labels, pictures.label_names = words.encode_labels(table[label][:], names, f"{where}, column {label}")
    if captions and text:
        cells = enumerate(table[text][:])
        pictures.captions = [words.captions_of(value, f"{where}, row {row}") for row, value in cells]
    return _captioned(pictures, config.templates) if captions else pictures


def _check_split(split: str, inside: set[str], where: Path) -> None:
    if split not in inside and (inside or split != "train"):  # data without splits is training data
        raise LimnerError(f"{where}: {unknown('split', split, inside or ['train'])}")


def _from_folder(root: Path, config: Source, captions: bool) -> Pictures:
    inside = set() if any(root.glob("metadata.*")) else {name for name in SPLITS if (root / name).is_dir()}
    _check_split(config.split, inside, root)
    root = root / config.split if inside else root
    names = [path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.parts))
    if not names:
        raise LimnerError(f"{root} holds no picture ({' '.join(SUFFIXES)}) and no .parquet file")
    files = [root / name for name in names]
    pictures = Pictures([{"bytes": None, "path": str(file)} for file in files], str(root))
    folders = [name.parts[0] for name in names]
    if all(len(name.parts) > 1 for name in names) and len(set(folders)) > 1:
        pictures.labels, pictures.label_names = words.encode_labels(folders, None, str(root))
    if captions:
        pictures.captions = words.from_metadata(root, files, config.caption_column) or words.from_sidecars(files)
        return _captioned(pictures, config.templates)
    return pictures


def _captioned(pictures: Pictures, templates: tuple[str, ...]) -> Pictures:
    """`pictures` with captions, made from labels if absent. LimnerError where a picture has none."""
    if pictures.captions is None:
        if pictures.labels is None or not pictures.label_names:
            raise LimnerError(f"{pictures.name} has pictures, but nothing says what they show. {words.HOW_TO_CAPTION}")
        pictures.captions = words.from_labels(pictures.labels, pictures.label_names, templates, pictures.name)
    uncaptioned = [pictures.picture_name(row) for row, captions in enumerate(pictures.captions) if not captions]
    if uncaptioned:
        counts = f"{len(uncaptioned)} of {len(pictures)} pictures have no caption"
        raise LimnerError(f"{pictures.name}: {counts}: {words.few(uncaptioned)}. Caption them or take them out")
    return pictures
