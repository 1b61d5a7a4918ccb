"""diffusers' schedulers: from a scheduler_config.json to a `Schedule`; the samplers and their names."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from limner.entries import get_bool, get_float, get_int, get_str
from limner.errors import ConfigError, LimnerError, unknown
from limner.files import is_number
from limner.noise.grids import (
    CLEAN,
    Grid,
    Rounding,
    at_ratios,
    at_times,
    exponential,
    karras,
    round_timestep,
    shift_sigma,
    shifted,
    spaced,
)
from limner.noise.level import Level
from limner.noise.paths import Discrete, Flow, Path, cosine, linear, scaled_linear, zero_terminal_snr
from limner.sample import Sampler, ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, euler, heun, pndm, unipc

MIN_SHIFT, MAX_SHIFT = 1e-3, 1e3
MAX_STEPS = 100_000  # training timesteps of a configuration, and sampling steps


class Schedule(NamedTuple):
    """Everything that a sampler needs besides the denoiser and the noise."""

    path: Path
    predicts: str
    grid: Grid
    sampler: str
    eta: float
    start: float  # the first x is `start` times unit noise
    clip: float | None  # bound on x0

    def cut(self, strength: float) -> "Schedule":
        """The last steps, strength * N of N (Meng et al. 2022), rounded as in diffusers: up on a flow path, else down.

        Raises LimnerError if that is none, unless the strength is 0.
        """
        steps = len(self.grid) - 1
        kept = steps - int(steps - steps * strength) if self.path.kappa else int(steps * strength)
        if not kept and strength:
            least = math.ceil(1e6 / steps) / 1e6
            raise LimnerError(f"strength {strength:g} runs none of {steps} steps; the least is {least:g}")
        return self._replace(grid=self.grid[steps - kept :])


class Preset(NamedTuple):
    """The conventions and defaults of a diffusers scheduler class that its configuration does not hold."""

    sampler: str
    spacing: str  # default of timestep_spacing
    endpoint: bool = True
    integer: bool = True
    clip: bool = False  # default of clip_sample
    ratio_start: bool = False  # init_noise_sigma is sigma, not 1, for linspace and trailing spacing
    finite_start: bool = False  # a zero terminal SNR is clamped just above zero
    rounding: Rounding = None  # of the timesteps interpolated from karras sigmas
    full_range: bool = False  # karras and exponential span the table, not the spaced timesteps
    alpha_to_one: bool | None = None  # default of set_alpha_to_one; None if the class ends clean without that option
    runge_kutta: bool = False  # the first steps are Runge-Kutta's unless skip_prk_steps


PRESETS: dict[str, Preset] = {
    "DDPMScheduler": Preset("ddpm", "leading", clip=True),
    "DDIMScheduler": Preset("ddim", "leading", clip=True, alpha_to_one=True),
    "PNDMScheduler": Preset("pndm", "leading", alpha_to_one=False, runge_kutta=True),
    "EulerDiscreteScheduler": Preset("euler", "linspace", integer=False, ratio_start=True, finite_start=True),
    "EulerAncestralDiscreteScheduler": Preset(
        "euler_a", "linspace", integer=False, ratio_start=True, finite_start=True
    ),
    "HeunDiscreteScheduler": Preset("heun", "linspace", integer=False, ratio_start=True),
    "DPMSolverMultistepScheduler": Preset(
        "dpmpp_2m", "linspace", endpoint=False, finite_start=True, rounding="nearest", full_range=True
    ),
    "UniPCMultistepScheduler": Preset(
        "unipc", "linspace", endpoint=False, finite_start=True, rounding="nearest", full_range=True
    ),
    "FlowMatchEulerDiscreteScheduler": Preset("euler", "flow"),
}


class SamplerRow(NamedTuple):
    """A sampler: its function, default `eta` (None if it is deterministic), the diffusers scheduler whose conventions
    it uses when it is selected by name, and AUTOMATIC1111's names for it."""

    function: Sampler
    eta: float | None
    scheduler: str
    aliases: tuple[str, ...] = ()


SAMPLERS: dict[str, SamplerRow] = {
    "ddpm": SamplerRow(ancestral, 1.0, "DDPMScheduler"),
    "ddim": SamplerRow(ddim, 0.0, "DDIMScheduler"),
    "pndm": SamplerRow(pndm, None, "PNDMScheduler", ("plms",)),
    "euler": SamplerRow(euler, None, "EulerDiscreteScheduler"),
    "euler_a": SamplerRow(ancestral, 1.0, "EulerAncestralDiscreteScheduler", ("euler a",)),
    "heun": SamplerRow(heun, None, "HeunDiscreteScheduler"),
    "dpmpp_2m": SamplerRow(dpmpp_2m, 0.0, "DPMSolverMultistepScheduler", ("dpm++ 2m",)),
    "dpmpp_2m_sde": SamplerRow(dpmpp_2m_sde, 1.0, "DPMSolverMultistepScheduler", ("dpm++ 2m sde",)),
    "unipc": SamplerRow(unipc, None, "UniPCMultistepScheduler"),
}
SPACINGS = ("leading", "linspace", "trailing")
SCHEDULES = ("karras", "exponential", "normal")
# Options of diffusers' schedulers that change the result, with their supported values.
SUPPORTED: dict[str, tuple[Any, ...]] = {
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
PREDICTIONS = {"epsilon": "eps", "sample": "sample", "v_prediction": "v", "flow_prediction": "flow"}


def sampler_name(name: str) -> str:
    """The key in `SAMPLERS` of a name in any case, or of AUTOMATIC1111's name for it ("Euler a", "DPM++ 2M")."""
    aliases = {alias: plain for plain, row in SAMPLERS.items() for alias in row.aliases}
    plain = aliases.get(name.lower(), name.lower())
    if plain not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return plain


def sampler(name: str) -> Sampler:
    """The function of the sampler called `name`."""
    return SAMPLERS[sampler_name(name)].function


def read_schedule(
    config: Mapping[str, Any],
    steps: int,
    sampler: str | None = None,
    schedule: str | None = None,
    eta: float | None = None,
    shift: float | None = None,
    tokens: int | None = None,
) -> Schedule:
    """The schedule of a scheduler_config.json; `sampler`, `schedule`, `eta` and `shift` override its entries. `tokens`
    are those of the picture, on which the shift may depend.

    Raises ConfigError for an entry that is unknown, of a wrong type or not supported, LimnerError for other options.
    """
    if steps < 1:
        raise LimnerError(f"steps must be at least 1, not {steps}")
    if steps > MAX_STEPS:
        raise LimnerError(f"steps must be at most {MAX_STEPS}, not {steps}")
    sampler = sampler_name(sampler) if sampler is not None else None
    named = get_str(config, "_class_name", "")
    is_flow = named == "FlowMatchEulerDiscreteScheduler" or get_bool(config, "use_flow_sigmas")
    # A flow model keeps its own grid whatever the sampler; a discrete one uses the conventions of the sampler's class.
    name = named if sampler is None or is_flow else SAMPLERS[sampler].scheduler
    if name not in PRESETS:
        raise ConfigError(unknown("scheduler", name, PRESETS))
    if name == named:
        _check_supported(config, PRESETS[name])
    if schedule is not None and schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    preset = PRESETS[name]
    if config.get("algorithm_type") == "sde-dpmsolver++" and sampler is None:
        preset = preset._replace(sampler="dpmpp_2m_sde")
    sampler = sampler or preset.sampler
    if shift is not None and not (is_flow and shift > 0):
        raise LimnerError(f"shift {shift:g}: only flow models have a shift, and it must be more than 0")
    if shift is not None and not MIN_SHIFT <= shift <= MAX_SHIFT:
        raise LimnerError(f"shift must be from {MIN_SHIFT:g} to {MAX_SHIFT:g}, not {shift:g}")
    eta = _eta(sampler, eta)
    schedule = schedule or _configured_schedule(config)
    path: Path
    if is_flow:
        path, grid, start = _flow_grid(config, preset, steps, schedule, shift, tokens)
    else:
        path, grid, start = _table_grid(config, preset, steps, schedule)
    # limner's flow models may predict x0; in the published ones prediction_type, where present, says nothing else.
    predicts = "flow" if is_flow and config.get("prediction_type") != "sample" else _configured_prediction(config)
    clips = get_bool(config, "clip_sample", preset.clip)
    clip = get_float(config, "clip_sample_range", 1.0, 1e-3, 1e3) if clips else None
    return Schedule(path, predicts, grid, sampler, eta, start, clip)


def _configured_prediction(config: Mapping[str, Any]) -> str:
    """The prediction, by limner's name."""
    name = get_str(config, "prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise ConfigError(unknown("prediction_type", name, PREDICTIONS))
    return PREDICTIONS[name]


def _eta(sampler: str, eta: float | None) -> float:
    """`eta`, or the sampler's default. Raises LimnerError for an eta given to a deterministic sampler."""
    default = SAMPLERS[sampler].eta
    if eta is not None and default is None:
        raise LimnerError(f"the sampler {sampler} draws no noise, so eta has no meaning; try ddim with eta {eta:g}")
    return eta if eta is not None else default or 0.0


def _check_supported(config: Mapping[str, Any], preset: Preset) -> None:
    """Raises LimnerError for an option that would change the result and is not supported."""
    for name, values in SUPPORTED.items():
        if name in config and config[name] not in values:
            known = ", ".join(map(str, values))
            raise ConfigError(f"{name} {config[name]!r:.60} is not supported; supported: {known}")
    if preset.runge_kutta and not get_bool(config, "skip_prk_steps"):
        raise ConfigError(
            "without skip_prk_steps it takes Runge-Kutta steps, which are not supported;"
            " choose another sampler by name, such as ddim, or set skip_prk_steps to true"
        )
    if preset.endpoint is False and config.get("final_sigmas_type", "zero") != "zero":
        raise ConfigError("final_sigmas_type 'sigma_min' is not supported for multistep solvers; use 'zero'")


def _configured_schedule(config: Mapping[str, Any]) -> str:
    return next((s for s in ("karras", "exponential") if get_bool(config, f"use_{s}_sigmas")), "normal")


def _table_path(config: Mapping[str, Any], finite_start: bool = False) -> Discrete:
    """The path of the configuration's betas."""
    steps = get_int(config, "num_train_timesteps", 1000, 2, MAX_STEPS)
    start, end = get_float(config, "beta_start", 1e-4, 1e-9, 1), get_float(config, "beta_end", 0.02, 1e-9, 1)
    makers = {
        "linear": lambda: linear(steps, start, end),
        "scaled_linear": lambda: scaled_linear(steps, start, end),
        "squaredcos_cap_v2": lambda: cosine(steps),
    }
    kind, betas = get_str(config, "beta_schedule", "linear"), config.get("trained_betas")
    if betas is not None:
        if not isinstance(betas, list | tuple) or not 2 <= len(betas) <= MAX_STEPS or not all(map(is_number, betas)):
            raise ConfigError(f"trained_betas must be a list of numbers, not {betas!r:.60}")
        if not all(0 < beta <= 1 for beta in betas):
            raise ConfigError("trained_betas must be over 0 and at most 1")
        path = Discrete(torch.tensor(betas))
    elif kind in makers:
        path = makers[kind]()
    else:
        raise ConfigError(unknown("beta_schedule", kind, makers))
    if get_bool(config, "rescale_betas_zero_snr"):
        path = zero_terminal_snr(path)
        if finite_start:  # solvers in sigma/alpha cannot start at infinity
            path.clamp_terminal_snr()
    return path


def _table_grid(config: Mapping[str, Any], preset: Preset, steps: int, schedule: str) -> tuple[Path, Grid, float]:
    path = _table_path(config, preset.finite_start or schedule != "normal")
    spacing = get_str(config, "timestep_spacing", preset.spacing)
    if spacing not in SPACINGS:
        raise ConfigError(unknown("timestep spacing", spacing, SPACINGS))
    offset = get_int(config, "steps_offset", 0, 0, path.steps - 1)
    times = spaced(steps, spacing, length=path.steps, offset=offset, endpoint=preset.endpoint, integer=preset.integer)
    # Stable Diffusion's DDIM and PNDM end at alpha-bar_0 (`set_alpha_to_one: false`).
    ends_noisy = config.get("final_sigmas_type") == "sigma_min" or (
        preset.alpha_to_one is not None and not get_bool(config, "set_alpha_to_one", preset.alpha_to_one)
    )
    final = path.level(0) if ends_noisy else CLEAN
    if schedule == "normal":
        grid = at_times(path, times, final)
    else:
        span = (0.0, float(path.steps - 1)) if preset.full_range else (times[-1], times[0])
        low, high = (path.rho_at(t) for t in span)
        ratios = (karras if schedule == "karras" else exponential)(steps, low, high)
        is_cosine = config.get("beta_schedule") == "squaredcos_cap_v2" and preset.sampler == "dpmpp_2m"
        rounding: Rounding = "down" if preset.rounding and (schedule == "exponential" or is_cosine) else preset.rounding
        grid = at_ratios(path, ratios, final, rounding)
    start = grid[0].sigma if preset.ratio_start and spacing in ("linspace", "trailing") else 1.0
    return path, grid, start


def _shift_of(config: Mapping[str, Any], tokens: int | None) -> float:
    """The shift for this number of tokens: exp(mu), or mu, with mu linear in it (Esser et al. 2024, section 5.3.2)."""
    if tokens is None:
        raise ConfigError("the shift depends on the picture's size (use_dynamic_shifting): give a shift")
    few, many = (
        get_int(config, "base_image_seq_len", 256, 1, 10**9),
        get_int(config, "max_image_seq_len", 4096, 1, 10**9),
    )
    low, high = get_float(config, "base_shift", 0.5, 0, 50), get_float(config, "max_shift", 1.15, 0, 50)
    mu = low + (high - low) * (tokens - few) / max(1, many - few)
    kinds = {"exponential": math.exp(mu), "linear": max(mu, 1e-3)}
    kind = get_str(config, "time_shift_type", "exponential")
    if kind not in kinds:
        raise ConfigError(unknown("time_shift_type", kind, kinds))
    return kinds[kind]


def _flow_grid(
    config: Mapping[str, Any], preset: Preset, steps: int, schedule: str, shift: float | None, tokens: int | None
) -> tuple[Path, Grid, float]:
    """FlowMatchEuler's sigmas; DPM-Solver++ and UniPC space theirs differently and round timesteps down."""
    path = Flow()
    length = get_int(config, "num_train_timesteps", 1000, 2, MAX_STEPS)
    solver = preset.sampler in ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
    fixed = shift is not None or not get_bool(config, "use_dynamic_shifting")
    if shift is None and fixed:
        shift = get_float(config, "flow_shift" if solver else "shift", 1.0, MIN_SHIFT, MAX_SHIFT)
    elif shift is None:
        shift = _shift_of(config, tokens)
    if preset.sampler in ("dpmpp_2m", "dpmpp_2m_sde"):
        even = 1.0 - np.linspace(1, 1 / length, steps + 1)
        sigmas = np.flip(shift_sigma(even, shift))[:-1].tolist()
    elif solver:
        even = np.linspace(1, 1 / length, steps + 1)[:-1]
        sigmas = shift_sigma(even, shift).tolist()
        sigmas[0] = min(sigmas[0], 1 - 1e-6)  # UniPC's solve needs a finite first level
    else:
        # diffusers shifts twice: the range is built from a sigma_min that is already shifted, if the shift is fixed.
        sigmas = shifted(steps, shift, low=float(np.float32(shift_sigma(1 / length, shift if fixed else 1.0))))
    if schedule != "normal":
        sigmas = (karras if schedule == "karras" else exponential)(steps, sigmas[-1], sigmas[0])
    rounding: Rounding = "down" if solver else None

    def level(s: float) -> Level:
        # Without rounding, diffusers' timesteps are float32 products.
        return round_timestep(
            Level(s * length if solver else float(np.float32(s) * np.float32(length)), 1.0 - s, s), rounding
        )

    return path, [*map(level, sigmas), CLEAN], 1.0
