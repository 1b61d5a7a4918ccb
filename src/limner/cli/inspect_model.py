"""limner inspect model: every tensor of a model folder accounted for; with --run one forward of each part."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limner.cli.tables import format_size, new_table, print_table
from limner.errors import warn_no_effect

if TYPE_CHECKING:
    from limner.look.run import Report, Usage
    from limner.look.tensors import PartTensors
    from limner.model import Model

WIDTH = 100  # columns that the tables fit


def _arguments(arguments: list[str]) -> Any:
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional

    @dataclass(frozen=True)
    class Arguments:
        """The parts of a model, with every tensor of its files accounted for, and its defaults."""

        path: Positional[str | None] = None
        """A model folder, a training run or a name of the hub (owner/name); without it the shipped model."""
        device: str = "auto"
        """cpu, cuda, cuda:1, mps ...; auto takes cuda, else mps, else cpu."""
        dtype: str = "auto"
        """float32, bfloat16 or float16, of all parts or of one ("auto,vae=float32"), as in limner generate."""
        allow_pickle: FlagCreatePairsOff[bool] = False
        """Open weights in pickle files too (.bin, .ckpt), tensors only: nothing in them is run."""
        run: FlagCreatePairsOff[bool] = False
        """Call each part once, and show its output and which of its tensors that used."""
        prompt: str | None = None
        """The prompt of --run."""
        size: int | None = None
        """Height and width of the picture of --run, in pixels; by default the model's own."""

    return tyro.cli(Arguments, args=arguments, prog="limner inspect model")


def inspect_model(arguments: list[str]) -> None:
    """Open the model and print what its files hold and, if asked, what its parts compute."""
    args = _arguments(arguments)
    from limner.folders import find_model
    from limner.look.tensors import part_tensors, skipped_parts
    from limner.model import Model

    if not args.run:
        warn_no_effect("inspect model without --run", prompt=args.prompt, size=args.size)
    model, folder = Model.open(args.path, args.device, args.dtype, args.allow_pickle), find_model(args.path)
    parts = [part_tensors(folder / name, part, args.allow_pickle) for name, part in model.parts().items()]
    print(folder)
    _print_tensors(parts)
    _print_unused(parts, skipped_parts(folder, model))
    _print_configuration(model, parts)
    if args.run:
        _run(model, args.prompt, args.size)


def _print_tensors(parts: "Sequence[PartTensors]") -> None:
    table = _table(("part",), ("tensors", "used", "parameters", "size", "on disk", "opened"))
    for part in parts:
        numbers = (str(part.tensors), str(part.used), f"{part.parameters:,}", format_size(part.size))
        table.add_row(part.folder, *numbers, part.stored, part.opened)
    table.add_section()
    tensors, used = sum(part.tensors for part in parts), sum(part.used for part in parts)
    parameters, size = sum(part.parameters for part in parts), sum(part.size for part in parts)
    table.add_row("total", str(tensors), str(used), f"{parameters:,}", format_size(size), "", "")
    print_table(table, WIDTH)


def _print_unused(parts: "Sequence[PartTensors]", skipped: Mapping[str, str]) -> None:
    for part in parts:
        if part.unused:
            names = ", ".join(part.unused)
            print(f"{part.folder}: {part.tensors} tensors, {part.used} used, unused: {names}")
    if not any(part.unused for part in parts):
        print("every tensor is used")
    for name, reason in skipped.items():
        print(f"{name} is not needed to paint: {reason}")


def _print_configuration(model: "Model", parts: "Sequence[PartTensors]") -> None:
    table = _table(("part", "class, files and configuration"))
    for part, module in zip(parts, model.parts().values(), strict=True):
        table.add_row(part.folder, ", ".join([part.kind, *part.files]))
        table.add_row("", _entries(vars(module.config)))
    for name, tokenizer in model.tokenizers().items():
        table.add_row(name, f"vocab_size={tokenizer.vocab_size}, length={tokenizer.length}")
    for name, values in (("scheduler", model.scheduler), ("defaults", model.defaults)):
        table.add_row(name, _entries(values))
    print_table(table, WIDTH)


def _run(model: "Model", prompt: str | None, size: int | None) -> None:
    """Call each part and print the reports."""
    from limner.look.run import calls, default_prompt, run, usage

    prompt = default_prompt(model.conditioner) if prompt is None else prompt
    size, reports = model.size if size is None else size, []
    with _status() as show:
        for call in calls(model, prompt, size):
            show(f"running {call.name}")
            reports.append(run(call))
    _print_reports(reports, f"one call of each part for {prompt!r}, {size}x{size}, on {model.device}")
    _print_usage(usage(model.parts(), reports))


def _print_reports(reports: "Sequence[Report]", title: str) -> None:
    table = _table(("call",), ("input", "output", "min", "mean", "max", "std", "seconds", "peak MB"), title)
    for each in reports:
        values = (f"{value:.3g}" for value in (each.min, each.mean, each.max, each.std))
        memory = "-" if each.megabytes is None else f"{each.megabytes:+.0f}"
        table.add_row(each.name, _shape(each.shape), _shape(each.output), *values, f"{each.seconds:.3f}", memory)
    print_table(table, WIDTH)
    for each in reports:
        if each.broken is not None:
            print(f"{each.name}: the output is not finite, first in {each.broken}")


def _print_usage(used: "Mapping[str, Usage]") -> None:
    table = _table(("part",), ("modules called", "tensors used"))
    for part, each in used.items():
        table.add_row(part, f"{each.called} of {each.modules}", f"{each.used} of {each.tensors}")
    print_table(table, WIDTH)
    for part, each in used.items():
        if each.unused:
            print(f"{part}: not used, as their modules were not called: {', '.join(each.unused)}")


def _status() -> AbstractContextManager[Callable[[str], object]]:
    """A context that gives a function to show a line with, on a terminal."""
    if not sys.stderr.isatty():
        return nullcontext(lambda text: None)
    from contextlib import contextmanager

    from rich.console import Console

    @contextmanager
    def status():
        with Console(stderr=True).status("") as shown:
            yield shown.update

    return status()


def _table(texts: Sequence[str], numbers: Sequence[str] = (), title: str | None = None) -> Any:
    """A table with columns of texts, then of numbers."""
    table = new_table(title)
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _entries(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "-"
