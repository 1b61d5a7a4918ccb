"""limner inspect: the parts of a model, its noise levels, the tokens of a text, the similarity of prompts."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from limner.cli.inspect_model import inspect_model
from limner.cli.tables import new_table, print_table
from limner.errors import LimnerError, unknown

if TYPE_CHECKING:
    from limner.pipeline import Pipeline
    from limner.schedulers import Schedule

NULL = '"" (null)'


def run(arguments: list[str]) -> None:
    """Parse and print a table."""
    topics: dict[str, Callable[[list[str]], None]] = {
        "model": inspect_model, "schedule": inspect_schedule, "tokens": inspect_tokens, "text": inspect_text,
    }  # fmt: skip
    if not arguments or arguments[0] in ("-h", "--help"):
        from limner.cli import OVERVIEW

        print(OVERVIEW)
        return
    if arguments[0] not in topics:
        raise unknown("inspect topic", arguments[0], topics)
    topics[arguments[0]](arguments[1:])


def inspect_schedule(arguments: list[str]) -> None:
    """The noise levels of a sampler."""
    import tyro

    @dataclass(frozen=True)
    class Arguments:
        """The noise levels of a sampler."""

        path: tyro.conf.Positional[str | None] = None
        """A model folder, a training run or a scheduler_config.json; without it the shipped model."""
        steps: int | None = None
        sampler: str | None = None
        """One, or several to be compared: euler,dpmpp_2m."""
        schedule: str | None = None
        """One, or several to be compared: normal,karras."""
        shift: float | None = None
        plot: str | None = None
        """A file for a plot of alpha, sigma, log SNR and beta over t, and of where the steps fall: .png, .svg, .pdf."""

    args = tyro.cli(Arguments, args=arguments, prog="limner inspect schedule")
    from limner.files import expand

    file = None if args.plot is None else expand(args.plot)
    schedules = _schedules(args, file)
    for schedule in schedules.values():
        _print_levels(schedule)
    if file is not None:
        from limner.look.plots import plot_schedules, save_plot

        if not hasattr(next(iter(schedules.values())).path, "betas"):
            print("limner: a flow path has no betas: the plot is without them", file=sys.stderr)
        save_plot(plot_schedules(schedules), file)
        print(file)


def _schedules(args: Any, file: Path | None) -> "dict[str, Schedule]":
    """The schedule of each sampler and spacing, by their names; `file` is checked before a model is opened."""
    from limner.files import read_config
    from limner.look.plots import check_plot
    from limner.schedulers import read_schedule
    from limner.settings import Settings

    if file is not None:
        check_plot(file)
    is_file = args.path and args.path.endswith(".json")
    pipe, schedules = None if is_file else _open(args.path), {}
    samplers, spacings = (_names(text) for text in (args.sampler, args.schedule))
    for name, spacing in product(samplers, spacings):
        if pipe is None:
            options = {"sampler": name, "schedule": spacing, "shift": args.shift}
            steps = 20 if args.steps is None else args.steps
            schedule = read_config(Path(args.path), lambda config: read_schedule(config, steps, **options))  # noqa: B023
        else:
            settings = Settings(steps=args.steps, sampler=name, schedule=spacing, shift=args.shift)
            schedule, _ = pipe.resolve(settings)
        schedules[" ".join(filter(None, (schedule.sampler, spacing)))] = schedule
    return schedules


def _names(text: str | None) -> list[str | None]:
    """Names separated by commas; None alone for the default."""
    return [None] if text is None else [name.strip() for name in text.split(",")]


def _print_levels(schedule: "Schedule") -> None:
    title = f"{schedule.sampler}, predicts {schedule.predicts}, starts at {schedule.start:g} times unit noise"
    table = new_table(title)
    for column in ("level", "t", "alpha", "sigma", "sigma/alpha", "log(alpha/sigma)"):
        table.add_column(column, justify="right")
    for i, level in enumerate(schedule.grid):
        numbers = (level.t, level.alpha, level.sigma, level.rho, level.lam)
        table.add_row(str(i), *(f"{number:.5g}" for number in numbers))
    print_table(table)


def inspect_tokens(arguments: list[str]) -> None:
    """The tokens of a text and their ids."""
    import tyro

    @dataclass(frozen=True)
    class Arguments:
        """The tokens of a text and their ids."""

        text: tyro.conf.Positional[str]
        model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None
        """A model folder, a training run or a folder of tokenizer files; without it the shipped model."""
        tokenizer: str = "tokenizer"
        """Which of a model's tokenizers: tokenizer, tokenizer_2, tokenizer_3."""

    args = tyro.cli(Arguments, args=arguments, prog="limner inspect tokens")
    from limner.folders import find_model, find_part
    from limner.text.encoder import open_tokenizer

    owner = find_part(args.model or "shipped", args.tokenizer)
    if owner is not None:
        folder = owner / args.tokenizer
    else:
        folder = Path(args.model or "")
        folder = folder if _has_tokenizer(folder) else find_model(args.model) / args.tokenizer
    tokenizer, table = open_tokenizer(folder), new_table()
    for column in ("place", "token", "id"):
        table.add_column(column)
    pieces = tokenizer.pieces(args.text)
    for place, (piece, number) in enumerate(pieces):
        table.add_row(str(place), piece, str(number))
    print_table(table)
    print(f"{len(pieces)} tokens of {tokenizer.length}")


def inspect_text(arguments: list[str]) -> None:
    """How alike prompts are to a text encoder."""
    import tyro

    @dataclass(frozen=True)
    class Arguments:
        """The cosine similarities of prompts, and of the null text, which is "", by the states of a text encoder."""

        prompts: tyro.conf.Positional[tuple[str, ...]]
        model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None
        """A model folder, a training run or a name of the hub; without it the shipped model."""
        states: str = "mean"
        """mean: of the states that the network is given, over the prompt's tokens, start and end included, padding not;
        pooled: the encoder's pooled state, by which CLIP compares texts."""
        encoder: str | None = None
        """Which of a model's text encoders: text_encoder, text_encoder_2, text_encoder_3."""
        plot: str | None = None
        """A file for the matrix as a plot: .png, .svg, .pdf."""

    args = tyro.cli(Arguments, args=arguments, prog="limner inspect text")
    from limner.files import expand
    from limner.look.plots import check_plot, plot_similarity, save_plot
    from limner.look.similarity import cosines, text_vectors

    if not args.prompts:
        raise LimnerError("no prompts to compare; give one or more")
    file = None if args.plot is None else expand(args.plot)
    if file is not None:
        check_plot(file)
    prompts = list(dict.fromkeys(["", *args.prompts]))
    matrix = cosines(text_vectors(_open(args.model).model, prompts, args.states, args.encoder))
    table = new_table(f"cosine similarity, {args.states} state")
    names = [prompt or NULL for prompt in prompts]
    for column in ("", "prompt", *map(str, range(len(names)))):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for row, (name, values) in enumerate(zip(names, matrix.tolist(), strict=True)):
        table.add_row(str(row), name, *(f"{value:.3f}" for value in values))
    print_table(table)
    if file is not None:
        save_plot(plot_similarity(names, matrix), file)
        print(file)


def _has_tokenizer(folder: Path) -> bool:
    """Whether the files of a tokenizer lie in the folder itself."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))


def _open(path: str | None) -> "Pipeline":
    from limner.pipeline import Pipeline

    return Pipeline.from_pretrained(path)
