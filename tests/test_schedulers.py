"""Presets and samplers against diffusers' schedulers, driven by the same stub network."""

import inspect

import diffusers
import numpy as np
import pytest
import torch

from limner.denoise import Denoise, Denoiser, clip
from limner.noise.draws import TorchNoise
from limner.schedulers import PREDICTIONS, read_schedule, sampler

pytestmark = pytest.mark.parity

SHAPE = (2, 3, 8, 8)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD_DDIM = SD | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "leading"}
SOLVER_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

# (class, configuration, keywords of diffusers' step)
CASES = {
    "ddpm": ("DDPMScheduler", SD | {"clip_sample": False}, {}),
    "ddpm-linear-clipped": ("DDPMScheduler", {"clip_sample": True}, {}),
    "ddim-sd": ("DDIMScheduler", SD_DDIM, {"eta": 0.0}),
    "ddim-eta1": ("DDIMScheduler", SD_DDIM, {"eta": 1.0}),
    "ddim-clipped": ("DDIMScheduler", {}, {"eta": 0.0, "use_clipped_model_output": True}),
    "euler-linspace": ("EulerDiscreteScheduler", SD, {}),
    "euler-sd": ("EulerDiscreteScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "euler-trailing": ("EulerDiscreteScheduler", SD | {"timestep_spacing": "trailing"}, {}),
    "euler-karras": ("EulerDiscreteScheduler", SD | {"use_karras_sigmas": True}, {}),
    "euler-exponential": ("EulerDiscreteScheduler", SD | {"use_exponential_sigmas": True}, {}),
    "euler-sigma-min": ("EulerDiscreteScheduler", SD | {"final_sigmas_type": "sigma_min"}, {}),
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
# diffusers' DDIM tells these times, but steps to t - T//N and not to the next of them: the pictures differ.
NOT_ITS_GRID = {("ddim-zero-snr", 37)}


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
    return ["v_prediction"] if name in V_ONLY else ["epsilon", "v_prediction"]


@pytest.mark.parametrize("steps", [4, 20, 37, 50])
@pytest.mark.parametrize(("name", "predicts"), [(name, predicts) for name in CASES for predicts in predictions(name)])
def test_equals_diffusers(name: str, predicts: str, steps: int) -> None:
    class_name, config, keywords = CASES[name]
    if class_name != "FlowMatchEulerDiscreteScheduler":
        config = config | {"prediction_type": predicts}
    scheduler = getattr(diffusers, class_name)(**config)
    wanted, times = reference(scheduler, steps, keywords)
    made = read_schedule(dict(scheduler.config) | {"_class_name": class_name}, steps, eta=keywords.get("eta"))
    assert made.predicts == PREDICTIONS[predicts]

    told: list[float] = []

    def recorded(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        told.append(float(t[0]))
        return network(x, t)

    draws = TorchNoise(7, SHAPE)
    denoise: Denoise = Denoiser(recorded, made.predicts)
    denoise = denoise if made.clip is None else clip(denoise, made.clip)
    run = sampler(made.sampler)(
        denoise, made.start * draws.start(), made.grid, draws, kappa=made.path.kappa, eta=made.eta
    )
    x = [x for x, _ in run][-1]

    assert np.float32(told).tolist() == np.float32(times).tolist()  # timesteps, exactly
    if hasattr(scheduler, "sigmas"):
        ours = [level.sigma if made.path.kappa else level.rho for level in made.grid]
        theirs = scheduler.sigmas.double().numpy()
        if class_name.startswith("Heun"):
            theirs = np.concatenate([theirs[:1], theirs[1:-1:2], theirs[-1:]])
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    if (name, steps) in NOT_ITS_GRID:
        return
    # Where diffusers keeps x in sigma/alpha coordinates the last level (alpha = 1 or sigma_min) tells the scale.
    last = made.grid[-1]
    scale = last.alpha if class_name.startswith(("Euler", "Heun")) else 1.0
    error = (x - scale * wanted).norm() / (scale * wanted).norm()
    assert error < 1e-4, f"relative error {error:.1e}"
