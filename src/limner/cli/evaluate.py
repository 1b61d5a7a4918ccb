"""limner evaluate: grade a model on the captioned world."""

from dataclasses import dataclass
from typing import Annotated, Any

from limner.cli.tables import new_table, print_table
from limner.errors import LimnerError


def _arguments(arguments: list[str]) -> Any:
    import tyro
    from tyro.conf import arg

    from limner.settings import Settings

    @dataclass(frozen=True)
    class Arguments:
        """Paint prompts of the captioned world and grade each picture by its prompt."""

        settings: Annotated[Settings, arg(name="")]
        model: Annotated[str | None, arg(aliases=["-m"])] = None
        """A model folder, a training run or a name of the hub (owner/name); without it the shipped model."""
        prompts: str = "all"
        """seen, held-out, all, or a file with a prompt on each line."""
        n: int = 100
        """Prompts of each kind of scene, or the first n of the file."""
        seed: int = 0
        """Seed of the first picture, and of the prompts."""
        device: str = "auto"
        show: bool = False
        """Draw the pictures in the terminal too."""
        output: Annotated[str, arg(aliases=["-o"])] = "grade"
        """Folder for grade.json and sheet.png."""

    return tyro.cli(Arguments, args=arguments, default=Arguments(Settings()), prog="limner evaluate grade")


def run(arguments: list[str]) -> None:
    """limner evaluate grade: paint prompts of the world, grade the pictures and print the table."""
    usage = "usage: limner evaluate grade [--model M] [--prompts seen|held-out|all|FILE] [--n N]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return
    if arguments[0] != "grade":
        raise LimnerError(usage)
    args = _arguments(arguments[1:])
    from limner.cli.output import say_overwritten
    from limner.evaluate import report
    from limner.files import check_writable, expand, write_json
    from limner.picture import save, sheet, to_ansi
    from limner.pipeline import Pipeline
    from limner.world import MIN_SIDE

    output = expand(args.output)
    files = [output / "grade.json", output / "sheet.png"]
    for file in files:
        check_writable(file)
    prompts = report.load_prompts(args.prompts, args.n, args.seed)
    pipe = Pipeline.from_pretrained(args.model, device=args.device)
    size, name = pipe.model.size, pipe.model.name
    if min(args.settings.width or size, args.settings.height or size) < MIN_SIDE:
        raise LimnerError(f"{name} paints {size}x{size}; pictures are judged from {MIN_SIDE} pixels on")
    result = report.evaluate(pipe, prompts, seed=args.seed, **vars(args.settings))
    for file in files:
        say_overwritten(file)
    write_json(files[0], result.to_dict())
    save(result.sheet(), files[1])
    if args.show:
        print(to_ansi(sheet(result.pictures[:24])))
    if args.prompts not in report.SETS:
        for each, verdict in zip(prompts, result.verdicts, strict=True):
            print(f"{each.prompt}: {report.describe(verdict)}")
    header, *rows = result.table()
    table = new_table(title=f"{pipe.model.name}: {len(prompts)} prompts")
    for name in header:
        table.add_column(name, justify="left" if name == "prompts" else "right")
    for row in rows:
        table.add_row(*row)
    print_table(table, min_width=110)
    print(", ".join(map(str, files)))
