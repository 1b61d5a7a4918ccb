"""limner data: write a procedural dataset to disk."""

from dataclasses import dataclass

from limner.errors import LimnerError, unknown


def run(arguments: list[str]) -> None:
    """limner data world: write pictures of the captioned world as an imagefolder."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: limner data world --count N --out DIR [--size PIXELS] [--seed SEED]")
        return
    if arguments[0] != "world":
        raise unknown("data set to write", arguments[0], ["world"])
    import tyro

    @dataclass(frozen=True)
    class Arguments:
        """Write pictures of the captioned world as an imagefolder: PNG files and metadata.jsonl."""

        out: str
        """The folder to write."""
        count: int = 10_000
        size: int = 64
        """Side of the pictures in pixels."""
        seed: int = 0

    args = tyro.cli(Arguments, args=arguments[1:], prog="limner data world")
    if args.size < 16:
        raise LimnerError(f"--size must be at least 16 pixels, not {args.size}")
    from limner.data.world import write_folder
    from limner.files import check_writable, expand

    check_writable(expand(args.out) / "metadata.jsonl")
    write_folder(expand(args.out), args.count, args.size, args.seed)
    print(f"{args.out}: {args.count} pictures, metadata.jsonl")
