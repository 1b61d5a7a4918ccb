"""Checks of single values, with their names in the message."""

import math
import numbers
import operator
from typing import Any

from limner.errors import LimnerError


def as_whole(name: str, value: Any) -> int:
    """A whole number of any library as an int. Raises LimnerError for anything else, bools among it."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise LimnerError(f"{name} must be a whole number, not {value!r:.60}")


def as_number(name: str, value: Any) -> float:
    """A real number of any library, but NaN, as a float. Raises LimnerError for anything else, bools among it."""
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value):
            return float(value) + 0.0  # -0.0 is 0.0
    except OverflowError:  # an integer beyond 1e308
        pass
    raise LimnerError(f"{name} must be a number, not {value!r:.60}")


def as_text(name: str, value: Any) -> str:
    """The text. Raises LimnerError for anything else."""
    if not isinstance(value, str):
        raise LimnerError(f"{name} must be a text, not {value!r:.60}")
    if "\0" in value:
        raise LimnerError(f"{name} holds NUL, which is no character of a text: {value!r:.60}")
    return value


def as_bool(name: str, value: Any) -> bool:
    """The bool. Raises LimnerError for anything else."""
    if not isinstance(value, bool):
        raise LimnerError(f"{name} must be True or False, not {value!r:.60}")
    return value
