"""Stable Diffusion 3, tiny, against diffusers: whole pictures, with and without T5, from folders of either side."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sd3
import torch
from PIL import Image
from sd import ours, theirs
from sd3 import save_with_diffusers, with_pictures
from test_pictures_in import box, smooth

from limner.cli import main
from limner.errors import LimnerError
from limner.model import Model
from limner.pipeline import Pipeline
from limner.weights.parts import account

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["a cat on a beach, two green squares", "a red star"]
SIZE, NEGATIVE = 64, "blurry"
MASKS = [box(0, 0, 31, 63), box(16, 16, 47, 40)]


class Sides(NamedTuple):
    """diffusers' pipelines, the folder that they saved, and ours of it."""

    text: Any
    image: Any
    inpaint: Any
    folder: Path
    pipe: Pipeline


def both_sides(folder: Path, **options: Any) -> Sides:
    text = save_with_diffusers(folder, **options)
    return Sides(text, *with_pictures(text), folder, Pipeline.from_pretrained(folder))


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return both_sides(tmp_path_factory.mktemp("sd3"))


def compare(reference: Any, pipe: Pipeline, **options: Any) -> None:
    """A batch of two prompts of different lengths."""
    options = {"guidance_scale": 4.0, "width": SIZE, "height": SIZE} | options
    steps, mask = options.pop("steps", 4), options.pop("mask", None)
    masked = {} if mask is None else {"mask_image": mask, "output_type": "latent"}
    unpasted = {} if "image" not in options else {"paste": False}
    common = {"num_inference_steps": steps, **masked, **options}
    wanted = theirs(reference, reference.scheduler, PROMPTS, NEGATIVE, **common)
    if mask is not None:  # diffusers 0.42 decodes inpainted latents without the shift
        vae = reference.vae
        z = wanted / vae.config.scaling_factor + vae.config.shift_factor
        wanted = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    drawn = ours(pipe, PROMPTS, negative_prompt=NEGATIVE, steps=steps, mask=mask, **options, **unpasted)
    assert wanted.std(dim=(1, 2, 3)).min() > 0.05
    assert (got := (drawn - wanted).abs().max().item()) < 1e-3, f"pictures differ by {got:.1e}"


@pytest.mark.parity
class TestParity:
    @pytest.mark.parametrize("options", [{}, {"width": 96}, {"guidance_scale": 1.0}, {"steps": 1}])
    def test_text_to_image(self, sides: Sides, options: dict[str, Any]) -> None:
        compare(sides.text, sides.pipe, **options)

    @pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
    def test_image_to_image(self, sides: Sides, strength: float) -> None:
        compare(sides.image, sides.pipe, image=[smooth(2), smooth(3)], strength=strength, steps=6)

    @pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
    def test_inpainting(self, sides: Sides, strength: float) -> None:
        compare(sides.inpaint, sides.pipe, image=[smooth(2), smooth(3)], mask=MASKS, strength=strength, steps=6)

    def test_inpainting_with_thirty_three_channels(self, tmp_path: Path) -> None:
        one = both_sides(tmp_path, transformer=sd3.TINY_TRANSFORMER | {"in_channels": 33})
        for strength in (0.6, 1.0):
            compare(one.inpaint, one.pipe, image=[smooth(2), smooth(3)], mask=MASKS, strength=strength, steps=6)

    def test_without_t5(self, sides: Sides, tmp_path: Path) -> None:
        """Left out when it is opened, or absent from the folder, as diffusers saves that."""
        text = save_with_diffusers(tmp_path, t5=False)
        compare(text, Pipeline.from_pretrained(tmp_path))
        left_out = Pipeline.from_pretrained(sides.folder, without=["t5"])
        sides.text.text_encoder_3, kept = None, sides.text.text_encoder_3
        try:
            compare(sides.text, left_out)
        finally:
            sides.text.text_encoder_3 = kept

    @pytest.mark.parametrize("width", [64, 96])
    @pytest.mark.parametrize("kind", ["exponential", "linear"])
    def test_a_shift_by_tokens(self, tmp_path: Path, kind: str, width: int) -> None:
        dynamic = {"use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64, "max_shift": 2.0}
        one = both_sides(tmp_path, scheduler=sd3.FLOW | dynamic | {"time_shift_type": kind})
        compare(one.text, one.pipe, width=width)

    def test_what_is_saved_here_opens_there(self, sides: Sides, tmp_path: Path) -> None:
        import diffusers

        for name, without in (("all", ()), ("less", ("t5",))):
            pipe = Pipeline.from_pretrained(sides.folder, without=without)
            pipe.save(tmp_path / name)
            absent = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if without else {}  # as diffusers demands
            reference = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / name, **absent)
            reference.set_progress_bar_config(disable=True)
            compare(reference, pipe)
            again = Pipeline.from_pretrained(tmp_path / name)
            assert torch.equal(ours(again, PROMPTS, steps=3), ours(pipe, PROMPTS, steps=3))


def test_every_tensor_is_accounted_for(sides: Sides) -> None:
    model = sides.pipe.model
    for name, part in model.parts().items():
        found = account(sides.folder / name, type(part).__name__)
        assert len(found.dtypes) - len(found.unused) == len(part.state_dict()) and not found.unused


def test_the_shift_grows_with_the_picture() -> None:
    """exp(mu), mu from 0.5 at 256 tokens to 1.15 at 4096."""
    from limner.schedulers import read_schedule

    config = sd3.FLOW | {"use_dynamic_shifting": True}
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        second = read_schedule(config, 3, tokens=tokens).grid[1].sigma
        plain = (1 + 1 / 1000) / 2
        assert second == pytest.approx(math.exp(mu) * plain / (1 + (math.exp(mu) - 1) * plain))
    fixed = read_schedule(config, 3, shift=2.0, tokens=4096).grid[1].sigma
    assert fixed == pytest.approx(read_schedule(sd3.FLOW | {"shift": 2.0}, 3).grid[1].sigma)


def test_each_encoder_acts_and_can_be_left_out(sides: Sides) -> None:
    whole = ours(sides.pipe, PROMPTS, steps=3)
    for name in ("t5", "clip_l", "clip_g"):
        pipe = Pipeline.from_pretrained(sides.folder, without=[name])
        assert (ours(pipe, PROMPTS, steps=3) - whole).abs().max() > 1e-3, name
    none = Pipeline.from_pretrained(sides.folder, without=["t5", "clip_l", "clip_g"])
    assert torch.equal(*(ours(none, [prompt], steps=3) for prompt in PROMPTS))


def test_a_picture_of_a_batch_is_the_picture_alone(sides: Sides) -> None:
    both = ours(sides.pipe, PROMPTS, seed=[1, 2], rng="keyed", steps=3)
    for k, prompt in enumerate(PROMPTS):
        assert (ours(sides.pipe, [prompt], seed=k + 1, rng="keyed", steps=3)[0] - both[k]).abs().max() < 1e-5
    other = ours(sides.pipe, PROMPTS[::-1], seed=[1, 2], rng="keyed", steps=3)
    assert (other - both).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_a_prompt_over_an_encoder_s_length_is_refused_or_cut(sides: Sides) -> None:
    long = "a red star " * 100
    with pytest.raises(LimnerError, match="over the text encoder's context length of 77 .*--truncate"):
        sides.pipe.paint(long)
    without_clip = Pipeline.from_pretrained(sides.folder, without=["clip_l", "clip_g"])
    with pytest.raises(LimnerError, match="over the text encoder's 256 .*--truncate"):
        without_clip.paint(long)
    cut = ours(sides.pipe, [long], steps=1, truncate=True)
    assert torch.equal(cut, ours(sides.pipe, [long + "and a cat"], steps=1, truncate=True))


def test_the_tokens_of_either_kind_are_shown(sides: Sides, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["inspect", "tokens", "a red star"]
    main([*common, "-m", str(sides.folder), "--tokenizer", "tokenizer_3"])
    shown = capsys.readouterr().out
    assert "▁red" in shown and "</s>" in shown and "4 tokens of 512" in shown
    main([*common, "-m", str(sides.folder / "tokenizer_3")])
    assert capsys.readouterr().out == shown
    main([*common, "-m", str(sides.folder)])
    assert "red</w>" in capsys.readouterr().out


def change(folder: Path, file: str, **entries: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | entries))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "text_encoder_3"), r"no text_encoder_3, the text encoder t5; .*--without t5"),
        (lambda f: shutil.rmtree(f / "tokenizer_3"), "no tokenizer in .*tokenizer_3"),
        (
            lambda f: change(f, "model_index.json", _class_name="StableDiffusionPipeline"),
            "no file .*/unet/config.json",
        ),
        (
            lambda f: change(f, "model_index.json", text_encoder_3=["transformers", "CLIPTextModel"]),
            "text_encoder_3.*does not hold the weights of this CLIPTextModel|vocab_size",
        ),
        (
            lambda f: change(f, "model_index.json", transformer=["diffusers", "FluxTransformer2DModel"]),
            "unknown class of .*/transformer 'FluxTransformer2DModel'",
        ),
        (
            lambda f: change(f, "model_index.json", transformer=["diffusers", "UNet2DConditionModel"]),
            "UNet2DConditionModel",
        ),
        (lambda f: change(f, "text_encoder_3/config.json", d_model=16), "T5EncoderModel"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(sides: Sides, tmp_path: Path, spoil: Any, message: str) -> None:
    shutil.copytree(sides.folder, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(LimnerError, match=message):
        Model.open(tmp_path / "model")


def test_what_cannot_be_left_out_is_named(sides: Sides) -> None:
    with pytest.raises(LimnerError, match="unknown text encoder that can be left out 't4'; did you mean 't5'"):
        Model.open(sides.folder, without=["t4"])
    with pytest.raises(LimnerError, match="t5 cannot be left out: this model needs every text encoder that it has"):
        Model.open(without=["t5"])


def test_the_command_line_leaves_an_encoder_out(sides: Sides, tmp_path: Path) -> None:
    common = ["generate", "a red star", "-m", str(sides.folder), "--steps", "3", "--dtype", "float32", "-o"]
    main([*common, f"{tmp_path}/all.png"])
    main([*common, f"{tmp_path}/less.png", "--without", "t5"])
    painted = [np.asarray(Image.open(tmp_path / f"{name}.png"), dtype=int) for name in ("all", "less")]
    assert np.abs(painted[0] - painted[1]).max() > 0
    [wanted] = Pipeline.from_pretrained(sides.folder, without=["t5"])("a red star", steps=3)
    assert np.array_equal(painted[1], np.asarray(wanted))
