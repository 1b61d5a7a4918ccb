"""The command line: `limner generate | sheet | train | evaluate | data | inspect | download`, one module each.

torch is imported after the arguments have been parsed.
"""

import importlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from limner.errors import LimnerError, LimnerWarning, unknown

COMMANDS = ("generate", "sheet", "train", "evaluate", "data", "inspect", "download")
OVERVIEW = """usage: limner COMMAND [OPTIONS]

Text-to-image from zero.

  generate PROMPT...            paint pictures of the prompts
  sheet PROMPT --rows ... --columns ...     paint by two settings; --noise PICTURE: a picture noised
  train RECIPE                  train a model from nothing; without RECIPE, list the recipes
  evaluate grade                paint prompts of the captioned world and grade the pictures
  data world --out DIR          write pictures of the captioned world
  inspect model [PATH] [--run]  every tensor of a model accounted for; one forward of each part
  inspect schedule [PATH]       the noise levels of a sampler; --plot FILE draws them
  inspect tokens TEXT           the tokens of a text
  inspect text PROMPT...        how alike prompts are to the text encoder
  download NAME                 fetch a model of the Hugging Face hub

limner COMMAND --help lists a command's options."""


def _print_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print limner's own warnings on one line, others as Python does."""
    own = category is LimnerWarning
    with suppress(OSError):  # of a stderr that is full
        sys.stderr.write(f"limner: {message}\n" if own else warnings.formatwarning(message, category, filename, lineno))


def _prepare_streams() -> None:
    """A closed stdout or stderr takes what is printed and drops it; what a terminal cannot show is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP stop a command as Ctrl-C does, so that nothing half-written is left behind; SIGHUP does not
    where nohup has it ignored."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # signals can be set in that one only
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 on bad input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    _stop_on_signals()
    warnings.showwarning = _print_warning
    try:
        _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        sys.exit(128 + 13)
    except (LimnerError, OSError) as error:
        _exit(str(error), 2)
    except KeyboardInterrupt as stopped:
        _exit(str(stopped) or "stopped", 130)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(r"out of memory|allocate memory", str(error)):
            raise
        _exit("out of memory; ask for fewer or smaller pictures at once, or a smaller batch", 2)


def _run(arguments: list[str]) -> None:
    """Run the command that the arguments name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
    elif arguments[0] == "--version":
        from limner import __version__

        print(__version__)
    elif arguments[0] not in COMMANDS:
        raise unknown("command", arguments[0], COMMANDS)
    else:
        importlib.import_module(f"limner.cli.{arguments[0]}").run(arguments[1:])


def _exit(message: str, status: int) -> None:
    with suppress(OSError):
        print(f"limner: {message}", file=sys.stderr)
    sys.exit(status)
