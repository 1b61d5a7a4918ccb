"""Sheets by two settings: their axes, the cells, and the pictures of the cells, kept in a folder."""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from limner.checks import as_bool, as_number, as_text, as_whole
from limner.errors import LimnerError, unknown
from limner.files import expand
from limner.folders import find_model
from limner.noise.draws import check_seed
from limner.picture import save
from limner.pipeline import Pipeline
from limner.schedulers import SCHEDULES, sampler_name
from limner.settings import CHECKS, Settings

Cell = dict[str, Any]  # keywords of `Pipeline.__call__`, and the model

# What can be an axis, with the check of its values.
AXES: dict[str, Callable[[str, Any], Any]] = CHECKS | {
    "prompt": as_text, "negative_prompt": as_text, "seed": as_whole, "model": as_text, "image": as_text,
}  # fmt: skip
# How the values of a check are written; the others are texts. Raises ValueError or KeyError.
READERS: dict[Callable[[str, Any], Any], Callable[[str], Any]] = {
    as_whole: int,
    as_number: float,
    as_bool: {"true": True, "false": False}.__getitem__,
    CHECKS["guidance_interval"]: lambda text: tuple(float(part) for part in text.split(":")),
}
FILES = ("model", "image", "mask")  # what a cell names by the place of its files


class Axis(NamedTuple):
    """A setting and its values along the rows or the columns of a sheet."""

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        """Of each value; a prompt speaks for itself."""
        return [str(value) if self.name == "prompt" else f"{self.name} = {_written(value)}" for value in self.values]


def read_axis(text: str) -> Axis:
    """ "steps=4,8" -> an axis; a value with a comma stands in double quotes, an interval is written 0.5:2.

    Raises LimnerError for what is no setting, and for a value that the setting cannot have.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in AXES:
        raise unknown("axis", name, AXES)
    if not equals:
        raise LimnerError(f"the axis {name} has no values; write them as {name}=FIRST,SECOND")
    try:
        fields = next(csv.reader([values], skipinitialspace=True), None) or [""]
    except csv.Error as error:
        raise LimnerError(f"the values of {name} cannot be read: {error}") from error
    return Axis(name, tuple(_value(name, field) for field in fields))


def _value(name: str, text: str) -> Any:
    check = AXES[name]
    try:
        value = READERS.get(check, str)(text.strip())
    except (ValueError, KeyError):
        value = text  # for the check to refuse
    return check(name, value)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ":".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def make_cells(base: Mapping[str, Any], rows: Axis, columns: Axis) -> list[Cell]:
    """The cells row by row: `base` with the values of their row and column. Raises LimnerError for a cell that no model
    could paint."""
    if rows.name == columns.name:
        raise LimnerError(f"rows and columns are both {rows.name}; give two settings")
    cells = [{**base, rows.name: row, columns.name: column} for row in rows.values for column in columns.values]
    for cell in cells:
        settings = settings_of(cell)
        check_seed(cell["seed"])
        if settings.sampler is not None:
            sampler_name(settings.sampler)
        if settings.schedule not in (None, *SCHEDULES):
            raise unknown("schedule", str(settings.schedule), SCHEDULES)
    return cells


def settings_of(cell: Cell) -> Settings:
    """The settings among a cell's keywords."""
    return Settings.from_options({name: value for name, value in cell.items() if name in CHECKS})


def paint_cells(
    cells: Sequence[Cell],
    folder: Path,
    open_pipeline: Callable[[str | None], Pipeline],
    progress: Callable[[int, int], object] = lambda painted, count: None,
    opening: Mapping[str, Any] | None = None,
) -> tuple[list[Image.Image], int]:
    """The pictures of the cells, and how many were painted: those that `folder` has are not painted again.

    One model is open at a time; each picture is written when it is painted. `progress` is told how many of how many.
    `opening` are the options of opening a model that change its pictures.
    """
    names = _file_names(cells, opening or {})
    files = {name: (cell, _kept(folder / name)) for name, cell in zip(names, cells, strict=True)}
    pictures = {name: picture for name, (_, picture) in files.items() if picture is not None}
    missing = {name: cell for name, (cell, picture) in files.items() if picture is None}
    painted = 0
    for model in dict.fromkeys(cell["model"] for cell in missing.values()):
        pipe, own = open_pipeline(model), {name: cell for name, cell in missing.items() if cell["model"] == model}
        for cell in own.values():
            pipe.resolve(settings_of(cell))  # before the first is painted
        for name, cell in own.items():
            [pictures[name]] = pipe(**{option: value for option, value in cell.items() if option != "model"})
            save(pictures[name], folder / name)
            painted += 1
            progress(painted, len(missing))
        del pipe
    return [pictures[name] for name in names], painted


def _file_names(cells: Sequence[Cell], opening: Mapping[str, Any]) -> list[str]:
    """Of each cell, by a digest of all that its picture depends on: its keywords, those of opening its model, and the
    contents of its files."""
    digests: dict[tuple[str, Any], str] = {}
    names = []
    for cell in cells:
        for option in FILES:
            key = (option, cell.get(option))
            if key not in digests:
                digests[key] = _model_digest(key[1]) if option == "model" else _file_digest(key[1])
        entries = cell | {option: digests[option, cell.get(option)] for option in FILES}
        text = json.dumps([version("limner"), dict(opening), entries], sort_keys=True)
        names.append(f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.png")
    return names


def _file_digest(source: str | None) -> str:
    """Of a file's content; "" for none. What cannot be read is left to `read_image` to refuse."""
    path = None if source is None else expand(source)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else ""


def _model_digest(source: str | None) -> str:
    """Of the places, sizes and times of a model's files: their contents are gigabytes."""
    folder = find_model(source).resolve()
    files = [(str(file), file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    return hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in files]).encode()).hexdigest()


def _kept(file: Path) -> Image.Image | None:
    """The picture in a file of ours, its parameters too; None without one, or where it is damaged."""
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture.copy()
    except (OSError, ValueError, SyntaxError):
        return None
