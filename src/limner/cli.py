"""The command line, thin over the library: `limner generate | train | inspect`.

Nothing heavy is imported before the arguments are known to be good.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from limner.errors import LimnerError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.pipeline import Pipeline
    from limner.settings import Settings

OVERVIEW = """usage: limner COMMAND [OPTIONS]

Text-to-image from zero.

  generate PROMPT...            paint pictures of the prompts
  train RECIPE                  train a model from nothing; without RECIPE, list the recipes
  inspect model [PATH]          what a model is made of
  inspect schedule [PATH]       the noise levels a picture goes through
  inspect tokens TEXT           how a model reads a text

limner COMMAND --help tells a command's options."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 on bad input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return
    if arguments[0] == "--version":
        from limner import __version__

        print(__version__)
        return
    try:
        if arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        COMMANDS[arguments[0]](arguments[1:])
    except (LimnerError, OSError, MemoryError) as error:
        print(f"limner: {error or 'out of memory'}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print(f"limner: {stopped or 'stopped'}", file=sys.stderr)
        sys.exit(130)


# --- generate -------------------------------------------------------------------------------------------------------


# Names that people know from elsewhere.
SPELLINGS = {"--cfg-scale": "--guidance-scale", "--num-inference-steps": "--steps"}


def _generate_arguments(arguments: list[str]) -> Any:
    import tyro
    from tyro.conf import Positional, arg

    from limner.settings import Settings

    @dataclass(frozen=True)
    class Arguments:
        """Paint pictures of the prompts with the shipped model or another one."""

        settings: Annotated[Settings, arg(name="")]
        prompt: Positional[tuple[str, ...]] = ("",)
        """What to paint; several prompts make a sheet."""
        negative_prompt: str = ""
        """What guidance leads away from."""
        model: Annotated[str | None, arg(aliases=["-m"])] = None
        """A model folder or a training run; without it the shipped model of handwritten digits."""
        num_images: Annotated[int, arg(aliases=["-n"])] = 1
        """Pictures of each prompt."""
        seed: int = 0
        """Seed of the first picture; the next have the next seeds."""
        device: str = "cpu"
        dtype: str = "float32"
        """float32, bfloat16 or float16: what the networks compute in."""
        output: Annotated[str, arg(aliases=["-o"])] = "out.png"
        """A file (several pictures become a sheet), or a folder, ending in /, for one file each."""
        show: bool = False
        """Draw the result in the terminal too."""

    known = [_respelled(argument) for argument in arguments]
    return tyro.cli(Arguments, args=known, default=Arguments(Settings()), prog="limner generate")


def _respelled(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return SPELLINGS.get(name, name) + equals + value


def generate(arguments: list[str]) -> None:
    """Parse, paint, save, show."""
    args = _generate_arguments(arguments)
    from limner.picture import show, suffix_kind
    from limner.pipeline import Pipeline

    prompts = list(args.prompt) or [""]
    if not args.output:
        raise LimnerError("--output is empty; give a file such as out.png, or a folder ending in /")
    folder = args.output.endswith("/") or Path(args.output).is_dir()
    if not folder:
        suffix_kind(Path(args.output))  # a bad name is told before the painting, not after
    start = time.perf_counter()
    pipe = Pipeline.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    asked: dict[str, Any] = {"negative_prompt": args.negative_prompt, "num_images": args.num_images, "seed": args.seed}
    with _progress(len(prompts) * args.num_images) as advance:
        pictures = pipe(prompts, **asked, **vars(args.settings), progress=advance)
    asked_of = [prompt for prompt in prompts for _ in range(args.num_images)]
    texts = _parameters(pipe, asked_of, args.negative_prompt, args.seed, args.settings)
    whole, paths = _write(pictures, asked_of if len(prompts) > 1 else [], texts, args.output, folder)
    if args.show:
        print(show(whole))
    print(f"{', '.join(map(str, paths))}  {len(pictures)} pictures in {time.perf_counter() - start:.2f} s")


def _progress(pictures: int):
    """A progress bar on a terminal: a context that gives the function to call with each `Progress`."""
    if not sys.stderr.isatty():
        return nullcontext(None)
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar():
        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(f"painting {pictures}", total=None)
            yield lambda step: shown.update(task, completed=step.step, total=step.steps)

    return bar()


def _parameters(pipe: "Pipeline", prompts: list[str], negative: str, seed: int, settings: "Settings") -> list[str]:
    """The `parameters` text of each picture; the first has the seed, the next the next."""
    from limner import __version__
    from limner.picture import parameters_text

    made, scale = pipe.resolve(settings)
    side = pipe.denoiser.config.sample_size
    before: dict[str, object] = {"Steps": len(made.grid) - 1, "Sampler": made.sampler}
    before |= {"Schedule type": settings.schedule} if settings.schedule else {}
    before |= {"CFG scale": f"{scale:g}"}
    after = {"Size": f"{settings.width or side}x{settings.height or side}", "Model": pipe.name}
    after |= {"Version": f"limner {__version__}"}
    return [parameters_text(p, negative, before | {"Seed": seed + k} | after) for k, p in enumerate(prompts)]


def _write(
    pictures: list["Image"], captions: list[str], texts: list[str], output: str, folder: bool
) -> tuple["Image", list[Path]]:
    """Save a file each, one picture or one sheet; returns what to show and the paths."""
    from limner.picture import save, sheet

    several = len(pictures) > 1
    page = sheet(pictures, captions, scale=max(1, 96 // pictures[0].width)) if several else pictures[0]
    shown = sheet(pictures) if several else pictures[0]
    if folder:
        paths = [Path(output) / f"{i:05d}.png" for i in range(len(pictures))]
        for path, picture, text in zip(paths, pictures, texts, strict=True):
            save(picture, path, text)
        return shown, paths
    save(page, Path(output), "\n\n".join(texts) if captions else texts[0])
    return shown, [Path(output)]


# --- train ----------------------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    """Parse a recipe's changes and run it."""
    if not arguments or arguments[0].startswith("-"):
        _list_recipes()
        return
    import tyro

    from limner.train.recipe import Recipe, load_recipe

    recipe, told = load_recipe(arguments[0])

    @dataclass(frozen=True)
    class Arguments:
        recipe: Annotated[Recipe, tyro.conf.arg(name="")]
        resume: str | None = None
        """Go on with "latest" in the output folder, or with a checkpoint folder."""

    args = tyro.cli(
        Arguments, args=arguments[1:], default=Arguments(recipe), prog=f"limner train {arguments[0]}", description=told
    )
    try:
        import datasets  # noqa: F401

        from limner.train.loop import Stopped
        from limner.train.loop import train as run
    except ImportError as error:
        raise LimnerError(f"training needs {error.name}; install it with: pip install 'limner[train]'") from error
    try:
        run(args.recipe, args.resume)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped
    if os.environ.get("RANK", "0") == "0":
        print(f"{args.recipe.output}  paint with it: limner generate PROMPT --model {args.recipe.output}")


def _list_recipes() -> None:
    from limner.train.recipe import load_recipe, recipe_names

    print("usage: limner train RECIPE [OPTIONS]\n")
    for name in recipe_names():
        print(f"  {name:22} {load_recipe(name)[1].splitlines()[0]}")
    print("\nlimner train RECIPE --help tells every number of it, and what it gave when it was run.")


# --- inspect --------------------------------------------------------------------------------------------------------


def inspect(arguments: list[str]) -> None:
    """Parse and print a table."""
    topics: dict[str, Callable[[list[str]], None]] = {
        "model": inspect_model, "schedule": inspect_schedule, "tokens": inspect_tokens,
    }  # fmt: skip
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return
    if arguments[0] not in topics:
        raise unknown("inspect topic", arguments[0], topics)
    topics[arguments[0]](arguments[1:])


def inspect_model(arguments: list[str]) -> None:
    """Parts, sizes and defaults of a model."""
    import tyro

    def parse(path: tyro.conf.Positional[str | None] = None) -> str | None:
        """What a model is made of.

        Args:
            path: A model folder or a training run; without it the shipped model.
        """
        return path

    pipe, table = _open(tyro.cli(parse, args=arguments, prog="limner inspect model")), _table()
    for column in ("part", "tensors", "parameters", "configuration"):
        table.add_column(column)
    for name, net in (("denoiser", pipe.denoiser), ("text_encoder", pipe.text_encoder)):
        if net is not None:
            count = sum(p.numel() for p in net.parameters())
            numbers = ", ".join(f"{key}={value}" for key, value in vars(net.config).items() if value is not None)
            table.add_row(name, str(len(net.state_dict())), f"{count:,}", numbers)
    if pipe.tokenizer is not None:
        table.add_row("tokenizer", "", "", f"vocab_size={pipe.tokenizer.vocab_size}, length={pipe.tokenizer.length}")
    table.add_row("scheduler", "", "", ", ".join(f"{key}={value}" for key, value in pipe.scheduler.items()))
    table.add_row("defaults", "", "", ", ".join(f"{key}={value}" for key, value in pipe.defaults.items()))
    _print(table)


def inspect_schedule(arguments: list[str]) -> None:
    """The levels that a picture goes through."""
    import tyro

    @dataclass(frozen=True)
    class Arguments:
        """The noise levels a picture goes through."""

        path: tyro.conf.Positional[str | None] = None
        """A model folder, a training run or a scheduler_config.json; without it the shipped model."""
        steps: int | None = None
        sampler: str | None = None
        schedule: str | None = None
        shift: float | None = None

    args = tyro.cli(Arguments, args=arguments, prog="limner inspect schedule")
    from limner.files import read_json
    from limner.noise.grids import plan
    from limner.settings import Settings

    if args.path and args.path.endswith(".json"):
        made = plan(
            read_json(Path(args.path)),
            20 if args.steps is None else args.steps,
            args.sampler,
            args.schedule,
            shift=args.shift,
        )
    else:
        wanted = Settings(steps=args.steps, sampler=args.sampler, schedule=args.schedule, shift=args.shift)
        made, _ = _open(args.path).resolve(wanted)
    table = _table(title=f"{made.sampler}, predicts {made.predicts}, starts at {made.start:g} times unit noise")
    for column in ("level", "t", "alpha", "sigma", "sigma/alpha", "log(alpha/sigma)"):
        table.add_column(column, justify="right")
    for i, level in enumerate(made.grid):
        numbers = (level.t, level.alpha, level.sigma, level.rho, level.lam)
        table.add_row(str(i), *(f"{number:.5g}" for number in numbers))
    _print(table)


def inspect_tokens(arguments: list[str]) -> None:
    """A text's tokens and their ids."""
    import tyro

    @dataclass(frozen=True)
    class Arguments:
        """How a model reads a text."""

        text: tyro.conf.Positional[str]
        model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None

    args = tyro.cli(Arguments, args=arguments, prog="limner inspect tokens")
    from limner.pipeline import find_model
    from limner.text.tokenizer import Tokenizer

    folder = find_model(args.model)
    folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    tokenizer, table = Tokenizer.from_pretrained(folder), _table()
    for column in ("place", "token", "id"):
        table.add_column(column)
    pieces = tokenizer.pieces(args.text)
    for place, (piece, number) in enumerate(pieces):
        table.add_row(str(place), piece, str(number))
    _print(table)
    print(f"{len(pieces)} tokens of {tokenizer.length}")


def _open(path: str | None) -> "Pipeline":
    from limner.pipeline import Pipeline

    return Pipeline.from_pretrained(path)


def _table(title: str | None = None):
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE, title_justify="left")


def _print(table) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)


COMMANDS: dict[str, Callable[[list[str]], None]] = {"generate": generate, "train": train, "inspect": inspect}
