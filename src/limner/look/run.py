"""One forward of each part of a model: shapes, values, seconds, memory, and the modules that were called."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.model import Model
from limner.nets.vae import AutoencoderKL
from limner.noise.draws import KeyedNoise
from limner.pipeline import MAX_PIXELS, Pipeline
from limner.settings import Settings
from limner.text.conditioner import Conditioner
from limner.text.encoder import TextEncoder

PROMPT = "a cat"  # so short that it fits any text encoder
# See(name of the module, its inputs, its output)
See = Callable[[str, Any, Any], object]


class Call(NamedTuple):
    """A call of a part: `name` says which, `part` is the folder of `module`, `shape` that of the input of
    `function`."""

    name: str
    part: str
    module: nn.Module
    shape: tuple[int, ...]
    function: Callable[[], Tensor]


class Report(NamedTuple):
    """What a call gave: shapes of input and output, statistics of the output, seconds, growth of the peak resident
    set in MB (None where it is not known or the part is on another device), the modules called, and for an output that
    is not finite the first module that gave such a one."""

    name: str
    part: str
    shape: tuple[int, ...]
    output: tuple[int, ...]
    min: float
    mean: float
    max: float
    std: float
    seconds: float
    megabytes: float | None
    called: frozenset[str]
    broken: str | None


def calls(model: Model, prompt: str, size: int) -> Iterator[Call]:
    """A call of each part in turn, as the pipeline makes it for a picture of `size` pixels a side.

    Text encoders and network get the rows of guidance: the null prompt and `prompt`. Raises LimnerError for a prompt or
    a size that the model cannot use.
    """
    side, rows = _side(model, size), ["", prompt] if model.conditioner.acts else [prompt]
    yield from _text_calls(model, rows)
    yield _network_call(model, rows, side)
    if model.autoencoder is not None:
        yield from _autoencoder_calls(model, model.autoencoder, side)


def default_prompt(conditioner: Conditioner) -> str:
    """A prompt that the model can use."""
    return {"text": PROMPT, "class": next(iter(conditioner.names), ""), "none": ""}[conditioner.kind]


def _side(model: Model, size: int) -> int:
    """The side of x, in latents where there is an autoencoder."""
    multiple = model.network.multiple * model.factor
    if size < multiple or size % multiple:
        near = max(multiple, round(size / multiple) * multiple)
        raise LimnerError(f"size {size} is not a multiple of {multiple}, as this model needs; try {near}")
    if size * size > MAX_PIXELS:
        raise LimnerError(f"a picture of {size}x{size} is over the largest that is painted, {MAX_PIXELS} pixels")
    return size // model.factor


def _text_calls(model: Model, rows: Sequence[str]) -> Iterator[Call]:
    """Tokens (B, L) -> states (B, L, C) by each text encoder; the null embedding."""
    for encoder in model.conditioner.modules():
        if isinstance(encoder, TextEncoder):
            ids = encoder.tokenizer.encode(list(rows))[0].to(model.device)
            name = f"text_encoder{encoder.reads.suffix}"
            yield Call(name, name, encoder.transformer, tuple(ids.shape), partial(_states, encoder, ids))
    if (null := model.conditioner.null) is not None:
        yield Call("null_text", "null_text", null, (), null)


def _states(encoder: TextEncoder, ids: Tensor) -> Tensor:
    return encoder.transformer(ids, encoder.reads.layer, encoder.reads.norm).hidden


@torch.inference_mode()
def _network_call(model: Model, rows: Sequence[str], side: int) -> Call:
    """x (B, C, H, W) at the first noise level -> F (B, C, H, W), the text's projections included."""
    network, condition = model.network, dict(model.conditioner(rows))
    schedule, _ = Pipeline(model).resolve(Settings())
    x = (schedule.start * _noise(model, side)).to(model.dtype).repeat(len(rows), 1, 1, 1)
    if network.concat_channels:  # of a picture that is kept whole
        condition["concat"] = x.new_zeros((len(rows), network.concat_channels, side, side))
    t = torch.full((len(rows),), schedule.grid[0].t, device=model.device, dtype=torch.float32)
    name = next(iter(model.parts()))
    return Call(name, name, network, tuple(x.shape), lambda: network(x, t, **network.prepare(condition)))


def _noise(model: Model, side: int) -> Tensor:
    """Unit noise (1, C, side, side) of seed 0."""
    return KeyedNoise([0], (model.network.latent_channels, side, side), model.device).start()


def _autoencoder_calls(model: Model, autoencoder: AutoencoderKL, side: int) -> Iterator[Call]:
    """A ramp from black to white -> the mean of its latents, in the denoiser's scale; unit noise -> a picture."""
    size, dtype = side * model.factor, next(autoencoder.parameters()).dtype
    ramp = torch.linspace(-1, 1, size, device=model.device, dtype=dtype)
    picture = ramp.repeat(1, autoencoder.config.in_channels, size, 1)
    picture = picture.contiguous(memory_format=torch.channels_last)

    def encode() -> Tensor:
        return autoencoder.to_latents(autoencoder.encode(picture).mean)

    yield Call("vae encode", "vae", autoencoder, tuple(picture.shape), encode)
    z = _noise(model, side)
    yield Call("vae decode", "vae", autoencoder, tuple(z.shape), lambda: model.decode(z))


@torch.inference_mode()
def run(call: Call) -> Report:
    """Make the call and measure it; make it again, to find the module, if its output is not finite."""
    called: set[str] = set()
    with watch(call.module, lambda name, inputs, output: called.add(name)):
        before, start = _peak_memory(reset=True), time.perf_counter()
        output = call.function().float().cpu()  # waits for the device
        seconds, after = time.perf_counter() - start, _peak_memory()
    on_cpu = next(call.module.parameters()).device.type == "cpu"
    growth = (after - before) / 1e6 if on_cpu and before is not None and after is not None else None
    return Report(
        name=call.name,
        part=call.part,
        shape=call.shape,
        output=tuple(output.shape),
        min=float(output.min()),
        mean=float(output.mean()),
        max=float(output.max()),
        std=float(output.std(correction=0)),
        seconds=seconds,
        megabytes=growth,
        called=frozenset(called),
        broken=None if bool(torch.isfinite(output).all()) else _first_broken(call),
    )


def _first_broken(call: Call) -> str:
    """The first module whose output is not finite in this call."""
    broken: list[str] = []

    def see(name: str, inputs: Any, output: Any) -> None:
        if not _finite(output):
            name = name or type(call.module).__name__
            broken.append(name if _finite(inputs) else f"{name} (its input is not finite either)")

    with watch(call.module, see):
        call.function()
    return broken[0] if broken else "the computation after the last module"


def _finite(value: Any) -> bool:
    """Whether all tensors in nested tuples and lists are finite."""
    if isinstance(value, tuple | list):
        return all(map(_finite, value))
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


@contextmanager
def watch(net: nn.Module, see: See) -> Iterator[None]:
    """While it is open, `see` is called after the forward of each module in `net`, an inner one before its outer."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:  # None leaves the output as it is
            see(name, inputs, output)

        return after

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def holders(net: nn.Module) -> dict[str, list[str]]:
    """The names of the modules that hold tensors themselves, with the names of those tensors."""
    held: dict[str, list[str]] = {}
    for tensor in net.state_dict():
        held.setdefault(tensor.rpartition(".")[0], []).append(tensor)
    return held


class Usage(NamedTuple):
    """Of the modules of a part that hold tensors themselves, the number that was called; the tensors of those, and the
    names of the tensors of the others."""

    called: int
    modules: int
    used: int
    tensors: int
    unused: list[str]


def usage(parts: Mapping[str, nn.Module], reports: Sequence[Report]) -> dict[str, Usage]:
    """What all calls of each part together used of it."""
    result = {}
    for part, net in parts.items():
        called = frozenset[str]().union(*(report.called for report in reports if report.part == part))
        held = holders(net)
        unused = [tensor for name, tensors in held.items() if name not in called for tensor in tensors]
        total = sum(map(len, held.values()))
        result[part] = Usage(len(called & held.keys()), len(held), total - len(unused), total, unused)
    return result


def _peak_memory(reset: bool = False) -> int | None:
    """The peak resident set of this process in bytes, since the last reset where it can be reset (Linux); None where it
    is not known."""
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
    with suppress(OSError):
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if peak:
            return int(peak[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
