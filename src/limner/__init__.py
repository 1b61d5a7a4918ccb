"""limner: text-to-image from zero. Public names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.errors import LimnerError
    from limner.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["LimnerError", "Pipeline", "__version__"]

_HOME = {"LimnerError": "limner.errors", "Pipeline": "limner.pipeline"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'limner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
