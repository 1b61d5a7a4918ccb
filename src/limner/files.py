"""Atomic writes, JSON files, what a file is by its first bytes, and validation of configuration dataclasses."""

import codecs
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from limner.errors import LimnerError

Config = TypeVar("Config")
JSON, SAFETENSORS, PICTURE = "JSON", "a safetensors file", "a picture"
CUT_SHORT = "it was probably cut short: copy or download it again"
PICKLE, ZIP = "a pickle", "a zip archive, as torch.save writes: a pickle"
# The kind of a file by its first bytes, after a byte-order mark and white space, and what to do about it.
SIGNATURES = {
    rb".{5}\0{3}\{": SAFETENSORS,  # the length of a header in 8 bytes, which may look like anything, and the header
    rb"version https://git-lfs": "a git-LFS pointer, not the file itself: fetch it with `git lfs pull`",
    rb"<\?xml|<Error": "an answer in XML, not the file itself: the address is not that of a file, or needs a login",
    rb"<": "a web page, not the file itself: the address is not that of a file, or needs a login",
    rb"[{\[\"]": JSON,
    rb"PK\x03\x04.{26}[^\0]*?\.npy": "an archive of NumPy (npz)",
    rb"PK": ZIP,
    rb"\x80[\x01-\x05]": PICKLE,
    rb"\x93NUMPY": "an array of NumPy (npy)",
    rb"\x89HDF": "an HDF5 file, as Keras writes",
    rb"GGUF": "a GGUF file, which limner does not read; take the safetensors of the same model",
    rb"\x28\xb5\x2f\xfd": "packed with zstd: unpack it",
    rb"\x1f\x8b": "packed with gzip: unpack it",
    rb"\xfd7zXZ": "packed with xz: unpack it",
    rb"BZh\d": "packed with bzip2: unpack it",
    rb"7z\xbc\xaf": "a 7z archive: unpack it",
    rb".{257}ustar": "a tar archive: unpack it",
    rb"\x89PNG|\xff\xd8\xff|GIF8": PICTURE,
    rb"%PDF": "a PDF",
    rb"\xff\xfe|\xfe\xff": "text in UTF-16: save it as UTF-8",
}
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "an object",
         NoneType: "null", tuple: "a list"}  # fmt: skip
MAX_INT = 2**31 - 1  # torch accepts any integer up to this as the size of a dimension
MAX_LAYERS = 512  # more than any published network has, and few enough to build on the meta device within seconds


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, then rename it to `path`, or to what `path` links to."""
    real = Path(os.path.realpath(path))
    temporary = _temporary(real)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, real)
    except OSError as error:
        raise LimnerError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A path beside `path`, with a name that is not too long where its own is not."""
    return path.with_name(f".{os.getpid()}-{path.name[-40:]}")


def expand(path: str | os.PathLike) -> Path:
    """The path, where it is none with ~ for a home folder. Raises LimnerError for a user that is not known."""
    try:
        return Path(path) if Path(path).exists() else Path(path).expanduser()
    except (RuntimeError, OSError, ValueError) as error:
        raise LimnerError(f"{path}: {error}") from error


def check_writable(path: Path) -> None:
    """Raises LimnerError unless a file can be created at `path`, or in the nearest folder above it that exists."""
    try:
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device, not a file"
                raise LimnerError(f"cannot write {path}: it is {what}")
        real = Path(os.path.realpath(path))
        folder = next(each for each in real.parents if os.path.lexists(each))
        temporary = folder / _temporary(real).name
        temporary.touch()
        temporary.unlink()
    except LimnerError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        raise LimnerError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises LimnerError for a file that is absent, not valid JSON or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise LimnerError(f"no file {path}") from error
    except OSError as error:
        raise LimnerError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise LimnerError(f"{path} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise LimnerError(f"{path} is not valid JSON: {other_kind(path, JSON) or error}") from error
    if not isinstance(content, dict):
        raise LimnerError(f"{path} holds a {type(content).__name__}; expected an object of names and values")
    return content


def recognize(path: Path) -> str | None:
    """The kind of a file, as SIGNATURES has it, by its first bytes; None where they say nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if not start:
        return "empty"
    stripped = start.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    for signature, kind in SIGNATURES.items():
        if re.match(signature, start, re.DOTALL) or re.match(signature, stripped, re.DOTALL):
            return kind
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(stripped)  # its last letter may be cut
    except UnicodeDecodeError:
        return None
    is_text = len(text) > 7 and all(letter.isprintable() or letter.isspace() for letter in text)
    return f"text that begins {text[:40]!r}" if is_text else None


def other_kind(path: Path, *expected: str) -> str | None:
    """ "it is ..." of a file that is recognized as none of the expected kinds, else None."""
    kind = recognize(path)
    return None if kind is None or kind in expected else f"it is {kind}"


def read_config(path: Path, parse: Callable[[dict[str, Any]], Config]) -> Config:
    """`parse` applied to the object in a JSON file; its errors are prefixed with the file's name."""
    content = read_json(path)
    try:
        return parse(content)
    except LimnerError as error:
        raise LimnerError(f"{path}: {error}") from error


def from_entries(kind: type[Config], entries: dict[str, Any], what: str) -> Config:
    """The dataclass `kind` with these fields, JSON lists converted to tuples. Raises LimnerError for an unknown field.

    `what` names the object in the error, e.g. "a DiT".
    """
    known = _field_types(kind)
    extra = [name for name in entries if name not in known]
    if extra:
        raise LimnerError(f"this does not describe {what}: got an unexpected keyword argument {extra[0]!r}")
    lists = {name for name, value in entries.items() if isinstance(value, list) and _takes_lists(known[name])}
    return kind(**{name: tuple(value) if name in lists else value for name, value in entries.items()})


def _field_types(kind: Any) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _takes_lists(kind: Any) -> bool:
    """Whether a tuple is a value of the type."""
    return any(get_origin(each) is tuple for each in _choices(kind))


def _choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def check_types(config: object) -> None:
    """Raises LimnerError for a dataclass field whose value is not of the declared type, not finite or too large."""
    for name, kind in _field_types(type(config)).items():
        value = getattr(config, name)
        choices = _choices(kind)
        if not any(_has_type(value, each) for each in choices):
            words = " or ".join(TYPE_NAMES[get_origin(each) or each] for each in choices)
            raise LimnerError(f"{name} must be {words}, not {value!r:.60}")
        if type(value) is int and abs(value) > MAX_INT:
            raise LimnerError(f"{name} {value!r:.60} is too large")


def check_range(config: object, names: Iterable[str], least: int, most: int = MAX_INT) -> None:
    """Raises LimnerError for a field below `least` or above `most`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise LimnerError(f"{name} must be at least {least}, not {value}")
        if value is not None and value > most:
            raise LimnerError(f"{name} must be at most {most}, not {value}")


def _has_type(value: object, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_has_type(each, get_args(kind)[0]) for each in value)
    if kind is float:
        return is_number(value)
    return type(value) is (get_origin(kind) or kind)


def is_number(value: object) -> bool:
    """Whether `value` is an int or float, not a bool, that is finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond 1e308
        return False


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
