"""Optimisers and the learning rate: AdamW, or Muon for the matrices of the blocks with AdamW for the rest."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from limner.errors import LimnerError
from limner.files import read_json
from limner.train.recipe import Run

Groups = list[dict[str, Any]]


def lr_multiplier(step: int, recipe: Run) -> float:
    """The learning rate of step `step` (from 0) relative to recipe.lr: linear warm-up, then constant or a half cosine
    to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)))


class Joined(Optimizer):
    """Optimisers of disjoint parameters as one, so that a run has one state and one list of groups to save."""

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self.optimizers = dict(optimizers)
        groups = [group | {"kind": kind} for kind, each in self.optimizers.items() for group in each.param_groups]
        super().__init__(groups, {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for kind, optimizer in self.optimizers.items():
            optimizer.state = self.state
            optimizer.param_groups = [group for group in self.param_groups if group["kind"] == kind]
            optimizer.step()
        return loss


def block_matrices(parts: nn.Module) -> list[torch.Tensor]:
    """The weights of linear layers within repeated blocks (an nn.ModuleList), not of embeddings, inputs and outputs."""
    lists = [module for module in parts.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for each in lists for layer in each.modules() if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers]


def adamw(groups: Groups, parts: nn.Module, recipe: Run) -> Optimizer:
    betas = (recipe.beta1, recipe.beta2)
    return AdamW(groups, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, fused=True)


def muon(groups: Groups, parts: nn.Module, recipe: Run) -> Optimizer:
    """Muon for the matrices of blocks (Jordan et al. 2024), its updates of the size of AdamW's, so that learning rate
    and weight decay are those of AdamW (Liu et al. 2025, "Muon is scalable", equation 4). AdamW for the rest."""
    if not hasattr(torch.optim, "Muon"):
        raise LimnerError(f"--optimizer muon needs torch 2.9 or newer, not {torch.__version__}")
    hidden = set(map(id, block_matrices(parts)))

    def share(of_blocks: bool) -> Groups:
        chosen = [g | {"params": [p for p in g["params"] if (id(p) in hidden) == of_blocks]} for g in groups]
        return [group for group in chosen if group["params"]]

    if not share(True):
        raise LimnerError("--optimizer muon is for the matrices of repeated blocks, and there are none: use adamw")
    matrices = torch.optim.Muon(
        share(True), lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Joined({"muon": matrices, "adamw": adamw(share(False), parts, recipe)})


def check_resumed(start: Path, recipe: Run) -> None:
    """LimnerError where the checkpoint to resume has the moments of another optimiser."""
    before = read_json(start / "training/state.json")["recipe"].get("optimizer", "adamw")
    if before != recipe.optimizer:
        raise LimnerError(f"{start} has the state of {before}, not of {recipe.optimizer}: set --optimizer {before}")


OPTIMIZERS: dict[str, Callable[[Groups, nn.Module, Run], Optimizer]] = {"adamw": adamw, "muon": muon}
