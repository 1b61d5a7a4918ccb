"""The command line: `limner generate | train | evaluate | data | inspect | download`, one module each.

torch is imported after the arguments have been parsed.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from limner.errors import LimnerError, LimnerWarning, unknown

COMMANDS = ("generate", "train", "evaluate", "data", "inspect", "download")
OVERVIEW = """usage: limner COMMAND [OPTIONS]

Text-to-image from zero.

  generate PROMPT...            paint pictures of the prompts
  train RECIPE                  train a model from nothing; without RECIPE, list the recipes
  evaluate grade                paint prompts of the captioned world and grade the pictures
  data world --out DIR          write pictures of the captioned world
  inspect model [PATH] [--run]  every tensor of a model accounted for; one forward of each part
  inspect schedule [PATH]       the noise levels of a sampler
  inspect tokens TEXT           the tokens of a text
  download NAME                 fetch a model of the Hugging Face hub

limner COMMAND --help lists a command's options."""


def _print_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print limner's own warnings on one line, others as Python does."""
    own = category is LimnerWarning
    sys.stderr.write(f"limner: {message}\n" if own else warnings.formatwarning(message, category, filename, lineno))


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
