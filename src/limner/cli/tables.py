"""Tables and numbers in the terminal."""


def new_table(title: str | None = None):
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE, title_justify="left")


def print_table(table, min_width: int = 0) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, min_width)  # narrower ones would truncate the numbers
    console.print(table)


def format_size(size: int) -> str:
    """A number of bytes in MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
