"""Reading files of weights (safetensors, their shards, pickles) and writing safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import LimnerError
from limner.files import CUT_SHORT, JSON, PICKLE, SAFETENSORS, ZIP, read_json, recognize, write_atomically

PICKLES = (".bin", ".ckpt", ".pt")
PICKLE_ADVICE = (
    "which can run programs; save it as safetensors, or read it with allow_pickle=True (generate, inspect model: "
    "--allow-pickle)"
)
ADVICE = {  # what else to say about a file of another kind
    PICKLE: f", {PICKLE_ADVICE}, named .bin",
    ZIP: f", {PICKLE_ADVICE}, named .bin",
    JSON: ", not weights: an index of shards, or a server's answer",
    SAFETENSORS: ": rename it",
}


def read_weights(path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file, of the shards that an index (.json) names, or of a pickle if allowed.

    They are memory-mapped, but for pickles older than torch 1.6. Raises LimnerError with a diagnosis.
    """
    if path.suffix == ".json":
        return _read_shards(path, allow_pickle)
    if path.suffix not in PICKLES:
        return read_tensors(path)
    if not allow_pickle:
        raise LimnerError(f"{path} is not opened: it is a pickle, {PICKLE_ADVICE}")
    return _read_pickle(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped. Raises LimnerError, with a diagnosis, for any other file."""
    if not path.is_file():
        others = sorted(file.name for file in path.parent.glob("*") if file.suffix not in (".json", ".txt"))
        raise LimnerError(f"no weights at {path}" + (f"; its folder holds {', '.join(others[:8])}" if others else ""))
    try:
        return load_file(path)
    except UnicodeEncodeError as error:
        raise LimnerError(f"{path}: safetensors opens no file whose path is not UTF-8; give it another name") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise LimnerError(f"{path} is not a valid safetensors file ({error}): {_diagnosis(path)}") from error


def _read_shards(index: Path, allow_pickle: bool) -> dict[str, Tensor]:
    """The tensors of all shards, each in the one that `weight_map` gives: {"weight_map": {tensor: file}}."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LimnerError(f"{index}: weight_map must be an object of tensors and their files, not {weight_map!r:.60}")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard.endswith(".json"):
            raise LimnerError(f"{index}: {name} is said to be in {shard!r:.60}, which is no file of weights beside it")
        if not (index.parent / shard).is_file():
            raise LimnerError(f"{index}: {name} is said to be in {shard}, which is absent: fetch all shards")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        held = read_weights(index.parent / shard, allow_pickle)
        for name in sorted(held.keys() | {name for name, file in weight_map.items() if file == shard}):
            if name not in held:
                raise LimnerError(f"{index}: {name} is said to be in {shard}, which does not hold it")
            if weight_map.get(name) != shard:
                where = f"is said to be in {weight_map[name]}" if name in weight_map else "is not listed"
                raise LimnerError(f"{index}: {name} {where}, but {shard} holds it")
        tensors |= held
    return tensors


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by torch.save: a state dict, or {"state_dict": ...}. Nothing in it is executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # torch.load raises errors of many kinds for a damaged file
        kind = re.search(r"GLOBAL (\w+\.[\w.]*\w) ", str(error))  # the class or function that it asks for
        what = f"it holds {kind[1]}, not tensors alone; nothing in it was run" if kind else _diagnosis(path)
        raise LimnerError(f"{path} is not a valid pickle of tensors: {what}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise LimnerError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    others = [f"{name!r:.60} ({type(value).__name__})" for name, value in content.items() if not _usable(name, value)]
    if others:
        raise LimnerError(f"{path} holds more than dense tensors by their names: {', '.join(others[:8])}")
    return dict(content)  # without the attributes that an OrderedDict may bring


def _usable(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _diagnosis(path: Path) -> str:
    """What an invalid file of weights probably is, from its first bytes."""
    kind = recognize(path)
    if kind is None or kind in ((PICKLE, ZIP) if path.suffix in PICKLES else (SAFETENSORS,)):
        return CUT_SHORT
    return f"it is {kind}{ADVICE.get(kind, '')}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(contiguous, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors creates files with mode 0600

    try:
        write_atomically(path, write)
    except SafetensorError as error:  # e.g. a full disk
        raise LimnerError(f"cannot write {path}: {error}") from error
