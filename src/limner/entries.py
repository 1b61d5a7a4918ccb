"""Entries of a configuration, by name: of the expected type and in their range, or a ConfigError."""

from collections.abc import Mapping
from typing import Any

from limner.errors import ConfigError
from limner.files import is_number


def get_float(config: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    value = config.get(name, default)
    if not is_number(value):
        raise ConfigError(f"{name} must be a number, not {value!r:.60}")
    if not low <= value <= high:
        raise ConfigError(f"{name} must be from {low:g} to {high:g}, not {value!r:.60}")
    return float(value)


def get_int(config: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    """An integer from `low` to `high`; JSON may hold it as 1000.0."""
    value = get_float(config, name, default, low, high)
    if value != int(value):
        raise ConfigError(f"{name} must be a whole number, not {value:g}")
    return int(value)


def get_bool(config: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A bool; null is False."""
    value = config.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r:.60}")
    return bool(value)


def get_str(config: Mapping[str, Any], name: str, default: str) -> str:
    """A string."""
    value = config.get(name, default)
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a name in quotes, not {value!r:.60}")
    return value
