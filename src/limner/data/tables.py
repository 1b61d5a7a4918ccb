"""Tables of encoded pictures: Parquet files and data sets of the Hugging Face Hub."""

import os
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.data import captions as words
from limner.data.layout import canonical_split, check_split, split_of
from limner.data.pictures import Pictures
from limner.errors import LimnerError, LimnerWarning, unknown
from limner.files import CUT_SHORT, check_writable, other_kind

if TYPE_CHECKING:
    from limner.data.sources import Source

IMAGE_COLUMNS = ("image", "img", "picture", "png", "jpg", "webp")
LABEL_COLUMNS = ("label", "labels", "class")
PARQUET = b"PAR1"  # a file's first and last bytes


def import_datasets() -> Any:
    """The package `datasets`, imported here since only Parquet files and the Hub need it."""
    try:
        import datasets
    except ImportError as error:
        needs = f"Parquet files and data sets of the Hub need {error.name}"
        raise LimnerError(f"{needs}; install it with: pip install 'limner[train]'") from error
    return datasets


def from_hub(config: "Source", name: str, captions: bool) -> Pictures:
    """The pictures of `name`, owner/name[:config], on the Hub."""
    datasets = import_datasets()
    name, _, variant = name.partition(":")
    try:
        table = datasets.load_dataset(name, variant or None, split=config.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        unwritable = _unwritable_cache()
        if unwritable:
            raise LimnerError(f"{unwritable}; set HF_HOME to a folder for data sets of the Hub") from error
        raise LimnerError(
            f"the data set {name!r}, split {config.split!r}, could not be fetched from the Hugging Face Hub ({error}). "
            "Local files need no network: --data.path takes Parquet files or a folder of pictures"
        ) from error
    return _from_table(table, config.name, None, config, captions)


def from_parquet(files: Sequence[Path], where: str, config: "Source", captions: bool) -> Pictures:
    """The pictures of Parquet files, which `datasets` brings into its cache, or a temporary one if there is none."""
    datasets = import_datasets()
    for file in files:
        _check_parquet(file)
    unwritable = _unwritable_cache()
    if unwritable:
        warnings.warn(f"{unwritable}; a temporary folder takes its place", LimnerWarning, stacklevel=2)
    try:
        table = datasets.Dataset.from_parquet(
            [str(file) for file in files], cache_dir=_temporary_cache() if unwritable else None
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        failed = f"{words.few(map(str, files))} cannot be read as Parquet ({reason})"
        raise LimnerError(f"{failed}; --data.path takes Parquet files or a folder of pictures") from error
    return _from_table(table, where, files[0].parent, config, captions)


def _check_parquet(file: Path) -> None:
    """LimnerError for a file that does not begin and end as Parquet does."""
    try:
        with file.open("rb") as content:
            begins = content.read(4) == PARQUET
            content.seek(max(0, os.fstat(content.fileno()).st_size - 4))
            whole = content.read(4) == PARQUET
    except OSError as error:
        raise LimnerError(f"{file} cannot be read: {error.strerror or error}") from error
    if not begins or not whole:
        reason = CUT_SHORT if begins else other_kind(file) or "it is of another kind"
        raise LimnerError(
            f"{file} cannot be read as Parquet: {reason}; --data.path takes Parquet files or a folder of pictures"
        )


def check_one_file(file: Path, split: str) -> None:
    """LimnerError where a split is asked for that the one file does not hold; train takes any file."""
    if canonical_split(split) != "train":
        check_split(split, {split_of(file.stem) or "train"}, file)


def _unwritable_cache() -> str | None:
    """Why the cache of `datasets` cannot be written; None where it can be."""
    folder = str(import_datasets().config.HF_DATASETS_CACHE)
    if folder.startswith("~"):  # no home
        return f"the cache of `datasets`, {folder}, is in no folder: HOME is not set"
    try:
        check_writable(Path(folder) / "limner")
    except LimnerError as error:
        return f"the cache of `datasets` is not to be used ({error})"
    return None


@cache
def _temporary_cache() -> str:
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="limner-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class _Column(Sequence):
    """A column of pictures as a sequence of {"bytes": ..., "path": ...}; its rows cost an eighth of `Dataset[i]`."""

    def __init__(self, table, column: str, folder: Path | None) -> None:
        self.table = table.select_columns([column])
        self.folder = folder  # of relative paths

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index):
        value = self.table.data.column(0)[int(index)].as_py()
        entry = value if isinstance(value, dict) else {"path" if isinstance(value, str) else "bytes": value}
        path = entry.get("path")
        if self.folder is not None and path and not entry.get("bytes"):
            beside = os.path.join(self.folder, path)
            path = beside if os.path.exists(beside) else path
        return {"bytes": entry.get("bytes"), "path": path}


def _from_table(table, where: str, folder: Path | None, config: "Source", captions: bool) -> Pictures:
    datasets = import_datasets()
    features = table.features
    image = _image_column(features, config.image_column, where)
    text = _column("caption", config.caption_column, _known(features, words.CAPTION_COLUMNS), features, where)
    labels = _known(features, LABEL_COLUMNS)
    labels += [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel) and c not in labels]
    label = _column("label", config.label_column, labels, features, where)
    if not len(table):
        raise LimnerError(f"{where}: the split {config.split!r} is empty; expected at least one picture")
    pictures = Pictures(_Column(table, image, folder), where)
    if label:
        names = getattr(features[label], "names", None)
        pictures.labels, pictures.label_names = words.encode_labels(
            _values(table, label, where), names, f"{where}, column {label}"
        )
    if captions and text:
        cells = enumerate(_values(table, text, where))
        pictures.captions = [words.captions_of(value, f"{where}, row {row}") for row, value in cells]
    elif captions:
        _check_captions(features, image, label, pictures.label_names, where)
    return pictures


def _values(table, column: str, where: str) -> list:
    try:
        return table.data.column(column).to_pylist()
    except UnicodeDecodeError as error:
        raise LimnerError(f"{where}: the column {column!r} is not UTF-8 text: {error}") from None


def _column(kind: str, given: str | None, found: Sequence[str], features: dict, where: str) -> str | None:
    """The column of a kind: the `given` one, else the first that was `found`, with a warning that names the others."""
    if given is not None and given not in features:
        raise LimnerError(f"{where}: {unknown(f'{kind} column', given, features)}")
    if given is None and len(found) > 1:
        taken = f"the {kind} column is {found[0]!r}, not {words.few(found[1:])}"
        warnings.warn(f"{where}: {taken}: --data.{kind}-column names another", LimnerWarning, stacklevel=2)
    return given or next(iter(found), None)


def _known(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The columns with one of the names, in any case, in the order of the names."""
    return [column for name in names for column in columns if column.lower() == name]


def _with_type(features: dict, word: str) -> list[str]:
    return [column for column, kind in features.items() if word in str(getattr(kind, "dtype", ""))]


def _image_column(features: dict, given: str | None, where: str) -> str:
    """The column of pictures: structs of bytes or path, else bytes, else paths in a column of a known name."""
    datasets = import_datasets()
    structs = [
        column
        for column, kind in features.items()
        if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and {"bytes", "path"} & set(kind))
    ]
    binary, texts = _with_type(features, "binary"), _with_type(features, "string")
    typed = structs or binary
    named = _known(typed or texts, IMAGE_COLUMNS)
    if given is None and not named and len(typed) > 1:
        raise LimnerError(f"{where}: pictures may be in {words.few(typed)}; name one with --data.image-column")
    others = [column for column in typed if column not in named]
    column = _column("image", given, named + others, features, where)
    if column not in structs + binary + texts:
        columns = ", ".join(features)
        raise LimnerError(f"{where}: no column of pictures; name one of {columns} with --data.image-column")
    return str(column)


def _check_captions(features: dict, image: str, label: str | None, names: list[str] | None, where: str) -> None:
    """LimnerError where neither a column of captions nor one of named labels is there; a word where labels become
    captions and there are texts."""
    if label and names:
        texts = [column for column in _with_type(features, "string") if column not in (image, label)]
        if texts:
            made = f"{where}: the captions are made of the column {label!r}, not of {words.few(texts)}"
            warnings.warn(f"{made}: --data.caption-column names another", LimnerWarning, stacklevel=2)
        return
    near = [name for known in words.CAPTION_COLUMNS for name in get_close_matches(known, features, n=1, cutoff=0.6)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    numbers = f", and the labels of {label!r} have no names" if label else ""
    raise LimnerError(
        f"{where} has pictures, but nothing says what they show: none of {', '.join(features)} is a column of captions "
        f"({', '.join(words.CAPTION_COLUMNS)}){numbers}{hint} Name one with --data.caption-column"
    )
