"""Plots: noise levels over time, and similarities of prompts. matplotlib is imported when one is drawn."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import LimnerError
from limner.files import check_writable, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from limner.noise.level import Level
    from limner.schedulers import Schedule

FORMATS = (".png", ".svg", ".pdf")
POINTS = 4001  # of a curve


def check_matplotlib(what: str) -> None:
    """LimnerError where `what` cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise LimnerError(f"{what} needs matplotlib; install it with: pip install 'limner[train]'")


def check_plot(file: Path) -> None:
    """LimnerError unless a plot can be drawn and written to the file."""
    if file.suffix.lower() not in FORMATS:
        raise LimnerError(f"--plot {file}: a plot is a .png, .svg or .pdf")
    check_matplotlib("a plot")
    check_writable(file)


def save_plot(figure: "Figure", file: Path) -> None:
    """Write the figure atomically, as the kind of its suffix."""
    kind = file.suffix.lower().removeprefix(".")
    write_atomically(file, lambda temporary: figure.savefig(temporary, format=kind))


def log_snr(level: "Level") -> float:
    """log(alpha^2 / sigma^2); NaN, which is not drawn, where it is infinite."""
    return 2 * level.lam if math.isfinite(level.lam) else math.nan


def plot_schedules(schedules: Mapping[str, "Schedule"]) -> "Figure":
    """alpha and sigma, log SNR and, where the path has them, beta over t, and below them the times of each schedule.

    The curves are those of the first schedule's path. If it is alone, its levels are points on them, or beside them
    where the scheduler rounds t.
    """
    import torch
    from matplotlib.figure import Figure

    path = next(iter(schedules.values())).path
    times = path.times(torch.linspace(0, 1, POINTS, dtype=torch.float64)).unique().tolist()
    levels, betas = [path.level(t) for t in times], getattr(path, "betas", None)
    heights = [3, 3, *([2] if betas is not None else []), 0.6 + 0.3 * len(schedules)]
    figure = Figure(figsize=(7, 0.8 * sum(heights)), dpi=80, layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for axes in panels:
        axes.grid(alpha=0.3)
    mixing, ratio, last = panels[0], panels[1], panels[-1]
    mixing.plot(times, [level.alpha for level in levels], color="tab:blue", label="alpha")
    mixing.plot(times, [level.sigma for level in levels], color="tab:red", label="sigma")
    mixing.set_ylabel("alpha, sigma")
    mixing.legend()
    ratio.plot(times, [log_snr(level) for level in levels], color="black", label="log SNR")
    ratio.set_ylabel("log SNR")
    if betas is not None:
        panels[2].plot(range(len(betas)), betas.tolist(), color="tab:purple", label="beta")
        panels[2].set_ylabel("beta")
    for row, (name, schedule) in enumerate(schedules.items()):
        t = [level.t for level in schedule.grid]
        last.plot(t, [row] * len(t), f"C{row}|", markersize=12, label=name)
        if len(schedules) == 1:  # of several the points would hide each other
            mixing.plot(t, [level.alpha for level in schedule.grid], "o", color="tab:blue", markersize=4)
            mixing.plot(t, [level.sigma for level in schedule.grid], "o", color="tab:red", markersize=4)
            ratio.plot(t, [log_snr(level) for level in schedule.grid], "ko", markersize=4)
    last.set_xlabel("t, from data to noise")
    last.set_yticks(range(len(schedules)), list(schedules))
    last.set_ylim(len(schedules) - 0.5, -0.5)
    return figure


def plot_similarity(names: Sequence[str], matrix: "Tensor") -> "Figure":
    """A matrix (N, N) of cosine similarities, each number in its square."""
    from matplotlib.figure import Figure

    side = 2.5 + 0.55 * len(names)
    figure = Figure(figsize=(side, side - 0.5), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix.tolist(), cmap="RdBu_r", vmin=-1, vmax=1)
    labels = [textwrap.fill(name, 24) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), labels)
    for row, values in enumerate(matrix.tolist()):
        for column, value in enumerate(values):
            colour = "white" if abs(value) > 0.7 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    return figure
