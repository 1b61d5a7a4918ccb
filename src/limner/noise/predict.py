"""Prediction types: the network's output F as an affine pair `x0 = a*x + b*F`, and its training target."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from limner.errors import LimnerError, unknown

Pair = Callable[[Any, Any], tuple[Any, Any]]


class Prediction(NamedTuple):
    """Two functions of (alpha, sigma), floats or tensors alike.

    `pair` gives (a, b) with `x0 = a*x + b*F`; `target` gives (f0, f1) with `F = f0*x0 + f1*eps`: the same pair solved
    for F, without a division by alpha or sigma.
    """

    pair: Pair
    target: Pair


def _norm(alpha: Any, sigma: Any) -> Any:
    return (alpha**2 + sigma**2) ** 0.5


PREDICTIONS: dict[str, Prediction] = {
    # Ho et al. 2020, equation 14.
    "eps": Prediction(lambda a, s: (1 / a, -s / a), lambda a, s: (0.0, 1.0)),
    "sample": Prediction(lambda a, s: (0.0, 1.0), lambda a, s: (1.0, 0.0)),
    # Salimans & Ho 2022, appendix D; for data of unit variance the preconditioning of Karras et al. 2022, table 1.
    "v": Prediction(
        lambda a, s: (a / _norm(a, s) ** 2, -s / _norm(a, s)), lambda a, s: (-s / _norm(a, s), a / _norm(a, s))
    ),
    # Lipman et al. 2023; Liu et al. 2023: the velocity eps - x0 of the straight path.
    "flow": Prediction(lambda a, s: (1 / (a + s), -s / (a + s)), lambda a, s: (-1.0, 1.0)),
}


def prediction(name: str) -> Prediction:
    """The prediction called `name`: eps, sample, v or flow."""
    if name not in PREDICTIONS:
        raise unknown("prediction", name, PREDICTIONS)
    return PREDICTIONS[name]


def pair(name: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(a, b) with `x0 = a*x + b*F`. Raises LimnerError for eps at alpha = 0, where eps does not determine x0."""
    if name == "eps" and math.isclose(alpha, 0.0, abs_tol=1e-12):
        raise LimnerError(
            "a network that predicts eps cannot start from pure noise (alpha = 0): use a path whose end keeps some "
            "signal, or a model that predicts v, sample or flow"
        )
    return prediction(name).pair(alpha, sigma)
