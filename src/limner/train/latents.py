"""Pictures encoded once: the latents of a collection, in memory and in a file, in place of the pictures."""

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
LOOKED_AT = 16  # pictures whose pixels are part of the fingerprint


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """uint8 pictures (B, C, H, W) -> their latents on the denoiser's scale (B, c, h, w), float32.

    The posterior's mean: its spread is far below what the decoder tells apart.
    """
    x = images.float() / 127.5 - 1
    with torch.no_grad():
        mean = vae.encode(x.contiguous(memory_format=torch.channels_last)).mean
    return vae.to_latents(mean.float()).contiguous()


class Latents:
    """The latents of `count` pictures of a collection, which keeps the captions.

    They are computed once and kept in `file` (float16), which is read again by a run with the same autoencoder and
    the same pictures, and replaced by any other.
    """

    def __init__(
        self, pictures: Collection, vae: AutoencoderKL, size: int, channels: int, count: int, seed: int, file: Path,
        device: torch.device, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.pictures, self.name = pictures, pictures.name
        wanted = [pictures.index_at(position, seed) for position in range(min(count, len(pictures)))]
        key = fingerprint(vae, pictures, size, channels, wanted)
        stored = read_tensors(file) if file.is_file() else {}
        if stored.get("fingerprint") is None or bytes(stored["fingerprint"].tolist()) != key:
            say(f"encoding {len(wanted)} pictures, once, into {file}" + (", which held others" if stored else ""))
            stored = {"fingerprint": torch.tensor(list(key), dtype=torch.uint8)}
            stored |= _encode_all(pictures, vae, size, channels, wanted, device)
            write_tensors(file, stored)
        self.latents, self.indices = stored["latents"], stored["indices"].tolist()
        labels = pictures.labels
        self.labels = None if labels is None else [labels[index] for index in self.indices]
        self.label_names = pictures.label_names

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


def fingerprint(vae: AutoencoderKL, pictures: Collection, size: int, channels: int, wanted: Sequence[int]) -> bytes:
    """32 bytes that change with the autoencoder, with which pictures are encoded (`wanted`), and with what they show.

    Of the pictures themselves only the first are looked at: enough to notice another world of the same name.
    """
    digest = hashlib.sha256(repr((vae.config, pictures.name, len(pictures), size, channels)).encode())
    digest.update(array("q", wanted).tobytes())
    digest.update(pictures.load(wanted[:LOOKED_AT], size, channels).images.numpy().tobytes())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.digest()


def _encode_all(
    pictures: Collection, vae: AutoencoderKL, size: int, channels: int, wanted: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    side, count = size // vae.factor, len(wanted)
    latents = torch.empty(count, vae.config.latent_channels, side, side, dtype=torch.float16)
    indices: list[int] = []
    for start in range(0, count, CHUNK):
        some = wanted[start : start + CHUNK]
        images, good, broken = pictures.load(some, size, channels)
        if len(broken) > len(some) // 2:
            raise LimnerError(f"most pictures near {broken[0]} cannot be read")
        latents[start : start + len(images)] = encode(vae, images.to(device))
        indices += good
    return {"latents": latents, "indices": torch.tensor(indices)}
