"""limner sheet: pictures by two settings, or a picture along the forward process."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from limner.errors import LimnerError

if TYPE_CHECKING:
    from limner.look.axes import Axis
    from limner.pipeline import Pipeline

REQUEST = ("negative_prompt", "image", "mask", "model", "seed")
OPENING = ("device", "dtype", "without")


def _arguments(arguments: list[str]) -> Any:
    import tyro
    from tyro.conf import Positional, arg

    from limner.settings import Settings

    @dataclass(frozen=True)
    class Arguments:
        """Paint a sheet whose rows and columns are the values of two settings, all else alike, the noise too; or, with
        --noise, a picture at times of the forward process.

        The pictures of a sheet are kept in a folder beside it, sheet.cells for sheet.png: the same command goes on
        where it was stopped, and a changed one paints what is new.
        """

        settings: Annotated[Settings, arg(name="")]
        prompt: Positional[tuple[str, ...]] = ()
        """What to paint; several prompts are the rows or the columns that are not given."""
        rows: str | None = None
        """An axis and its values, such as steps=4,8,20: any setting, seed, prompt, negative_prompt, image or model."""
        columns: str | None = None
        """Another one, such as guidance_scale=1,3,7.5. A value with a comma stands in double quotes."""
        noise: str | None = None
        """A picture to be shown along the forward process instead."""
        times: tuple[float, ...] = ()
        """With --noise: times from 0, the picture, to 1000, noise; by default nine."""
        negative_prompt: str | None = None
        """What guidance moves away from."""
        image: Annotated[str | None, arg(aliases=["--init-img"])] = None
        """A picture to start from, of any kind and size."""
        mask: str | None = None
        """A picture of the same size whose white is repainted, its black kept."""
        model: Annotated[str | None, arg(aliases=["-m"])] = None
        """A model folder, a training run or a name of the hub (owner/name); without it the shipped model."""
        seed: int = 0
        """Seed of every picture."""
        device: str = "auto"
        """cpu, cuda, cuda:1, mps ...; auto takes cuda, else mps, else cpu."""
        dtype: str = "auto"
        """float32 (exact), bfloat16 or float16; auto is bfloat16 for a published model where the device has it
        natively, else float32."""
        allow_pickle: bool = False
        """Open weights in pickle files too (.bin, .ckpt), tensors only: nothing in them is run."""
        without: str = ""
        """Text encoders to leave out, where the model has several and needs not all: t5, or t5,clip_g."""
        offload: bool = False
        """Load each part (text encoders, network, autoencoder) when it is used and release it for the next one."""
        output: Annotated[str, arg(aliases=["-o"])] = "sheet.png"
        """The file of the sheet."""

    return tyro.cli(Arguments, args=arguments, default=Arguments(Settings()), prog="limner sheet")


def run(arguments: list[str]) -> None:
    """Parse, paint what is missing, write the sheet."""
    args = _arguments(arguments)
    from limner.cli.output import open_output, say_overwritten
    from limner.picture import save

    output = open_output(args.output)
    if output.folder:
        raise LimnerError(f"--output {args.output} is a folder; a sheet is one file, such as sheet.png")
    page, said = (_cells if args.noise is None else _noise)(args, output.path)
    say_overwritten(output.path)
    save(page, output.path)
    print(f"{output.path}  {said}")


def _noise(args: Any, path: Path) -> tuple[Any, str]:
    """The sheet of the forward process."""
    from limner.look.forward import noised
    from limner.picture import labelled_sheet

    if args.prompt or args.rows or args.columns:
        raise LimnerError("--noise shows a picture without painting: leave prompts, --rows and --columns out")
    steps = noised(_open(args, args.model), args.noise, args.times, args.seed, args.settings)
    return labelled_sheet([each.picture for each in steps], [""], [each.label for each in steps]), f"{len(steps)} times"


def _cells(args: Any, path: Path) -> tuple[Any, str]:
    """The sheet by two settings."""
    from rich.console import Console
    from rich.progress import Progress

    from limner.look.axes import make_cells, paint_cells
    from limner.picture import labelled_sheet

    if args.times:
        raise LimnerError("--times are of a picture along the forward process: give --noise PICTURE")
    rows, columns = _axes(args)
    base = {"prompt": args.prompt[0] if args.prompt else ""} | {name: getattr(args, name) for name in REQUEST}
    cells, folder = make_cells(base | vars(args.settings), rows, columns), path.with_suffix(".cells")
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"painting {len(cells)}", total=None)
        try:
            pictures, painted = paint_cells(
                cells, folder, lambda model: _open(args, model),
                lambda done, count: bar.update(task, completed=done, total=count),
                {name: getattr(args, name) for name in OPENING},
            )  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; what is painted is in {folder}, and the same command goes on") from None
    page = labelled_sheet(pictures, rows.labels, columns.labels)
    page.info["parameters"] = "\n\n".join(picture.info["parameters"] for picture in pictures)
    return page, f"{len(cells)} pictures, {painted} painted now, each in {folder}"


def _axes(args: Any) -> tuple["Axis", "Axis"]:
    """Rows and columns; the prompts are those that are not given."""
    from limner.look.axes import Axis, read_axis

    given = [None if text is None else read_axis(text) for text in (args.rows, args.columns)]
    known = [axis for axis in given if axis is not None]
    if not known:
        raise LimnerError("nothing to compare: give --rows AXIS=V1,V2 or --columns AXIS=V1,V2, or both, or --noise")
    named = [axis.name for axis in known]
    if len(args.prompt) > 1 and len(known) == 2:
        raise LimnerError(f"{len(args.prompt)} prompts beside {' and '.join(named)}: give one prompt, or one axis less")
    if args.prompt and "prompt" in named:
        raise LimnerError("the prompt is an axis, too; leave one of them out")
    for name in ("model", "image", "negative_prompt"):
        if name in named and getattr(args, name) is not None:
            raise LimnerError(f"--{name.replace('_', '-')} is an axis, too; leave one of them out")
    other = Axis("prompt", tuple(args.prompt) or ("",)) if named != ["prompt"] else Axis("seed", (args.seed,))
    rows, columns = (other if axis is None else axis for axis in given)
    return rows, columns


def _open(args: Any, model: str | None) -> "Pipeline":
    """The pipeline of a model; says which dtype "auto" chose, if it is not the exact one."""
    from limner.pipeline import Pipeline

    without = [name.strip() for name in args.without.split(",") if name.strip()]
    pipe = Pipeline.from_pretrained(model, args.device, args.dtype, args.allow_pickle, without, args.offload)
    if "auto" in args.dtype and pipe.model.precision != "float32":
        print(
            f"limner: {pipe.model.name} in {pipe.model.precision}, --dtype {args.dtype}; float32 is exact",
            file=sys.stderr,
        )
    return pipe
