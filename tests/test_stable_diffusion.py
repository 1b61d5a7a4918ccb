"""Stable Diffusion from its folders, against diffusers: tiny networks of random weights, end to end."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sd import (
    CAPTIONS,
    SAMPLERS,
    TINY_TEXT,
    TINY_UNET,
    TINY_VAE,
    as_older_versions_saved,
    ours,
    save_with_diffusers,
    scheduler_like,
    theirs,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limner.cli import main
from limner.errors import LimnerError
from limner.model import Model
from limner.pipeline import Pipeline
from limner.settings import Settings
from limner.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS, NEGATIVE = CAPTIONS[:2], CAPTIONS[3]
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


class Folders(NamedTuple):
    """diffusers' pipeline, its folder, and that folder as older versions wrote it."""

    reference: Any
    saved: Path
    old: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("sd")
    reference = save_with_diffusers(root / "saved")
    return Folders(reference, root / "saved", as_older_versions_saved(root / "saved", root / "old"))


@pytest.fixture(scope="module")
def pipe(folders: Folders) -> Pipeline:
    return Pipeline.from_pretrained(folders.saved)


@pytest.fixture
def copy(folders: Folders, tmp_path: Path) -> Path:
    """A copy of the folder, to damage."""
    return shutil.copytree(folders.saved, tmp_path / "model")


def assert_equal(drawn: torch.Tensor, wanted: torch.Tensor, near: float = 1e-4) -> None:
    """Equal pictures (B, 3, H, W) in 0..1, none of one colour."""
    assert drawn.shape == wanted.shape
    assert wanted.std(dim=(1, 2, 3)).min() > 0.05
    assert (got := (drawn - wanted).abs().max().item()) < near, f"pictures differ by {got:.1e}"


# Pictures


@pytest.mark.parity
@pytest.mark.parametrize("form", ["saved", "old"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_are_diffusers(folders: Folders, sampler: str, form: str) -> None:
    """Of two prompts in a batch, guided away from a negative prompt, by any sampler on the folder's scheduler."""
    schedule, class_name, options = SAMPLERS[sampler]
    folder = getattr(folders, form)
    wanted = theirs(folders.reference, scheduler_like(folder, class_name, **options), PROMPTS, NEGATIVE,
                    num_inference_steps=7, guidance_scale=7.5, height=64, width=64)  # fmt: skip
    drawn = ours(Pipeline.from_pretrained(folder), PROMPTS, negative_prompt=NEGATIVE, steps=7, guidance_scale=7.5,
                 sampler=sampler, schedule=schedule)  # fmt: skip
    assert_equal(drawn, wanted)


@pytest.mark.parity
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m"])
def test_pictures_without_a_negative_prompt_are_diffusers(
    folders: Folders, pipe: Pipeline, sampler: str, guidance_scale: float
) -> None:
    schedule, class_name, options = SAMPLERS[sampler]
    wanted = theirs(folders.reference, scheduler_like(folders.saved, class_name, **options), PROMPTS,
                    num_inference_steps=5, guidance_scale=guidance_scale, height=64, width=64)  # fmt: skip
    drawn = ours(pipe, PROMPTS, steps=5, guidance_scale=guidance_scale, sampler=sampler, schedule=schedule)
    assert_equal(drawn, wanted)


@pytest.mark.parity
@pytest.mark.parametrize(("width", "height"), [(72, 56), (8, 40)])
def test_sides_of_any_multiple_of_8_are_diffusers(folders: Folders, pipe: Pipeline, width: int, height: int) -> None:
    scheduler = scheduler_like(folders.saved, "DDIMScheduler")
    options: dict[str, Any] = {"guidance_scale": 5.0, "width": width, "height": height}
    drawn = ours(pipe, PROMPTS, steps=4, sampler="ddim", **options)
    assert drawn.shape == (2, 3, height, width)
    assert_equal(drawn, theirs(folders.reference, scheduler, PROMPTS, num_inference_steps=4, **options))


@pytest.mark.parity
@pytest.mark.parametrize("form", ["saved", "old"])
def test_without_options_the_folder_says_how_to_paint(folders: Folders, form: str) -> None:
    """diffusers' defaults, too: 50 steps of PLMS at guidance 7.5, at the size of the training."""
    folder = getattr(folders, form)
    pipe = Pipeline.from_pretrained(folder)
    assert_equal(ours(pipe, PROMPTS), theirs(folders.reference, scheduler_like(folder, "PNDMScheduler"), PROMPTS))
    schedule, scale = pipe.resolve(Settings())
    assert (len(schedule.grid) - 1, scale, pipe.model.size) == (50, 7.5, 64)
    [record] = pipe.paint("a red star").records
    assert "Steps: 50, Sampler: pndm, CFG scale: 7.5, Seed: 0, Size: 64x64, " in record


@pytest.mark.parity
def test_a_prompt_that_is_too_long_is_refused_or_cut_as_in_diffusers(folders: Folders, pipe: Pipeline) -> None:
    long = ["a red star on a beach, " * 20]
    with pytest.raises(LimnerError, match="over the text encoder's context length of 77 .*--truncate"):
        pipe.paint(long)
    with pytest.raises(LimnerError, match="over the text encoder's context length of 77"):
        pipe.paint("a red star", negative_prompt=long[0])
    scheduler = scheduler_like(folders.saved, "DDIMScheduler")
    wanted = theirs(folders.reference, scheduler, long, long[0], num_inference_steps=3, guidance_scale=4.0)
    options: dict[str, Any] = {"negative_prompt": long[0], "sampler": "ddim", "steps": 3, "guidance_scale": 4.0}
    assert_equal(ours(pipe, long, **options, truncate=True), wanted)
    assert "Truncate: True" in pipe.paint(long, truncate=True).records[0]


@pytest.mark.parity
def test_stable_diffusion_2_is_its_configuration(tmp_path: Path) -> None:
    """Velocities, linear projections with heads by level, GELU in the text encoder, "!" as padding."""
    first = tmp_path / "tokenizer"
    Tokenizer.train(CAPTIONS, vocab_size=600).save(first)
    settings = json.loads((first / "tokenizer_config.json").read_text())
    (first / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "!"}))
    tokenizer = Tokenizer.from_pretrained(first)
    assert tokenizer.pad == 0 != tokenizer.end
    scheduler = {
        "_class_name": "DDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "clip_sample": False, "prediction_type": "v_prediction", "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    unet = TINY_UNET | {"use_linear_projection": True, "attention_head_dim": (2, 4, 8)}
    text = TINY_TEXT | {"hidden_act": "gelu"}
    reference = save_with_diffusers(tmp_path / "model", unet, None, text, tokenizer, scheduler)
    pipe = Pipeline.from_pretrained(tmp_path / "model")
    for sampler, class_name in ((None, "DDIMScheduler"), ("euler", "EulerDiscreteScheduler")):
        wanted = theirs(reference, scheduler_like(tmp_path / "model", class_name), PROMPTS, NEGATIVE,
                        num_inference_steps=5)  # fmt: skip
        assert_equal(ours(pipe, PROMPTS, negative_prompt=NEGATIVE, steps=5, sampler=sampler), wanted)


@pytest.mark.parametrize("sampler", ["pndm", "euler_a"])
def test_a_picture_of_a_batch_is_the_picture_alone(pipe: Pipeline, sampler: str) -> None:
    options: dict[str, Any] = {"rng": "keyed", "steps": 5, "sampler": sampler, "negative_prompt": NEGATIVE}
    together = ours(pipe, PROMPTS, seed=8, num_images=2, **options)
    assert len(together) == 4
    for k, prompt in enumerate(p for p in PROMPTS for _ in range(2)):
        assert (together[k : k + 1] - ours(pipe, [prompt], seed=8 + k, **options)).abs().max() < 1e-5
    apart = (together[:, None] - together).abs().amax(dim=(2, 3, 4)) + torch.eye(4)
    assert apart.min() > 0.05


def test_keys_and_values_of_the_text_are_computed_once_a_picture(pipe: Pipeline) -> None:
    calls: Counter[str] = Counter()
    projections = [(name, m) for name, m in pipe.model.network.named_modules() if name.endswith((".to_k", ".to_v"))]
    hooks = [m.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, m in projections]
    ours(pipe, PROMPTS, steps=3, sampler="ddim")
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(projections) > 0
    for name, count in calls.items():
        assert count == (1 if "attn2" in name else 3), name


class NoFloat64(TorchDispatchMode):
    """Fails on a tensor of float64, which no accelerator is fast at and some do not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        assert not any(each.dtype == torch.float64 for each in made), f"{func} gives float64"
        return result


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_float64_once_the_schedule_is_made(
    pipe: Pipeline, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with NoFloat64(), pytest.raises(AssertionError, match="gives float64"):
        torch.ones(2).double()
    options: dict[str, Any] = {"steps": 3, "sampler": sampler, "schedule": SAMPLERS[sampler][0]}
    resolved = pipe.resolve(Settings(**options))  # its tables are float64, of numpy and never on the device
    monkeypatch.setattr(pipe, "resolve", lambda settings: resolved)
    for rng in ("keyed", "torch"):
        with NoFloat64():
            drawn = ours(pipe, PROMPTS, rng=rng, negative_prompt=NEGATIVE, guidance_rescale=0.5, **options)
        assert drawn.dtype == torch.float32


# Files


@pytest.mark.parity
@pytest.mark.parametrize("form", ["saved", "old"])
def test_what_is_saved_opens_in_diffusers_and_again(folders: Folders, tmp_path: Path, form: str) -> None:
    import diffusers

    Model.open(getattr(folders, form)).save(tmp_path / "again")
    before, after = (Pipeline.from_pretrained(folder) for folder in (getattr(folders, form), tmp_path / "again"))
    assert (before.model.scheduler, before.model.defaults) == (after.model.scheduler, after.model.defaults)
    options: dict[str, Any] = {"negative_prompt": NEGATIVE, "steps": 4}
    drawn = ours(after, PROMPTS, **options)
    assert torch.equal(drawn, ours(before, PROMPTS, **options))
    reference = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "again", safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    wanted = theirs(reference, reference.scheduler, PROMPTS, NEGATIVE, num_inference_steps=4, height=64, width=64)
    assert_equal(drawn, wanted)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's list of mapped files")
@pytest.mark.parametrize("form", ["saved", "old"])
def test_the_weights_stay_in_their_files(folders: Folders, form: str) -> None:
    """But for the autoencoder's, copied to channels-last format, whose file is not mapped any more."""
    folder = getattr(folders, form)
    parts = Model.open(folder).parts()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    assert not any("/vae/" in line[-1] for line in maps)
    del parts["vae"]
    for name, part in parts.items():
        ranges = [[int(end, 16) for end in line[0].split("-")] for line in maps if f"/{name}/" in line[-1]]
        for weight in part.state_dict().values():
            assert any(a <= weight.data_ptr() < b for a, b in ranges)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(LimnerError, match=f"{copy / part}"):
        Model.open(copy)


def other_unet(**changes: Any) -> Callable[[], dict[str, Any]]:
    import diffusers

    return lambda: {"unet": diffusers.UNet2DConditionModel(**TINY_UNET | changes)}


def other_vae() -> dict[str, Any]:
    import diffusers

    return {"vae": diffusers.AutoencoderKL(**TINY_VAE | {"latent_channels": 16})}


def other_text() -> dict[str, Any]:
    import transformers

    config = TINY_TEXT | {"hidden_size": 32, "vocab_size": 600, "bos_token_id": 1, "eos_token_id": 2}
    return {"text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_vae, "the network paints 4 channels, the autoencoder's latents have 16"),
        (other_text, "the UNet's cross_attention_dim is 24, but the text encoder's states have 32"),
        (
            lambda: other_unet(in_channels=8)(),
            "the UNet takes 8 channels and gives 4; supported are 4 and, for inpainting, 9",
        ),
        (
            lambda: other_unet(in_channels=8, out_channels=8)(),
            "the network paints 8 channels, the autoencoder's latents have 4",
        ),
        (
            lambda: other_unet(class_embed_type="timestep")(),
            "a UNet with class_embed_type 'timestep' is not supported, only None",
        ),
    ],
    ids=["vae", "text encoder", "UNet of more inputs", "UNet of other latents", "UNet with classes"],
)
def test_a_part_of_another_model_is_refused(copy: Path, make: Callable[[], dict[str, Any]], message: str) -> None:
    for name, part in make().items():
        shutil.rmtree(copy / name)
        part.save_pretrained(copy / name)
    with pytest.raises(LimnerError, match=message) as refused:
        Model.open(copy)
    assert str(copy) in str(refused.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"unet": ["diffusers", "FluxTransformer2DModel"]}, "unknown class of .*/unet 'FluxTransformer2DModel'"),
        ({"unet": ["diffusers", "AutoencoderKL"]}, "unknown class of .*/unet 'AutoencoderKL'"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "unknown class of .*/vae 'AutoencoderTiny'"),
        ({"text_encoder": ["transformers", "SiglipModel"]}, "unknown class of .*/text_encoder 'SiglipModel'"),
        (
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "text_encoder/.* does not hold the weights of this T5EncoderModel",
        ),
        (
            {"_class_name": "FluxPipeline"},
            "models of the class 'FluxPipeline' are not supported; supported: .*LimnerPipeline, StableDiff",
        ),
        ({"vae": [None, None]}, "what is painted has 4 channels, and model_index.json names no vae"),
    ],
)
def test_a_class_of_another_family_is_refused(copy: Path, entries: dict[str, Any], message: str) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | entries))
    with pytest.raises(LimnerError, match=message) as refused:
        Model.open(copy)
    assert str(copy) in str(refused.value)


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        (UNET_FILE, "mid_block.resnets.0.conv1.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias"),
        ("text_encoder/model.safetensors", "final_layer_norm.bias"),
    ],
)
def test_weights_that_are_not_numbers_are_named(copy: Path, file: str, tensor: str) -> None:
    tensors = load_file(copy / file)
    [name] = [each for each in tensors if each.endswith(tensor)]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, copy / file, metadata={"format": "pt"})
    part = file.partition("/")[0]
    with pytest.raises(LimnerError, match=f"the weights of the {part} are not finite: .*{tensor} holds NaN"):
        Pipeline.from_pretrained(copy)("a red star", steps=1)


# Sizes, dtypes and devices


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 60}, "width 60 is not a multiple of 8, as this model needs; try 64"),
        ({"height": 100, "width": 64}, "height 100 is not a multiple of 8, as this model needs; try 96"),
        ({"height": 3}, "height 3 is not a multiple of 8, as this model needs; try 8"),
        ({"height": 0}, "height must be at least 8, not 0"),
    ],
)
def test_a_side_that_is_no_multiple_of_8_is_refused(pipe: Pipeline, size: dict[str, int], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        pipe.paint("a red star", **size)


def dtypes(model: Model) -> dict[str, torch.dtype]:
    """The one dtype of each part."""
    found = {name: {p.dtype for p in part.parameters()} for name, part in model.parts().items()}
    assert all(len(each) == 1 for each in found.values())
    return {name: each.pop() for name, each in found.items()}


@pytest.mark.parametrize("dtype", ["bfloat16,vae=float32", "float32,text_encoder=bfloat16", "float32,unet=float16"])
def test_a_part_may_have_a_dtype_of_its_own(folders: Folders, pipe: Pipeline, dtype: str) -> None:
    every, part, own = dtype.replace("=", ",").split(",")
    mixed = Pipeline.from_pretrained(folders.saved, dtype=dtype)
    wanted = dict.fromkeys(("unet", "text_encoder", "vae"), every) | {part: own}
    assert dtypes(mixed.model) == {name: getattr(torch, each) for name, each in wanted.items()}
    drawn, exact = (ours(p, PROMPTS, steps=4, guidance_scale=3.0) for p in (mixed, pipe))
    assert drawn.dtype == torch.float32
    assert 0 < (drawn - exact).square().mean().sqrt() < 0.02


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("bfloat61", "unknown dtype 'bfloat61'; did you mean 'bfloat16'"),
        ("auto,vea=float32", "unknown part 'vea'; did you mean 'vae'.* Known: text_encoder, unet, vae"),
        ("float32,vae=half", "unknown dtype 'half'"),
    ],
)
def test_an_unknown_dtype_or_part_is_refused(folders: Folders, dtype: str, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        Model.open(folders.saved, dtype=dtype)


@pytest.fixture(params=["bfloat16", "float32"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """What "auto" is on this device: both kinds of it."""
    dtype = getattr(torch, request.param)
    monkeypatch.setattr("limner.model.fast_dtype", lambda device: dtype)
    yield dtype


def test_auto_is_what_the_family_tolerates(folders: Folders, fast: torch.dtype) -> None:
    assert set(dtypes(Model.open(folders.saved, dtype="auto")).values()) == {fast}
    assert set(dtypes(Model.open(None, dtype="auto")).values()) == {torch.float32}
    assert dtypes(Model.open(folders.saved, dtype="auto,vae=float32")) == {
        "unet": fast, "text_encoder": fast, "vae": torch.float32,
    }  # fmt: skip
    assert set(dtypes(Model.open(folders.saved)).values()) == {torch.float32}


def test_the_command_line_says_what_auto_chose(
    folders: Folders, tmp_path: Path, fast: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "a cat on a beach", "--model", str(folders.saved), "--steps", "3", "--output"]
    rounded = fast == torch.bfloat16
    for arguments, is_told, recorded in (
        ([], rounded, "bfloat16" if rounded else None),
        (["--dtype", "auto,vae=float32"], rounded, '"bfloat16,vae=float32"' if rounded else None),
        (["--dtype", "auto,unet=float32,text_encoder=float32"], rounded, '"float32,vae=bfloat16"' if rounded else None),
        (["--dtype", "float32"], False, None), (["--dtype", "bfloat16"], False, "bfloat16"),
        (["--dtype", "float32,vae=bfloat16"], False, '"float32,vae=bfloat16"'),
    ):  # fmt: skip
        file = tmp_path / "out.png"
        main([*common, str(file), *arguments])
        printed = capsys.readouterr().err
        said = (recorded or "").strip('"')
        told = f"limner: painting in {said}, --dtype {arguments[1] if arguments else 'auto'}; float32 is exact\n"
        assert printed.replace(f"limner: {file} is overwritten\n", "") == (told if is_told else ""), arguments
        with Image.open(file) as picture:
            record = picture.info["parameters"]
        assert (f"Precision: {recorded}, " in record) == ("Precision" in record) == (recorded is not None)


def test_the_command_line_takes_the_device_that_is_found(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("limner.model.find_device", lambda name: (asked.append(name), torch.device("cpu"))[1])
    common = ["generate", "a red star", "--model", str(folders.saved), "--steps", "1", "-o", str(tmp_path / "a.png")]
    for arguments in ([], ["--device", "auto"], ["--device", "cpu"]):
        main([*common, *arguments])
    assert asked == ["auto", "auto", "cpu"]


def test_bad_input_on_the_command_line(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--width", "60"], "width 60 is not a multiple of 8"),
        (["--dtype", "auto,vea=float32"], "unknown part 'vea'"),
        (["--device", "toaster"], "device 'toaster' cannot be used here"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["generate", "a red star", "--model", str(copy), "-o", str(tmp_path / "a.png"), *arguments])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "channels_last"), [("float32", False), ("bfloat16", True), ("float16", True)])
def test_the_unets_kernels_are_channels_last_where_that_is_faster(
    folders: Folders, dtype: str, channels_last: bool
) -> None:
    kernel = Model.open(folders.saved, dtype=dtype).network.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_an_index_without_the_network_s_class_opens_it_all_the_same(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    for entry in (None, [None, None]):
        (copy / "model_index.json").write_text(json.dumps(index | {"unet": entry}))
        assert type(Model.open(copy).network).__name__ == "UNet2DConditionModel"


def test_the_pipeline_opens_pickles_if_allowed(copy: Path) -> None:
    unet = copy / UNET_FILE
    torch.save(load_file(unet), unet.with_suffix(".bin"))
    unet.unlink()
    with pytest.raises(LimnerError, match="allow_pickle=True"):
        Pipeline.from_pretrained(copy)
    assert Pipeline.from_pretrained(copy, allow_pickle=True).model.parts().keys() == {"unet", "vae", "text_encoder"}
