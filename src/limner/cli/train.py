"""limner train: run a recipe."""

import os
from dataclasses import dataclass
from typing import Annotated

from limner.errors import LimnerError


def run(arguments: list[str]) -> None:
    """Parse the overrides of a recipe and run it, or list the recipes."""
    if not arguments or arguments[0].startswith("-"):
        _list_recipes()
        return
    import tyro

    from limner.train.recipe import load_recipe

    chosen, doc = load_recipe(arguments[0])

    @dataclass(frozen=True)
    class Arguments:
        recipe: Annotated[type(chosen), tyro.conf.arg(name="")]  # type: ignore[valid-type]
        resume: str | None = None
        """Resume "latest" in the output folder, or a checkpoint folder."""

    args = tyro.cli(
        Arguments, args=arguments[1:], default=Arguments(chosen), prog=f"limner train {arguments[0]}", description=doc
    )
    try:
        from limner.train.loop import Stopped, train
    except ModuleNotFoundError as error:
        if (error.name or "limner").startswith("limner"):
            raise
        raise LimnerError(f"training needs {error.name}; install it with: pip install 'limner[train]'") from error
    try:
        train(args.recipe, args.resume)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped
    if os.environ.get("RANK", "0") == "0":
        print(f"{args.recipe.output}  use it: {args.recipe.use} {args.recipe.output}")


def _list_recipes() -> None:
    from limner.train.recipe import load_recipe, recipe_names

    print("usage: limner train RECIPE [OPTIONS]\n")
    for name in recipe_names():
        print(f"  {name:22} {load_recipe(name)[1].splitlines()[0]}")
    print("\nlimner train RECIPE --help lists its fields, and the results of its run.")
