"""Training a denoiser, with or without its text encoder, on pixels or on the latents of a frozen autoencoder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from limner.data.collection import Collection
from limner.evaluate.report import EvalPrompt, evaluate
from limner.model import Model
from limner.nets.vae import AutoencoderKL
from limner.noise import paths
from limner.picture import sheet
from limner.pipeline import Pipeline
from limner.train.latents import Latents, encode, normalize
from limner.train.loss import Cached, DiffusionLoss
from limner.train.recipe import Recipe
from limner.train.setup import make_model
from limner.world import KINDS, prompts


class Diffusion:
    """The task of a `Recipe`."""

    def __init__(self, recipe: Recipe, model: Model, pictures: Collection) -> None:
        self.recipe, self.model = recipe, model
        network, conditioner = model.network, model.conditioner
        self.scales = dict.fromkeys(self.model.parts(), 1.0) | {"text_encoder": recipe.text.scale}
        frozen = {"vae"} | ({"text_encoder"} if recipe.text.pretrained is not None and not recipe.text.scale else set())
        self.parts = nn.ModuleDict({name: p for name, p in self.model.parts().items() if name not in frozen})
        for name, part in self.model.parts().items():
            part.requires_grad_(name in self.parts and self.scales[name] > 0)
        self.loss = DiffusionLoss(
            network, conditioner, paths.path(recipe.path), recipe.predicts, recipe.times, recipe.shift,
            Cached(conditioner) if "text_encoder" in frozen else None,
        )  # fmt: skip
        self.to_compile = network.repeated
        self.prompts = list(recipe.sample_prompts) or self._prompts(pictures)

    @classmethod
    def from_recipe(cls, recipe: Recipe, pictures: Collection, start: Path | None) -> "Diffusion":
        """The task of a model initialised by recipe.seed; `start` is the checkpoint to resume."""
        return cls(recipe, make_model(recipe, pictures, start), pictures)

    def _prompts(self, pictures: Collection) -> list[str]:
        """Up to 16 captions or class names of the data, for the sample sheet."""
        if self.recipe.condition == "text":
            captions = pictures.all_captions()
            return captions[:: max(1, len(captions) // 16)][:16]
        return list(self.model.conditioner.names)[:16] or [""] * 16

    def groups(self) -> list[dict[str, Any]]:
        scales = {name: self.scales[name] for name in self.parts if self.scales[name]}
        return [{"params": list(self.parts[name].parameters()), "scale": scale} for name, scale in scales.items()]

    def dataset(self, pictures: Collection, device: torch.device, log: Callable[[str], None]) -> Collection:
        return open_dataset(self.recipe, self.model.autoencoder, pictures, device, log)

    def inputs(self, batch: dict[str, Any], generator: torch.Generator, device: torch.device) -> tuple:
        """x0, the generator and the prompts, "" with probability recipe.dropout (Ho & Salimans 2022)."""
        x0 = to_targets(batch["images"].to(device, non_blocking=True), self.model.autoencoder)
        dropped = torch.rand(len(x0), generator=generator) < self.recipe.dropout
        prompts = self._prompts_of(batch)
        return x0, generator, ["" if drop else prompt for drop, prompt in zip(dropped.tolist(), prompts, strict=True)]

    def _prompts_of(self, batch: dict[str, Any]) -> list[str]:
        """The caption or class name of each picture, "" for an unconditional model."""
        conditioner = self.model.conditioner
        if conditioner.names:
            return [conditioner.names[label] for label in batch["labels"]]
        return batch["captions"] if conditioner.acts else [""] * len(batch["captions"])

    def build_result(self, average: Any, device: torch.device) -> Pipeline:
        conditioner = self.model.conditioner.with_parts(dict(average.items()))
        result = Pipeline(replace(self.model, network=average["denoiser"], conditioner=conditioner).to(device))
        result(self.prompts, steps=1)  # an error in a sample prompt is raised now, not at the first sheet
        return result

    def sheet(self, result: Pipeline) -> Image:
        pictures = result(self.prompts, seed=0)
        return sheet(pictures, self.prompts, scale=max(1, 96 // pictures[0].width))

    def measure(self, result: Pipeline) -> dict[str, float]:
        """The share of `recipe.grade` world prompts obeyed, by kind of scene; empty where that is 0."""
        recipe, shares = self.recipe, dict[str, float]()
        if not recipe.grade:
            return shares
        kind = recipe.data.name.partition(":")[2]  # of world:one
        for each in [kind] if kind in KINDS else KINDS:
            fresh = prompts(each, recipe.grade, held_out=False)
            shares |= evaluate(result, [EvalPrompt(*pair, f"obeyed_{each}") for pair in fresh]).obeyed()
        return shares


def to_targets(images: torch.Tensor, autoencoder: AutoencoderKL | None) -> torch.Tensor:
    """x0 (B, C, H, W): latents unchanged; uint8 pictures scaled to [-1, 1], or encoded."""
    if images.is_floating_point():
        return images
    return normalize(images) if autoencoder is None else encode(autoencoder, images)


def open_dataset(
    recipe: Any, autoencoder: AutoencoderKL | None, pictures: Collection, device: torch.device, log: Callable
) -> Collection:
    """The pictures of a recipe, or the latents of the first `recipe.cache` of them, encoded on `device`."""
    if autoencoder is not None:
        autoencoder.to(device)
    if not recipe.cache or autoencoder is None:
        return pictures
    file = Path(recipe.output) / "latents.safetensors"
    return Latents.cached(
        pictures, autoencoder, recipe.size, recipe.channels, recipe.cache, recipe.seed, file, device, log
    )
