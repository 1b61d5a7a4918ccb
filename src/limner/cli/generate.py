"""limner generate: paint pictures of prompts."""

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from limner.errors import LimnerError

if TYPE_CHECKING:
    from PIL.Image import Image


def _generate_arguments(arguments: list[str]) -> Any:
    import tyro
    from tyro.conf import Positional, arg

    from limner.settings import Settings

    @dataclass(frozen=True)
    class Aliased(Settings):  # names of other tools
        steps: Annotated[int | None, arg(aliases=["--num-inference-steps"])] = None
        guidance_scale: Annotated[float | None, arg(aliases=["--cfg-scale"])] = None

    @dataclass(frozen=True)
    class Arguments:
        """Paint pictures of the prompts with the shipped model or another one."""

        settings: Annotated[Aliased, arg(name="")]
        prompt: Positional[tuple[str, ...]] = ("",)
        """What to paint; several prompts make a sheet."""
        negative_prompt: str | None = None
        """What guidance moves away from."""
        model: Annotated[str | None, arg(aliases=["-m"])] = None
        """A model folder or a training run; without it the shipped model."""
        num_images: Annotated[int, arg(aliases=["-n"])] = 1
        """Pictures of each prompt."""
        seed: int = 0
        """Seed of the first picture; picture k has seed + k."""
        device: str = "cpu"
        dtype: str = "float32"
        """dtype of the networks: float32, bfloat16 or float16."""
        output: Annotated[str, arg(aliases=["-o"])] = "out.png"
        """A file (several pictures become a sheet), or a folder, ending in /, for one file each."""
        show: bool = False
        """Draw the result in the terminal too."""

    return tyro.cli(Arguments, args=arguments, default=Arguments(Aliased()), prog="limner generate")


def run(arguments: list[str]) -> None:
    """Parse, paint, save, show."""
    args = _generate_arguments(arguments)
    from limner.picture import image_format, to_ansi
    from limner.pipeline import Pipeline

    prompts = list(args.prompt) or [""]
    if not args.output:
        raise LimnerError("--output is empty; give a file such as out.png, or a folder ending in /")
    folder = args.output.endswith("/") or Path(args.output).is_dir()
    if not folder:
        image_format(Path(args.output))  # before the painting, so that a bad name costs no time
    start = time.perf_counter()
    pipe = Pipeline.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    request: dict[str, Any] = {"negative_prompt": args.negative_prompt, "num_images": args.num_images}
    with _progress(len(prompts) * args.num_images) as advance:
        pictures = pipe(prompts, **request, seed=args.seed, **vars(args.settings), progress=advance)
    captions = [prompt for prompt in prompts for _ in range(args.num_images)] if len(prompts) > 1 else []
    shown, paths = _write(pictures, captions, args.output, folder)
    if args.show:
        print(to_ansi(shown))
    print(f"{', '.join(map(str, paths))}  {len(pictures)} pictures in {time.perf_counter() - start:.2f} s")


def _progress(pictures: int):
    """A context of the pipeline's progress callback: a bar on a terminal, else None."""
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


def _write(pictures: list["Image"], captions: list[str], output: str, folder: bool) -> tuple["Image", list[Path]]:
    """Save one file per picture, one picture or one sheet; returns the picture to show and the paths."""
    from limner.picture import save, sheet

    several = len(pictures) > 1
    page = sheet(pictures, captions, scale=max(1, 96 // pictures[0].width)) if several else pictures[0]
    shown = sheet(pictures) if several else pictures[0]
    if folder:
        paths = [Path(output) / f"{i:05d}.png" for i in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            save(picture, path)
        return shown, paths
    save(page, Path(output), "\n\n".join(picture.info["parameters"] for picture in pictures))
    return shown, [Path(output)]
