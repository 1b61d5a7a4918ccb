"""Checkpoints: model folders that `generate --model` opens, with the training state in `training/`.

The averaged (EMA) weights are the model; `training/` holds the raw weights, the optimiser's moments and the step.
Times, noise, batches and captions are keyed by (seed, step), so that no random state is stored.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.data.batches import resumed_epoch
from limner.data.collection import Collection
from limner.errors import LimnerError
from limner.files import read_json, write_json
from limner.folders import checkpoints
from limner.train.recipe import Run
from limner.train.task import Result
from limner.weights.file import read_tensors, write_tensors
from limner.weights.load import state_dict_problems
from limner.weights.parts import PARTS

AVERAGE = "training/average.safetensors"
# The fields that the order of the pictures depends on.
ORDERING = {
    "batch_size",
    "seed",
    "steps",
    "cache",
    "held_out",
    "pictures",
    *(f"data.{name}" for name in ("name", "path", "split")),
}


def save(
    run: Path, step: int, result: Result, trained: nn.ModuleDict, average: nn.ModuleDict,
    optimizer: torch.optim.Optimizer, recipe: Run, pictures: int | None = None,
) -> Path:  # fmt: skip
    """Write run/checkpoint-<step> atomically, and drop the oldest beyond `recipe.keep`. `pictures` is how many the run
    is trained on, to tell a run that goes on with others.

    LimnerError where it cannot be written, e.g. on a full disk; the earlier ones are whole then.
    """
    folder = run / f"checkpoint-{step}"
    draft = run / f".checkpoint-{step}-{os.getpid()}"
    try:
        result.save(draft)
        rest = {name: part for name, part in average.items() if not (draft / name).is_dir()}
        if rest:  # averages of modules that the result does not contain
            write_tensors(draft / AVERAGE, nn.ModuleDict(rest).state_dict())
        write_tensors(draft / "training/weights.safetensors", trained.state_dict())
        write_tensors(draft / "training/optimizer.safetensors", optimizer_tensors(optimizer, trained))
        write_json(draft / "training/state.json", {"step": step, "recipe": asdict(recipe), "pictures": pictures})
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    except (OSError, LimnerError) as error:
        earlier = checkpoints(run)
        hint = (
            f"{earlier[-1][1].name} is whole: go on with --resume latest --output {run}"
            if earlier
            else "there is no earlier one"
        )
        raise LimnerError(f"{folder} could not be saved ({error}); {hint}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    prune(run, recipe.keep)
    return folder


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (0 keeps all), and what killed runs left unfinished."""
    for draft in run.glob(".checkpoint-*"):
        shutil.rmtree(draft, ignore_errors=True)
    for _, folder in checkpoints(run)[:-keep] if keep else []:
        shutil.rmtree(folder)


def optimizer_tensors(optimizer: torch.optim.Optimizer, trained: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as "<parameter>/<moment>", e.g. "denoiser.patch_in.weight/exp_avg"."""
    names = {id(p): name for name, p in trained.named_parameters()}
    return {
        f"{names[id(p)]}/{moment}": value.clone() if value.ndim == 0 else value
        for p, state in optimizer.state.items()
        for moment, value in state.items()
    }


def find(run: Path, resume: str | None) -> Path | None:
    """The checkpoint to resume: the newest of the run for "latest", the folder `resume`, or None to start afresh.

    LimnerError where `run` holds checkpoints already, or newer ones than `resume`.
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
    _read_state(folder)
    if newest is not None and newest.resolve() != folder.resolve():
        which = "newer than" if newest.parent == folder.parent else "and would go on from"
        raise LimnerError(f"{run} holds {newest.name}, {which} {folder}: choose another --output, or remove it")
    return folder


def _read_state(folder: Path) -> dict[str, Any]:
    """The step and the recipe of a checkpoint, checked."""
    file = folder / "training/state.json"
    state = read_json(file)
    step = state.get("step")
    if type(step) is not int or step < 0 or not isinstance(state.get("recipe"), dict):
        raise LimnerError(
            f"{file} is damaged: expected a whole number as step, and a recipe; resume another checkpoint"
        )
    return state


def changes(folder: Path, recipe: Run, pictures: Collection | None = None) -> str:
    """The fields in which the recipe differs from the checkpoint's, as text; empty where none.

    With the `pictures` of the run, what it means for the current epoch.
    """
    state = _read_state(folder)
    before, now = _flat(state["recipe"]), _flat(json.loads(json.dumps(asdict(recipe))))
    if pictures is not None and state.get("pictures") is not None:
        before["pictures"], now["pictures"] = state["pictures"], len(pictures)
    changed = [name for name in now if name in before and before[name] != now[name]]
    if not changed:
        return ""
    ordering = ORDERING.intersection(changed)
    meaning = _epoch_text(pictures, state["step"], before, recipe, ordering) if pictures and ordering else ""
    if meaning:  # it is about what stands before it
        changed.sort(key=lambda name: name in ORDERING)
    return f", changed: {'; '.join(f'{name} {before[name]} -> {now[name]}' for name in changed)}{meaning}"


def _epoch_text(pictures: Collection, step: int, before: dict[str, Any], recipe: Run, ordering: set[str]) -> str:
    """What these changes mean for the current epoch, after a colon; empty where nothing."""
    others = ordering - {"batch_size", "seed", "steps"}
    unshown, twice = resumed_epoch(
        pictures,
        step,
        None if others else (before["batch_size"], before["seed"]),
        (recipe.batch_size, recipe.seed),
        recipe.steps if step < recipe.steps < before["steps"] else None,
    )
    of = f" of {len(pictures):,} pictures of this epoch"
    parts = [f"{unshown:,}{of} are not shown"] if unshown else []
    parts += [f"{twice:,}{'' if parts else of} are shown twice"] if twice else []
    return ": " + ", ".join(parts) if parts else ""


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their options' names, such as network.depth; `model` was the name of `network` once."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        option = prefix + ("network" if name == "model" and not prefix else name)
        flat |= _flat(value, f"{option}.") if isinstance(value, dict) else {option: value}
    return flat


def restore(folder: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, average: nn.ModuleDict) -> int:
    """Load a checkpoint's weights, averages and moments; returns its step."""
    averages = read_tensors(folder / AVERAGE) if (folder / AVERAGE).is_file() else {}
    for part, module in average.items():
        if (folder / part).is_dir():
            tensors = read_tensors(folder / part / PARTS[type(module).__name__].file)
            averages |= {f"{part}.{name}": tensor for name, tensor in tensors.items()}
    for part in average:
        if not any(name.startswith(f"{part}.") for name in averages):
            raise LimnerError(f"{folder} holds no {part}: it is incomplete, or of another recipe; resume another one")
    weights = read_tensors(folder / "training/weights.safetensors")
    known = {name.split(".")[0] for name in weights}  # the weights of a frozen part are in the result alone
    weights |= {name: tensor for name, tensor in averages.items() if name.split(".")[0] not in known}
    weights = {name: tensor for name, tensor in weights.items() if not _is_frozen(name, trained, folder)}
    _assign(trained, weights, folder)
    _assign(average, averages, folder)
    moments = read_tensors(folder / "training/optimizer.safetensors")
    state: dict[Tensor, dict[str, Any]] = {}
    parameters = dict(trained.named_parameters())
    trainable = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, tensor in moments.items():
        name, moment = key.rsplit("/", 1)
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in trainable:  # frozen since
            continue
        # The fused step needs moments in the memory format of their parameter (perhaps channels last).
        value = tensor.to(parameter.device)
        if tensor.ndim:
            value = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(parameter, {})[moment] = value
    optimizer.state.update(state)
    return int(_read_state(folder)["step"])


def _is_frozen(name: str, trained: nn.Module, folder: Path) -> bool:
    """Whether a weight is of a part that is frozen since, and that the model has loaded from the checkpoint."""
    part = name.split(".")[0]
    return part not in dict(trained.named_children()) and (folder / part).is_dir()


def _assign(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy the tensors into the module; LimnerError unless names and shapes are equal."""
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    problems = state_dict_problems(expected, {name: tuple(t.shape) for name, t in tensors.items()})
    if problems:
        raise LimnerError(f"{folder} was trained with another recipe:\n  " + "\n  ".join(problems[:8]))
    module.load_state_dict(tensors)
