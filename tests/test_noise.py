"""Levels, paths, predictions and grids, against closed forms and cases worked by hand."""

import math

import numpy as np
import pytest
import torch

from limner.errors import LimnerError
from limner.noise.grids import CLEAN, at_ratios, at_times, exponential, karras, round_timestep, shifted, spaced
from limner.noise.level import Level
from limner.noise.paths import (
    PATHS,
    Discrete,
    Flow,
    Path,
    cosine,
    from_rho,
    linear,
    path,
    scaled_linear,
    zero_terminal_snr,
)
from limner.noise.predict import PREDICTIONS, pair, prediction
from limner.schedulers import read_schedule

TABLES = {
    "linear": linear(),
    "scaled_linear": scaled_linear(),
    "cosine": cosine(),
    "zero_snr": zero_terminal_snr(scaled_linear()),
}
ALL_PATHS: dict[str, Path] = TABLES | {"flow": Flow()}
TIMES = (0.0, 1.0, 37.0, 500.0, 998.0, 999.0)


# Levels


def test_level_ratio_and_log() -> None:
    level = Level(500.0, 0.6, 0.8)
    assert level.rho == pytest.approx(4 / 3)
    assert level.lam == pytest.approx(math.log(0.75))
    assert level.lam == pytest.approx(-math.log(level.rho))


def test_level_at_the_ends() -> None:
    clean, noise = Level(0.0, 1.0, 0.0), Level(1000.0, 0.0, 1.0)
    assert (clean.rho, clean.lam) == (0.0, math.inf)
    assert (noise.rho, noise.lam) == (math.inf, -math.inf)


# Paths


@pytest.mark.parametrize("name", TABLES)
def test_tables_preserve_variance_and_rise(name: str) -> None:
    table = TABLES[name]
    levels = [table.level(t) for t in [*range(1000), 0.5, 36.25, 700.7]]
    assert [level.t for level in levels[-3:]] == [0.5, 36.25, 700.7]
    np.testing.assert_allclose([v.alpha**2 + v.sigma**2 for v in levels], 1.0, rtol=1e-12)
    assert all(np.diff([level.rho for level in levels[:1000]]) > 0)
    for low, mid, high in ((0, 0.5, 1), (36, 36.25, 37), (700, 700.7, 701)):
        between = (1 - mid % 1) * table.level(low).rho + mid % 1 * table.level(high).rho
        assert table.level(mid).rho == pytest.approx(between, rel=1e-6)


def test_linear_is_the_product_of_its_betas() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(linear().alpha ** 2, np.cumprod(1 - betas), rtol=3e-5)
    assert linear().level(999).alpha ** 2 == pytest.approx(4.0358e-5, rel=1e-4)  # Ho et al. 2020
    assert linear(10, 0.1, 0.1).level(2).alpha ** 2 == pytest.approx(0.9**3)


def test_scaled_linear_is_stable_diffusions() -> None:
    table = scaled_linear()
    assert table.level(999).rho == pytest.approx(14.6146, abs=5e-5)
    assert table.level(0).rho == pytest.approx(0.0292, abs=5e-5)
    assert table.level(0).sigma ** 2 == pytest.approx(0.00085, rel=1e-4)


@pytest.mark.parametrize("steps", [1000, 50])
def test_cosine_closed_form(steps: int) -> None:
    def f(u: np.ndarray) -> np.ndarray:
        return np.cos((u + 0.008) / 1.008 * np.pi / 2)

    alpha = f(np.arange(1, steps + 1) / steps) / f(np.zeros(1))
    table = cosine(steps)
    np.testing.assert_allclose(table.alpha[:-1], alpha[:-1], rtol=1e-4)
    # The last beta would be 1 and is held at 0.999.
    assert table.level(steps - 1).alpha == pytest.approx(table.level(steps - 2).alpha * 0.001**0.5, rel=1e-4)


def test_zero_terminal_snr() -> None:
    before = scaled_linear()
    after = zero_terminal_snr(before)
    assert after.level(999) == Level(999.0, 0.0, 1.0)
    assert after.level(0).alpha == pytest.approx(before.level(0).alpha, rel=1e-7)
    first, last = before.alpha[0], before.alpha[-1]
    wanted = (before.alpha - last) * first / (first - last)  # Lin et al. 2024, algorithm 1
    np.testing.assert_allclose(after.alpha, wanted, rtol=1e-3, atol=1e-7)
    assert before.level(999).rho == pytest.approx(14.6146, abs=5e-5)  # the given path is untouched


def test_hold_above_zero_moves_only_the_last_level() -> None:
    table, free = zero_terminal_snr(scaled_linear()), TABLES["zero_snr"]
    table.clamp_terminal_snr()
    assert table.level(999).alpha == 2.0**-12
    assert table.level(999).rho == pytest.approx(4096.0, rel=1e-6)
    assert table.level(998) == free.level(998)
    assert table.steps == 1000


def test_flow_is_straight() -> None:
    assert Flow().level(250) == Level(250.0, 0.75, 0.25)
    assert Flow().level(0) == CLEAN
    assert Flow().level(1000) == Level(1000.0, 0.0, 1.0)
    assert Flow().level_at(math.inf) == Level(1000.0, 0.0, 1.0)
    assert Flow().level_at(3.0) == Level(750.0, 0.25, 0.75)
    assert Flow().kappa == 1


@pytest.mark.parametrize("name", ALL_PATHS)
def test_level_and_level_at_round_trip(name: str) -> None:
    route = ALL_PATHS[name]
    for t in TIMES[:-1]:
        there = route.level(t)
        back = route.level_at(there.rho)
        assert back.t == pytest.approx(t, abs=2e-4)
        assert (back.alpha, back.sigma) == pytest.approx((there.alpha, there.sigma), rel=1e-6)
    for rho in (0.05, 0.7, 3.21, 12.0):
        assert route.level_at(rho).rho == pytest.approx(rho, rel=1e-12)  # exact between the table's rows, too
        # t is interpolated in log rho, rho in t: they meet within the bend of one row of the table.
        assert route.level(route.level_at(rho).t).rho == pytest.approx(rho, rel=1e-2)


def test_table_times_stop_at_its_ends() -> None:
    table = scaled_linear()
    assert table.level_at(100.0).t == 999.0
    assert table.level_at(100.0).rho == pytest.approx(100.0)
    assert table.level_at(0.001).t == 0.0
    assert table.level_at(0.0) == Level(0.0, 1.0, 0.0)


def test_pure_noise_round_trips_on_a_zero_snr_table() -> None:
    assert TABLES["zero_snr"].level_at(math.inf) == TABLES["zero_snr"].level(999)


def test_from_rho() -> None:
    assert from_rho(7.0, 0.75) == pytest.approx((7.0, 0.8, 0.6))
    assert from_rho(7.0, math.inf) == (7.0, 0.0, 1.0)


@pytest.mark.parametrize("name", ALL_PATHS)
def test_training_coefficients_are_the_levels(name: str) -> None:
    route = ALL_PATHS[name]
    u = torch.tensor([0.0, 0.013, 0.25, 0.5, 0.75, 0.999999])
    t = route.times(u)
    assert t.dtype == torch.float32
    assert all(t.diff() > 0)
    alpha, sigma = route.coefficients(t)
    assert alpha.dtype == sigma.dtype == torch.float32
    levels = [route.level(float(time)) for time in t]
    np.testing.assert_allclose(alpha.numpy(), [level.alpha for level in levels], rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(sigma.numpy(), [level.sigma for level in levels], rtol=2e-5)


def test_training_times() -> None:
    u = torch.tensor([0.0, 0.00099, 0.0011, 0.5, 0.99999999])
    assert linear().times(u).tolist() == [0.0, 0.0, 1.0, 500.0, 999.0]
    assert linear(10).times(u).tolist() == [0.0, 0.0, 0.0, 5.0, 9.0]
    assert Flow().times(torch.tensor([0.0, 0.25])).tolist() == [0.0, 250.0]


def test_times_at_a_noise_ratio() -> None:
    """The level of the time has that ratio, or of a table the nearest in the logarithm."""
    rho = torch.tensor([0.05, 0.3, 1.0, 7.0])
    assert (Flow().times_at(rho) / 1000).tolist() == pytest.approx([0.05 / 1.05, 0.3 / 1.3, 0.5, 0.875])
    for table in (linear(), cosine()):
        log = np.log(table.rho)
        nearest = [int(np.abs(log - math.log(ratio)).argmin()) for ratio in rho.tolist()]
        assert table.times_at(rho).tolist() == nearest
        assert table.times_at(torch.tensor([1e-9, 1e9])).tolist() == [0.0, 999.0]


def test_paths_by_name() -> None:
    assert path("scaled_linear").level(999).rho == pytest.approx(14.6146, abs=5e-5)
    assert path("linear").level(0).sigma ** 2 == pytest.approx(1e-4, rel=1e-3)
    assert {type(path(name)) for name in PATHS} == {Discrete, Flow}
    with pytest.raises(LimnerError, match="did you mean 'cosine'"):
        path("cosin")


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.1], [-0.1], [[0.1, 0.2]], [float("nan")]])
def test_betas_out_of_range(betas: list) -> None:
    with pytest.raises(LimnerError, match="betas"):
        Discrete(torch.tensor(betas))


@pytest.mark.parametrize("t", [-1, 1000, 999.5, math.nan])
def test_times_outside_the_table(t: float) -> None:
    with pytest.raises(LimnerError, match=r"outside the path's table 0\.\.999"):
        linear().level(t)


# Predictions

BY_HAND = {
    "eps": lambda a, s, x0, eps: eps,
    "sample": lambda a, s, x0, eps: x0,
    "v": lambda a, s, x0, eps: (a * eps - s * x0) / math.sqrt(a * a + s * s),
    "flow": lambda a, s, x0, eps: eps - x0,
}


def levels_of(name: str, predicts: str) -> list[Level]:
    """Levels that the prediction exists at: eps needs some signal."""
    levels = [ALL_PATHS[name].level(t) for t in TIMES] + ([Flow().level(1000)] if name == "flow" else [])
    return [level for level in levels if predicts != "eps" or level.alpha]


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", ALL_PATHS)
def test_x0_to_output_and_back_in_float64(name: str, predicts: str) -> None:
    x0, eps = torch.randn(2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _, alpha, sigma in levels_of(name, predicts):
        f0, f1 = prediction(predicts).target(alpha, sigma)
        output = f0 * x0 + f1 * eps
        torch.testing.assert_close(output, BY_HAND[predicts](alpha, sigma, x0, eps), rtol=1e-12, atol=1e-12)
        a, b = pair(predicts, alpha, sigma)
        torch.testing.assert_close(a * (alpha * x0 + sigma * eps) + b * output, x0, rtol=1e-9, atol=1e-9)
        if sigma:  # the target is the pair solved for F
            assert (f0, f1) == pytest.approx(((1 - a * alpha) / b, -a * sigma / b), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", ALL_PATHS)
def test_x0_to_output_and_back_in_float32(name: str, predicts: str) -> None:
    route = ALL_PATHS[name]
    t = route.times(torch.linspace(0.001, 0.998, 64))
    alpha, sigma = route.coefficients(t)
    x0, eps = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    f0, f1 = prediction(predicts).target(alpha, sigma)
    output = f0 * x0 + f1 * eps
    assert output.dtype == torch.float32
    a, b = prediction(predicts).pair(alpha, sigma)
    back = a * (alpha * x0 + sigma * eps) + b * output
    assert (back - x0).abs().max() < (2e-4 if predicts == "eps" else 2e-5)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 1.0, 7.0, 80.0])
def test_v_is_karras_preconditioning(sigma: float) -> None:
    """Karras et al. 2022, table 1 with sigma_data = 1; our F is theirs with the sign turned."""
    c_skip, c_out = 1 / (sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1)
    level = from_rho(0.0, sigma)
    assert level.alpha == pytest.approx(1 / math.sqrt(sigma**2 + 1))  # c_in: our x is alpha times theirs
    a, b = pair("v", level.alpha, level.sigma)
    assert (a * level.alpha, b) == pytest.approx((c_skip, -c_out))
    x0, eps = 0.37, -1.21
    f0, f1 = prediction("v").target(level.alpha, level.sigma)
    theirs = (x0 - c_skip * (x0 + sigma * eps)) / c_out
    assert -(f0 * x0 + f1 * eps) == pytest.approx(theirs)


def test_predictions_at_pure_noise() -> None:
    with pytest.raises(LimnerError, match="alpha = 0"):
        pair("eps", 0.0, 1.0)
    assert pair("sample", 0.0, 1.0) == (0.0, 1.0)
    assert pair("v", 0.0, 1.0) == (0.0, -1.0)
    assert pair("flow", 0.0, 1.0) == (1.0, -1.0)
    assert prediction("eps").target(0.0, 1.0) == (0.0, 1.0)


def test_predictions_by_name() -> None:
    with pytest.raises(LimnerError, match="did you mean 'eps'"):
        prediction("epsi")
    with pytest.raises(LimnerError, match="Known: eps, flow, sample, v"):
        pair("nothing", 0.6, 0.8)


# Grids


@pytest.mark.parametrize(
    ("steps", "spacing", "options", "wanted"),
    [
        (5, "leading", {}, [8, 6, 4, 2, 0]),
        (5, "leading", {"offset": 1}, [9, 7, 5, 3, 1]),
        (3, "leading", {}, [6, 3, 0]),
        (4, "leading", {"endpoint": False}, [8, 6, 4, 2]),
        (5, "trailing", {}, [9, 7, 5, 3, 1]),
        (3, "trailing", {}, [9, 6, 2]),
        (10, "trailing", {}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (4, "linspace", {}, [9, 6, 3, 0]),
        (3, "linspace", {"endpoint": False}, [9, 6, 3]),
        (3, "linspace", {"integer": False}, [9, 4.5, 0]),
        (3, "linspace", {}, [9, 4, 0]),
        (1, "linspace", {"endpoint": False}, [9]),
        (1, "trailing", {}, [9]),
        (1, "leading", {}, [9]),
        (1, "leading", {"offset": 1, "endpoint": False}, [9]),
        (1, "linspace", {}, [9]),
        (1, "linspace", {"integer": False}, [9]),
    ],
)
def test_spaced_by_hand(steps: int, spacing: str, options: dict, wanted: list[float]) -> None:
    assert spaced(steps, spacing, length=10, **options) == wanted


def test_spaced_as_stable_diffusion_does() -> None:
    times = spaced(50, "leading", offset=1)
    assert times == [981.0 - 20 * i for i in range(50)]


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_steps_outside_the_table(steps: int, spacing: str) -> None:
    with pytest.raises(LimnerError, match=f"from 1 to 1000, not {steps}"):
        spaced(steps, spacing)


def test_unknown_spacing() -> None:
    with pytest.raises(LimnerError, match="did you mean 'trailing'"):
        spaced(4, "tralling")


def test_karras_is_even_in_the_seventh_root() -> None:
    assert karras(3, 1.0, 128.0) == pytest.approx([128.0, 1.5**7, 1.0])
    rhos = karras(12, 0.0292, 14.6146)
    assert (rhos[0], rhos[-1]) == pytest.approx((14.6146, 0.0292))
    gaps = np.diff(np.array(rhos) ** (1 / 7))
    np.testing.assert_allclose(gaps, (0.0292 ** (1 / 7) - 14.6146 ** (1 / 7)) / 11)
    assert karras(1, 0.1, 5.0) == pytest.approx([5.0])


def test_exponential_is_even_in_the_logarithm() -> None:
    assert exponential(3, 1.0, 100.0) == pytest.approx([100.0, 10.0, 1.0])
    assert exponential(1, 0.1, 5.0) == pytest.approx([5.0])


def test_shifted() -> None:
    assert shifted(3, 3.0, low=0.0) == pytest.approx([1.0, 0.75, 0.0])
    assert shifted(5, 1.0, low=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert shifted(2, 3.0, low=0.25, high=0.5) == pytest.approx([0.75, 0.5])
    assert shifted(2)[-1] == pytest.approx(0.001)


def test_grids_are_levels_of_the_path_and_end_clean() -> None:
    table = scaled_linear()
    assert at_times(table, [999, 400]) == [table.level(999), table.level(400), CLEAN]
    assert at_times(table, [400], table.level(0)) == [table.level(400), table.level(0)]
    grid = at_ratios(table, [14.0, 1.0], table.level(0))
    assert [level.rho for level in grid] == pytest.approx([14.0, 1.0, 0.0292], abs=5e-5)
    assert at_ratios(Flow(), [3.0]) == [Level(750.0, 0.25, 0.75), CLEAN]
    assert CLEAN == (0.0, 1.0, 0.0)


def test_rounding_changes_only_the_time_told() -> None:
    table = scaled_linear()
    plain, near, down = (at_ratios(table, [2.345, 0.5], rounding=how) for how in (None, "nearest", "down"))
    for exact, rounded, floored in zip(plain[:-1], near, down, strict=False):
        assert exact.t % 1
        assert (rounded.t, floored.t) == (round(exact.t), math.floor(exact.t))
        assert rounded[1:] == floored[1:] == exact[1:]
    assert round_timestep(Level(3.7, 0.6, 0.8), "nearest") == (4.0, 0.6, 0.8)
    assert round_timestep(Level(3.7, 0.6, 0.8), "down") == (3.0, 0.6, 0.8)


# Plans

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM = SD | {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False}
EULER = SD | {"_class_name": "EulerDiscreteScheduler"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def test_plan_reads_a_ddim_configuration() -> None:
    made = read_schedule(DDIM | {"set_alpha_to_one": False}, 50)
    assert (made.predicts, made.sampler, made.eta, made.start, made.clip) == ("eps", "ddim", 0.0, 1.0, None)
    assert [level.t for level in made.grid] == [981.0 - 20 * i for i in range(50)] + [0.0]
    assert made.grid[0] == scaled_linear().level(981)


def test_plan_final_levels() -> None:
    first = scaled_linear().level(0)
    assert read_schedule(DDIM, 4).grid[-1] == CLEAN
    assert read_schedule(DDIM | {"set_alpha_to_one": False}, 4).grid[-1] == first
    assert read_schedule(DDIM | {"set_alpha_to_one": False}, 4, sampler="euler").grid[-1] == CLEAN
    assert read_schedule(EULER, 4).grid[-1] == CLEAN
    assert read_schedule(EULER | {"final_sigmas_type": "sigma_min"}, 4).grid[-1] == first
    assert read_schedule(FLOW, 4).grid[-1] == CLEAN


def test_plan_clips_where_diffusers_does() -> None:
    assert read_schedule({"_class_name": "DDPMScheduler"}, 4).clip == 1.0
    assert read_schedule({"_class_name": "DDPMScheduler", "clip_sample_range": 2.5}, 4).clip == 2.5
    assert read_schedule({"_class_name": "DDPMScheduler", "clip_sample": False}, 4).clip is None
    assert read_schedule(EULER, 4).clip is None


def test_plan_starts_at_sigma_where_the_spacing_reaches_the_end() -> None:
    assert read_schedule(EULER, 4).start == scaled_linear().level(999).sigma < 1.0
    assert read_schedule(EULER | {"timestep_spacing": "leading"}, 4).start == 1.0
    assert read_schedule(EULER | {"timestep_spacing": "trailing"}, 4).start == scaled_linear().level(999).sigma
    assert read_schedule(DDIM | {"timestep_spacing": "linspace"}, 4).start == 1.0
    assert read_schedule(FLOW, 4).start == 1.0


def test_plan_overrides() -> None:
    karras_grid = read_schedule(EULER, 8, schedule="karras").grid
    np.testing.assert_allclose([v.rho for v in karras_grid[:-1]], karras(8, 0.029167, 14.614647), rtol=1e-4)
    assert read_schedule(EULER | {"use_karras_sigmas": True}, 8).grid == karras_grid
    assert read_schedule(EULER | {"use_karras_sigmas": True}, 8, schedule="normal").grid == read_schedule(EULER, 8).grid
    exponential_grid = read_schedule(EULER, 8, schedule="exponential").grid
    np.testing.assert_allclose([v.rho for v in exponential_grid[:-1]], exponential(8, 0.029167, 14.614647), rtol=1e-4)
    # Euler's schedules span the times of its spacing, the multistep solvers' the table.
    leading = SD | {"timestep_spacing": "leading", "use_karras_sigmas": True}
    for name, first in (("EulerDiscreteScheduler", 750), ("DPMSolverMultistepScheduler", 999)):
        grid = read_schedule(leading | {"_class_name": name}, 4).grid
        ends = (scaled_linear().level(first).rho, scaled_linear().level(0).rho)
        assert (grid[0].rho, grid[-2].rho) == pytest.approx(ends, rel=1e-4)
    # A table model takes the grid of the sampler it is asked for; a flow model keeps its own.
    assert (
        read_schedule(DDIM, 8, sampler="dpmpp_2m").grid
        == read_schedule(DDIM | {"_class_name": "DPMSolverMultistepScheduler"}, 8).grid
    )
    assert read_schedule(DDIM, 8, sampler="dpmpp_2m").grid != read_schedule(DDIM, 8).grid
    assert read_schedule(FLOW, 8, sampler="dpmpp_2m").grid == read_schedule(FLOW, 8).grid
    assert read_schedule(FLOW, 8, sampler="dpmpp_2m").sampler == "dpmpp_2m"


@pytest.mark.parametrize(
    ("sampler", "eta"),
    [("ddpm", 1), ("euler_a", 1), ("dpmpp_2m_sde", 1), ("ddim", 0), ("euler", 0), ("heun", 0), ("dpmpp_2m", 0)],
)
def test_plan_eta(sampler: str, eta: float) -> None:
    made = read_schedule(DDIM, 4, sampler=sampler)
    assert (made.sampler, made.eta) == (sampler, eta)
    if sampler in ("euler", "heun"):
        with pytest.raises(LimnerError, match=f"the sampler {sampler} draws no noise"):
            read_schedule(DDIM, 4, sampler=sampler, eta=0.25)
    else:
        assert read_schedule(DDIM, 4, sampler=sampler, eta=0.25).eta == 0.25


def test_plan_reads_the_stochastic_solver() -> None:
    made = read_schedule(SD | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, 4)
    assert (made.sampler, made.eta) == ("dpmpp_2m_sde", 1.0)


def test_plan_of_a_flow() -> None:
    made = read_schedule(FLOW, 4)
    assert (made.predicts, made.path.kappa) == ("flow", 1)
    sigmas = [1.0, 0.667, 0.334, 0.001, 0.0]
    np.testing.assert_allclose([level.sigma for level in made.grid], sigmas, rtol=1e-6)
    np.testing.assert_allclose([level.t for level in made.grid], [1000 * s for s in sigmas], rtol=1e-6)
    np.testing.assert_allclose([level.alpha for level in made.grid], [1 - s for s in sigmas], atol=1e-6)
    # SD3: shift 3 at both ends of the range, then once more at every point.
    low = 3 * 0.001 / 1.002
    middle = 3 * (1 + low) / 2 / (1 + (1 + low))
    for shifted_plan in (read_schedule(FLOW | {"shift": 3.0}, 3), read_schedule(FLOW, 3, shift=3.0)):
        assert shifted_plan.grid[1].sigma == pytest.approx(middle, rel=1e-6)
        assert shifted_plan.grid[2].sigma == pytest.approx(3 * low / (1 + 2 * low), rel=1e-6)


def test_plan_of_a_zero_snr_table() -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    made = read_schedule(DDIM | config, 4)
    assert (made.grid[0], made.predicts) == (Level(999.0, 0.0, 1.0), "v")
    nudged = read_schedule(EULER | config, 4).grid[0]
    assert nudged.rho == pytest.approx(4096.0, rel=1e-6)


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_plan_of_a_zero_snr_table_with_a_schedule(schedule: str) -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    assert not np.isnan(read_schedule(DDIM | config, 4, schedule=schedule).grid).any()


def test_plan_understands_spellings_that_the_samplers_do() -> None:
    assert read_schedule(DDIM, 4, sampler="Euler a").eta == 1.0


def test_plan_with_given_betas() -> None:
    made = read_schedule({"_class_name": "DDIMScheduler", "trained_betas": [0.1] * 10, "num_train_timesteps": 10}, 5)
    assert made.grid[0].alpha ** 2 == pytest.approx(0.9**9)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"_class_name": "DDIMSchedular"}, {}, "unknown scheduler 'DDIMSchedular'; did you mean 'DDIMScheduler'"),
        ({}, {}, "unknown scheduler ''"),
        (DDIM | {"timestep_spacing": "lead"}, {}, "unknown timestep spacing 'lead'; did you mean 'leading'"),
        (DDIM | {"prediction_type": "epsilom"}, {}, "unknown prediction_type 'epsilom'; did you mean 'epsilon'"),
        (DDIM | {"beta_schedule": "scaled"}, {}, "unknown beta_schedule 'scaled'; did you mean 'scaled_linear'"),
        (DDIM, {"schedule": "karas"}, "unknown schedule 'karas'; did you mean 'karras'"),
        (FLOW, {"schedule": "karas"}, "unknown schedule 'karas'; did you mean 'karras'"),
        (DDIM, {"steps": 0}, "at least 1, not 0"),
        (FLOW, {"steps": -3}, "at least 1, not -3"),
        (DDIM, {"steps": 1001}, "from 1 to 1000, not 1001"),
        (DDIM, {"sampler": "dpmpp_2m", "steps": 1001}, "from 1 to 1000, not 1001"),
    ],
)
def test_plan_errors(config: dict, options: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        read_schedule(config, **{"steps": 4} | options)


@pytest.mark.parametrize(("spacing", "offset", "endpoint"), [("leading", 1, True), ("leading", 0, False)])
def test_more_steps_than_the_spacing_holds(spacing: str, offset: int, endpoint: bool) -> None:
    with pytest.raises(LimnerError, match="1000 steps with leading spacing do not fit a table of 1000 levels"):
        spaced(1000, spacing, offset=offset, endpoint=endpoint)


@pytest.mark.parametrize("t", [-1.0, 1500.0, math.nan])
def test_times_outside_the_flow(t: float) -> None:
    with pytest.raises(LimnerError, match="outside the flow path"):
        Flow().level(t)
