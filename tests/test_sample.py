"""The step, the samplers and guidance, on data whose denoiser is known in closed form.

For a mixture of Gaussians x0 is exact, and in one dimension so is the probability-flow ODE: it keeps quantiles. So
convergence orders and moments are asserted with no reference implementation.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from limner.denoise import Denoiser, cfg, clip, interval
from limner.errors import LimnerError
from limner.noise.grids import CLEAN, at_times, spaced
from limner.noise.level import Level
from limner.noise.paths import Flow, linear, scaled_linear
from limner.sample import check_grid, posterior_std, step
from limner.schedulers import SAMPLERS, sampler

Grid = list[Level]


def vp_grid(steps: int, low: float = -2.5, high: float = 2.5) -> Grid:
    """A smooth variance-preserving path, even in lambda, with finite ends."""
    lams = np.linspace(low, high, steps + 1).tolist()
    return [Level(i, (1 + math.exp(-2 * lam)) ** -0.5, (1 + math.exp(2 * lam)) ** -0.5) for i, lam in enumerate(lams)]


def flow_grid(steps: int, high: float = 0.9, low: float = 0.1) -> Grid:
    """The straight path, even in sigma."""
    return [Level(1000 * s, 1 - s, s) for s in np.linspace(high, low, steps + 1).tolist()]


GRIDS: dict[str, Callable[[int], Grid]] = {"vp": vp_grid, "flow": flow_grid}
PURE = Level(1000.0, 0.0, 1.0)


class Mixture:
    """Data on a line: weights, means, deviations."""

    def __init__(self, weights: list[float], means: list[float], deviations: list[float]) -> None:
        self.w, self.m, self.s = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, deviations))
        self.mean = float((self.w * self.m).sum())
        self.var = float((self.w * (self.s**2 + self.m**2)).sum()) - self.mean**2

    def x0(self, x: Tensor, level: Level) -> Tensor:
        """E[x0 | x]."""
        w, m, s = (v.to(x.dtype).view(-1, *[1] * x.ndim) for v in (self.w, self.m, self.s))
        var = (level.alpha * s) ** 2 + level.sigma**2
        off = x - level.alpha * m
        share = torch.softmax(w.log() - var.log() / 2 - off**2 / (2 * var), dim=0)
        return (share * (m + level.alpha * s**2 / var * off)).sum(0)

    def cdf(self, x: Tensor, level: Level) -> Tensor:
        var = (level.alpha * self.s) ** 2 + level.sigma**2
        return (self.w * torch.special.ndtr((x.double()[..., None] - level.alpha * self.m) / var.sqrt())).sum(-1)

    def flow(self, x: Tensor, s: Level, t: Level) -> Tensor:
        """The exact ODE from s to t: the point of the same quantile, by bisection."""
        quantile, low, high = self.cdf(x, s), torch.full_like(x, -20.0), torch.full_like(x, 20.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle, t) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


MIXTURE = Mixture([0.2, 0.5, 0.3], [-1.5, 0.2, 1.4], [0.25, 0.4, 0.3])


def no_draw(i: int) -> Tensor:
    raise AssertionError(f"drew noise at step {i}")


def run(name: str, denoise: Callable, x: Tensor, grid: Grid, draw: Callable = no_draw, **options: float) -> Tensor:
    """The last x."""
    return [x for x, _ in sampler(name)(denoise, x, grid, draw, **options)][-1]


def stub(x: Tensor, level: Level) -> Tensor:
    """A smooth x0 that depends on x and the level."""
    return torch.sin(1.3 * x + level.sigma / (level.alpha + level.sigma)) + 0.1 * level.alpha


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are faster without waiting for other threads, forty times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The step


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
def test_two_steps_are_one_for_constant_x0(make: Callable[[int], Grid]) -> None:
    s, _, u, t = make(3)
    x, x0 = noise(2, 50)
    torch.testing.assert_close(step(step(x, x0, s, u), x0, u, t), step(x, x0, s, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step(step(x, x0, PURE, s), x0, s, CLEAN), x0, rtol=1e-12, atol=1e-12)


def test_step_keeps_x0_and_eps() -> None:
    s, t = vp_grid(1)
    x0, eps = noise(2, 50)
    moved = step(s.alpha * x0 + s.sigma * eps, x0, s, t)
    torch.testing.assert_close(moved, t.alpha * x0 + t.sigma * eps)
    torch.testing.assert_close(step(moved, x0, t, t), moved)
    torch.testing.assert_close(step(moved, x0, t, CLEAN), x0)
    torch.testing.assert_close(step(eps, x0, PURE, t), t.alpha * x0 + t.sigma * eps)


@pytest.mark.parametrize("std", [0.1, 0.3])
def test_step_with_noise_keeps_the_variance(std: float) -> None:
    s, t = flow_grid(1, 0.9, 0.4)
    x0, eps, fresh = noise(3, 50)
    moved = step(s.alpha * x0 + s.sigma * eps, x0, s, t, std, fresh)
    torch.testing.assert_close(moved, t.alpha * x0 + math.sqrt(0.4**2 - std**2) * eps + std * fresh)


@pytest.mark.parametrize(("s", "t"), [(999, 998), (500, 499), (1, 0), (900, 300), (981, 961)])
def test_posterior_is_ddpms(s: int, t: int) -> None:
    """Ho et al. 2020, equations 6 and 7; s and t need not be neighbours."""
    table = linear()
    a, b = table.level(s), table.level(t)
    bar_s, bar_t = a.alpha**2, b.alpha**2
    beta = 1 - bar_s / bar_t
    if s == t + 1:
        assert beta == pytest.approx(float(table.betas[s]), rel=1e-3)
    assert posterior_std(a, b) ** 2 == pytest.approx((1 - bar_t) / (1 - bar_s) * beta, rel=1e-6)
    x, x0 = noise(2, 20)
    mean = math.sqrt(bar_t) * beta / (1 - bar_s) * x0 + math.sqrt(1 - beta) * (1 - bar_t) / (1 - bar_s) * x
    torch.testing.assert_close(step(x, x0, a, b, posterior_std(a, b)), mean, rtol=1e-6, atol=1e-8)


def test_posterior_is_k_diffusions_sigma_up() -> None:
    s, t = scaled_linear().level(700), scaled_linear().level(420)
    up = math.sqrt(t.rho**2 * (s.rho**2 - t.rho**2) / s.rho**2)
    assert posterior_std(s, t) == pytest.approx(t.alpha * up)


def test_posterior_at_the_ends() -> None:
    s = flow_grid(1)[0]
    assert posterior_std(s, CLEAN) == 0.0
    assert posterior_std(PURE, s) == s.sigma  # nothing of pure noise is worth keeping
    assert posterior_std(s, s) == 0.0


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
def test_posteriors_chain(make: Callable[[int], Grid]) -> None:
    """q(x_u | x_s, x0) then q(x_t | x_u, x0) is q(x_t | x_s, x0): the same mean, the same deviation."""
    s, _, u, t = make(3)
    x, x0 = noise(2, 20)
    first, second, whole = posterior_std(s, u), posterior_std(u, t), posterior_std(s, t)
    through = step(step(x, x0, s, u, first), x0, u, t, second)
    torch.testing.assert_close(through, step(x, x0, s, t, whole), rtol=1e-10, atol=1e-12)
    kept = math.sqrt(t.sigma**2 - second**2) / u.sigma
    assert math.hypot(kept * first, second) == pytest.approx(whole, rel=1e-10)


# Convergence of the deterministic samplers

ORDERS = {
    ("euler", 0): (0.85, 1.15),
    ("ddim", 0): (0.85, 1.15),
    ("heun", 0): (1.85, 2.3),
    ("heun", 1): (1.85, 2.3),
    ("pndm", 0): (1.85, 2.3),
    ("dpmpp_2m", 0): (1.85, 2.3),
    ("unipc", 0): (2.7, 3.3),  # UniC adds one order to UniP-2
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("name", "kappa"), ORDERS)
def test_order_of_convergence(name: str, kappa: int, grid: str) -> None:
    make = GRIDS[grid]
    s, t = make(1)
    x = torch.linspace(-2, 2, 33, dtype=torch.float64) * math.sqrt(s.alpha**2 * MIXTURE.var + s.sigma**2)
    wanted = MIXTURE.flow(x, s, t)
    assert (wanted - x).abs().mean() > 0.2  # the way is not short
    counts = (32, 64, 128)
    errors = [
        float((run(name, MIXTURE.x0, x, make(n), kappa=kappa, eta=0.0) - wanted).square().mean().sqrt()) for n in counts
    ]
    low, high = ORDERS[name, kappa]
    for before, after in pairwise(errors):
        assert low < math.log2(before / after) < high, errors
    assert errors[-1] < {1: 2e-2, 2: 5e-4, 3: 1e-5}[round((low + high) / 2)]


def discrete_grid(steps: int) -> Grid:
    """Levels of Stable Diffusion's table, even in t; steps a divisor of 840."""
    return [scaled_linear().level(t) for t in range(900, 59, -840 // steps)]


def uneven_flow_grid(steps: int) -> Grid:
    """Levels of the straight path, even in the square root of sigma."""
    return [Flow().level(1000 * u**2) for u in np.linspace(0.95, 0.3, steps + 1).tolist()]


@pytest.mark.parametrize(
    ("make", "kappa", "order"),
    [(discrete_grid, 0, 2), (uneven_flow_grid, 1, 2), (flow_grid, 1, 3)],
    ids=["discrete", "uneven flow", "even flow"],
)
def test_order_of_plms(make: Callable[[int], Grid], kappa: int, order: int) -> None:
    """The weights are those of even steps: second order (as Liu et al. 2022 say) where steps are not even in
    sigma/(alpha + kappa*sigma), and third where they are, since Heun's step and the first of two slopes err by h^3."""
    s, *_, t = make(2)
    x = torch.linspace(-2, 2, 33, dtype=torch.float64) * math.sqrt(s.alpha**2 * MIXTURE.var + s.sigma**2)
    wanted = MIXTURE.flow(x, s, t)
    assert (wanted - x).abs().mean() > 0.2
    errors = [
        float((run("pndm", MIXTURE.x0, x, make(n), kappa=kappa) - wanted).square().mean().sqrt())
        for n in (70, 140, 280, 420)
    ]
    for before, after, ratio in zip(errors[:-1], errors[1:], (2, 2, 1.5), strict=True):
        assert order - 0.15 < math.log(before / after, ratio) < order + 0.35, errors
    assert errors[-1] < {2: 5e-6, 3: 1e-8}[order]


@pytest.mark.parametrize("name", ["heun", "pndm"])
@pytest.mark.parametrize("grid", GRIDS)
def test_coordinates_of_slopes_matter(name: str, grid: str) -> None:
    x = noise(33)
    ve, flow = (run(name, MIXTURE.x0, x, GRIDS[grid](8), kappa=kappa) for kappa in (0, 1))
    assert (ve - flow).abs().max() > 1e-2


@pytest.mark.parametrize("kappa", [0, 1])
def test_heun_by_hand(kappa: int) -> None:
    """Karras et al. 2022, algorithm 1, on x/alpha against sigma/alpha (kappa 0) or x against sigma on a flow (1)."""
    s, t = flow_grid(1, 0.8, 0.3)
    x = noise(20)

    def slope(y: Tensor, level: Level) -> Tensor:
        noisy = y if kappa else level.alpha * y
        x0 = stub(noisy, level)
        return (noisy - x0) / level.sigma if kappa else (y - x0) / level.rho

    y, h = (x, t.sigma - s.sigma) if kappa else (x / s.alpha, t.rho - s.rho)
    first = slope(y, s)
    y = y + h * (first + slope(y + h * first, t)) / 2
    torch.testing.assert_close(run("heun", stub, x, [s, t], kappa=kappa), y if kappa else t.alpha * y)


def adams_bashforth(order: int) -> np.ndarray:
    """Weights of the last slopes, the newest first: the integral over the next step of the polynomial through them."""
    nodes, powers = -np.arange(order), np.arange(order)
    return np.linalg.solve(nodes ** powers[:, None], 1 / (powers + 1))


@pytest.mark.parametrize("kappa", [0, 1])
@pytest.mark.parametrize("end", [[], [CLEAN]], ids=["noisy end", "clean end"])
def test_plms_by_hand(kappa: int, end: Grid) -> None:
    """On x/alpha against sigma/alpha (kappa 0) or x against sigma on a flow (1), every order and one step more."""
    grid = [*flow_grid(6, 0.8, 0.3), *end]

    def slope(y: Tensor, level: Level) -> Tensor:
        noisy = y if kappa else level.alpha * y
        x0 = stub(noisy, level)
        return (noisy - x0) / level.sigma if kappa else (y - x0) / level.rho

    x = noise(20)
    y, slopes, wanted = (x if kappa else x / grid[0].alpha), [], []
    for s, t in pairwise(grid):
        h = t.sigma - s.sigma if kappa else t.rho - s.rho
        slopes.insert(0, slope(y, s))
        if s is grid[0]:
            y = y + h * (slopes[0] + slope(y + h * slopes[0], t)) / 2
        else:
            weights = adams_bashforth(min(len(slopes), 4)).tolist()
            y = y + h * torch.stack([w * k for w, k in zip(weights, slopes[:4], strict=True)]).sum(0)
        wanted.append(y if kappa else t.alpha * y)
    for (ours, _), theirs in zip(sampler("pndm")(stub, x, grid, no_draw, kappa=kappa), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_dpmpp_2m_by_hand() -> None:
    """Lu et al. 2023, algorithm 2, and its singlestep beginning."""
    grid = [scaled_linear().level(t) for t in (900, 700, 450, 100)]
    x = wanted = noise(20)
    x0s: list[Tensor] = []
    for i, (s, t) in enumerate(pairwise(grid)):
        x0s.append(stub(wanted, s))
        h = t.lam - s.lam
        d = x0s[-1]
        if i:
            r = (s.lam - grid[i - 1].lam) / h
            d = (1 + 1 / (2 * r)) * x0s[-1] - 1 / (2 * r) * x0s[-2]
        wanted = t.sigma / s.sigma * wanted - t.alpha * math.expm1(-h) * d
    torch.testing.assert_close(run("dpmpp_2m", stub, x, grid), wanted)


def test_samplers_are_exact_for_one_picture() -> None:
    """Where x0 is constant there is nothing to get wrong, however few the steps."""
    x = noise(20)
    for name in SAMPLERS:
        steps = sampler(name)(lambda x, level: 0.3 * torch.ones_like(x), x, [*vp_grid(3), CLEAN], lambda i: noise(20))
        assert (list(steps)[-1][0] - 0.3).abs().max() < 1e-12
        assert all((x0 == 0.3).all() for _, x0 in sampler(name)(lambda x, _: 0 * x + 0.3, x, vp_grid(3), noise_of))


def noise_of(i: int) -> Tensor:
    return noise(20, seed=100 + i)


# Stochastic samplers: on a Gaussian they are affine in x and in every draw, so their moments are exact numbers


def moments(name: str, data: Mixture, grid: Grid, eta: float) -> tuple[float, float]:
    """Mean and variance of the last x over all starts and draws: one row for x, one for each draw, one for neither."""
    rows = len(grid) + 1

    def one_hot(i: int) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(i), rows).double()

    out = run(name, data.x0, one_hot(0), grid, lambda i: one_hot(i + 1), eta=eta)
    gains, s = out[:-1] - out[-1], grid[0]
    start = s.alpha**2 * data.var + s.sigma**2
    return float(out[-1] + gains[0] * s.alpha * data.mean), float(gains[0] ** 2 * start + (gains[1:] ** 2).sum())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_marginals_are_exact_where_x0_is_known(grid: str, eta: float) -> None:
    point = Mixture([1.0], [0.7], [0.0])
    for steps in (1, 2, 7):
        levels = GRIDS[grid](steps)
        mean, var = moments("ddim", point, levels, eta)
        assert mean == pytest.approx(0.7 * levels[-1].alpha, rel=1e-10)
        assert var == pytest.approx(levels[-1].sigma ** 2, rel=1e-10)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("name", "order"), [("ddpm", 1), ("euler_a", 1), ("dpmpp_2m_sde", 2)])
def test_order_of_the_variance(name: str, order: int, grid: str) -> None:
    data = Mixture([1.0], [0.7], [0.6])
    errors = []
    for steps in (48, 96, 192):
        levels = GRIDS[grid](steps)
        mean, var = moments(name, data, levels, 1.0)
        assert mean == pytest.approx(0.7 * levels[-1].alpha, rel=1e-8)
        errors.append(abs(var / (levels[-1].alpha ** 2 * data.var + levels[-1].sigma ** 2) - 1))
    for before, after in pairwise(errors):
        assert order - 0.15 < math.log2(before / after) < order + 0.15, errors
    assert errors[-1] < {1: 0.03, 2: 5e-4}[order]


MANY = 50_000


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("ddpm", at_times(linear(), spaced(1000, "trailing"))),
        ("euler_a", [*flow_grid(300, 0.995, 0.005), CLEAN]),
        ("dpmpp_2m_sde", [*vp_grid(80, -4.5, 4.5), CLEAN]),
        ("heun", [*vp_grid(60, -4.5, 4.5), CLEAN]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_samples_of_a_mixture(name: str, grid: Grid) -> None:
    """Mean, variance, weights and the whole distribution, within the errors of so many samples."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(MANY, generator=generator)
    with torch.inference_mode():
        x = run(name, MIXTURE.x0, x, grid, lambda i: torch.randn(MANY, generator=generator))
    assert x.dtype == torch.float32
    fourth = float(((x - x.mean()) ** 4).mean())
    assert abs(float(x.mean()) - MIXTURE.mean) < 4 * math.sqrt(MIXTURE.var / MANY)
    assert abs(float(x.var()) - MIXTURE.var) < 4 * math.sqrt((fourth - MIXTURE.var**2) / MANY)
    for valley in (-0.8, 0.85):
        share = float(MIXTURE.cdf(torch.tensor(valley), CLEAN))
        assert abs(float((x < valley).float().mean()) - share) < 4 * math.sqrt(share * (1 - share) / MANY)
    ranks = MIXTURE.cdf(x.sort().values, CLEAN)
    distance = float((ranks - (torch.arange(MANY) + 0.5) / MANY).abs().max())
    assert distance < 2 / math.sqrt(MANY)  # Kolmogorov-Smirnov, about 1 in 1500


# What all samplers keep to


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", [vp_grid(5), [PURE, *flow_grid(3), CLEAN]], ids=["finite", "whole"])
def test_every_step_yields_x_and_the_denoisers_x0(name: str, grid: Grid) -> None:
    asked: list[tuple[Tensor, Level]] = []
    answers: list[Tensor] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        asked.append((x, level))
        answers.append(stub(x, level))
        return answers[-1]

    start = noise(20)
    kept = start.clone()
    steps = list(sampler(name)(denoise, start, grid, noise_of))
    assert torch.equal(start, kept)  # the caller's x is not written to
    assert len(steps) == 5
    assert torch.equal(asked[0][0], start)
    # Heun asks at the level ahead, too, unless that is clean, or it starts where its slope does not exist; PLMS does so
    # in the first step that Heun would.
    ahead = [name in ("heun", "pndm") and t != CLEAN and s != PURE for s, t in pairwise(grid)]
    if name == "pndm":
        ahead = [two and not any(ahead[:i]) for i, two in enumerate(ahead)]
    wanted = [
        (level, level is s) for (s, t), two in zip(pairwise(grid), ahead, strict=True) for level in (s, t)[: 1 + two]
    ]
    assert [level for _, level in asked] == [level for level, _ in wanted]
    firsts = [answer for answer, (_, is_first) in zip(answers, wanted, strict=True) if is_first]
    assert all(torch.equal(x0, first) for (_, x0), first in zip(steps, firsts, strict=True))
    assert all(torch.isfinite(x).all() for x, _ in steps)
    if grid[-1] == CLEAN and name != "pndm":  # a clean picture is the last x0; PLMS mixes slopes to the end
        torch.testing.assert_close(steps[-1][0], steps[-1][1])


def test_samplers_share_nothing() -> None:
    """Two runs taken in turns are the runs taken alone."""
    for name in SAMPLERS:
        grid, make = vp_grid(4), sampler(name)
        a, b = noise(20, seed=1), noise(20, seed=2)
        alone = [torch.stack([x for x, _ in make(stub, start, grid, noise_of)]) for start in (a, b)]
        turns = list(zip(make(stub, a, grid, noise_of), make(stub, b, grid, noise_of), strict=True))
        assert torch.equal(torch.stack([one[0] for one, _ in turns]), alone[0])
        assert torch.equal(torch.stack([other[0] for _, other in turns]), alone[1])
        assert not torch.equal(*alone)


def test_relations_between_samplers() -> None:
    x, grid = noise(20), [*vp_grid(6), CLEAN]
    euler = run("euler", stub, x, grid)
    assert torch.equal(euler, run("ddim", stub, x, grid, eta=0.0))
    assert torch.equal(euler, run("euler", stub, x, grid, eta=1.0))  # it never draws
    ancestral = run("euler_a", stub, x, grid, noise_of)
    assert torch.equal(ancestral, run("ddim", stub, x, grid, noise_of, eta=1.0))
    assert torch.equal(ancestral, run("ddpm", stub, x, grid, noise_of))
    assert torch.equal(euler, run("ddpm", stub, x, grid, eta=0.0))
    two = run("dpmpp_2m", stub, x, grid)
    assert torch.equal(two, run("dpmpp_2m_sde", stub, x, grid, eta=0.0))
    sde = run("dpmpp_2m_sde", stub, x, grid, noise_of)
    assert torch.equal(sde, run("dpmpp_2m", stub, x, grid, noise_of, eta=1.0))
    outcomes = [euler, ancestral, two, sde, *(run(name, stub, x, grid) for name in ("heun", "pndm", "unipc"))]
    for i, one in enumerate(outcomes):
        assert all((one - other).abs().max() > 1e-3 for other in outcomes[i + 1 :])


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_to_clean_is_the_denoiser(name: str) -> None:
    x, s = noise(20), vp_grid(1)[0]
    torch.testing.assert_close(run(name, stub, x, [s, CLEAN]), stub(x, s))


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("ddpm", {}, [0, 1, 2, 3]),
        ("euler_a", {}, [0, 1, 2, 3]),
        ("dpmpp_2m_sde", {}, [0, 1, 2, 3]),
        ("ddim", {"eta": 0.3}, [0, 1, 2, 3]),
        ("ddim", {}, []),
        ("ddpm", {"eta": 0.0}, []),
        ("euler", {}, []),
        ("heun", {}, []),
        ("pndm", {}, []),
        ("dpmpp_2m", {}, []),
        ("unipc", {}, []),
    ],
)
def test_draws_at_zero_weight_are_skipped(name: str, options: dict, wanted: list[int]) -> None:
    drawn: list[int] = []

    def draw(i: int) -> Tensor:
        drawn.append(i)
        return noise_of(i)

    run(name, stub, noise(20), [*vp_grid(3), CLEAN], draw, **options)
    assert drawn == wanted[:3]  # four steps, the last to a clean picture
    drawn.clear()
    run(name, stub, noise(20), vp_grid(4), draw, **options)
    assert drawn == wanted


def test_the_draws_of_every_step_count() -> None:
    """Another draw at any one step is another picture."""
    for name in ("ddpm", "euler_a", "dpmpp_2m_sde"):
        usual = run(name, stub, noise(20), vp_grid(4), noise_of)
        for changed in range(4):
            other = run(name, stub, noise(20), vp_grid(4), lambda i, c=changed: noise_of(i + 50 * (i == c)))
            assert (other - usual).abs().max() > 1e-2


def test_samplers_by_name() -> None:
    assert sampler("Euler a") is sampler("euler_a") is SAMPLERS["euler_a"].function
    assert sampler("DPM++ 2M") is SAMPLERS["dpmpp_2m"].function
    assert sampler("DPM++ 2M SDE") is SAMPLERS["dpmpp_2m_sde"].function
    assert [sampler(name) for name in ("Euler", "DDIM", "Heun", "UniPC", "PNDM", "PLMS")] == [
        SAMPLERS[name].function for name in ("euler", "ddim", "heun", "unipc", "pndm", "pndm")
    ]
    with pytest.raises(LimnerError, match="unknown sampler 'dpmpp_2n'; did you mean 'dpmpp_2m'"):
        sampler("dpmpp_2n")


@pytest.mark.parametrize(
    "grid",
    [
        [PURE],
        [],
        vp_grid(3)[::-1],
        [*vp_grid(3)[:2], *vp_grid(3)[1:]],
        [*vp_grid(2), CLEAN, CLEAN],
        [*vp_grid(2), CLEAN, vp_grid(2)[-1]],
        [PURE, PURE, CLEAN],
        [PURE, PURE],
        [*vp_grid(2), *2 * [vp_grid(2)[-1]]],
        [PURE, Level(math.nan, math.nan, math.nan), CLEAN],
    ],
)
def test_grids_that_do_not_fall(grid: Grid) -> None:
    with pytest.raises(LimnerError, match="a grid"):
        check_grid(grid)


def test_grids_that_fall() -> None:
    for grid in (vp_grid(4), [PURE, *flow_grid(3), CLEAN], at_times(linear(), spaced(1000, "leading"))):
        check_grid(grid)


@pytest.mark.parametrize("kappa", [0, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_last_step_to_the_same_level_moves_nothing(name: str, kappa: int) -> None:
    """Where a table's first level is the final one, too; a level of karras is equal to it but for rounding."""
    last = vp_grid(4)[-1]
    for end in (last, last._replace(sigma=last.sigma * (1 + 1e-9))):
        grid = [*vp_grid(4), end]
        check_grid(grid)
        xs = [x for x, _ in sampler(name)(stub, noise(20), grid, noise_of, kappa=kappa)]
        before = [x for x, _ in sampler(name)(stub, noise(20), grid[:-1], noise_of, kappa=kappa)]
        assert len(xs) == 5
        wanted = before[-1]
        if name == "unipc":  # the step before is corrected: as it is where the last step is very short
            wanted = run(name, stub, noise(20), [*grid[:-1], last._replace(sigma=last.sigma * (1 - 1e-12))])
        torch.testing.assert_close(xs[-1], wanted, rtol=1e-6, atol=1e-6)


# From a network to a denoiser, and guidance

LEVELS = {"eps": vp_grid(3)[1], "sample": vp_grid(3)[1], "v": vp_grid(3)[1], "flow": Level(600.0, 0.4, 0.6)}


def network(x: Tensor, t: Tensor) -> Tensor:
    """Its first half of rows has no prompt, its second half has one."""
    told = (torch.arange(len(x)) >= len(x) // 2).view(-1, 1, 1, 1)
    return torch.sin(1.3 * x + t.view(-1, 1, 1, 1) / 300 + 0.9 * told) * torch.where(told, 1.4, 0.6) + 0.3 * told


def by_hand(predicts: str, x: Tensor, f: Tensor, level: Level) -> Tensor:
    """x0 of F, each from its paper, on the paths of LEVELS."""
    return {
        "eps": lambda: (x - level.sigma * f) / level.alpha,
        "sample": lambda: f,
        "v": lambda: level.alpha * x - level.sigma * f,
        "flow": lambda: x - level.sigma * f,
    }[predicts]()


def halves(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    null, told = network(torch.cat([x, x]), torch.full((2 * len(x),), level.t)).chunk(2)
    return null, told


@pytest.fixture
def x() -> Tensor:
    """Three pictures of unlike contrast."""
    return noise(3, 2, 5, 4, dtype=torch.float32) * torch.tensor([0.4, 1.0, 1.7]).view(3, 1, 1, 1)


@pytest.mark.parametrize("predicts", LEVELS)
def test_denoiser_reads_the_output(predicts: str, x: Tensor) -> None:
    level = LEVELS[predicts]
    wanted = by_hand(predicts, x, network(x, torch.full((3,), level.t)), level)
    torch.testing.assert_close(Denoiser(network, predicts)(x, level), wanted)


@pytest.mark.parametrize("predicts", LEVELS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_on_x0_is_guidance_on_the_output(predicts: str, scale: float, x: Tensor) -> None:
    level = LEVELS[predicts]
    null, told = halves(x, level)
    wanted = by_hand(predicts, x, null + scale * (told - null), level)
    guided = cfg(Denoiser(network, predicts, copies=2), scale)(x, level)
    torch.testing.assert_close(guided, wanted, rtol=1e-5, atol=2e-5)
    if scale < 2:  # scale 1 is the prompt alone, scale 0 no prompt
        torch.testing.assert_close(guided, by_hand(predicts, x, told if scale else null, level), rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("predicts", LEVELS)
@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescale_is_diffusers(predicts: str, rescale: float, x: Tensor) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    level = LEVELS[predicts]
    null, told = halves(x, level)
    f = rescale_noise_cfg(null + 7.5 * (told - null), told, guidance_rescale=rescale)
    guided = cfg(Denoiser(network, predicts, copies=2), 7.5, rescale)(x, level)
    torch.testing.assert_close(guided, by_hand(predicts, x, f, level), rtol=1e-4, atol=1e-4)
    assert (guided - cfg(Denoiser(network, predicts, copies=2), 7.5)(x, level)).abs().max() > 0.1


def test_guidance_of_a_batch_is_guidance_of_its_pictures(x: Tensor) -> None:
    guided = cfg(Denoiser(network, "v", copies=2), 7.5, 0.7)
    together = guided(x, LEVELS["v"])
    for i in range(len(x)):
        torch.testing.assert_close(together[i : i + 1], guided(x[i : i + 1], LEVELS["v"]))


def test_guidance_needs_two_rows() -> None:
    with pytest.raises(LimnerError, match="two rows"):
        cfg(Denoiser(network, "eps"), 7.5)


def test_interval_chooses_by_the_noise_ratio() -> None:
    chosen = interval(lambda x, level: x + 1, lambda x, level: x - 1, low=0.5, high=2.0)
    x = torch.zeros(1)
    answers = {rho: float(chosen(x, Level(0.0, 1.0, rho))) for rho in (0.0, 0.5, 0.51, 2.0, 2.01)}
    assert answers == {0.0: -1, 0.5: -1, 0.51: 1, 2.0: 1, 2.01: -1}
    assert float(chosen(x, Level(0.0, 0.5, 0.5))) == 1  # the ratio, not sigma
    assert float(chosen(x, PURE)) == -1


def test_clip_bounds_x0(x: Tensor) -> None:
    level = vp_grid(3)[0]
    denoise = Denoiser(network, "eps")
    free = denoise(x, level)
    assert free.abs().max() > 2
    for bound in (1.0, 1.5):
        clipped = clip(denoise, bound)(x, level)
        torch.testing.assert_close(clipped, free.clamp(-bound, bound))
        assert clipped.abs().max() == bound


def test_copies_repeat_the_batch_in_order(x: Tensor) -> None:
    seen: list[Tensor] = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        seen.extend((x, t))
        return torch.zeros_like(x)

    level = LEVELS["flow"]
    out = Denoiser(recorded, "flow", copies=3)(x, level)
    assert torch.equal(seen[0], torch.cat([x, x, x]))
    assert seen[1].tolist() == [600.0] * 9
    torch.testing.assert_close(out, torch.cat([x, x, x]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_network_keeps_its_dtype_and_x0_float32(dtype: torch.dtype, x: Tensor) -> None:
    seen: list[Tensor] = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        seen.extend((x, t))
        return torch.full_like(x, 0.5)

    level = Level(961.0, 0.4, 0.6)
    out = Denoiser(recorded, "flow", dtype=dtype)(x, level)
    assert torch.equal(seen[0], x.to(dtype))
    assert seen[1].dtype == torch.float32  # bfloat16 would tell 960
    assert seen[1].tolist() == [961.0] * 3
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x - 0.3, rtol=1e-6, atol=1e-6)  # nothing of x is lost to the network's dtype


def test_denoiser_refuses() -> None:
    with pytest.raises(LimnerError, match="did you mean 'eps'"):
        Denoiser(network, "epsi")
    with pytest.raises(LimnerError, match="alpha = 0"):
        Denoiser(network, "eps")(torch.zeros(1, 2, 5, 4), PURE)


def test_the_whole_chain_paints_the_data() -> None:
    """A v-network, exact for N(0.5, 0.2^2), from pure noise: the pictures have that mean and deviation."""
    data = Mixture([1.0], [0.5], [0.2])
    grid = [*flow_grid(40, 1.0, 0.01), CLEAN]

    def exact_v(x: Tensor, t: Tensor) -> Tensor:
        sigma = float(t[0]) / 1000
        level = Level(float(t[0]), 1 - sigma, sigma)
        x0 = data.x0(x, level)
        norm = math.hypot(level.alpha, level.sigma)
        return (level.alpha * (x - level.alpha * x0) / sigma - sigma * x0) / norm

    start = noise(2, 3, 50, 50, dtype=torch.float32)
    final = run("heun", Denoiser(exact_v, "v"), start, grid, kappa=1)
    torch.testing.assert_close(final, 0.5 + 0.2 * start, rtol=0, atol=4e-3)
