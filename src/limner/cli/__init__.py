"""The command line, thin over the library: `limner generate | train | evaluate | data | inspect`, one module each.

Nothing heavy is imported before the arguments are known to be good.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from limner.errors import LimnerError, LimnerWarning, unknown

COMMANDS = ("generate", "train", "evaluate", "data", "inspect")
OVERVIEW = """usage: limner COMMAND [OPTIONS]

Text-to-image from zero.

  generate PROMPT...            paint pictures of the prompts
  train RECIPE                  train a model from nothing; without RECIPE, list the recipes
  evaluate grade                paint prompts of the captioned world and say which were obeyed
  data world --out DIR          write pictures of the captioned world
  inspect model [PATH]          what a model is made of
  inspect schedule [PATH]       the noise levels a picture goes through
  inspect tokens TEXT           how a model reads a text

limner COMMAND --help tells a command's options."""


def _print_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """limner's own warnings in a line; others as Python prints them."""
    shown = (
        f"limner: {message}\n"
        if category is LimnerWarning
        else warnings.formatwarning(message, category, filename, lineno)
    )
    sys.stderr.write(shown)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 on bad input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return
    if arguments[0] == "--version":
        from limner import __version__

        print(__version__)
        return
    warnings.showwarning = _print_warning
    try:
        if arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        importlib.import_module(f"limner.cli.{arguments[0]}").run(arguments[1:])
    except (LimnerError, OSError, MemoryError) as error:
        print(f"limner: {error or 'out of memory'}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print(f"limner: {stopped or 'stopped'}", file=sys.stderr)
        sys.exit(130)
