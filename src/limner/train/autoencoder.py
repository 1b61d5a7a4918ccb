"""Training a KL autoencoder (Rombach et al. 2022): reconstruct pictures from latents near a unit Gaussian."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from limner.data.batches import VALIDATION_STEP, Batches
from limner.data.collection import Collection
from limner.errors import LimnerError
from limner.nets.vae import AutoencoderKL
from limner.picture import sheet, to_pictures
from limner.train.latents import normalize
from limner.train.recipe import AutoencoderRecipe
from limner.weights.parts import save_part


class AutoencoderLoss(nn.Module):
    """An autoencoder and its training loss (Rombach et al. 2022, appendix G, without the discriminator)."""

    def __init__(self, vae: AutoencoderKL, kl: float, edges: float) -> None:
        super().__init__()
        self.vae, self.kl, self.edges = vae, kl, edges

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x (B, C, H, W) in [-1, 1] -> the loss of each picture (B,): L1 and L2 error of the pixels, L1 error of their
        finite differences (weight `edges`), and the KL divergence from N(0, 1) per latent value (weight `kl`)."""
        posterior = self.vae.encode(x)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
        error = (self.vae.decode(posterior.sample(noise)) - x).float()
        pixels = error.abs().mean((1, 2, 3)) + error.square().mean((1, 2, 3))
        down, right = error.diff(dim=2).abs().mean((1, 2, 3)), error.diff(dim=3).abs().mean((1, 2, 3))
        return pixels + self.edges * (down + right) + self.kl * posterior.kl() / posterior.mean[0].numel()


class TrainedAutoencoder:
    """The averaged autoencoder of a run, with its validation pictures `held`, uint8 (N, C, H, W)."""

    def __init__(self, vae: AutoencoderKL, held: Tensor) -> None:
        self.vae, self.held = vae, held

    def save(self, folder: Path) -> None:
        """Write folder/vae, its scale and shift such that validation latents have mean 0 and variance 1."""
        latents = torch.cat([self.vae.encode(x).mean for x in self._batches()])
        shift, scale = float(latents.mean()), float(1 / latents.std())
        self.vae.config = replace(self.vae.config, shift_factor=shift, scaling_factor=scale)
        save_part(self.vae, folder / "vae")

    def _batches(self) -> list[Tensor]:
        device = next(self.vae.parameters()).device
        return [normalize(x.to(device)) for x in self.held.split(32)]

    @torch.inference_mode()
    def reconstruct(self) -> Tensor:
        """The validation pictures decoded from their mean latents: (N, C, H, W) in [-1, 1]."""
        return torch.cat([self.vae.decode(self.vae.encode(x).mean).clamp(-1, 1).cpu() for x in self._batches()])


class Autoencoding:
    """The task of an `AutoencoderRecipe`."""

    def __init__(self, recipe: AutoencoderRecipe, vae: AutoencoderKL, pictures: Collection) -> None:
        self.recipe, self.pictures = recipe, pictures
        self.loss = AutoencoderLoss(vae, recipe.kl, recipe.edges)
        self.parts = nn.ModuleDict({"vae": vae})
        self.to_compile: list[nn.Module] = [vae]

    @classmethod
    def from_recipe(cls, recipe: AutoencoderRecipe, pictures: Collection) -> "Autoencoding":
        """The task of an autoencoder initialised by recipe.seed. LimnerError for a size that it cannot encode."""
        torch.manual_seed(recipe.seed)
        factor = 2 ** (len(recipe.network.block_out_channels) - 1)
        if recipe.size % factor:
            raise LimnerError(f"size {recipe.size} must be a multiple of {factor}, one latent's side")
        config = replace(recipe.network, in_channels=recipe.channels, out_channels=recipe.channels)
        # Convolutions on a CPU are faster with channels last.
        vae = AutoencoderKL(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(recipe, vae, pictures)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parts.parameters()), "scale": 1.0}]

    def dataset(self, pictures: Collection, device: torch.device, log: Callable[[str], None]) -> Collection:
        return pictures

    def build_result(self, average: Any, device: torch.device) -> TrainedAutoencoder:
        recipe = self.recipe
        batches = Batches(self.pictures, 128, recipe.size, recipe.channels, recipe.seed)
        return TrainedAutoencoder(average["vae"].to(device), batches.batch(VALIDATION_STEP)["images"])

    def inputs(self, batch: dict, generator: torch.Generator, device: torch.device) -> tuple:
        x = normalize(batch["images"].to(device, non_blocking=True))
        return x.contiguous(memory_format=torch.channels_last), generator

    def sheet(self, result: TrainedAutoencoder) -> Image:
        """Up to 32 validation pictures, each beside its reconstruction."""
        x = normalize(result.held[:32])
        pairs = torch.stack([x, result.reconstruct()[:32]], dim=1).flatten(0, 1)
        return sheet(to_pictures(pairs), columns=8, scale=max(1, 96 // x.shape[-1]))

    def measure(self, result: TrainedAutoencoder) -> dict[str, float]:
        """PSNR in dB of the mean squared error over the validation pictures."""
        error = (result.reconstruct() - normalize(result.held)) / 2
        return {"psnr": float(-10 * error.square().mean().log10())}
