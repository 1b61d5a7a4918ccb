"""Training a text encoder by contrast: CLIP's own training (Radford et al. 2021, figure 3), small.

A text encoder that is trained with the denoiser alone gets a noisy gradient for long, since what the words are worth
shows only once pictures are half painted. Here it first learns which caption belongs to which picture of a batch. The
small image encoder, which sees the pictures or their latents, only serves this training.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.data.batches import Batches
from limner.data.collection import Collection
from limner.nets.layers import conv3
from limner.text.encoder import TextEncoder
from limner.text.tokenizer import Tokenizer
from limner.train.diffusion import open_dataset, to_targets
from limner.train.recipe import ContrastiveRecipe
from limner.train.setup import latent_shape, make_text_encoder, open_autoencoder
from limner.weights.parts import save_part

MIN_SIDE = 4  # of the last features, which still know what is where
MAX_LOGIT_SCALE = 100.0  # of the cosines, as CLIP has it
HELD_BACK = 2**20  # the step whose batch is measured on: far beyond the end of any run on endless data


class ImageEncoder(nn.Module):
    """Pictures or latents (B, C, H, W) -> (B, D): convolutions at the full size, then halving down to 4 x 4."""

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


class Head(nn.Module):
    """The image encoder, the projection of the text's mean state, and the scale of the cosines."""

    def __init__(self, channels: int, side: int, dim: int) -> None:
        super().__init__()
        self.pictures, self.words = ImageEncoder(channels, side, dim), nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())


class ContrastiveLoss(nn.Module):
    """Each picture against all captions of the batch and each caption against all pictures of it."""

    def __init__(self, encoder: TextEncoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor, captions: list[str], indices: Tensor) -> Tensor:
        """x (B, C, H, W), their captions and which pictures they are (B,) -> the loss of each picture (B,).

        Two of the same picture or with the same caption are not told apart, and so are not compared.
        """
        logits = self.logits(x, captions, indices)
        right = torch.arange(len(x), device=x.device)
        by_picture, by_caption = (F.cross_entropy(each, right, reduction="none") for each in (logits, logits.T))
        return (by_picture + by_caption) / 2

    def logits(self, x: Tensor, captions: list[str], indices: Tensor) -> Tensor:
        """Scaled cosines of pictures (rows) and captions (columns), (B, B); -inf where they are not compared."""
        distinct = list(dict.fromkeys(captions))
        rows = {caption: row for row, caption in enumerate(distinct)}
        which = torch.tensor([rows[caption] for caption in captions], device=x.device)
        states = torch.stack([state.tokens.mean(dim=0) for state in self.encoder.encode(distinct)])  # (captions, D)
        words = F.normalize(self.head.words(states).float(), dim=-1)[which]
        pictures = F.normalize(self.head.pictures(x).float(), dim=-1)
        same = (which[:, None] == which) | (indices[:, None] == indices)
        same.fill_diagonal_(False)
        scale = self.head.log_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return (scale * pictures @ words.T).masked_fill(same, float("-inf"))


class TrainedTextEncoder:
    """The text encoder of a run, with its image encoder."""

    def __init__(self, loss: ContrastiveLoss) -> None:
        self.loss = loss

    def save(self, folder: Path) -> None:
        """Write text_encoder/ and tokenizer/ as transformers lays them out."""
        encoder = self.loss.encoder
        save_part(encoder.transformer, folder / "text_encoder")
        encoder.tokenizer.save(folder / "tokenizer")


class Contrastive:
    """The task of a `ContrastiveRecipe`. Of several processes each contrasts its own share of a batch."""

    def __init__(self, recipe: ContrastiveRecipe, pictures: Collection, start: Path | None) -> None:
        """An untrained text encoder, the same for the same seed; `start` is the checkpoint to resume."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.autoencoder = recipe, open_autoencoder(recipe.autoencoder)
        side, channels = latent_shape(recipe, self.autoencoder)
        known = Tokenizer.from_pretrained(start / "tokenizer") if start is not None else None
        captions = pictures.all_captions()
        encoder = make_text_encoder(recipe.text, captions, known)
        encoder.tokenizer.encode(captions)  # a caption over the budget is an error now, not at step 10,000
        head = Head(channels, side, encoder.width)
        self.loss = ContrastiveLoss(encoder, head)
        self.parts = nn.ModuleDict({"text_encoder": encoder.transformer, "head": head})
        self.to_compile: list[nn.Module] = []
        self.pictures = pictures

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parts.parameters()), "scale": 1.0}]

    def dataset(self, pictures: Collection, device: torch.device, log: Callable[[str], None]) -> Collection:
        """The pictures, or the latents of the first `recipe.cache` of them."""
        return open_dataset(self.recipe, self.autoencoder, pictures, device, log)

    def inputs(self, batch: dict[str, Any], generator: torch.Generator, device: torch.device) -> tuple:
        images = batch["images"].to(device, non_blocking=True)
        return to_targets(images, self.autoencoder), batch["captions"], batch["indices"].to(device)

    def build_result(self, average: Any, device: torch.device) -> TrainedTextEncoder:
        encoder = self.loss.encoder
        average.to(device)
        text = TextEncoder(encoder.tokenizer, average["text_encoder"], encoder.reads)
        return TrainedTextEncoder(ContrastiveLoss(text, average["head"]))

    def sheet(self, result: TrainedTextEncoder) -> None:
        """There are no pictures to show."""

    @torch.inference_mode()
    def measure(self, result: TrainedTextEncoder) -> dict[str, float]:
        """The share of held-back captions that are found for their pictures."""
        recipe, device = self.recipe, next(self.parts.parameters()).device
        batches = Batches(self.pictures, recipe.batch_size, recipe.size, recipe.channels, recipe.seed)
        logits = result.loss.logits(*self.inputs(batches.batch(HELD_BACK), torch.Generator(), device))
        return {"found": float((logits.argmax(dim=1).cpu() == torch.arange(len(logits))).float().mean())}
