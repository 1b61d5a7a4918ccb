"""Files read with clear errors, and written to a temporary name and renamed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limner.errors import LimnerError


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LimnerError(f"no file {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LimnerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise LimnerError(f"{path} holds a {type(content).__name__}; expected an object of names and values")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
