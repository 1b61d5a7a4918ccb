"""Building a network from a file: on the meta device, the file's tensors assigned, every one accounted for."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from limner.errors import LimnerError
from limner.weights.file import read_tensors

Net = TypeVar("Net", bound=nn.Module)


def load(make: Callable[[], Net], path: Path, dtype: torch.dtype | None = None) -> Net:
    """The network that `make` describes with the weights of `path`, converted to `dtype` if given, in eval mode.

    No second copy of the weights is made. Raises LimnerError with the list of missing, extra and misshapen tensors.
    """
    tensors = read_tensors(path)
    with torch.device("meta"):
        net = make()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    problems = account(shapes, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if problems:
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise LimnerError(f"{path} does not hold the weights of this {type(net).__name__}:\n  " + "\n  ".join(shown))
    if dtype is not None:
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    net.load_state_dict(tensors, assign=True)
    return net.eval().requires_grad_(False)


def account(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    """One line for each tensor that is missing (with the nearest unused name), extra, or of another shape."""
    extra = [name for name in found if name not in wanted]
    lines = []
    for name, shape in wanted.items():
        if name not in found:
            near = get_close_matches(name, extra, n=1)
            lines.append(f"missing {name} {shape}" + (f" (the file has {near[0]})" if near else ""))
        elif found[name] != shape:
            lines.append(f"{name} is {found[name]} in the file, {shape} in the network")
    return lines + [f"extra {name} {found[name]}" for name in extra]
