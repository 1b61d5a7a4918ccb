"""Files read with clear errors, and written to a temporary name and renamed; configurations checked field by field."""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from limner.errors import LimnerError

Config = TypeVar("Config")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "an object",
         NoneType: "null", tuple: "a list"}  # fmt: skip
MAX_INT = 2**31 - 1  # of whole numbers: torch takes any such number as the side of a tensor
MAX_LAYERS = 512  # over any network's, and few enough that one which its file does not hold is refused within seconds


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make the file under a temporary name beside `path`, then rename it: no half-written file is seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise LimnerError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise LimnerError(f"no file {path}") from error
    except OSError as error:
        raise LimnerError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise LimnerError(f"{path} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise LimnerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise LimnerError(f"{path} holds a {type(content).__name__}; expected an object of names and values")
    return content


def read_config(path: Path, make: Callable[[dict[str, Any]], Config]) -> Config:
    """What `make` makes of the object in a JSON file; whatever it refuses is told with the file's name."""
    content = read_json(path)
    try:
        return make(content)
    except LimnerError as error:
        raise LimnerError(f"{path}: {error}") from error


def from_entries(kind: type[Config], entries: dict[str, Any], what: str) -> Config:
    """The dataclass with these entries, JSON's lists as tuples. Raises LimnerError for an entry that it does not have.

    `what` says in the error what the entries should describe, as in "a DiT".
    """
    known = get_type_hints(kind)
    extra = [name for name in entries if name not in known]
    if extra:
        raise LimnerError(f"this does not describe {what}: got an unexpected keyword argument {extra[0]!r}")
    lists = {name for name, value in entries.items() if isinstance(value, list) and get_origin(known[name]) is tuple}
    return kind(**{name: tuple(value) if name in lists else value for name, value in entries.items()})


def check_types(config: object) -> None:
    """Raises LimnerError for a field of a dataclass that is not of its declared type, or is no finite number."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        choices = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if not any(_is_a(value, each) for each in choices):
            words = " or ".join(KINDS[get_origin(each) or each] for each in choices)
            raise LimnerError(f"{name} must be {words}, not {value!r:.60}")
        if type(value) is int and abs(value) > MAX_INT:
            raise LimnerError(f"{name} {value!r:.60} is too large")


def check_range(config: object, names: Iterable[str], least: int, most: int = MAX_INT) -> None:
    """Raises LimnerError for a field below `least` or above `most`; None is in any range."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise LimnerError(f"{name} must be at least {least}, not {value}")
        if value is not None and value > most:
            raise LimnerError(f"{name} must be at most {most}, not {value}")


def _is_a(value: object, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(each, get_args(kind)[0]) for each in value)
    if kind is float:
        return is_number(value)
    return type(value) is (get_origin(kind) or kind)


def is_number(value: object) -> bool:
    """Whether `value` is a finite number that a float can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond 1e308
        return False


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
