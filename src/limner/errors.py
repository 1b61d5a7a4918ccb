"""The library's exception and warning.

Every message names what was wrong, where, what was expected and what to do. The command line prints an error without
a traceback and exits with status 2.
"""

import warnings
from collections.abc import Iterable
from difflib import get_close_matches

MAX_NAME = 200  # characters of a name that a message repeats


class LimnerError(ValueError):
    """Bad input: a name, a number, a file or a checkpoint that cannot be used as given."""


class BrokenPicture(LimnerError):
    """A picture that cannot be decoded, or whose values have no known white."""


class ConfigError(LimnerError):
    """An entry of a configuration that cannot be used; who has read the file says which it is."""


class LimnerWarning(UserWarning):
    """What the user should know, such as a setting without effect. The command line prints it and goes on."""


def warn_no_effect(reason: str, **options: object) -> None:
    """Warn of each option that is set and has no effect with `reason`."""
    for name, value in options.items():
        if value:
            warnings.warn(f"the {name.replace('_', ' ')} has no effect with {reason}", LimnerWarning, stacklevel=4)


def unknown(kind: str, name: str, known: Iterable[str]) -> LimnerError:
    """The error for a `name` that is not among the `known` ones; it suggests the closest of them."""
    known = sorted(known)
    near = get_close_matches(name[:MAX_NAME], known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return LimnerError(f"unknown {kind} {name!r:.200}{hint} Known: {', '.join(each[:MAX_NAME] for each in known)}")
