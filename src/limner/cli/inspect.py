"""limner inspect: the parts of a model, its noise levels, the tokens of a text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from limner.cli.inspect_model import inspect_model
from limner.cli.tables import new_table, print_table
from limner.errors import unknown

if TYPE_CHECKING:
    from limner.pipeline import Pipeline


def run(arguments: list[str]) -> None:
    """Parse and print a table."""
    topics: dict[str, Callable[[list[str]], None]] = {
        "model": inspect_model, "schedule": inspect_schedule, "tokens": inspect_tokens,
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
        schedule: str | None = None
        shift: float | None = None

    args = tyro.cli(Arguments, args=arguments, prog="limner inspect schedule")
    from limner.files import read_config
    from limner.schedulers import read_schedule
    from limner.settings import Settings

    if args.path and args.path.endswith(".json"):
        steps = 20 if args.steps is None else args.steps
        schedule = read_config(
            Path(args.path), lambda config: read_schedule(config, steps, args.sampler, args.schedule, shift=args.shift)
        )
    else:
        settings = Settings(steps=args.steps, sampler=args.sampler, schedule=args.schedule, shift=args.shift)
        schedule, _ = _open(args.path).resolve(settings)
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


def _has_tokenizer(folder: Path) -> bool:
    """Whether the files of a tokenizer lie in the folder itself."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))


def _open(path: str | None) -> "Pipeline":
    from limner.pipeline import Pipeline

    return Pipeline.from_pretrained(path)
