"""limner download: a model of the Hugging Face hub into the hub's cache."""

from dataclasses import dataclass

from limner.errors import LimnerError


def run(arguments: list[str]) -> None:
    """Download a model; print its folder and size."""
    import tyro

    @dataclass(frozen=True)
    class Arguments:
        """Download a model of the Hugging Face hub: the files that limner opens, into the hub's cache (HF_HOME)."""

        name: tyro.conf.Positional[str]
        """owner/name of a repository in diffusers' layout."""
        revision: str | None = None
        """A branch, tag or commit; without it the main branch. Or as owner/name@revision."""
        allow_pickle: tyro.conf.FlagCreatePairsOff[bool] = False
        """Download pickles (.bin, .ckpt) where a part has no safetensors; to open them is a permission of its own."""

    args = tyro.cli(Arguments, args=arguments, prog="limner download")
    if args.revision is not None and "@" in args.name:
        raise LimnerError(f"{args.name} names a revision already; leave --revision out")
    from limner.cli.tables import format_size
    from limner.hub import download

    name = args.name if args.revision is None else f"{args.name}@{args.revision}"
    folder = download(name, args.allow_pickle)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}  {format_size(size)}")
