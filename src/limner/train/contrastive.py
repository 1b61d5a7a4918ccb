"""Contrastive pre-training of a text encoder (CLIP: Radford et al. 2021, figure 3).

Trained through the denoiser alone, a text encoder gets a noisy gradient until pictures take shape. The image encoder,
on pictures or their latents, is discarded afterwards.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.data.batches import VALIDATION_STEP, Batches
from limner.data.collection import Collection
from limner.nets.layers import conv3
from limner.nets.vae import AutoencoderKL
from limner.text.encoder import TextEncoder
from limner.text.tokenizer import Tokenizer
from limner.train.diffusion import open_dataset, to_targets
from limner.train.recipe import ContrastiveRecipe
from limner.train.setup import check_captions, cut_captions, latent_shape, make_text_encoder, open_autoencoder
from limner.weights.parts import save_part

MIN_SIDE = 4  # of the last feature map: without pooling, so that positions are preserved
MAX_LOGIT_SCALE = 100.0  # as in CLIP


class ImageEncoder(nn.Module):
    """Pictures or latents (B, C, H, W) -> embeddings (B, D): strided convolutions down to 4x4, then an MLP."""

    def __init__(self, channels: int, side: int, dim: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv3(channels, width)])
        while side > MIN_SIDE:
            wider = min(2 * width, 128) if len(self.layers) > 1 else width
            self.layers.append(conv3(width, wider, stride=2))
            width, side = wider, -(-side // 2)
        self.hidden = nn.Linear(width * side * side, 2 * dim)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.silu(layer(x))
        return self.out(F.silu(self.hidden(x.flatten(1))))


class ContrastiveHead(nn.Module):
    """The image encoder, the projection of the mean text state (D -> D), and the log of the logit scale."""

    def __init__(self, channels: int, side: int, dim: int) -> None:
        super().__init__()
        self.image_encoder, self.text_projection = ImageEncoder(channels, side, dim), nn.Linear(dim, dim)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())


class ContrastiveLoss(nn.Module):
    """The symmetric cross-entropy of pictures and captions in a batch (InfoNCE, both directions)."""

    def __init__(self, encoder: TextEncoder, head: ContrastiveHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor, captions: list[str], indices: Tensor) -> Tensor:
        """x (B, C, H, W), B captions and the pictures' indices (B,) -> the loss of each pair (B,).

        Pairs with the same picture or the same caption are no negatives of each other: their logits are masked.
        """
        logits = self.logits(x, captions, indices)
        targets = torch.arange(len(x), device=x.device)
        by_picture, by_caption = (F.cross_entropy(each, targets, reduction="none") for each in (logits, logits.T))
        return (by_picture + by_caption) / 2

    def logits(self, x: Tensor, captions: list[str], indices: Tensor) -> Tensor:
        """Scaled cosine similarities of pictures (rows) and captions (columns), (B, B); -inf where masked."""
        distinct = list(dict.fromkeys(captions))
        row_of = {caption: row for row, caption in enumerate(distinct)}
        rows = torch.tensor([row_of[caption] for caption in captions], device=x.device)
        states = torch.stack([state.tokens.mean(dim=0) for state in self.encoder.encode(distinct)])  # (captions, D)
        text = F.normalize(self.head.text_projection(states).float(), dim=-1)[rows]
        pictures = F.normalize(self.head.image_encoder(x).float(), dim=-1)
        same = (rows[:, None] == rows) | (indices[:, None] == indices)
        same.fill_diagonal_(False)
        scale = self.head.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return (scale * pictures @ text.T).masked_fill(same, float("-inf"))


class TrainedTextEncoder:
    """The averaged text encoder of a run, with the head that it was trained with."""

    def __init__(self, loss: ContrastiveLoss) -> None:
        self.loss = loss

    def save(self, folder: Path) -> None:
        """Write text_encoder/ and tokenizer/ as transformers lays them out."""
        encoder = self.loss.encoder
        save_part(encoder.transformer, folder / "text_encoder")
        encoder.tokenizer.save(folder / "tokenizer")


class Contrastive:
    """The task of a `ContrastiveRecipe`. Negatives are those of a process's own share of the batch."""

    def __init__(
        self, recipe: ContrastiveRecipe, loss: ContrastiveLoss, autoencoder: AutoencoderKL | None, pictures: Collection
    ) -> None:
        self.recipe, self.loss, self.autoencoder, self.pictures = recipe, loss, autoencoder, pictures
        self.parts = nn.ModuleDict({"text_encoder": loss.encoder.transformer, "head": loss.head})
        self.checked = pictures.order(recipe.seed, 0) is not None  # every caption is known before the first step
        self.to_compile: list[nn.Module] = []

    @classmethod
    def from_recipe(cls, recipe: ContrastiveRecipe, pictures: Collection, start: Path | None) -> "Contrastive":
        """The task of a text encoder initialised by recipe.seed; `start` is the checkpoint to resume."""
        torch.manual_seed(recipe.seed)
        autoencoder = open_autoencoder(recipe.autoencoder)
        side, channels = latent_shape(recipe, autoencoder)
        known = Tokenizer.from_pretrained(start / "tokenizer") if start is not None else None
        captions = pictures.all_captions()
        encoder = make_text_encoder(recipe.text, captions, known)
        check_captions(encoder.tokenizer, pictures, captions, fixed=known is not None)
        head = ContrastiveHead(channels, side, encoder.width)
        return cls(recipe, ContrastiveLoss(encoder, head), autoencoder, pictures)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parts.parameters()), "scale": 1.0}]

    def dataset(self, pictures: Collection, device: torch.device, log: Callable[[str], None]) -> Collection:
        return open_dataset(self.recipe, self.autoencoder, pictures, device, log)

    def inputs(self, batch: dict[str, Any], generator: torch.Generator, device: torch.device) -> tuple:
        images = batch["images"].to(device, non_blocking=True)
        captions = batch["captions"] if self.checked else cut_captions(self.loss.encoder.tokenizer, batch["captions"])
        return to_targets(images, self.autoencoder), captions, batch["indices"].to(device)

    def build_result(self, average: Any, device: torch.device) -> TrainedTextEncoder:
        encoder = self.loss.encoder
        average.to(device)
        text = TextEncoder(encoder.tokenizer, average["text_encoder"], encoder.reads)
        return TrainedTextEncoder(ContrastiveLoss(text, average["head"]))

    def sheet(self, result: TrainedTextEncoder) -> None:
        """No pictures are generated."""

    @torch.inference_mode()
    def measure(self, result: TrainedTextEncoder) -> dict[str, float]:
        """The top-1 accuracy of retrieving captions by pictures, on a validation batch."""
        recipe, device = self.recipe, next(self.parts.parameters()).device
        batches = Batches(self.pictures, recipe.batch_size, recipe.size, recipe.channels, recipe.seed)
        logits = result.loss.logits(*self.inputs(batches.batch(VALIDATION_STEP), torch.Generator(), device))
        return {"accuracy": float((logits.argmax(dim=1).cpu() == torch.arange(len(logits))).float().mean())}
