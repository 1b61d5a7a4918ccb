"""Presets and samplers against diffusers' schedulers, driven by the same stub network."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from limner.denoise import Denoise, Denoiser, clip
from limner.errors import LimnerError
from limner.noise.draws import TorchNoise
from limner.sample import check_grid
from limner.schedulers import PREDICTIONS, SAMPLERS, Schedule, read_schedule, sampler

pytestmark = pytest.mark.parity

SHAPE = (2, 3, 8, 8)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD_DDIM = SD | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "leading"}
SD_PNDM = SD | {"steps_offset": 1, "skip_prk_steps": True}
SOLVER_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

# (class, configuration, keywords of diffusers' step)
CASES = {
    "ddpm": ("DDPMScheduler", SD | {"clip_sample": False}, {}),
    "ddpm-linear-clipped": ("DDPMScheduler", {"clip_sample": True}, {}),
    "ddim-sd": ("DDIMScheduler", SD_DDIM, {"eta": 0.0}),
    "ddim-eta1": ("DDIMScheduler", SD_DDIM, {"eta": 1.0}),
    "ddim-clipped": ("DDIMScheduler", {}, {"eta": 0.0, "use_clipped_model_output": True}),
    "ddim-ends-twice": ("DDIMScheduler", SD_DDIM | {"steps_offset": 0}, {"eta": 0.0}),
    "pndm-sd": ("PNDMScheduler", SD_PNDM, {}),
    "pndm-clean": ("PNDMScheduler", SD_PNDM | {"set_alpha_to_one": True}, {}),
    "pndm-ends-twice": ("PNDMScheduler", SD_PNDM | {"steps_offset": 0}, {}),
    "pndm-trailing": ("PNDMScheduler", SD_PNDM | {"timestep_spacing": "trailing"}, {}),
    "euler-linspace": ("EulerDiscreteScheduler", SD, {}),
    "euler-sd": ("EulerDiscreteScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "euler-trailing": ("EulerDiscreteScheduler", SD | {"timestep_spacing": "trailing"}, {}),
    "euler-karras": ("EulerDiscreteScheduler", SD | {"use_karras_sigmas": True}, {}),
    "euler-exponential": ("EulerDiscreteScheduler", SD | {"use_exponential_sigmas": True}, {}),
    "euler-sigma-min": ("EulerDiscreteScheduler", SD | {"final_sigmas_type": "sigma_min"}, {}),
    "euler-karras-sigma-min": (
        "EulerDiscreteScheduler", SD | {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, {},
    ),
    "euler-a": ("EulerAncestralDiscreteScheduler", SD, {}),
    "euler-a-leading": ("EulerAncestralDiscreteScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "heun": ("HeunDiscreteScheduler", SD, {}),
    "heun-karras": ("HeunDiscreteScheduler", SD | {"use_karras_sigmas": True}, {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", SD, {}),
    "dpmpp-2m-leading": ("DPMSolverMultistepScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "dpmpp-2m-karras": ("DPMSolverMultistepScheduler", SD | {"use_karras_sigmas": True}, {}),
    "dpmpp-2m-cosine": ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}, {}),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", SD | {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpmpp-2m-sde-karras": (
        "DPMSolverMultistepScheduler", SD | {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, {},
    ),
    "unipc": ("UniPCMultistepScheduler", SD, {}),
    "unipc-karras": ("UniPCMultistepScheduler", SD | {"use_karras_sigmas": True}, {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}, {}),
    "flow-sd3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}),
    "dpmpp-2m-flow": (
        "DPMSolverMultistepScheduler", SOLVER_FLOW, {},
    ),
    "unipc-flow": (
        "UniPCMultistepScheduler", SOLVER_FLOW, {},
    ),
    "ddim-zero-snr": ("DDIMScheduler", SD_DDIM | ZERO_SNR, {"eta": 0.0}),
    "euler-zero-snr": ("EulerDiscreteScheduler", SD | ZERO_SNR, {}),
}  # fmt: skip
V_ONLY = ("ddim-zero-snr", "euler-zero-snr")
EPS_ONLY = ("pndm",)  # of v, diffusers' PNDM combines the outputs
# diffusers' DDIM and PNDM tell these times, but step to t - T//N and not to the next of them: the pictures differ.
NOT_ITS_GRID = {("ddim-zero-snr", 37), ("pndm-trailing", 37)}


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth, bounded stand-in that depends on the picture, its neighbours and the time."""
    wave = torch.sin(1.3 * x + t.view(-1, 1, 1, 1) / 300.0)
    return 0.6 * wave + 0.3 * x.roll(1, dims=-1).tanh() + 0.1


def reference(scheduler, steps: int, keywords: dict) -> tuple[torch.Tensor, list[float]]:
    """diffusers' loop; returns the last x and the times that its network was told, one an evaluation."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    if "generator" in inspect.signature(scheduler.step).parameters:
        keywords = keywords | {"generator": generator}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        told = t.float().expand(len(x))
        x = scheduler.step(network(seen, told), t, x, **keywords).prev_sample
    return x, scheduler.timesteps.tolist()


def predictions(name: str) -> list[str]:
    if "flow" in name:
        return ["flow_prediction"]
    if name.startswith(EPS_ONLY):
        return ["epsilon"]
    return ["v_prediction"] if name in V_ONLY else ["epsilon", "v_prediction"]


def configured(name: str, predicts: str) -> tuple[Any, dict[str, Any]]:
    """diffusers' scheduler of a case, and the configuration as it was written."""
    class_name, config, _ = CASES[name]
    if class_name != "FlowMatchEulerDiscreteScheduler":
        config = config | {"prediction_type": predicts}
    return getattr(diffusers, class_name)(**config), config | {"_class_name": class_name}


def painted(made: Schedule) -> tuple[torch.Tensor, list[float]]:
    """The last x of a schedule and the times that the network was told."""
    told: list[float] = []

    def recorded(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        told.append(float(t[0]))
        return network(x, t)

    check_grid(made.grid)
    draws = TorchNoise(7, SHAPE)
    denoise: Denoise = Denoiser(recorded, made.predicts)
    denoise = denoise if made.clip is None else clip(denoise, made.clip)
    run = sampler(made.sampler)(
        denoise, made.start * draws.start(), made.grid, draws, kappa=made.path.kappa, eta=made.eta
    )
    return [x for x, _ in run][-1], told


def assert_equal(made: Schedule, scheduler, steps: int, keywords: dict, pictures: bool = True) -> None:
    """Timesteps exactly, sigmas to 1e-6, the picture to 1e-4."""
    wanted, times = reference(scheduler, steps, keywords)
    x, told = painted(made)
    class_name = type(scheduler).__name__
    assert np.float32(told).tolist() == np.float32(times).tolist()
    if hasattr(scheduler, "sigmas"):
        ours = [level.sigma if made.path.kappa else level.rho for level in made.grid]
        theirs = scheduler.sigmas.double().numpy()
        if class_name.startswith("Heun"):
            theirs = np.concatenate([theirs[:1], theirs[1:-1:2], theirs[-1:]])
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    # Where diffusers keeps x in sigma/alpha coordinates the last level (alpha = 1 or sigma_min) tells the scale.
    scale = made.grid[-1].alpha if class_name.startswith(("Euler", "Heun")) else 1.0
    error = (x - scale * wanted).norm() / (scale * wanted).norm()
    assert not pictures or error < 1e-4, f"relative error {error:.1e}"


@pytest.mark.parametrize("steps", [4, 20, 37, 50])
@pytest.mark.parametrize(("name", "predicts"), [(name, predicts) for name in CASES for predicts in predictions(name)])
def test_equals_diffusers(name: str, predicts: str, steps: int) -> None:
    keywords = CASES[name][2]
    scheduler, config = configured(name, predicts)
    made = read_schedule(dict(scheduler.config) | config, steps, eta=keywords.get("eta"))
    assert made.predicts == PREDICTIONS[predicts]
    assert_equal(made, scheduler, steps, keywords, (name, steps) not in NOT_ITS_GRID)


@pytest.mark.parametrize("name", CASES)
def test_what_a_configuration_leaves_out_is_diffusers_default(name: str) -> None:
    scheduler, config = configured(name, predictions(name)[0])
    made, explicit = read_schedule(config, 20), read_schedule(dict(scheduler.config) | config, 20)
    assert made._replace(path=explicit.path) == explicit


@pytest.mark.parametrize("name", [name for name in CASES if "flow" not in name])
def test_one_step_starts_at_the_noisiest_level(name: str) -> None:
    """diffusers starts at t = 0 or 1 with leading spacing and with linspace, where raw noise is left as it is."""
    made = read_schedule(configured(name, predictions(name)[0])[1], 1)
    assert [level.t for level in made.grid[:-1]] == pytest.approx([999.0]) and made.grid[0].rho > 10


@pytest.mark.parametrize(
    ("name", "steps"),
    [("pndm-trailing", 1), *((name, steps) for name in CASES if name.startswith("pndm") for steps in (2, 3))],
)
def test_pndm_of_few_steps_equals_diffusers(name: str, steps: int) -> None:
    """One step is of one evaluation, and more than one of one evaluation more than steps."""
    scheduler, config = configured(name, "epsilon")
    made = read_schedule(config, steps)
    assert_equal(made, scheduler, steps, {}, pictures=(name, steps) != ("pndm-trailing", 3))
    assert len(painted(made)[1]) == (steps + 1 if steps > 1 else 1)


# Another sampler on Stable Diffusion 1's configuration, as it was published and as diffusers saves it today

SD1 = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None, "clip_sample": False,
}  # fmt: skip
FORMS = {
    "published": SD1,
    "saved": json.loads(diffusers.PNDMScheduler.from_config(SD1).to_json_string()),
}
# (class, sampler, schedule) and the options that say the same to diffusers
OTHERS: dict[str, tuple[str, str | None, str | None, dict[str, Any]]] = {
    "its own": ("PNDMScheduler", None, None, {}),
    "pndm": ("PNDMScheduler", "PLMS", None, {}),
    "ddpm": ("DDPMScheduler", "ddpm", None, {}),
    "ddim": ("DDIMScheduler", "ddim", None, {}),
    "euler": ("EulerDiscreteScheduler", "euler", None, {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", "euler_a", None, {}),
    "heun": ("HeunDiscreteScheduler", "heun", None, {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", "dpmpp_2m", None, {}),
    "dpmpp_2m karras": ("DPMSolverMultistepScheduler", "dpmpp_2m", "karras", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", "dpmpp_2m_sde", None, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", "unipc", None, {}),
}


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", OTHERS)
def test_any_sampler_on_stable_diffusions_configuration(other: str, form: str, steps: int) -> None:
    class_name, name, schedule, options = OTHERS[other]
    own = diffusers.PNDMScheduler.from_config(FORMS[form])
    scheduler = getattr(diffusers, class_name).from_config(own.config, **options)
    assert_equal(read_schedule(FORMS[form], steps, name, schedule), scheduler, steps, {})


def test_no_sampler_is_left_out() -> None:
    assert SAMPLERS.keys() <= OTHERS.keys()


def test_the_saved_form_spaces_as_it_says() -> None:
    """The published one says no spacing, so each sampler's own holds."""
    assert FORMS["saved"]["timestep_spacing"] == "leading"
    assert "timestep_spacing" not in SD1
    first = {form: read_schedule(config, 20, "euler").grid[0].t for form, config in FORMS.items()}
    assert first == {"published": 999.0, "saved": 951.0}


def test_pndm_on_another_configuration_is_plms() -> None:
    """With the levels of PNDM's own defaults: the final one is alpha-bar_0."""
    made = read_schedule(SD | {"_class_name": "EulerDiscreteScheduler"}, 20, sampler="pndm")
    assert_equal(made, diffusers.PNDMScheduler(**SD, skip_prk_steps=True), 20, {})
    with pytest.raises(LimnerError, match="the sampler pndm draws no noise"):
        read_schedule(SD1, 20, eta=0.5)


@pytest.mark.parametrize("config", [{}, {"skip_prk_steps": False}, {"skip_prk_steps": None}])
def test_runge_kutta_steps_are_refused(config: Mapping[str, Any]) -> None:
    config = SD | {"_class_name": "PNDMScheduler"} | config
    for name in (None, "pndm"):
        with pytest.raises(LimnerError, match="without skip_prk_steps .* choose another sampler by name"):
            read_schedule(config, 20, name)
    assert read_schedule(config, 20, "ddim").sampler == "ddim"
    assert read_schedule(config | {"_class_name": "DDIMScheduler"}, 20).sampler == "ddim"  # which has no such steps
