"""The ranges of a recipe's fields, stated in their annotations and checked in one place."""

import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from limner.checks import as_whole
from limner.errors import LimnerError, unknown
from limner.files import MAX_INT

MAX_FLOAT = 1e30  # with room to be multiplied within float32


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without `low` where `above`, without `high` where `below`."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def check(self, name: str, value: Any, kind: type) -> None:
        """LimnerError for a value that is not of the kind, int or float, or outside the range, as NaN is."""
        if kind is int:
            as_whole(name, value)
        elif isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise LimnerError(f"{name} must be a number, not {value!r:.60}")
        over = value >= self.high if self.below else value > self.high
        if (value > self.low if self.above else value >= self.low) and not over:
            return
        if kind is float and self.high < MAX_FLOAT and not self.above:
            words = f"from {self.low:g} to {'below ' if self.below else ''}{self.high:g}"
        elif over:
            words = f"at most {self.high}"
        else:
            words = f"{'more than' if self.above else 'at least'} {self.low:g}"
        raise LimnerError(f"{name} must be {words}, not {value!r:.60}")


Natural = Annotated[int, Range(0, MAX_INT)]
Positive = Annotated[int, Range(1, MAX_INT)]
Number = Annotated[float, Range(-MAX_FLOAT, MAX_FLOAT)]
Amount = Annotated[float, Range(0, MAX_FLOAT)]
PositiveNumber = Annotated[float, Range(0, MAX_FLOAT, above=True)]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]


def check_fields(config: Any) -> None:
    """LimnerError for a number outside the `Range` of its field, and for a name outside its Literal."""
    for name, kind, limit in _limits(type(config)):  # type: ignore[arg-type]
        value = getattr(config, name)
        if value is None:
            continue
        if isinstance(limit, tuple):
            if value not in limit:
                raise unknown(name, str(value), map(str, limit))
        else:
            limit.check(name, value, kind)


@lru_cache
def _limits(config: type) -> list[tuple[str, type, Any]]:
    """(field, type, its Range or its choices) of the fields that have one."""
    hints = get_type_hints(config, include_extras=True)
    return [(name, *found) for name, hint in hints.items() for found in _limits_of(hint)]


def _limits_of(hint: Any) -> Iterator[tuple[type, Any]]:
    """The limits in an annotation, of which a union with None has those of its member."""
    if get_origin(hint) is Literal:
        yield str, get_args(hint)
    elif get_origin(hint) is Annotated:
        yield from ((get_args(hint)[0], each) for each in hint.__metadata__ if isinstance(each, Range))
    elif type(None) in get_args(hint):
        yield from (found for member in get_args(hint) for found in _limits_of(member))


def check_derived(option: str, config: object, names: Sequence[str], reason: str) -> None:
    """LimnerError for a field that is set and would be overwritten."""
    for name in names:
        default = type(config).__dataclass_fields__[name].default  # type: ignore[attr-defined]
        if getattr(config, name) != default:
            raise LimnerError(f"leave --{option}.{name.replace('_', '-')} out: {reason}")
