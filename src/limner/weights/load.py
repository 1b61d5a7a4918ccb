"""Loading a network: built on the meta device, tensors assigned from the file, strictly."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.errors import LimnerError
from limner.weights.file import read_weights

Net = TypeVar("Net", bound=nn.Module)
Rename = Callable[[str], str | None]
MAX_SHOWN = 8  # problems listed in an error


def load(
    build: Callable[[], Net],
    path: Path,
    rename: Rename | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    allow_pickle: bool = False,
) -> Net:
    """The network that `build` constructs, with the weights of `path`, in eval mode and frozen.

    `rename` maps a tensor's name in the file to the network's, or to None to skip it. Weights are copied only where
    `dtype` changes them or `channels_last` is asked for. Raises LimnerError with the list of missing, extra, misshapen
    and non-floating-point tensors, and for a network that is too large to build.
    """
    tensors = _renamed(read_weights(path, allow_pickle), rename, path)
    try:
        with torch.device("meta"), NoInit():
            net = build()
    except RuntimeError as error:  # sizes overflow on the meta device too
        raise LimnerError(f"{path}: the configuration describes too large a network ({error})") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    problems = state_dict_problems(shapes, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    problems += [
        f"{name} holds {tensor.dtype}, not floating-point numbers"
        for name, tensor in tensors.items()
        if not tensor.is_floating_point()
    ]
    if problems:
        shown = problems[:MAX_SHOWN] + ([f"and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else [])
        raise LimnerError(f"{path} does not hold the weights of this {type(net).__name__}:\n  " + "\n  ".join(shown))
    for name in tensors:  # one by one, each original given up, so that no two copies of all are held at once
        tensors[name] = convert(tensors[name], dtype, channels_last)
    net.load_state_dict(tensors, assign=True)
    return net.eval().requires_grad_(False)


def convert(tensor: Tensor, dtype: torch.dtype | None, channels_last: bool) -> Tensor:
    """The tensor in `dtype`, itself where it is so already; with `channels_last` a copy, so that nothing keeps the file
    mapped, and one of four dimensions in that format."""
    # The kernel of a 1x1 convolution is in both formats at once.
    strided = channels_last and tensor.ndim == 4 and not tensor.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if strided else torch.preserve_format
    return tensor.to(dtype=dtype, memory_format=layout, copy=channels_last)


class NoInit(TorchFunctionMode):
    """Skips torch.nn.init: on the meta device it has no effect, and normal_ imports torch's compiler, which is slow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _renamed(tensors: dict[str, Tensor], rename: Rename | None, path: Path) -> dict[str, Tensor]:
    """The tensors under the network's names."""
    if rename is None:
        return tensors
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = rename(name)
        if new in renamed and not torch.equal(tensor, renamed[new]):  # shared weights may be saved under each name
            raise LimnerError(f"{path} holds {new} twice, under the names of two file formats")
        if new is not None:
            renamed[new] = tensor
    return renamed


def state_dict_problems(expected: dict[str, tuple[int, ...]], actual: dict[str, tuple[int, ...]]) -> list[str]:
    """One line per missing, extra or misshapen tensor; the first missing ones suggest the closest extra name."""
    extra = [name for name in actual if name not in expected]
    lines: list[str] = []
    for name, shape in expected.items():
        if name not in actual:
            near = get_close_matches(name, extra, n=1) if len(lines) < MAX_SHOWN else []
            lines.append(f"missing {name} {shape}" + (f" (the file has {near[0]})" if near else ""))
        elif actual[name] != shape:
            lines.append(f"{name} is {actual[name]} in the file, {shape} in the network")
    return lines + [f"extra {name} {actual[name]}" for name in extra]


def check_finite(parts: Mapping[str, nn.Module | None]) -> None:
    """Raises LimnerError where the weights explain a picture that is not finite: for the first part, named by its key
    in `parts`, that has a weight that is not finite or whose square is not, and for parts of half precision."""
    halved: dict[str, str] = {}
    for part, net in parts.items():
        for name, weight in net.state_dict().items() if net is not None else ():
            dtype = str(weight.dtype).removeprefix("torch.")
            if weight.dtype.itemsize < 4:
                halved[part] = dtype
            if not bool(torch.isfinite(weight).all()):
                hint = "" if weight.dtype == torch.float32 else ", or they need --dtype float32"
                raise LimnerError(
                    f"the weights of the {part} are not finite: {name} holds NaN or infinity; its file is damaged or "
                    f"its training failed{hint}"
                )
            largest = float(weight.abs().max()) if weight.numel() and weight.is_floating_point() else 0.0
            if largest > 1e6 and largest > torch.finfo(weight.dtype).max ** 0.5:  # float16 holds no number over 1e6
                raise LimnerError(
                    f"the weights of the {part} are too large for {dtype}: {name} holds {largest:.3g}; its file is "
                    "damaged or its training failed"
                )
    if halved:
        which = ", ".join(f"{part} in {dtype}" for part, dtype in halved.items())
        raise LimnerError(f"the picture is not finite, with the {which}; try --dtype float32 or less guidance")
