"""A cache of latents: the pictures of a collection encoded once by a frozen autoencoder, in memory and in a file."""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from limner.data.batches import BrokenCount
from limner.data.captions import few
from limner.data.collection import Collection, Loaded, epoch_order
from limner.errors import LimnerError
from limner.files import check_writable
from limner.nets.vae import AutoencoderKL
from limner.weights.file import read_tensors, write_tensors

CHUNK = 256  # pictures encoded together
DECODED = 16  # pictures whose pixels enter the fingerprint, as decoding and drawing may change too


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
        device: torch.device, log: Callable[[str], None], max_broken: float = 0.01,
    ) -> "Latents":  # fmt: skip
        """The latents of the first `count` pictures of a collection, in the order of `seed`'s first epoch.

        They are stored in `file` (float16, with a fingerprint of autoencoder and pictures) and reused where it matches.
        Unreadable pictures are left out; LimnerError where they are more than the share `max_broken`.
        """
        selected = [pictures.index_at(position, seed) for position in range(min(count, len(pictures)))]
        broken = BrokenCount(len(selected), max_broken)
        key = fingerprint(vae, pictures, size, channels, selected)
        check_writable(file)
        stored = _read(file, key)
        if stored is None:
            log(
                f"encoding {len(selected)} pictures, once, into {file}"
                + (", which held others" if file.exists() else "")
            )
            stored = _encode_all(pictures, vae, size, channels, selected, device, broken)
            stored["fingerprint"] = torch.tensor(list(key), dtype=torch.uint8)
            stored["checksum"] = _checksum(stored)
            write_tensors(file, stored)
        held = set(stored["indices"].tolist())
        broken.add(_without(pictures, selected, held))
        if broken.names:
            log(f"{len(broken.names)} unreadable pictures were skipped: {few(broken.names)}")
        return cls(pictures, stored["latents"], stored["indices"].tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def picture_name(self, index: int) -> str:
        return self.pictures.picture_name(self.indices[index])

    def index_at(self, position: int, seed: int) -> int:
        n = len(self)
        return int(epoch_order(n, seed, position // n)[position % n])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return epoch_order(len(self), seed, epoch)

    def draw_caption(self, index: int, random: Random) -> str:
        return self.pictures.draw_caption(self.indices[index], random)

    def load(self, indices: Sequence[int], size: int, channels: int) -> Loaded:
        """The latents at `indices`, float32 (B, c, h, w)."""
        return Loaded(self.latents[list(indices)].float(), list(indices), [])

    def fingerprint(self, index: int) -> bytes:
        return self.pictures.fingerprint(self.indices[index])

    def all_captions(self) -> list[str]:
        return self.pictures.all_captions()

    def captioned(self, caption: str) -> str:
        return self.pictures.captioned(caption)


def fingerprint(vae: AutoencoderKL, pictures: Collection, size: int, channels: int, selected: Sequence[int]) -> bytes:
    """SHA-256 of the autoencoder, the fingerprints of the encoded pictures (`selected`) and the pixels of the first."""
    digest = hashlib.sha256(repr((vae.config, pictures.name, len(pictures), size, channels)).encode())
    digest.update(array("q", selected).tobytes())
    for index in selected:
        digest.update(hashlib.sha256(pictures.fingerprint(index)).digest())
    digest.update(pictures.load(selected[:DECODED], size, channels).images.numpy().tobytes())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.digest()


def _read(file: Path, key: bytes) -> dict[str, Tensor] | None:
    """The tensors that were stored with the fingerprint `key`; None where the file is absent, of others or damaged."""
    try:
        stored = read_tensors(file)
        whole = bytes(stored["fingerprint"].tolist()) == key and torch.equal(stored["checksum"], _checksum(stored))
    except (LimnerError, KeyError, TypeError, ValueError):
        return None
    return stored if whole else None


def _checksum(stored: dict[str, Tensor]) -> Tensor:
    """The SHA-256 of latents and indices."""
    digest = hashlib.sha256()
    for name in ("latents", "indices"):
        digest.update(repr(tuple(stored[name].shape)).encode())
        digest.update(stored[name].contiguous().view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _encode_all(
    pictures: Collection, vae: AutoencoderKL, size: int, channels: int, selected: Sequence[int], device: torch.device,
    broken: BrokenCount,
) -> dict[str, Tensor]:  # fmt: skip
    """The latents of the readable pictures of `selected` and their indices."""
    latents: list[Tensor] = []
    indices: list[int] = []
    for start in range(0, len(selected), CHUNK):
        chunk = selected[start : start + CHUNK]
        images, good, _ = pictures.load(chunk, size, channels)
        rows = [row for row, index in enumerate(chunk) if good[row] == index]
        held = [chunk[row] for row in rows]
        broken.add(_without(pictures, chunk, set(held)))
        if rows:
            latents.append(encode(vae, images[rows].to(device)).half().cpu())
            indices += held
    if not indices:
        raise LimnerError(f"none of {len(selected)} pictures of {pictures.name} can be read")
    return {"latents": torch.cat(latents), "indices": torch.tensor(indices)}


def _without(pictures: Collection, selected: Sequence[int], held: set[int]) -> dict[str, list]:
    """The pictures of `selected`, for a `BrokenCount`: those not `held` are unreadable."""
    return {"indices": list(selected), "broken": [pictures.picture_name(i) for i in selected if i not in held]}
