"""Offload: of the parts of a model, only the one in use is in memory."""

import ctypes
import math
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import nn

from limner.errors import LimnerError

READ_WEIGHTS = ("forward", "prepare", "encode", "decode", "state_dict")  # methods of parts


class Offload:
    """Parts whose weights are released, but for those of one: a part is loaded when one of the methods that
    `READ_WEIGHTS` is called, after the part before it has been released."""

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        load: Callable[[str, str], nn.Module],
        dtypes: Mapping[str, torch.dtype],
        device: torch.device,
    ) -> None:
        """`load`, given the name and class of a part, returns it anew, with weights of `dtypes` on `device`.

        A released weight has the shape, dtype and device of the loaded one; all of it is a single NaN.
        """
        self.parts, self.load = parts, load
        self.loaded: str | None = None
        self.released = {
            name: {
                key: torch.full((), math.nan, dtype=dtypes[name], device=device).expand(weight.shape)
                for key, weight in part.state_dict().items()
            }
            for name, part in parts.items()
        }
        for name, part in parts.items():
            part.load_state_dict(self.released[name], assign=True)
            for method in READ_WEIGHTS:
                if hasattr(part, method):
                    setattr(part, method, self._with_weights(name, getattr(part, method)))

    def _with_weights(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.use(name)
            return method(*args, **kwargs)

        return call

    @torch.inference_mode(False)  # weights are used outside it, too
    def use(self, name: str) -> None:
        """Load a part, unless it is the one that is loaded. Raises LimnerError for files that have changed."""
        if self.loaded == name:
            return
        self.release()
        part = self.parts[name]
        try:
            part.load_state_dict(self.load(name, type(part).__name__).state_dict(), assign=True)
        except RuntimeError as error:
            raise LimnerError(
                f"the files of the {name} have changed since the model was opened: open it again"
            ) from error
        self.loaded = name

    def release(self) -> None:
        """Release the part that is loaded, if there is one."""
        if self.loaded is not None:
            self.parts[self.loaded].load_state_dict(self.released[self.loaded], assign=True)
            self.loaded = None
            return_freed_memory()


def return_freed_memory() -> None:
    """Return to the system what `keep_freed_memory` has made glibc keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
