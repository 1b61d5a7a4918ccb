"""The tensors in a model folder: those that each part uses, those that none does, and the parts that limner skips."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from limner.files import read_config
from limner.folders import Index
from limner.hub import NEEDLESS
from limner.model import Model
from limner.weights.parts import account


class PartTensors(NamedTuple):
    """The tensors of the part in `folder`, of class `kind`: `tensors` of them in its `files`, which have `size` bytes,
    `used` by the network, with `parameters` numbers in all, and the names of those `unused`. `stored` and `opened` are
    the dtypes on disk and in the network."""

    folder: str
    kind: str
    files: list[str]
    size: int
    tensors: int
    used: int
    unused: list[str]
    parameters: int
    stored: str
    opened: str


def part_tensors(folder: Path, part: nn.Module, allow_pickle: bool = False) -> PartTensors:
    """The tensors of a `part` that was opened from its `folder`."""
    kind, state = type(part).__name__, part.state_dict()
    files, dtypes, unused = account(folder, kind, allow_pickle)
    return PartTensors(
        folder=folder.name,
        kind=kind,
        files=[file.name for file in files],
        size=sum(file.stat().st_size for file in files),
        tensors=len(dtypes),
        used=len(state),
        unused=unused,
        parameters=sum(parameter.numel() for parameter in part.parameters()),
        stored=_names(dtype for name, dtype in dtypes.items() if name not in unused),
        opened=_names(tensor.dtype for tensor in state.values()),
    )


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))


def skipped_parts(folder: Path, model: Model) -> dict[str, str]:
    """The parts of a folder that the `model` opened from it does not have, with the reason: those in its
    model_index.json and those that lie beside as folders."""
    index = read_config(folder / "model_index.json", Index.from_dict)
    beside = [path.parent.name for path in sorted(folder.glob("[!.]*/*config.json"))]
    names = dict.fromkeys([*index.parts, *beside])
    used = {*model.parts(), *model.tokenizers(), "scheduler"}
    return {name: NEEDLESS.get(name, f"a {model.pipeline} has no such part") for name in names if name not in used}
