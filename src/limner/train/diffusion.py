"""Training a denoiser, with or without its text encoder, on pixels or on the latents of a frozen autoencoder."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import nn

from limner.data.collection import Collection
from limner.errors import LimnerError
from limner.evaluate.report import EvalPrompt, evaluate
from limner.model import Model
from limner.nets.vae import AutoencoderKL
from limner.noise import paths
from limner.picture import sheet
from limner.pipeline import Pipeline
from limner.settings import Settings
from limner.train.latents import Latents, encode, normalize
from limner.train.loss import Cached, DiffusionLoss, loss_weight
from limner.train.recipe import Recipe, load_recipe, recipe_names
from limner.train.setup import check_length, cut_captions, make_model, over_length
from limner.world import KINDS, grade, prompts


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
            Cached(conditioner) if "text_encoder" in frozen else None, loss_weight(recipe.loss, recipe.snr_gamma),
        )  # fmt: skip
        self.to_compile = network.repeated
        self.checked = pictures.order(recipe.seed, 0) is not None  # every caption is known before the first step
        self.prompts = list(recipe.sample_prompts)
        self.replaced = is_shipped(recipe.sample_prompts) and not self._suit(self.prompts, pictures)
        if self.replaced or not self.prompts:
            self.prompts = self._prompts(pictures)

    @classmethod
    def from_recipe(cls, recipe: Recipe, pictures: Collection, start: Path | None) -> "Diffusion":
        """The task of a model initialised by recipe.seed; `start` is the checkpoint to resume.

        LimnerError for sample prompts and graded prompts that the model cannot paint.
        """
        task = cls(recipe, make_model(recipe, pictures, start), pictures)
        fixed = start is not None or recipe.init is not None or recipe.text.pretrained is not None
        task.check_prompts(fixed)
        return task

    def check_prompts(self, fixed: bool) -> None:
        """LimnerError for sample prompts or graded prompts that the model cannot paint. The text encoder's context
        length may be `fixed`."""
        recipe, conditioner = self.recipe, self.model.conditioner
        graded = self.graded()
        if graded and conditioner.kind != "text":
            raise LimnerError(f"--grade {recipe.grade}: a model without text cannot be graded; leave it out")
        for tokenizer in conditioner.tokenizers().values():
            check_length(tokenizer, self.prompts, lambda _: "--sample-prompts:", fixed)
            texts = [each.prompt for each in graded]
            check_length(tokenizer, texts, lambda _: "--grade: the prompt", fixed, "Leave --grade out")
        blank = blank_picture(self.model.size, self.model.channels)
        for option, check in (
            ("--sample-steps", lambda: Pipeline(self.model).resolve(Settings())),
            ("--sample-prompts", lambda: conditioner.kind == "text" or conditioner.encode(self.prompts)),
            ("--grade", lambda: [grade(blank, each.scene) for each in graded[:1] if each.scene is not None]),
        ):
            try:
                check()
            except LimnerError as error:
                raise LimnerError(f"{option}: {error}") from error

    def _suit(self, prompts: list[str], pictures: Collection) -> bool:
        """Whether prompts fit the context length and have no word that the captions have not, or are classes."""
        conditioner = self.model.conditioner
        if conditioner.kind != "text":
            return set(prompts) <= set(conditioner.names)
        known, words = (
            set(re.findall(r"\w+", " ".join(texts).lower())) for texts in (pictures.all_captions(), prompts)
        )
        return words <= known and not any(over_length(each, prompts) for each in conditioner.tokenizers().values())

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
        if self.replaced:
            log(f"the recipe's sample prompts do not suit {pictures.name}: its own captions or classes are painted")
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
        captions = batch["captions"] if conditioner.acts else [""] * len(batch["captions"])
        for tokenizer in [] if self.checked else conditioner.tokenizers().values():
            captions = cut_captions(tokenizer, captions)
        return captions

    def build_result(self, average: Any, device: torch.device) -> Pipeline:
        conditioner = self.model.conditioner.with_parts(dict(average.items()))
        result = Pipeline(replace(self.model, network=average["denoiser"], conditioner=conditioner).to(device))
        result(self.prompts, steps=1)  # an error in painting is raised now, not at the first sheet
        return result

    def sheet(self, result: Pipeline) -> Image:
        pictures = result(self.prompts, seed=0)
        return sheet(pictures, self.prompts, scale=max(1, 96 // pictures[0].width))

    def measure(self, result: Pipeline) -> dict[str, float]:
        """The share of `recipe.grade` world prompts obeyed, by kind of scene; empty where that is 0."""
        shares, graded, count = dict[str, float](), self.graded(), self.recipe.grade
        for first in range(0, len(graded), max(1, count)):  # each kind with the same seeds
            shares |= evaluate(result, graded[first : first + count]).obeyed()
        return shares

    def graded(self) -> list[EvalPrompt]:
        """`recipe.grade` world prompts of each kind of scene in the data."""
        count, kind = self.recipe.grade, self.recipe.data.name.partition(":")[2]  # of world:one
        kinds = ([kind] if kind in KINDS else KINDS) if count else []
        return [EvalPrompt(*pair, f"obeyed_{each}") for each in kinds for pair in prompts(each, count, held_out=False)]


def is_shipped(sample_prompts: tuple[str, ...]) -> bool:
    """Whether these are the sample prompts of a shipped recipe, which were chosen for its own data."""
    recipes = (load_recipe(name)[0] for name in recipe_names())
    return bool(sample_prompts) and any(getattr(each, "sample_prompts", ()) == sample_prompts for each in recipes)


def blank_picture(size: int, channels: int) -> Image:
    """A black square picture."""
    return new_image("L" if channels == 1 else "RGB", (size, size))


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
        pictures,
        autoencoder,
        recipe.size,
        recipe.channels,
        recipe.cache,
        recipe.seed,
        file,
        device,
        log,
        recipe.data.max_broken,
    )
