"""Checkpoints: a folder that `generate --model` opens, with what a resumed run needs beside it.

The averaged (EMA) weights are the model; `training/` holds the raw weights, the optimiser's moments and the step.
Times, noise, batches and captions are keyed by (seed, step), so there is no random state to keep.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.files import read_json, write_json
from limner.folders import checkpoints
from limner.train.recipe import Run
from limner.train.task import Result
from limner.weights.file import read_tensors, write_tensors
from limner.weights.load import state_dict_problems
from limner.weights.parts import PARTS

AVERAGE = "training/average.safetensors"


def save(
    run: Path, step: int, result: Result, trained: nn.ModuleDict, average: nn.ModuleDict,
    optimizer: torch.optim.Optimizer, recipe: Run,
) -> Path:  # fmt: skip
    """Write run/checkpoint-<step> atomically, and drop the oldest beyond `recipe.keep`."""
    folder = run / f"checkpoint-{step}"
    draft = run / f".checkpoint-{step}-{os.getpid()}"
    try:
        result.save(draft)
        rest = {name: part for name, part in average.items() if not (draft / name).is_dir()}
        if rest:  # what is trained and no part of the result
            write_tensors(draft / AVERAGE, nn.ModuleDict(rest).state_dict())
        write_tensors(draft / "training/weights.safetensors", trained.state_dict())
        write_tensors(draft / "training/optimizer.safetensors", optimizer_tensors(optimizer, trained))
        write_json(draft / "training/state.json", {"step": step, "recipe": asdict(recipe)})
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    prune(run, recipe.keep)
    return folder


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (0 keeps all)."""
    for _, folder in checkpoints(run)[:-keep] if keep else []:
        shutil.rmtree(folder)


def optimizer_tensors(optimizer: torch.optim.Optimizer, trained: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as "<parameter>/<what>", e.g. "denoiser.patch_in.weight/exp_avg"."""
    names = {id(p): name for name, p in trained.named_parameters()}
    return {
        f"{names[id(p)]}/{what}": value.clone() if value.ndim == 0 else value
        for p, state in optimizer.state.items()
        for what, value in state.items()
    }


def find(run: Path, resume: str | None) -> Path | None:
    """The checkpoint to resume: "latest" in the run's folder, the folder named, or None to start anew.

    Raises LimnerError where a new run would mix with one that is there, or an older checkpoint with newer ones.
    """
    newest = checkpoints(run)[-1][1] if checkpoints(run) else None
    if resume is None:
        if newest is not None:
            raise LimnerError(f"{run} already holds a run: go on with --resume latest, or choose another --output")
        return None
    folder = newest if resume == "latest" else Path(resume)
    if folder is None or not (folder / "training/state.json").is_file():
        raise LimnerError(
            f"nothing to resume at {folder or run}: expected a checkpoint-<step> folder of a training run"
        )
    if newest is not None and newest.resolve() != folder.resolve():
        raise LimnerError(f"{run} holds {newest.name}, newer than {folder}: choose another --output, or remove it")
    return folder


def changes(folder: Path, recipe: Run) -> str:
    """What the recipe has other than the one the checkpoint was trained by, in words; empty where nothing."""
    before = read_json(folder / "training/state.json")["recipe"]
    now = json.loads(json.dumps(asdict(recipe)))
    changed = [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
    return f", changed: {'; '.join(changed)}" if changed else ""


def restore(folder: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, average: nn.ModuleDict) -> int:
    """Put a checkpoint's weights, averages and moments back; returns the step it was written after."""
    averages = read_tensors(folder / AVERAGE) if (folder / AVERAGE).is_file() else {}
    for part, module in average.items():
        if (folder / part).is_dir():
            tensors = read_tensors(folder / part / PARTS[type(module).__name__].file)
            averages |= {f"{part}.{name}": tensor for name, tensor in tensors.items()}
    weights = read_tensors(folder / "training/weights.safetensors")
    known = {name.split(".")[0] for name in weights}  # a part that was frozen has its weights in the result alone
    weights |= {name: tensor for name, tensor in averages.items() if name.split(".")[0] not in known}
    _assign(trained, weights, folder)
    _assign(average, averages, folder)
    moments = read_tensors(folder / "training/optimizer.safetensors")
    state: dict[Tensor, dict[str, Any]] = {}
    parameters = dict(trained.named_parameters())
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, tensor in moments.items():
        name, what = key.rsplit("/", 1)
        parameter = parameters[name]
        if id(parameter) not in learning:  # it was trained, and now stays as it is
            continue
        # AdamW counts steps on the CPU unless it is fused, and takes the count wherever it is then. Moments are laid
        # out in memory as their parameter is (channels last, perhaps): the fused step walks all of them in one order.
        moment = tensor.to(parameter.device)
        if tensor.ndim:
            moment = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(parameter, {})[what] = moment
    optimizer.state.update(state)
    return int(read_json(folder / "training/state.json")["step"])


def _assign(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy the tensors into the module; all must fit."""
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    problems = state_dict_problems(wanted, {name: tuple(t.shape) for name, t in tensors.items()})
    if problems:
        raise LimnerError(f"{folder} was trained with another recipe:\n  " + "\n  ".join(problems[:8]))
    module.load_state_dict(tensors)
