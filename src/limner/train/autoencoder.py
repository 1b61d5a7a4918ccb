"""Training an autoencoder: pictures in, the same pictures out, by way of latents near a unit Gaussian."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from limner.data.batches import Batches
from limner.data.collection import Collection
from limner.errors import LimnerError
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.picture import sheet, to_pictures
from limner.pipeline import save_autoencoder
from limner.train.recipe import AutoencoderRecipe

UNSEEN = 2**20  # the step whose batches are kept for measuring: far beyond the end of any run on endless data


class AutoencoderLoss(nn.Module):
    """The autoencoder and the loss it is trained by (Rombach et al. 2022, appendix G, without the discriminator)."""

    def __init__(self, vae: AutoencoderKL, kl: float, edges: float) -> None:
        super().__init__()
        self.vae, self.kl, self.edges = vae, kl, edges

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x (B, C, H, W) in [-1, 1] -> the loss of each picture (B,): absolute and squared error of the pixels,
        absolute error of their differences, and the divergence from a unit Gaussian per latent number."""
        posterior = self.vae.encode(x)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
        error = (self.vae.decode(posterior.sample(noise)) - x).float()
        pixels = error.abs().mean((1, 2, 3)) + error.square().mean((1, 2, 3))
        down, right = error.diff(dim=2).abs().mean((1, 2, 3)), error.diff(dim=3).abs().mean((1, 2, 3))
        return pixels + self.edges * (down + right) + self.kl * posterior.kl() / posterior.mean[0].numel()


class TrainedAutoencoder:
    """The autoencoder of a run, with pictures to measure it on."""

    def __init__(self, vae: AutoencoderKL, held: Tensor) -> None:
        self.vae, self.held = vae, held

    def save(self, folder: Path) -> None:
        """Write folder/vae, its scale and shift measured, so that its latents have mean 0 and variance 1."""
        latents = torch.cat([self.vae.encode(x).mean for x in self._batches()])
        shift, scale = float(latents.mean()), float(1 / latents.std())
        self.vae.config = replace(self.vae.config, shift_factor=shift, scaling_factor=scale)
        save_autoencoder(self.vae, folder)

    def _batches(self) -> list[Tensor]:
        device = next(self.vae.parameters()).device
        return [x.to(device).float() / 127.5 - 1 for x in self.held.split(32)]

    @torch.inference_mode()
    def reconstruct(self) -> Tensor:
        """The held pictures, encoded and decoded: (N, C, H, W) in [-1, 1]."""
        return torch.cat([self.vae.decode(self.vae.encode(x).mean).clamp(-1, 1).cpu() for x in self._batches()])


class Autoencoding:
    """What the training loop asks of an autoencoder's run."""

    def __init__(self, recipe: AutoencoderRecipe, pictures: Collection, start: Path | None) -> None:
        torch.manual_seed(recipe.seed)
        model = recipe.model
        factor = 2 ** (len(model.widths) - 1)
        if recipe.size % factor:
            raise LimnerError(f"size {recipe.size} must be a multiple of {factor}, one latent's side")
        config = AutoencoderKLConfig(
            in_channels=recipe.channels,
            out_channels=recipe.channels,
            block_out_channels=model.widths,
            layers_per_block=model.layers,
            latent_channels=model.latent_channels,
            norm_num_groups=model.groups,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        # On a CPU convolutions are faster with channels last.
        vae = AutoencoderKL(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = AutoencoderLoss(vae, recipe.kl, recipe.edges)
        self.compiled: list[nn.Module] = [vae]
        self.held = Batches(pictures, 128, recipe.size, recipe.channels, recipe.seed).batch(UNSEEN)["images"]

    @property
    def groups(self) -> list[dict]:
        """The optimiser's groups; `scale` is of the learning rate."""
        return [{"params": list(self.trained.parameters()), "scale": 1.0}]

    def collection(self, pictures: Collection, device: torch.device, say: Callable[[str], None]) -> Collection:
        """What the batches are made of."""
        return pictures

    def begin(
        self,
        pictures: Collection,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
        say: Callable[[str], None],
    ) -> None:
        """Nothing comes before the first step."""

    def finish(self, average: nn.Module, device: torch.device) -> TrainedAutoencoder:
        """The result of the run, sharing the averaged weights."""
        assert isinstance(average, AutoencoderLoss)
        return TrainedAutoencoder(average.vae, self.held)

    def inputs(self, batch: dict, generator: torch.Generator, device: torch.device) -> tuple:
        """The arguments of the loss for a batch."""
        x = batch["images"].to(device, non_blocking=True).float() / 127.5 - 1
        return x.contiguous(memory_format=torch.channels_last), generator

    def paint(self, model: TrainedAutoencoder):
        """A sheet of held pictures, each beside its reconstruction."""
        x = self.held[:32].float() / 127.5 - 1
        pairs = torch.stack([x, model.reconstruct()[:32]], dim=1).flatten(0, 1)
        return sheet(to_pictures(pairs), columns=8, scale=max(1, 96 // x.shape[-1]))

    def measure(self, model: TrainedAutoencoder) -> dict[str, float]:
        """PSNR in dB over the held pictures."""
        error = (model.reconstruct() - (self.held.float() / 127.5 - 1)) / 2
        return {"psnr": float(-10 * error.square().mean().log10())}
