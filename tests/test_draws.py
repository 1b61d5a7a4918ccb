"""Keyed noise: Philox against its published vectors, the normal law, and what a draw does not depend on."""

import math

import numpy as np
import pytest
import torch

from limner.errors import LimnerError
from limner.noise.draws import ANCESTRAL, START, KeyedNoise, TorchNoise, normal, philox

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_philox_known_answers(counter: str, key: str, wanted: str) -> None:
    low, high = words(key)
    assert [int(word) for word in philox([np.uint64(c) for c in words(counter)], high << 32 | low)] == words(wanted)


def test_philox_broadcasts() -> None:
    """A table of counters gives what each gives alone."""
    a, b = np.arange(3, dtype=np.uint64), np.arange(2, dtype=np.uint64)[:, None] << np.uint64(31)
    table = philox((a, b, np.uint64(5), np.uint64(9)), 77)
    for i in range(2):
        for j in range(3):
            alone = philox((a[j], b[i, 0], np.uint64(5), np.uint64(9)), 77)
            assert [int(word[i, j]) for word in table] == [int(word) for word in alone]


def box_muller(w0: int, w1: int) -> float:
    return math.sqrt(-2 * math.log((w0 + 0.5) / 2**32)) * math.cos(2 * math.pi * w1 / 2**32)


def test_normal_is_box_muller_of_philox() -> None:
    assert normal(0, (1, 1, 1)).item() == pytest.approx(box_muller(0x6627E8D5, 0xE169C58D), rel=1e-6)
    seed, stream, step = 0x299F31D0A4093822, 1, 12
    drawn = normal(seed, (3, 4, 5), stream, step)
    assert drawn.dtype == np.float32
    for c, y, x in ((0, 0, 0), (2, 1, 4), (1, 3, 2)):
        w0, w1, _, _ = philox([np.uint64(v) for v in (x, y, c + (stream << 16), step)], seed)
        assert drawn[c, y, x] == pytest.approx(box_muller(int(w0), int(w1)), rel=1e-6)


def test_a_million_draws_are_normal() -> None:
    drawn = np.sort(normal(2024, (4, 500, 500)).ravel().astype(np.float64))
    n = len(drawn)
    assert n == 1_000_000
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((drawn**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / n)
    cdf = torch.special.ndtr(torch.from_numpy(drawn)).numpy()
    assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, 1 in 1000
    for tail in (3.0, 4.0):  # both tails are there, as thick as they should be
        wanted = n * math.erfc(tail / math.sqrt(2)) / 2
        for count in ((drawn > tail).sum(), (drawn < -tail).sum()):
            assert abs(count - wanted) < 4 * math.sqrt(wanted)


def test_draws_are_independent() -> None:
    """Across seeds, streams, steps, channels, neighbours and the diagonal."""
    size = 256
    base = normal(1, (2, size, size), ANCESTRAL, 3)
    others = {
        "seed": normal(2, (2, size, size), ANCESTRAL, 3),
        "high seed": normal(1 + 2**32, (2, size, size), ANCESTRAL, 3),
        "stream": normal(1, (2, size, size), START, 3),
        "step": normal(1, (2, size, size), ANCESTRAL, 4),
        "channel": base[::-1],
        "right": np.roll(base, 1, axis=2),
        "below": np.roll(base, 1, axis=1),
        "mirrored": base.transpose(0, 2, 1),
    }
    for name, other in others.items():
        assert abs(correlation(base, other)) < 4 / size, name
        assert abs(correlation(base**2, other**2)) < 4 / size, name
        assert (base != other).mean() > 0.99, name


def test_seeds_beyond_32_bits() -> None:
    shape = (1, 8, 8)
    seeds = [5, 5 + 2**32, 5 + 2**40, 5 << 32, 2**64 - 1, 2**63]
    drawn = [normal(seed, shape) for seed in seeds]
    for i, one in enumerate(drawn):
        assert np.array_equal(one, normal(seeds[i], shape))
        assert all(np.abs(one - other).max() > 0.5 for other in drawn[i + 1 :])


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(LimnerError, match=f"seed {seed} must be"):
        normal(seed, (1, 2, 2))
    with pytest.raises(LimnerError, match=f"seed {seed} must be"):
        KeyedNoise([3, seed], (1, 2, 2)).start()


def test_a_wider_canvas_keeps_the_shared_area() -> None:
    small = normal(9, (3, 6, 7), ANCESTRAL, 2)
    for shape in ((3, 6, 20), (3, 15, 7), (5, 9, 11)):
        assert np.array_equal(normal(9, shape, ANCESTRAL, 2)[:3, :6, :7], small)


def test_a_picture_of_a_batch_is_the_picture_alone() -> None:
    seeds, shape = [11, 2**40 + 3, 7], (4, 9, 6)
    together = KeyedNoise(seeds, shape)
    for i, seed in enumerate(seeds):
        alone = KeyedNoise([seed], shape)
        assert torch.equal(together.start()[i], alone.start()[0])
        for step in (0, 1, 19):
            assert torch.equal(together(step)[i], alone(step)[0])
    start = together.start()
    assert (start[0] - start[1]).abs().max() > 1
    assert (start[1] - start[2]).abs().max() > 1
    assert start.dtype == torch.float32


def test_keyed_draws_do_not_depend_on_what_was_drawn_before() -> None:
    seeds, shape = [1, 2], (3, 8, 8)
    draws = KeyedNoise(seeds, shape)
    late = draws(5)
    draws(0), draws.start(), draws(4)
    assert torch.equal(draws(5), late)
    assert torch.equal(KeyedNoise(seeds, shape)(5), late)
    for one, other in ((draws(4), late), (draws(0), draws.start()), (draws(0), draws(1))):
        assert abs(correlation(one.numpy(), other.numpy())) < 4 / math.sqrt(one.numel())
    assert torch.equal(draws.start(), torch.from_numpy(np.stack([normal(seed, shape, START, 0) for seed in seeds])))
    assert torch.equal(late, torch.from_numpy(np.stack([normal(seed, shape, ANCESTRAL, 5) for seed in seeds])))


def test_torch_draws_are_one_generators_sequence() -> None:
    shape = (2, 3, 4, 5)
    draws, generator = TorchNoise(42, shape), torch.Generator().manual_seed(42)
    for drawn in (draws.start(), draws(0), draws(7), draws(7)):
        assert torch.equal(drawn, torch.randn(shape, generator=generator))
    assert torch.equal(TorchNoise(42, shape).start(), TorchNoise(42, shape)(3))
    assert not torch.equal(TorchNoise(43, shape).start(), TorchNoise(42, shape).start())
