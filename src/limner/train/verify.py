"""A check that a resumed run is the run it resumes: 2N steps against N, a checkpoint, and N more."""

import os
from collections.abc import Iterator
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from limner.errors import LimnerError
from limner.train.checkpoint import optimizer_tensors
from limner.train.loop import Trainer
from limner.train.recipe import Run

State = dict[str, dict[str, Tensor]]  # tensors by kind and name


class Agreement(NamedTuple):
    """How many tensors of one kind (weights, averages, moments) are bit-equal, and which is furthest apart."""

    kind: str
    tensors: int
    equal: int
    largest: float
    """The largest difference of two values; infinite where a tensor is missing, or of another shape."""
    where: str
    """The tensor that has it; "" where all are equal."""


class Verified(NamedTuple):
    agreements: list[Agreement]
    device: str

    @property
    def passed(self) -> bool:
        """Whether all tensors are bit-equal, as demanded of a CPU alone: kernels of a GPU may add in any order."""
        return self.device != "cpu" or all(each.equal == each.tensors for each in self.agreements)


def verify_resume(recipe: Run, steps: int, console: Console | None = None) -> Verified:
    """Train `recipe` for 2 * `steps` steps in a temporary folder, at once and resumed in the middle, and compare.

    LimnerError for several processes, or where `steps` is less than 1.
    """
    if steps < 1:
        raise LimnerError(f"--verify-resume must be at least 1 step, not {steps}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LimnerError("--verify-resume runs in one process: start it without torchrun")
    with TemporaryDirectory(prefix="limner-verify-") as folder:
        recipe = replace(recipe, output=folder, steps=2 * steps, epochs=None)
        console = console or Console(stderr=True, highlight=False)
        whole = _train(Trainer(recipe, console=console).prepare(), 2 * steps)  # writes no checkpoint
        wanted = {kind: {name: t.clone() for name, t in tensors.items()} for kind, tensors in state(whole).items()}
        del whole
        _train(Trainer(recipe, console=console).prepare(), steps).save()
        resumed = _train(Trainer(recipe, "latest", console).prepare(), 2 * steps)
        return Verified(list(compare(wanted, state(resumed))), resumed.device.type)


def _train(run: Trainer, until: int) -> Trainer:
    """Train to the end of step `until`."""
    for batch in run.batches():
        run.train_step(batch)
        if run.step == until:
            break
    return run


def state(run: Trainer) -> State:
    """All that a run carries from step to step."""
    return {
        "weights": dict(run.trained.state_dict()),
        "averages": dict(run.average.state_dict()),
        "moments": optimizer_tensors(run.optimizer, run.trained),
    }


def compare(wanted: State, got: State) -> Iterator[Agreement]:
    """How far the tensors of two states agree, by kind."""
    for kind, tensors in wanted.items():
        names = tensors.keys() | got[kind].keys()
        apart = {name: _difference(tensors.get(name), got[kind].get(name)) for name in sorted(names)}
        differ = {name: value for name, value in apart.items() if value is not None}
        where = max(differ, key=lambda name: differ[name], default="")
        yield Agreement(kind, len(names), len(names) - len(differ), differ.get(where, 0.0), where)


def _difference(a: Tensor | None, b: Tensor | None) -> float | None:
    """The largest difference of two tensors; None where they are bit-equal."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if torch.equal(a, b):
        return None
    return float((a.double() - b.double()).abs().nan_to_num(float("inf")).max())
