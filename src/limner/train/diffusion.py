"""Training a denoiser: what the loop asks of such a run."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from limner.data.batches import Batches
from limner.data.collection import Collection
from limner.evaluate.report import EvalPrompt, evaluate
from limner.picture import sheet
from limner.pipeline import Pipeline
from limner.train.contrastive import BATCH, learn_to_read
from limner.train.latents import Latents, encode
from limner.train.loss import DiffusionLoss, Words
from limner.train.recipe import Recipe
from limner.train.setup import Reader, make_loss, make_pipeline
from limner.world import KINDS, prompts


class Diffusion:
    """A denoiser, and the text encoder trained with it, over pixels or over the latents of a frozen autoencoder."""

    def __init__(self, recipe: Recipe, pictures: Collection, start: Path | None) -> None:
        self.recipe = recipe
        self.pipeline = make_pipeline(recipe, pictures, start)
        self.trained = make_loss(recipe, self.pipeline)
        if self.trained.text_encoder is not None:
            self.trained.text_encoder.requires_grad_(recipe.text.lr_scale > 0)
        # One by one: they are alike, so that one compilation serves all of them. The whole fails where convolutions
        # stand beside text of changing length: torch then takes attention's keys for pictures and lays them out anew.
        self.compiled: list[nn.Module] = list(self.pipeline.denoiser.blocks)
        self.reader = self._reader()
        kind = recipe.data.name.partition(":")[2]  # world:one
        self.kinds = [kind] if kind in KINDS else list(KINDS)
        self.prompts = list(recipe.sample_prompts) or self._prompts(pictures)

    @property
    def groups(self) -> list[dict]:
        """The optimiser's groups; `scale` is of the learning rate."""
        groups = [{"params": list(self.trained.denoiser.parameters()), "scale": 1.0}]
        scale = self.recipe.text.lr_scale
        if self.trained.text_encoder is not None and scale:
            groups.append({"params": list(self.trained.text_encoder.parameters()), "scale": scale})
        return groups

    def _reader(self) -> Reader | None:
        if self.pipeline.tokenizer is None or self.pipeline.text_encoder is None:
            return None
        return Reader(self.pipeline.tokenizer, self.pipeline.text_encoder, self.recipe.text.pretrained is not None)

    def _prompts(self, pictures: Collection) -> list[str]:
        if self.recipe.condition == "none":
            return [""] * 16
        if self.recipe.condition == "class":
            return list(self.pipeline.class_names)[:16]
        captions = pictures.all_captions()
        return captions[:: max(1, len(captions) // 16)][:16]

    def collection(self, pictures: Collection, device: torch.device, say: Callable[[str], None]) -> Collection:
        """What the batches are made of: the pictures, or the latents of the first `recipe.cache` of them."""
        recipe, vae = self.recipe, self.pipeline.vae
        if vae is not None:
            vae = vae.to(device)
        if not recipe.cache or vae is None:
            return pictures
        file = Path(recipe.output) / "latents.safetensors"
        return Latents(pictures, vae, recipe.size, recipe.channels, recipe.cache, recipe.seed, file, device, say)

    def begin(
        self,
        pictures: Collection,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
        say: Callable[[str], None],
    ) -> None:
        """What comes before the first step of a fresh run: the contrastive start of the text encoder, if asked for."""
        encoder, recipe = self.trained.text_encoder, self.recipe
        if encoder is None or self.reader is None or not recipe.text.contrastive or recipe.init is not None:
            return  # an encoder of earlier weights reads already, and the denoiser knows what it says
        reader = self.reader
        batches = Batches(pictures, BATCH, recipe.size, recipe.channels, recipe.seed, recipe.flip)

        def ask(batch: dict) -> tuple[torch.Tensor, Words]:
            return self._targets(batch["images"].to(device)), reader(batch["captions"], device)

        painted, steps = self.trained.denoiser.config, recipe.text.contrastive
        learn_to_read(
            encoder.to(device), painted.in_channels, painted.sample_size, batches, ask, steps, device, autocast, say
        )

    def finish(self, average: nn.Module, device: torch.device) -> Pipeline:
        """The result of the run, sharing the averaged weights."""
        assert isinstance(average, DiffusionLoss)
        encoder = average.text_encoder or self.pipeline.text_encoder  # a frozen one is not part of what is trained
        vae = self.pipeline.vae
        model = replace(
            self.pipeline,
            denoiser=average.denoiser,
            text_encoder=encoder.to(device) if encoder is not None else None,
            vae=vae.to(device) if vae is not None else None,
        )
        model(self.prompts, steps=1)  # what cannot be sampled is told now, not at the first sheet
        return model

    def inputs(self, batch: dict, generator: torch.Generator, device: torch.device) -> tuple:
        """The arguments of the loss for a batch, its conditions dropped with the recipe's probability."""
        x0 = self._targets(batch["images"].to(device, non_blocking=True))
        dropped = torch.rand(len(x0), generator=generator) < self.recipe.dropout
        labels = words = None
        if self.recipe.condition == "class":
            labels = batch["labels"].masked_fill(dropped, self.trained.denoiser.null_class).to(device)
        elif self.reader is not None:
            captions = ["" if d else c for d, c in zip(dropped.tolist(), batch["captions"], strict=True)]
            words = self.reader(captions, device)
        return x0, generator, labels, words

    def _targets(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1], or latents: encoded here, or before the run."""
        if images.is_floating_point():
            return images
        return images.float() / 127.5 - 1 if self.pipeline.vae is None else encode(self.pipeline.vae, images)

    def paint(self, model: Pipeline):
        """A sheet of the sample prompts."""
        pictures = model(self.prompts, seed=0)
        return sheet(pictures, self.prompts, scale=max(1, 96 // pictures[0].width))

    def measure(self, model: Pipeline) -> dict[str, float]:
        """The share of fresh world prompts that are obeyed, by kind; nothing unless the recipe asks for it."""
        if not self.recipe.grade:
            return {}
        shares: dict[str, float] = {}
        for kind in self.kinds:
            fresh = prompts(kind, self.recipe.grade, held_out=False)
            shares |= evaluate(model, [EvalPrompt(*pair, f"obeyed_{kind}") for pair in fresh]).obeyed()
        return shares
