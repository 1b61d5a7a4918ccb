"""Building a network from a file: on the meta device, the file's tensors assigned, every one accounted for."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.errors import LimnerError
from limner.weights.file import read_tensors

Net = TypeVar("Net", bound=nn.Module)
Rename = Callable[[str], str | None]
SHOWN = 8  # problems that an error tells


def load(make: Callable[[], Net], path: Path, rename: Rename | None = None) -> Net:
    """The network that `make` describes with the weights of `path`, in their own dtype, in eval mode.

    `rename` gives the network's name of a tensor from the file's, or None for one to be left out. No second copy of
    the weights is made. Raises LimnerError with the list of missing, extra and misshapen tensors, and for a network
    too large for any file and tensors that are not floating-point numbers.
    """
    tensors = read_tensors(path)
    if rename is not None:
        tensors = _renamed(tensors, rename, path)
    try:
        with torch.device("meta"), NoInit():
            net = make()
    except RuntimeError as error:  # torch counts bytes on the meta device too
        raise LimnerError(f"{path}: the configuration describes too large a network ({error})") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    problems = state_dict_problems(shapes, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    odd = {name: tensor.dtype for name, tensor in tensors.items() if not tensor.is_floating_point()}
    problems += [f"{name} holds {dtype}, not floating-point numbers" for name, dtype in odd.items()]
    if problems:
        shown = problems[:SHOWN] + ([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])
        raise LimnerError(f"{path} does not hold the weights of this {type(net).__name__}:\n  " + "\n  ".join(shown))
    net.load_state_dict(tensors, assign=True)
    return net.eval().requires_grad_(False)


class NoInit(TorchFunctionMode):
    """Leaves weights as they are where torch.nn.init would draw them.

    On the meta device there is nothing to draw, and its normal_ imports torch's compiler, a second of work.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _renamed(tensors: dict[str, Tensor], rename: Rename, path: Path) -> dict[str, Tensor]:
    """The tensors under the network's names."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = rename(name)
        if ours is not None and ours in found:
            raise LimnerError(f"{path} holds {ours} twice, under the names of two file formats")
        if ours is not None:
            found[ours] = tensor
    return found


def state_dict_problems(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    """One line for each tensor that is missing, extra, or of another shape; the first say the nearest unused name."""
    extra = [name for name in found if name not in wanted]
    lines: list[str] = []
    for name, shape in wanted.items():
        if name not in found:
            near = get_close_matches(name, extra, n=1) if len(lines) < SHOWN else []
            lines.append(f"missing {name} {shape}" + (f" (the file has {near[0]})" if near else ""))
        elif found[name] != shape:
            lines.append(f"{name} is {found[name]} in the file, {shape} in the network")
    return lines + [f"extra {name} {found[name]}" for name in extra]


def check_finite(parts: Mapping[str, nn.Module | None]) -> None:
    """Raises LimnerError for the first part of which a weight is not finite; its name is the key in `parts`."""
    for part, net in parts.items():
        for name, weight in net.state_dict().items() if net is not None else ():
            if not bool(torch.isfinite(weight).all()):
                hint = "" if weight.dtype == torch.float32 else ", or they need --dtype float32"
                raise LimnerError(
                    f"the weights of the {part} are not finite: {name} holds NaN or infinity; its file is damaged or "
                    f"its training failed{hint}"
                )
