"""A cache of latents: the pictures of a collection encoded once by a frozen autoencoder, in memory and in a file."""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from limner.data.collection import Collection, Loaded, epoch_order
from limner.errors import LimnerError
from limner.nets.vae import AutoencoderKL
from limner.weights.file import read_tensors, write_tensors

CHUNK = 256  # pictures encoded together
FINGERPRINTED = 16  # pictures whose pixels enter the fingerprint


def normalize(images: Tensor) -> Tensor:
    """uint8 pictures in [0, 255] -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """uint8 pictures (B, C, H, W) -> their latents on the denoiser's scale (B, c, h, w), float32.

    The mean of the posterior instead of a sample: its standard deviation is negligible beside that of the latents.
    """
    x = normalize(images)
    with torch.no_grad():
        mean = vae.encode(x.contiguous(memory_format=torch.channels_last)).mean
    return vae.to_latents(mean.float()).contiguous()


class Latents:
    """A collection of latents (N, c, h, w), row k of the picture at `indices[k]` of `pictures`."""

    def __init__(self, pictures: Collection, latents: Tensor, indices: Sequence[int]) -> None:
        self.pictures, self.latents, self.indices = pictures, latents, indices
        self.name, self.label_names = pictures.name, pictures.label_names
        self.labels = None if pictures.labels is None else [pictures.labels[index] for index in indices]

    @classmethod
    def cached(
        cls, pictures: Collection, vae: AutoencoderKL, size: int, channels: int, count: int, seed: int, file: Path,
        device: torch.device, log: Callable[[str], None],
    ) -> "Latents":  # fmt: skip
        """The latents of the first `count` pictures of a collection, in the order of `seed`'s first epoch.

        They are stored in `file` (float16, with a fingerprint of autoencoder and pictures) and reused where it matches.
        """
        selected = [pictures.index_at(position, seed) for position in range(min(count, len(pictures)))]
        key = fingerprint(vae, pictures, size, channels, selected)
        stored = read_tensors(file) if file.is_file() else {}
        if stored.get("fingerprint") is None or bytes(stored["fingerprint"].tolist()) != key:
            log(f"encoding {len(selected)} pictures, once, into {file}" + (", which held others" if stored else ""))
            stored = {"fingerprint": torch.tensor(list(key), dtype=torch.uint8)}
            stored |= _encode_all(pictures, vae, size, channels, selected, device)
            write_tensors(file, stored)
        return cls(pictures, stored["latents"], stored["indices"].tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def picture_name(self, index: int) -> str:
        return self.pictures.picture_name(self.indices[index])

    def index_at(self, position: int, seed: int) -> int:
        n = len(self)
        return int(epoch_order(n, seed, position // n)[position % n])

    def draw_caption(self, index: int, random: Random) -> str:
        return self.pictures.draw_caption(self.indices[index], random)

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The latents at `indices`, float32 (B, c, h, w)."""
        return Loaded(self.latents[list(indices)].float(), list(indices), [])

    def all_captions(self) -> list[str]:
        return self.pictures.all_captions()


def fingerprint(vae: AutoencoderKL, pictures: Collection, size: int, channels: int, selected: Sequence[int]) -> bytes:
    """SHA-256 of the autoencoder, the indices of the encoded pictures (`selected`) and the pixels of the first ones,
    which suffice to notice another collection of the same name."""
    digest = hashlib.sha256(repr((vae.config, pictures.name, len(pictures), size, channels)).encode())
    digest.update(array("q", selected).tobytes())
    digest.update(pictures.load(selected[:FINGERPRINTED], size, channels).images.numpy().tobytes())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.digest()


def _encode_all(
    pictures: Collection, vae: AutoencoderKL, size: int, channels: int, selected: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    side, count = size // vae.factor, len(selected)
    latents = torch.empty(count, vae.config.latent_channels, side, side, dtype=torch.float16)
    indices: list[int] = []
    for start in range(0, count, CHUNK):
        chunk = selected[start : start + CHUNK]
        images, good, broken = pictures.load(chunk, size, channels)
        if len(broken) > len(chunk) // 2:
            raise LimnerError(f"most pictures near {broken[0]} cannot be read")
        latents[start : start + len(images)] = encode(vae, images.to(device))
        indices += good
    return {"latents": latents, "indices": torch.tensor(indices)}
