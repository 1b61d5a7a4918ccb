"""The pipeline: what a picture depends on, and what is said to settings it cannot use."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import tiny_pipeline

from limner.errors import LimnerError
from limner.files import read_json, write_json
from limner.noise.draws import normal
from limner.picture import to_pictures
from limner.pipeline import Pipeline
from limner.schedulers import SAMPLERS

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
CAPTIONS = ["a red star", "a blue circle", "two green squares"]


@pytest.fixture
def pipe() -> Pipeline:
    return tiny_pipeline(CAPTIONS, steps=6)


def last(pipe: Pipeline, *args: object, **settings: object) -> torch.Tensor:
    """The last x, before it is rounded to pixels: (B, C, H, W)."""
    return list(pipe.paint(*args, **settings).steps)[-1].x  # type: ignore[arg-type]


def with_scheduler(pipe: Pipeline, config: dict) -> Pipeline:
    """The same model on another scheduler."""
    return Pipeline(replace(pipe.model, scheduler=config))


def output(pipe: Pipeline, prompts: list[str], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the network gives for x (B, C, H, W) at time t, told the prompts."""
    network = pipe.model.network
    return network(x, t.expand(len(x)), **network.prepare(pipe.model.conditioner(prompts)))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_picture_of_a_batch_is_the_picture_alone(pipe: Pipeline, name: str) -> None:
    batch = last(pipe, CAPTIONS, num_images=2, seed=[5, 6, 7, 8, 9, 2**40], sampler=name)
    for row, (prompt, seed) in enumerate([("a red star", 6), ("a blue circle", 8), ("two green squares", 2**40)]):
        alone = last(pipe, prompt, seed=seed, sampler=name)[0]
        # Relative to the picture: Heun divides by the last sigma, 0.001, and so shows float32's rounding the most.
        assert (batch[2 * row + 1] - alone).norm() < 1e-5 * alone.norm()


def test_what_a_picture_depends_on(pipe: Pipeline) -> None:
    base = last(pipe, "a red star", seed=1)
    assert torch.equal(last(pipe, "a red star", seed=1), base)
    others = {
        "prompt": last(pipe, "a blue circle", seed=1),
        "seed": last(pipe, "a red star", seed=2),
        "guidance": last(pipe, "a red star", seed=1, guidance_scale=5.0),
        "rescale": last(pipe, "a red star", seed=1, guidance_rescale=0.7),
        "interval": last(pipe, "a red star", seed=1, guidance_interval=(0.3, 2.0)),
        "negative prompt": last(pipe, "a red star", seed=1, negative_prompt="a blue circle"),
        "sampler": last(pipe, "a red star", seed=1, sampler="heun"),
        "steps": last(pipe, "a red star", seed=1, steps=3),
        "shift": last(pipe, "a red star", seed=1, shift=3.0),
        "schedule": last(pipe, "a red star", seed=1, schedule="karras"),
        "eta": last(pipe, "a red star", seed=1, sampler="ddim", eta=1.0),
        "rng": last(pipe, "a red star", seed=1, rng="torch"),
    }
    same = [name for name, x in others.items() if (x - base).abs().max() < 1e-3]
    assert same == []


def test_guidance_one_is_the_conditional_model(pipe: Pipeline) -> None:
    """By hand: Euler's steps on the network told the prompt, with no second row and no guidance."""
    x = torch.from_numpy(normal(3, (1, 8, 8)))[None]
    sigmas = [*torch.linspace(1, 0.001, 6, dtype=torch.float64).tolist(), 0.0]
    for s, t in pairwise(sigmas):
        x = x + (t - s) * output(pipe, ["a red star"], x, torch.tensor(1000.0 * s))
    torch.testing.assert_close(last(pipe, "a red star", seed=3, guidance_scale=1.0), x, rtol=1e-4, atol=1e-5)


def test_guidance_is_the_paper_s_combination(pipe: Pipeline) -> None:
    """One step from pure noise: x0 of null and of prompt, combined."""
    null, told = (last(pipe, p, seed=3, steps=1, guidance_scale=1.0) for p in ("", "a red star"))
    guided = last(pipe, "a red star", seed=3, steps=1, guidance_scale=4.0)
    torch.testing.assert_close(guided, null + 4.0 * (told - null), rtol=1e-4, atol=1e-5)


def test_heun_on_a_flow_averages_velocities(pipe: Pipeline) -> None:
    """By hand: Heun's steps on the velocity (Karras et al. 2022, algorithm 1, in the flow's own coordinates)."""

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return output(pipe, ["a red star"], x, torch.tensor(1000.0 * sigma))

    x = torch.from_numpy(normal(3, (1, 8, 8)))[None]
    sigmas = [*torch.linspace(1, 0.001, 6, dtype=torch.float64).tolist(), 0.0]
    for s, t in pairwise(sigmas):
        slope = velocity(x, s)
        if t:
            slope = (slope + velocity(x + (t - s) * slope, t)) / 2
        x = x + (t - s) * slope
    drawn = last(pipe, "a red star", seed=3, guidance_scale=1.0, sampler="heun")
    assert (drawn - x).norm() < 1e-4 * x.norm()


def test_the_first_x_is_as_loud_as_the_scheduler_says(pipe: Pipeline) -> None:
    """EulerDiscrete starts at sigma / sqrt(1 + sigma^2) times the noise where its grid starts below pure noise."""
    config = {"_class_name": "EulerDiscreteScheduler", "beta_end": 0.002, "prediction_type": "sample"}
    quiet = with_scheduler(pipe, config)
    seen: list[torch.Tensor] = []
    pipe.model.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    last(quiet, "a red star", seed=3, steps=2, guidance_scale=1.0)
    scheduler = diffusers.EulerDiscreteScheduler(beta_end=0.002, prediction_type="sample")
    scheduler.set_timesteps(2)
    noise = torch.from_numpy(normal(3, (1, 8, 8)))[None]
    start = scheduler.scale_model_input(noise * scheduler.init_noise_sigma, scheduler.timesteps[0])
    torch.testing.assert_close(seen[0], start)
    assert start.std() < 0.9 * noise.std()


def test_two_threads_share_a_pipeline(pipe: Pipeline) -> None:
    """Each gets the bytes it would get alone, whatever the other asks for."""
    asked = [("a red star", {"sampler": "dpmpp_2m"}), ("a blue circle", {"sampler": "unipc", "guidance_scale": 4.0})]
    alone = [pipe(prompt, seed=3, steps=12, **settings)[0].tobytes() for prompt, settings in asked]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            runs = [pool.submit(pipe, prompt, seed=3, steps=12, **settings) for prompt, settings in asked]
            assert [run.result()[0].tobytes() for run in runs] == alone


@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 0.1), ("float16", 0.01)])
def test_half_precision_paints_the_same_picture(pipe: Pipeline, tmp_path: Path, dtype: str, near: float) -> None:
    """All networks compute in it, x stays float32, and the picture is that of float32 but for rounding."""
    pipe.save(tmp_path / "model")
    half = Pipeline.from_pretrained(tmp_path / "model", dtype=dtype)
    kind = getattr(torch, dtype)
    assert {p.dtype for part in half.model.parts().values() for p in part.parameters()} == {kind}
    told: list[torch.dtype] = []
    half.model.network.register_forward_pre_hook(lambda module, args: told.append(args[0].dtype))
    drawn, exact = (last(p, "a red star", seed=3, steps=6) for p in (half, pipe))
    assert set(told) == {kind} and drawn.dtype == torch.float32
    assert 0 < (drawn - exact).norm() < near * exact.norm()


def test_a_negative_prompt_equal_to_the_prompt_cancels_guidance(pipe: Pipeline) -> None:
    both = last(pipe, "a red star", negative_prompt="a red star", guidance_scale=7.0)
    torch.testing.assert_close(both, last(pipe, "a red star", guidance_scale=1.0), rtol=1e-4, atol=1e-5)


# Schedulers as a checkpoint configures them; all keep x at the scale of `Level`, or end at alpha = 1.
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"beta_schedule": "scaled_linear", "set_alpha_to_one": False, "steps_offset": 1}),
    "ddpm": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}),
    "ddim-sample": ("DDIMScheduler", {"prediction_type": "sample", "clip_sample_range": 0.5}),
    "ddim-free": ("DDIMScheduler", {"prediction_type": "v_prediction", "clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear", "use_karras_sigmas": True}),
    "euler-trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    "heun": ("HeunDiscreteScheduler", {"beta_schedule": "linear"}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}


@pytest.mark.parity
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_pictures_are_diffusers(pipe: Pipeline, name: str, guidance_scale: float) -> None:
    """The pipeline's own pictures against diffusers' loop on the same network: guided, clipped, from the same noise."""
    class_name, config = SCHEDULERS[name]
    scheduler = getattr(diffusers, class_name)(**config)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 1, 8, 8, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    options = {"use_clipped_model_output": True} if class_name == "DDIMScheduler" else {}
    options |= {} if class_name in ("HeunDiscreteScheduler",) else {"generator": generator}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        uncond, cond = (
            output(pipe, prompts, seen, t.float()) for prompts in (["", ""], ["a red star", "a blue circle"])
        )
        x = scheduler.step(uncond + guidance_scale * (cond - uncond), t, x, **options).prev_sample
    ours = with_scheduler(pipe, dict(scheduler.config) | {"_class_name": class_name})
    drawn = last(ours, ["a red star", "a blue circle"], seed=4, rng="torch", steps=10, guidance_scale=guidance_scale)
    assert (drawn - x).norm() < 1e-4 * x.norm()


@pytest.mark.parity
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_a_guided_clipped_step_is_diffusers(pipe: Pipeline, predicts: str) -> None:
    """x0 is clipped after guidance, at every step: at scale 5 it would leave the range by far."""
    scheduler = diffusers.DDIMScheduler(prediction_type=predicts, clip_sample=True)
    scheduler.set_timesteps(10)
    ours = with_scheduler(pipe, dict(scheduler.config) | {"_class_name": "DDIMScheduler"})
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    drawn = ours.paint("a red star", seed=4, rng="torch", steps=10, guidance_scale=5.0).steps
    for t, made in zip(scheduler.timesteps, drawn, strict=True):
        uncond, cond = (output(pipe, [prompt], x, t.float()) for prompt in ("", "a red star"))
        done = scheduler.step(uncond + 5.0 * (cond - uncond), t, x, use_clipped_model_output=True)
        assert made.x0.abs().max() <= 1.0
        torch.testing.assert_close(made.x0, done.pred_original_sample, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made.x, done.prev_sample, rtol=1e-4, atol=1e-4)
        x = done.prev_sample


def test_other_sizes(pipe: Pipeline) -> None:
    assert pipe("a red star", width=12, height=6)[0].size == (12, 6)
    with pytest.raises(LimnerError, match=r"width 9 is not a multiple of 2, as this model needs; try 8"):
        pipe("a red star", width=9)


def test_the_text_is_read_once_per_picture(pipe: Pipeline) -> None:
    calls = {"text": 0, "kv": 0}

    def count(name: str):
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    pipe.model.parts()["text_encoder"].register_forward_hook(count("text"))
    pipe.model.network.blocks[0].cross.to_kv.register_forward_hook(count("kv"))  # type: ignore[union-attr, operator]
    pipe("a red star", steps=5, guidance_scale=1.0)
    assert calls == {"text": 1, "kv": 1}
    pipe("a red star", steps=9)
    assert calls == {"text": 2, "kv": 2}


def test_stream_yields_every_step_and_can_be_left(pipe: Pipeline) -> None:
    steps = list(pipe.paint("a red star", steps=4).steps)
    assert [(s.step, s.steps) for s in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    torch.testing.assert_close(steps[-1].x, steps[-1].x0)  # the last level is clean
    seen: list[int] = []
    pictures = pipe("a red star", steps=4, progress=lambda p: seen.append(p.step))
    assert seen == [1, 2, 3, 4] and pictures[0].tobytes() == to_pictures(steps[-1].x)[0].tobytes()


def test_save_and_open(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(last(again, "a red star"), last(pipe, "a red star"))
    pipe.save(tmp_path / "half", dtype=torch.float16)
    half = last(Pipeline.from_pretrained(tmp_path / "half"), "a red star")
    assert 0 < (half - last(pipe, "a red star")).abs().max() < 0.05
    low = Pipeline.from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert low.model.network.patch_in.weight.dtype == torch.bfloat16
    drawn = last(low, "a red star")
    assert drawn.dtype == torch.float32 and (drawn - last(pipe, "a red star")).abs().mean() < 0.1


def test_table_paths_paint_too(pipe: Pipeline) -> None:
    """The same network read as eps and v on DDIM's table, by every sampler: finite, and no two alike."""
    drawn = {}
    for kind in ("epsilon", "v_prediction"):
        config = {"_class_name": "DDIMScheduler", "prediction_type": kind, "clip_sample": True}
        table = with_scheduler(pipe, config)
        for name in ("ddpm", "ddim", "euler", "heun", "dpmpp_2m", "unipc"):
            x = last(table, "a red star", sampler=name)
            assert bool(torch.isfinite(x).all())
            drawn[kind, name] = x.numpy().tobytes()
    assert len(set(drawn.values())) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"sampler": "eular"}, "unknown sampler 'eular'; did you mean 'euler'"),
        ({"schedule": "karas"}, "unknown schedule 'karas'; did you mean 'karras'"),
        ({"num_images": 0}, "number of pictures must be at least 1"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 pictures"),
        ({"seed": -1}, "seed -1 must be a whole number"),
        ({"guidance": 3.0}, "unknown setting 'guidance'; did you mean 'guidance_scale'"),
        ({"rng": "numpy"}, "unknown rng 'numpy'"),
        ({"height": 0}, "height must be at least 2, not 0"),
    ],
)
def test_bad_settings(pipe: Pipeline, settings: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        pipe("a red star", **settings)


def test_long_prompt(pipe: Pipeline) -> None:
    with pytest.raises(LimnerError, match="over the text encoder's context length of 8"):
        pipe("a red star " * 5)
    assert torch.equal(last(pipe, "a red star " * 5, truncate=True), last(pipe, "a red star " * 9, truncate=True))


def test_bad_models(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match="no model at nowhere"):
        Pipeline.from_pretrained("nowhere")
    with pytest.raises(LimnerError, match="holds neither model_index.json nor a checkpoint"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(LimnerError, match="unknown dtype 'float8'"):
        Pipeline.from_pretrained(dtype="float8")
    folder = tmp_path / "model"
    pipe.save(folder)
    with pytest.raises(LimnerError, match="device 'cuda:99' cannot be used here"):
        Pipeline.from_pretrained(folder, device="cuda:99")

    config = read_json(folder / "denoiser/config.json")
    write_json(folder / "denoiser/config.json", config | {"hidden_size": 64})
    with pytest.raises(LimnerError, match=r"patch_in\.weight is \(32, 4\) in the file, \(64, 4\) in the network"):
        Pipeline.from_pretrained(folder)
    write_json(folder / "denoiser/config.json", config | {"depth": 3})
    with pytest.raises(LimnerError, match=r"missing blocks\.2\."):
        Pipeline.from_pretrained(folder)
    write_json(folder / "denoiser/config.json", config | {"width": 3})
    with pytest.raises(LimnerError, match="does not describe a DiT: got an unexpected keyword argument 'width'"):
        Pipeline.from_pretrained(folder)
    (folder / "denoiser/config.json").write_text("{")
    with pytest.raises(LimnerError, match="not valid JSON"):
        Pipeline.from_pretrained(folder)
    write_json(folder / "denoiser/config.json", config)
    weights = folder / "denoiser/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(LimnerError, match="not a valid safetensors file"):
        Pipeline.from_pretrained(folder)
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(LimnerError, match="not a valid safetensors file"):
        Pipeline.from_pretrained(folder)


def test_nan_picture_is_refused() -> None:
    with pytest.raises(LimnerError, match="not numbers"):
        to_pictures(torch.full((1, 1, 2, 2), float("nan")))
