"""Tables in the terminal."""


def new_table(title: str | None = None):
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE, title_justify="left")


def print_table(table, min_width: int = 0) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, min_width)  # narrower ones would truncate the numbers
    console.print(table)
