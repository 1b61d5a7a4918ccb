"""Counter-based noise: a draw depends on (seed, stream, step, channel, y, x) alone, not on previous draws.

So picture k of a batch equals the picture sampled alone with its own seed, every device gets the same noise, and a
wider canvas keeps the noise of the shared area.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.checks import as_whole
from limner.errors import LimnerError

MASK = np.uint64(0xFFFFFFFF)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)

# Independent streams of one seed: the initial x, and the noise of stochastic samplers.
START, ANCESTRAL = 0, 1


def philox(counter: Sequence[Any], seed: int) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 (Salmon et al. 2011): four uint32 counter words, broadcast together, -> four uint32 words.

    The arrays are uint64 holding 32-bit values; `seed` gives the 64-bit key.
    """
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        a, b = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ np.uint64(key0),
            b & MASK,
            (a >> np.uint64(32)) ^ c3 ^ np.uint64(key1),
            a & MASK,
        )
        key0, key1 = key0 + WEYL[0] & 0xFFFFFFFF, key1 + WEYL[1] & 0xFFFFFFFF
    return c0, c1, c2, c3


def check_seed(seed: int) -> int:
    """The seed as an int. Raises LimnerError unless it is a whole number in [0, 2^64)."""
    number = as_whole("seed", seed)
    if not 0 <= number < 2**64:
        raise LimnerError(f"seed {number} must be a whole number from 0 to 2^64 - 1")
    return number


def normal(seed: int, shape: tuple[int, int, int], stream: int = START, step: int = 0) -> np.ndarray:
    """Unit normal noise (C, H, W), float32, by Box-Muller on two Philox words a pixel."""
    channels, height, width = shape
    x = np.arange(width, dtype=np.uint64)
    y = np.arange(height, dtype=np.uint64)[:, None]
    channel = np.arange(channels, dtype=np.uint64)[:, None, None]
    w0, w1, _, _ = philox((x, y, channel + np.uint64(stream << 16), np.uint64(step)), check_seed(seed))
    radius = np.sqrt(-2.0 * np.log((w0.astype(np.float64) + 0.5) / 2**32))
    return (radius * np.cos(2 * np.pi / 2**32 * w1.astype(np.float64))).astype(np.float32)


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """From a (t = 0) to b (t = 1) at constant speed along the sphere (Shoemake 1985): unit noise stays unit noise."""
    if t in (0.0, 1.0):
        return b if t else a
    u, v = a.astype(np.float64), b.astype(np.float64)
    cosine = float(np.vdot(u, v) / (np.linalg.norm(u) * np.linalg.norm(v)))
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return a
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / np.float32(math.sin(angle))


class KeyedNoise:
    """Philox noise for a batch of pictures, one seed each (`rng="keyed"`).

    With `others`, as many seeds, every draw is turned by `turn` in [0, 1] from the seed's to the other's (`slerp`).
    """

    like_diffusers = False

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        others: Sequence[int] | None = None,
        turn: float = 0.0,
    ) -> None:
        self.seeds, self.shape, self.device = [check_seed(seed) for seed in seeds], shape, device
        self.others, self.turn = [check_seed(seed) for seed in others or seeds], turn

    def _draw(self, stream: int, step: int) -> Tensor:
        noise = [normal(seed, self.shape, stream, step) for seed in self.seeds]
        if self.turn:
            other = [normal(seed, self.shape, stream, step) for seed in self.others]
            noise = [slerp(a, b, self.turn) for a, b in zip(noise, other, strict=True)]
        return torch.from_numpy(np.stack(noise)).to(self.device)

    def posterior(self, pictures: int) -> None:
        """None: pictures are encoded by the mean of their posterior."""

    def start(self) -> Tensor:
        """Unit noise (B, C, H, W), float32."""
        return self._draw(START, 0)

    def __call__(self, step: int) -> Tensor:
        """Fresh unit noise (B, C, H, W) of this step, float32."""
        return self._draw(ANCESTRAL, step)


class TorchNoise:
    """Noise as diffusers draws it: one CPU generator for the batch, consumed in order (`rng="torch"`)."""

    like_diffusers = True

    def __init__(self, seed: int, shape: tuple[int, int, int, int], device: torch.device | str = "cpu") -> None:
        self.generator, self.shape, self.device = torch.Generator().manual_seed(check_seed(seed)), shape, device

    def start(self) -> Tensor:
        """Unit noise (B, C, H, W), float32: the generator's next draw."""
        return self.posterior(self.shape[0])

    def posterior(self, pictures: int) -> Tensor:
        """Unit noise (pictures, C, H, W), float32, for samples of a posterior: the generator's next draw."""
        return torch.randn((pictures, *self.shape[1:]), generator=self.generator).to(self.device)

    def __call__(self, step: int) -> Tensor:
        """The generator's next draw, whatever the step."""
        return self.start()


Draws = KeyedNoise | TorchNoise
