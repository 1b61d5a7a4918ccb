"""limner train: run a recipe."""

import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from limner.errors import LimnerError

if TYPE_CHECKING:
    from limner.train.verify import Verified


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
        # The network stays of the recipe's kind.
        recipe: tyro.conf.AvoidSubcommands[Annotated[type(chosen), tyro.conf.arg(name="")]]  # type: ignore[valid-type]
        resume: str | None = None
        """Resume "latest" in the output folder, or a checkpoint folder."""
        verify_resume: int | None = None
        """Only check that resuming changes nothing: train twice this many steps, with and without a checkpoint after
        half of them, and compare; in a temporary folder."""

    args = tyro.cli(
        Arguments, args=arguments[1:], default=Arguments(chosen), prog=f"limner train {arguments[0]}", description=doc
    )
    recipe = _steps_or_epochs(args.recipe, arguments)
    try:
        from limner.train.loop import Stopped, train
        from limner.train.verify import verify_resume
    except ModuleNotFoundError as error:
        if (error.name or "limner").startswith("limner"):
            raise
        raise LimnerError(f"training needs {error.name}; install it with: pip install 'limner[train]'") from error
    if args.verify_resume is not None:
        if args.resume is not None:
            raise LimnerError("--verify-resume starts afresh: leave --resume out")
        _report(verify_resume(recipe, args.verify_resume))
        return
    try:
        train(recipe, args.resume)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped
    if os.environ.get("RANK", "0") == "0":
        print(f"{recipe.output}  use it: {recipe.use} {recipe.output}")


def _steps_or_epochs(recipe: Any, arguments: list[str]) -> Any:
    """The recipe, in which --steps takes the place of its epochs. LimnerError where both options are given."""
    given = {name for name in ("--steps", "--epochs") for word in arguments if word.partition("=")[0] == name}
    if len(given) == 2:
        raise LimnerError("--steps and --epochs both say how long to train: give one of them")
    return replace(recipe, epochs=None) if "--steps" in given else recipe


def _report(verified: "Verified") -> None:
    """Print what agrees; exits with 1 where a resumed run on the CPU is another one."""
    from limner.cli.tables import new_table, print_table

    table = new_table()
    for column in ("", "tensors", "bit-equal", "largest difference", "in"):
        table.add_column(column, justify="right" if column not in ("", "in") else "left")
    for each in verified.agreements:
        table.add_row(each.kind, str(each.tensors), str(each.equal), f"{each.largest:.3g}", each.where)
    print_table(table)
    if not verified.passed:
        print("the resumed run is another one", file=sys.stderr)
        sys.exit(1)
    equal = all(each.equal == each.tensors for each in verified.agreements)
    print("the resumed run is the same" if equal else f"on {verified.device} a resumed run may differ so much")


def _list_recipes() -> None:
    from limner.train.recipe import load_recipe, recipe_names

    print("usage: limner train RECIPE [OPTIONS]\n")
    for name in recipe_names():
        print(f"  {name:22} {load_recipe(name)[1].splitlines()[0]}")
    print("\nlimner train RECIPE --help lists its fields, and the results of its run.")
