"""limner generate: paint pictures of prompts."""

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from limner.errors import LimnerError

if TYPE_CHECKING:
    from limner.look.trajectory import Trajectory
    from limner.pipeline import Pipeline, Progress


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
        image: Annotated[str | None, arg(aliases=["--init-img"])] = None
        """A picture to start from, of any kind and size."""
        mask: str | None = None
        """A picture of the same size whose white is repainted, its black kept."""
        model: Annotated[str | None, arg(aliases=["-m"])] = None
        """A model folder, a training run or a name of the hub (owner/name); without it the shipped model."""
        random: bool = False
        """Paint with the random weights of the recipe that --model names, a test of its shapes: nothing is learnt."""
        num_images: Annotated[int, arg(aliases=["-n"])] = 1
        """Pictures of each prompt."""
        seed: int = 0
        """Seed of the first picture; picture k has seed + k."""
        device: str = "auto"
        """cpu, cuda, cuda:1, mps ...; auto takes cuda, else mps, else cpu."""
        dtype: str = "auto"
        """float32 (exact), bfloat16 or float16, of all parts or of one ("auto,vae=float32"); auto is bfloat16 for a
        published model where the device has it natively, else float32."""
        allow_pickle: bool = False
        """Open weights in pickle files too (.bin, .ckpt), tensors only: nothing in them is run."""
        without: str = ""
        """Text encoders to leave out, where the model has several and needs not all: t5, or t5,clip_g."""
        offload: bool = False
        """Load each part (text encoders, network, autoencoder) when it is used and release it for the next one: slower,
        and the memory of the largest part is enough."""
        output: Annotated[str, arg(aliases=["-o"])] = "out.png"
        """A file (several pictures become a sheet; one that is there is overwritten), or a folder, ending in /, for one
        file each, numbered on."""
        path: Literal["sheet", "apng"] | None = None
        """Write x and the predicted x0 along the steps beside the output: out.path.png, or the animation out.apng."""
        show: bool = False
        """Draw the result in the terminal too."""

    return tyro.cli(Arguments, args=arguments, default=Arguments(Aliased()), prog="limner generate")


def run(arguments: list[str]) -> None:
    """Parse, paint, save, show."""
    args = _generate_arguments(arguments)
    from limner.cli.output import open_output, say_overwritten

    prompts = list(args.prompt) or [""]
    output = open_output(args.output)
    start = time.perf_counter()
    pipe = _open(args, prompts)
    request = {name: getattr(args, name) for name in ("negative_prompt", "num_images", "image", "mask")}
    ran, trajectory = 0, _trajectory(args, pipe)
    with _progress(len(prompts) * args.num_images) as advance:

        def follow(step: "Progress") -> None:
            nonlocal ran
            ran = step.steps
            advance(step)
            if trajectory is not None:
                trajectory.add(step)

        pictures = pipe(prompts, **request, seed=args.seed, **vars(args.settings), progress=follow)
    captions = [prompt for prompt in prompts for _ in range(args.num_images)] if len(prompts) > 1 else []
    if not output.folder:
        say_overwritten(output.path)
    shown, paths = output.write(pictures, captions)
    if trajectory is not None:
        paths.append(paths[0].with_suffix(trajectory.suffix))
        say_overwritten(paths[-1])
        trajectory.save(paths[-1], captions)
    if args.show:
        from limner.picture import to_ansi

        print(to_ansi(shown))
    steps = f", {ran} of {len(pipe.resolve(args.settings)[0].grid) - 1} steps" if args.image else ""
    print(f"{', '.join(map(str, paths))}  {len(pictures)} pictures in {time.perf_counter() - start:.2f} s{steps}")


def _open(args: Any, prompts: list[str]) -> "Pipeline":
    """The pipeline that the arguments name; says which dtype "auto" chose, if it is not the exact one."""
    from limner.model import Model
    from limner.pipeline import Pipeline

    if args.random:
        from limner.train.untrained import open_untrained

        if args.offload:
            raise LimnerError("offload loads parts from a model's files, and random weights are in none; leave it out")
        return Pipeline(open_untrained(args.model, prompts, args.device, args.dtype))
    _check_no_recipe(args.model)
    without = [name.strip() for name in args.without.split(",") if name.strip()]
    model = Model.open(args.model, args.device, args.dtype, args.allow_pickle, without, args.offload)
    if "auto" in args.dtype and model.precision != "float32":
        print(f"limner: painting in {model.precision}, --dtype {args.dtype}; float32 is exact", file=sys.stderr)
    return Pipeline(model)


def _trajectory(args: Any, pipe: "Pipeline") -> "Trajectory | None":
    """What --path collects."""
    if args.path is None:
        return None
    from limner.look.trajectory import Trajectory

    return Trajectory(pipe.model, args.path)


def _check_no_recipe(name: str | None) -> None:
    """LimnerError for the name of a recipe in place of a model."""
    if name is None or Path(name).exists():
        return
    from limner.train.recipe import Recipe, load_recipe, recipe_names

    if name in recipe_names():
        paint = ", or paint with its random weights (--random)" if isinstance(load_recipe(name)[0], Recipe) else ""
        raise LimnerError(f"no model at {name}: it is a recipe; train it (limner train {name}){paint}")


def _progress(pictures: int):
    """A context of the pipeline's progress callback: a bar, if this is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext(lambda step: None)
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar():
        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(f"painting {pictures}", total=None)
            yield lambda step: shown.update(task, completed=step.step, total=step.steps)

    return bar()
