"""Rows of the tables beside pictures: metadata.jsonl, metadata.csv and metadata.parquet."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from limner.errors import LimnerError, unknown
from limner.files import JSON, other_kind

FILE_COLUMNS = ("file_name", "filename", "image")  # of the picture's name
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

Row = dict[str, object]


def read_rows(file: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of a metadata file. LimnerError for a file without rows and for one that cannot be read."""
    rows = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[file.suffix.lower()](file)
    empty = True
    for place, row in rows:
        empty = False
        yield place, row
    if empty:
        raise LimnerError(f"{file} holds no row; expected a file_name and a text for each picture")


def file_name(row: Row, where: str) -> str:
    """The name of a row's picture."""
    name = cell(row, FILE_COLUMNS, "file_name", where)
    if not isinstance(name, str) or not name.strip():
        raise LimnerError(f"{where}: file_name must be the name of a picture, not {name!r:.60}")
    return name


def cell(row: Row, columns: tuple[str, ...], kind: str, where: str) -> object:
    """The first of `columns` that `row` has."""
    for column in columns:
        if column in row:
            return row[column]
    raise LimnerError(f"{where}: no {kind} there. {unknown('column', columns[0], map(str, row))}")


def keys(folder: Path, name: str) -> Iterator[str]:
    """The keys under which a row's picture may be: the name as it is, without spaces around, with \\ for /."""
    for spelling in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
        yield key(folder / spelling)


def key(path: Path) -> str:
    """The absolute path, without `..`, in composed characters, since file systems and tables differ in their form."""
    return unicodedata.normalize("NFC", os.path.abspath(path))


def _csv_rows(file: Path) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True, skipinitialspace=True)
    header: list[str] = []
    try:
        for fields in reader:
            where = f"line {reader.line_num}"
            if not any(field.strip() for field in fields):
                continue
            if not header:
                if kind := _wrong_kind(file):
                    raise LimnerError(f"{file} is no table: {kind}")
                header = _checked_header([name.strip() for name in fields], f"{file}, {where}")
                continue
            if len(fields) > len(header):
                raise LimnerError(f"{file}, {where}: more fields than columns; a text with a comma must be in quotes")
            if len(fields) < len(header):
                raise LimnerError(f"{file}, {where}: fewer fields ({len(fields)}) than columns ({len(header)})")
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise LimnerError(f"{file}, line {max(1, reader.line_num)}: {error}") from None


def _checked_header(header: list[str], where: str) -> list[str]:
    if not any(column in header for column in FILE_COLUMNS):
        line = ",".join(header)
        separator = next((word for mark, word in SEPARATORS.items() if mark in line), None)
        hint = f"; its fields are separated by {separator}, not commas" if separator else ""
        raise LimnerError(f"{where}: expected the header file_name,text, no file_name there: {line!r:.80}{hint}")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice:
        raise LimnerError(f"{where}: the column {twice!r} is there twice")
    return header


def _json_rows(file: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=partial(_once, where))
        except json.JSONDecodeError as error:
            reason = _wrong_kind(file) or f"{error.msg} at character {error.pos + 1}; each line is an object of its own"
            raise LimnerError(f"{where} is not JSON: {reason}") from None
        except LimnerError:
            raise
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a deep nesting
            raise LimnerError(f"{where} is not JSON that can be read: {error}") from None
        if not isinstance(row, dict):
            expected = '{"file_name": ..., "text": ...}'
            raise LimnerError(f"{where}: expected {expected}, not {line.strip()!r:.80}")
        yield f"line {number}", row


def _once(where: str, pairs: list[tuple[str, object]]) -> Row:
    """The object of these names and values, each name once."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
        raise LimnerError(f"{where}: {twice!r} is there twice")
    return row


def _parquet_rows(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise LimnerError(f"{file} needs {error.name}; install it with: pip install 'limner[train]'") from error
    number = 0
    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise LimnerError(f"{file} cannot be read as Parquet ({other_kind(file) or error})") from error


def _wrong_kind(file: Path) -> str | None:
    """What a file is that is known to hold no rows, such as a git-LFS pointer; None for any text."""
    kind = other_kind(file, JSON)
    return None if kind is None or kind.startswith("it is text that") else kind


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark, which spreadsheets write."""
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = _wrong_kind(file) or f"byte {error.start} cannot be read; save it as UTF-8"
        raise LimnerError(f"{file} is not UTF-8 text: {kind}") from None
    except OSError as error:
        raise LimnerError(f"{file} cannot be read: {error.strerror or error}") from None
    if "\0" in text:  # as in UTF-16 without its mark
        raise LimnerError(f"{file} is not UTF-8 text: it holds NUL at character {text.index(chr(0))}; save it as UTF-8")
    return text
