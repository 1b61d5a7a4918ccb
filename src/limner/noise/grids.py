"""Grids: lists of N+1 levels from noise to data; and PRESETS, the grids and samplers of diffusers' schedulers.

A sampler never computes a time, a beta or a spacing: that is all here.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from limner.errors import LimnerError, unknown
from limner.files import is_number
from limner.noise.level import Level
from limner.noise.paths import Discrete, Flow, Path, cosine, linear, scaled_linear, zero_terminal_snr

CLEAN = Level(0.0, 1.0, 0.0)
Rounding = Literal["nearest", "down"] | None
Grid = list[Level]
MOST_STEPS = 100_000  # of a table of noise levels, and of a sampling run


def spaced(
    steps: int, spacing: str, *, length: int = 1000, offset: int = 0, endpoint: bool = True, integer: bool = True
) -> list[float]:
    """N times from noise to data out of a table of `length` (Lin et al. 2024, table 2).

    `endpoint` False means N+1 points less the last, as DPM-Solver++ and UniPC count for "linspace" and "leading".
    `integer` rounds "linspace" to the table.
    """
    points = steps if endpoint else steps + 1
    if not 1 <= steps <= length:
        raise LimnerError(f"steps must be from 1 to {length}, not {steps}")
    if spacing == "linspace":
        even = np.linspace(0, length - 1, points)[::-1]
        times = even.round().tolist() if integer else even.astype(np.float32).tolist()
    elif spacing == "leading":
        times = ((np.arange(points) * (length // points))[::-1] + offset).tolist()
    elif spacing == "trailing":
        times = (np.arange(length, 0, -length / steps).round() - 1).tolist()
    else:
        raise unknown("timestep spacing", spacing, ["linspace", "leading", "trailing"])
    times = [float(t) for t in times[:steps]]
    if max(times) > length - 1 or len(set(times)) < steps:
        raise LimnerError(
            f"{steps} steps with {spacing} spacing do not fit a table of {length} levels; take fewer steps"
        )
    return times


def karras(steps: int, low: float, high: float) -> list[float]:
    """N noise ratios, evenly spaced in their 7th root, from high to low (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(high ** (1 / 7), low ** (1 / 7), steps)
    return [float(rho) for rho in ramp**7]


def exponential(steps: int, low: float, high: float) -> list[float]:
    """N noise ratios, evenly spaced in their logarithm, from high to low."""
    return [float(rho) for rho in np.exp(np.linspace(math.log(high), math.log(low), steps))]


def shifted(steps: int, shift: float = 1.0, low: float = 1 / 1000, high: float = 1.0) -> list[float]:
    """N flow sigmas evenly spaced from high to low, then shifted towards noise."""
    return [towards_noise(s, shift) for s in np.linspace(high, low, steps).tolist()]


def towards_noise(sigma: Any, shift: float) -> Any:
    """A flow sigma, or an array of them, shifted (Esser et al. 2024, equation 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def at_times(path: Path, times: Iterable[float], final: Level = CLEAN) -> Grid:
    """The levels at these times, and `final`."""
    return [*(path.level(t) for t in times), final]


def at_ratios(path: Path, ratios: Iterable[float], final: Level = CLEAN, rounding: Rounding = None) -> Grid:
    """The levels with these noise ratios sigma/alpha, and `final`.

    Rounding changes only the t that the network is told; alpha and sigma stay exact.
    """
    return [*(told_whole(path.level_at(rho), rounding) for rho in ratios), final]


def told_whole(level: Level, rounding: Rounding) -> Level:
    """The level with a whole t, as solvers that index a table of times tell the network."""
    if rounding is None:
        return level
    return level._replace(t=float(np.round(level.t) if rounding == "nearest" else math.floor(level.t)))


class Plan(NamedTuple):
    """How a picture is painted: everything a sampler run needs besides the network and the noise."""

    path: Path
    predicts: str
    grid: Grid
    sampler: str
    eta: float
    start: float  # the first x is `start` times unit noise
    clip: float | None  # bound on x0


class Preset(NamedTuple):
    """What one of diffusers' schedulers fixes, beside its configuration."""

    sampler: str
    spacing: str  # the class's default
    endpoint: bool = True
    integer: bool = True
    clip: bool = False  # the class's default for clip_sample
    ratio_start: bool = False  # starts at sigma, not at 1, where the spacing reaches the last level
    nudge: bool = False  # holds a zero terminal SNR just above zero
    rounding: Rounding = None  # of times found from karras sigmas
    full_range: bool = False  # karras and exponential span the table, not the spaced times


PRESETS: dict[str, Preset] = {
    "DDPMScheduler": Preset("ddpm", "leading", clip=True),
    "DDIMScheduler": Preset("ddim", "leading", clip=True),
    "EulerDiscreteScheduler": Preset("euler", "linspace", integer=False, ratio_start=True, nudge=True),
    "EulerAncestralDiscreteScheduler": Preset("euler_a", "linspace", integer=False, ratio_start=True, nudge=True),
    "HeunDiscreteScheduler": Preset("heun", "linspace", integer=False, ratio_start=True),
    "DPMSolverMultistepScheduler": Preset(
        "dpmpp_2m", "linspace", endpoint=False, nudge=True, rounding="nearest", full_range=True
    ),
    "UniPCMultistepScheduler": Preset(
        "unipc", "linspace", endpoint=False, nudge=True, rounding="nearest", full_range=True
    ),
    "FlowMatchEulerDiscreteScheduler": Preset("euler", "flow"),
}
# The scheduler whose conventions a sampler takes when it is asked for by name.
CLASS_OF = {preset.sampler: name for name, preset in reversed(PRESETS.items())} | {
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
}
# AUTOMATIC1111's spellings.
ALIASES = {"euler a": "euler_a", "dpm++ 2m": "dpmpp_2m", "dpm++ 2m sde": "dpmpp_2m_sde"}
SCHEDULES = ("karras", "exponential", "normal")
# Options of diffusers' schedulers that change the numbers, and the values that are understood; others are refused.
UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear",),
    "invert_sigmas": (False,),
    "predict_x0": (True,),
    "shift_terminal": (None,),
    "solver_order": (2,),
    "solver_type": ("midpoint", "bh2"),
    "stochastic_sampling": (False,),
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log"),
}
PREDICTS = {"epsilon": "eps", "sample": "sample", "v_prediction": "v", "flow_prediction": "flow"}


def sampler_name(name: str) -> str:
    """The name that `SAMPLERS` knows; AUTOMATIC1111's spellings ("Euler a", "DPM++ 2M") are understood."""
    plain = ALIASES.get(name.lower(), name.lower())
    if plain not in CLASS_OF:
        raise unknown("sampler", name, CLASS_OF)
    return plain


def plan(
    config: Mapping[str, Any],
    steps: int,
    sampler: str | None = None,
    schedule: str | None = None,
    eta: float | None = None,
    shift: float | None = None,
) -> Plan:
    """Read a `scheduler_config.json`; `sampler`, `schedule`, `eta` and `shift` override what it says.

    Raises LimnerError for schedulers, spacings, predictions and schedules that are not known.
    """
    if steps < 1:
        raise LimnerError(f"steps must be at least 1, not {steps}")
    if steps > MOST_STEPS:
        raise LimnerError(f"steps must be at most {MOST_STEPS}, not {steps}")
    sampler = sampler_name(sampler) if sampler is not None else None
    named = text(config, "_class_name", "")
    is_flow = named == "FlowMatchEulerDiscreteScheduler" or flag(config, "use_flow_sigmas")
    # A flow model keeps its own grid whatever the sampler; a table model takes the sampler's conventions.
    name = named if sampler is None or is_flow else CLASS_OF[sampler]
    if name not in PRESETS:
        raise unknown("scheduler", name, PRESETS)
    if name == named:
        _check_understood(config, PRESETS[name], shift)
    if schedule is not None and schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    preset = PRESETS[name]
    if config.get("algorithm_type") == "sde-dpmsolver++" and sampler is None:
        preset = preset._replace(sampler="dpmpp_2m_sde")
    sampler = sampler or preset.sampler
    if eta is not None and sampler in ("euler", "heun", "unipc"):
        raise LimnerError(f"the sampler {sampler} draws no noise, so eta has no meaning; try ddim with eta {eta:g}")
    if shift is not None and not (is_flow and shift > 0):
        raise LimnerError(f"shift {shift:g}: only flow models have a shift, and it must be more than 0")
    eta = eta if eta is not None else float(sampler in ("ddpm", "euler_a", "dpmpp_2m_sde"))
    schedule = schedule or _schedule_of(config)
    path: Path
    if is_flow:
        path, grid, start = _flow_grid(config, preset, steps, schedule, shift)
    else:
        path, grid, start = _table_grid(config, preset, steps, schedule)
    predicts = "flow" if is_flow else PREDICTS.get(text(config, "prediction_type", "epsilon"))
    if predicts is None:
        raise unknown("prediction_type", config["prediction_type"], PREDICTS)
    clip = number(config, "clip_sample_range", 1.0, 1e-3, 1e3) if flag(config, "clip_sample", preset.clip) else None
    return Plan(path, predicts, grid, sampler, eta, start, clip)


def _check_understood(config: Mapping[str, Any], preset: Preset, shift: float | None) -> None:
    """Raises LimnerError for an option whose value would change the picture and is not understood."""
    for name, values in UNDERSTOOD.items():
        if name in config and config[name] not in values:
            known = ", ".join(map(str, values))
            raise LimnerError(f"the scheduler's {name} {config[name]!r:.60} is not supported; supported: {known}")
    if preset.endpoint is False and config.get("final_sigmas_type", "zero") != "zero":
        raise LimnerError("final_sigmas_type 'sigma_min' is not supported for multistep solvers; use 'zero'")
    if flag(config, "use_dynamic_shifting") and shift is None:
        raise LimnerError("the scheduler's shift depends on the picture's size (use_dynamic_shifting): give a shift")


def number(config: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number of a configuration, from `low` to `high`."""
    value = config.get(name, default)
    if not is_number(value):
        raise LimnerError(f"the scheduler's {name} must be a number, not {value!r:.60}")
    if not low <= value <= high:
        raise LimnerError(f"the scheduler's {name} must be from {low:g} to {high:g}, not {value!r:.60}")
    return float(value)


def count(config: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    """A whole number of a configuration, from `low` to `high`."""
    value = number(config, name, default, low, high)
    if value != int(value):
        raise LimnerError(f"the scheduler's {name} must be a whole number, not {value:g}")
    return int(value)


def flag(config: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A yes or no of a configuration; null is no."""
    value = config.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise LimnerError(f"the scheduler's {name} must be true or false, not {value!r:.60}")
    return bool(value)


def text(config: Mapping[str, Any], name: str, default: str) -> str:
    """A name in a configuration."""
    value = config.get(name, default)
    if not isinstance(value, str):
        raise LimnerError(f"the scheduler's {name} must be a name in quotes, not {value!r:.60}")
    return value


def _schedule_of(config: Mapping[str, Any]) -> str:
    return next((s for s in ("karras", "exponential") if flag(config, f"use_{s}_sigmas")), "normal")


def table_path(config: Mapping[str, Any], nudge: bool = False) -> Discrete:
    """The path that a scheduler configuration's betas describe."""
    steps = count(config, "num_train_timesteps", 1000, 2, MOST_STEPS)
    start, end = number(config, "beta_start", 1e-4, 1e-9, 1), number(config, "beta_end", 0.02, 1e-9, 1)
    makers = {
        "linear": lambda: linear(steps, start, end),
        "scaled_linear": lambda: scaled_linear(steps, start, end),
        "squaredcos_cap_v2": lambda: cosine(steps),
    }
    kind, betas = text(config, "beta_schedule", "linear"), config.get("trained_betas")
    if betas is not None:
        if not isinstance(betas, list | tuple) or not 2 <= len(betas) <= MOST_STEPS or not all(map(is_number, betas)):
            raise LimnerError(f"the scheduler's trained_betas must be a list of numbers, not {betas!r:.60}")
        path = Discrete(torch.tensor(betas))
    elif kind in makers:
        path = makers[kind]()
    else:
        raise unknown("beta_schedule", kind, makers)
    if flag(config, "rescale_betas_zero_snr"):
        path = zero_terminal_snr(path)
        if nudge:  # solvers in sigma/alpha cannot start at infinity
            path.hold_above_zero()
    return path


def _table_grid(config: Mapping[str, Any], preset: Preset, steps: int, schedule: str) -> tuple[Path, Grid, float]:
    path = table_path(config, preset.nudge or schedule != "normal")
    spacing = text(config, "timestep_spacing", preset.spacing)
    offset = count(config, "steps_offset", 0, 0, path.steps - 1)
    times = spaced(steps, spacing, length=path.steps, offset=offset, endpoint=preset.endpoint, integer=preset.integer)
    # Stable Diffusion's DDIM ends at alpha-bar_0 (`set_alpha_to_one: false`).
    ends_noisy = config.get("final_sigmas_type") == "sigma_min" or (
        preset.sampler == "ddim" and not flag(config, "set_alpha_to_one", True)
    )
    final = path.level(0) if ends_noisy else CLEAN
    if schedule == "normal":
        grid = at_times(path, times, final)
    else:
        span = (0.0, float(path.steps - 1)) if preset.full_range else (times[-1], times[0])
        low, high = (path.rho_at(t) for t in span)
        ratios = (karras if schedule == "karras" else exponential)(steps, low, high)
        is_cosine = config.get("beta_schedule") == "squaredcos_cap_v2" and preset.sampler == "dpmpp_2m"
        whole: Rounding = "down" if preset.rounding and (schedule == "exponential" or is_cosine) else preset.rounding
        grid = at_ratios(path, ratios, final, whole)
    start = grid[0].sigma if preset.ratio_start and spacing in ("linspace", "trailing") else 1.0
    return path, grid, start


def _flow_grid(
    config: Mapping[str, Any], preset: Preset, steps: int, schedule: str, shift: float | None
) -> tuple[Path, Grid, float]:
    """FlowMatchEuler's sigmas; DPM-Solver++ and UniPC count theirs in their own ways and tell whole times."""
    path = Flow()
    length = count(config, "num_train_timesteps", 1000, 2, MOST_STEPS)
    solver = preset.sampler in ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
    shift = shift if shift is not None else number(config, "flow_shift" if solver else "shift", 1.0, 1e-3, 1e3)
    if preset.sampler in ("dpmpp_2m", "dpmpp_2m_sde"):
        even = 1.0 - np.linspace(1, 1 / length, steps + 1)
        sigmas = np.flip(towards_noise(even, shift))[:-1].tolist()
    elif solver:
        even = np.linspace(1, 1 / length, steps + 1)[:-1]
        sigmas = towards_noise(even, shift).tolist()
        sigmas[0] = min(sigmas[0], 1 - 1e-6)  # UniPC's solve needs a finite first level
    else:
        # diffusers shifts twice: its smallest sigma is already shifted when the range is laid out.
        sigmas = shifted(steps, shift, low=float(np.float32(towards_noise(1 / length, shift))))
    if schedule != "normal":
        sigmas = (karras if schedule == "karras" else exponential)(steps, sigmas[-1], sigmas[0])
    rounding: Rounding = "down" if solver else None

    def level(s: float) -> Level:
        # Times are float32 products in diffusers where they are not whole.
        return told_whole(
            Level(s * length if solver else float(np.float32(s) * np.float32(length)), 1.0 - s, s), rounding
        )

    return path, [*map(level, sigmas), CLEAN], 1.0
