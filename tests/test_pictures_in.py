"""Pictures in: image to image, inpainting with 4 and 9 channels, outpainting, variations; against diffusers on tiny
networks of random weights, and by what must hold of any model."""

import contextlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from sd import CAPTIONS, SAMPLERS, TINY_UNET, ours, save_with_diffusers, scheduler_like, theirs, with_pictures

from limner.canvas import Frame, latent_mask, parse_extend, plan
from limner.cli import main
from limner.denoise import keep
from limner.errors import LimnerError, LimnerWarning
from limner.look.run import calls, run, usage
from limner.noise.draws import KeyedNoise, normal, slerp
from limner.noise.level import Level
from limner.pipeline import Pipeline
from limner.schedulers import read_schedule

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS, NEGATIVE = CAPTIONS[:2], CAPTIONS[3]
NAMES = [name for name in SAMPLERS if name != "pndm"]  # diffusers starts PLMS in the middle of its first step
SIZE = 64


def smooth(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A picture (width, height) without sharp edges."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def grey(seed: int) -> Image.Image:
    """For the model in pixels, which has one channel."""
    return smooth(seed, (8, 8)).convert("L")


def box(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A mask, white in the box."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (left, top, right, bottom))
    return mask


PICTURES = [smooth(0), smooth(1)]
MASKS = [box(16, 8, 56, 40), box(0, 24, 32, 64)]


class Sides(NamedTuple):
    """A model in limner, and diffusers' pipelines of it for image to image and inpainting, and its folder."""

    pipe: Pipeline
    image: Any
    inpaint: Any
    folder: Path


def both_sides(folder: Path, channels: int) -> Sides:
    image, inpaint = with_pictures(save_with_diffusers(folder, unet=TINY_UNET | {"in_channels": channels}))
    inpaint.save_pretrained(folder)
    return Sides(Pipeline.from_pretrained(folder), image, inpaint, folder)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return both_sides(tmp_path_factory.mktemp("four"), 4)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return both_sides(tmp_path_factory.mktemp("nine"), 9)


@pytest.fixture(scope="module")
def pixels() -> Pipeline:
    """A text-to-image model in pixels."""
    return tiny_pipeline(["a red star", "a blue square"], steps=4)


def compare_with_pictures(sides: Sides, sampler: str, strength: float, masks: Any, **options: Any) -> None:
    """A batch of two in limner and in diffusers, with pasting off."""
    schedule, class_name, config = SAMPLERS[sampler]
    request = {"strength": strength, "image": PICTURES, "guidance_scale": 4.0} | options
    if masks is not None:
        request = {"width": SIZE, "height": SIZE} | request
    reference, more = (sides.image, {}) if masks is None else (sides.inpaint, {"mask_image": masks})
    scheduler = scheduler_like(sides.folder, class_name, **config)
    wanted = theirs(reference, scheduler, PROMPTS, NEGATIVE, num_inference_steps=6, **request, **more)
    named = {"negative_prompt": NEGATIVE, "sampler": sampler, "schedule": schedule, "steps": 6, "paste": False}
    drawn = ours(sides.pipe, PROMPTS, mask=masks, **request, **named)
    assert wanted.std(dim=(1, 2, 3)).min() > 0.05
    assert (got := (drawn - wanted).abs().max().item()) < 1e-3, f"pictures differ by {got:.1e}"


# Against diffusers


@pytest.mark.parity
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("sampler", NAMES)
class TestParity:
    def test_image_to_image(self, four: Sides, sampler: str, strength: float) -> None:
        compare_with_pictures(four, sampler, strength, None)

    def test_inpainting_by_putting_back(self, four: Sides, sampler: str, strength: float) -> None:
        compare_with_pictures(four, sampler, strength, MASKS)

    def test_inpainting_with_nine_channels(self, nine: Sides, sampler: str, strength: float) -> None:
        compare_with_pictures(nine, sampler, strength, MASKS)


@pytest.mark.parity
def test_a_mask_of_any_shape_and_a_picture_of_another_size_are_taken_as_diffusers_takes_them(four: Sides) -> None:
    noise = Image.fromarray(np.random.default_rng(5).integers(0, 256, (100, 80), dtype=np.uint8))
    pictures = [smooth(2, (80, 100)), smooth(3, (80, 100))]
    with pytest.warns(LimnerWarning):
        compare_with_pictures(four, "ddim", 0.6, [noise, noise], image=pictures)


@pytest.mark.parity
def test_one_picture_and_mask_serve_all_prompts_as_in_diffusers(four: Sides) -> None:
    compare_with_pictures(four, "euler_a", 0.6, MASKS[0], image=PICTURES[0])


@pytest.mark.parity
def test_a_picture_is_sampled_from_its_posterior_or_encoded_by_its_mean(four: Sides) -> None:
    from diffusers.image_processor import VaeImageProcessor

    x = VaeImageProcessor().preprocess(PICTURES)
    posterior = four.image.vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))
    scale = four.image.vae.config.scaling_factor
    for drawn, wanted in ((None, posterior.mean), (noise, posterior.mean + posterior.std * noise)):
        assert (four.pipe.model.encode(x, drawn) - scale * wanted).abs().max() < 1e-4


# What must hold of any model


def paint(pipe: Pipeline, prompt: Any = "a red star", **options: Any) -> list[np.ndarray]:
    return [np.asarray(picture) for picture in pipe(prompt, **{"steps": 4, "seed": 3} | options)]


@pytest.fixture(params=["four", "nine", "pixels"])
def any_model(request: pytest.FixtureRequest) -> tuple[Pipeline, int, Image.Image]:
    """A model, the side of its pictures, and one of those."""
    made = request.getfixturevalue(request.param)
    return (made, 8, grey(4)) if request.param == "pixels" else (made.pipe, SIZE, smooth(4))


def test_the_kept_pixels_are_those_of_the_picture(any_model: tuple[Pipeline, int, Image.Image]) -> None:
    pipe, size, picture = any_model
    mask = box(1, 2, size // 2, size - 3, (size, size))
    area, before = np.asarray(mask) > 0, np.asarray(picture)
    for feather in (0, 2):
        (drawn,) = paint(pipe, image=picture, mask=mask, feather=feather)
        assert np.array_equal(drawn[~area], before[~area])
        assert (drawn[area] != before[area]).mean() > 0.5
    (drawn,) = paint(pipe, image=picture, mask=mask, paste=False)
    assert (drawn[area] != before[area]).mean() > 0.5


def test_without_pasting_the_kept_pixels_went_through_the_autoencoder(four: Sides) -> None:
    (drawn,) = paint(four.pipe, image=PICTURES[0], mask=MASKS[0], paste=False)
    assert not np.array_equal(drawn[48:], np.asarray(PICTURES[0])[48:])


def test_a_black_mask_gives_the_picture_back_and_says_so(any_model: tuple[Pipeline, int, Image.Image]) -> None:
    pipe, size, picture = any_model
    with pytest.warns(LimnerWarning, match="nothing of the mask is nearer to white than to black at"):
        (drawn,) = paint(pipe, image=picture, mask=Image.new("L", (size, size)))
    assert np.array_equal(drawn, np.asarray(picture))


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun", "unipc", "pndm"])
def test_a_white_mask_is_text_to_image(any_model: tuple[Pipeline, int, Image.Image], sampler: str) -> None:
    pipe, size, picture = any_model
    plain = paint(pipe, width=size, height=size, sampler=sampler)
    masked = paint(pipe, image=picture, mask=Image.new("L", (size, size), 255), sampler=sampler)
    assert np.array_equal(plain, masked)


def test_a_picture_of_a_batch_is_the_picture_alone(any_model: tuple[Pipeline, int, Image.Image]) -> None:
    pipe, size, picture = any_model
    pictures = [picture, picture.rotate(90)]
    masks = [box(0, 0, size // 2, size, (size, size)), box(1, 2, size, size // 2, (size, size))]
    prompts = ["a red star", "a blue square"]
    together = paint(pipe, prompts, image=pictures, mask=masks, num_images=2)
    for i in range(2):
        alone = paint(pipe, prompts[i], image=pictures[i], mask=masks[i], num_images=2, seed=3 + 2 * i)
        for a, b in zip(together[2 * i : 2 * i + 2], alone, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1
    assert not np.array_equal(together[0], together[1])


def test_the_prompt_the_picture_and_the_mask_matter(any_model: tuple[Pipeline, int, Image.Image]) -> None:
    pipe, size, picture = any_model
    request = {"image": picture, "mask": box(0, 0, size // 2, size, (size, size)), "paste": False}
    base = paint(pipe, **request, guidance_scale=4.0)
    for change in (
        {"prompt": "a blue square"},
        {"image": picture.rotate(90)},
        {"mask": box(0, 0, size, size // 2, (size, size))},
        {"strength": 0.5},
        {"seed": 4},
    ):
        assert not np.array_equal(base, paint(pipe, **request | {"guidance_scale": 4.0} | change)), change


def test_strength_zero_is_the_picture_encoded_and_decoded(four: Sides, pixels: Pipeline) -> None:
    model = four.pipe.model
    x = torch.from_numpy(np.array(PICTURES[0])).permute(2, 0, 1)[None].float() / 127.5 - 1
    wanted = ((model.decode(model.encode(x)).clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).byte().numpy()
    (drawn,) = paint(four.pipe, image=PICTURES[0], strength=0)
    assert np.array_equal(drawn, wanted)
    (drawn,) = paint(pixels, image=grey(4), strength=0)
    assert np.array_equal(drawn, np.asarray(grey(4)))


def test_less_strength_stays_nearer_to_the_picture(pixels: Pipeline) -> None:
    picture = grey(4)
    away = [
        np.abs(paint(pixels, image=picture, strength=s, steps=10)[0].astype(int) - np.asarray(picture)).mean()
        for s in (0.0, 0.1, 0.5, 1.0)
    ]
    assert away == sorted(away) and away[0] == 0


def test_the_steps_of_a_strength_are_counted_as_in_diffusers() -> None:
    schedule = read_schedule({"_class_name": "DDIMScheduler"}, 20)
    assert schedule.cut(1.0) == schedule
    assert schedule.cut(0.0).grid == schedule.grid[-1:]
    for strength, steps in ((0.3, 6), (0.99, 19), (0.05, 1), (0.5, 10)):
        assert schedule.cut(strength).grid == schedule.grid[20 - steps :]


def test_the_steps_that_ran_are_told(pixels: Pipeline) -> None:
    painting = pixels.paint("a red star", image=grey(4), strength=0.5, steps=8)
    assert [(step.step, step.steps) for step in painting.steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_kept_part_has_its_own_noise_at_every_level_after_the_first() -> None:
    seen = []

    def denoise(x: torch.Tensor, level: Level) -> torch.Tensor:
        seen.append(x)
        return torch.full_like(x, 7.0)

    known, noise, x = (torch.randn(1, 2, 2, 2) for _ in range(3))
    mask = torch.tensor([[[[True, False], [False, False]]]])
    first, second = Level(900.0, 0.6, 0.8), Level(100.0, 0.8, 0.6)
    kept = keep(denoise, known, mask, noise, first)
    for level, outside in ((first, x), (second, 0.8 * known + 0.6 * noise)):
        x0 = kept(x, level)
        assert torch.equal(seen[-1], torch.where(mask, x, outside))
        assert torch.equal(x0, torch.where(mask, torch.tensor(7.0), known))


def test_a_latent_is_repainted_where_any_of_its_pixels_is() -> None:
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 8, 8] = mask[0, 0, 3, 12] = True
    assert latent_mask(mask, 8, nearest=False)[0, 0].tolist() == [[False, True], [False, True]]
    assert latent_mask(mask, 8, nearest=True)[0, 0].tolist() == [[False, False], [False, True]]
    assert torch.equal(latent_mask(mask, 1, nearest=False), mask)


# Outpainting


def test_extending_keeps_the_picture_where_it_was_but_for_the_overlap(
    any_model: tuple[Pipeline, int, Image.Image],
) -> None:
    pipe, size, picture = any_model
    frame = pipe.model.network.multiple * pipe.model.factor
    (drawn,) = paint(pipe, image=picture, extend=f"left={frame},bottom={2 * frame}", feather=0)
    assert drawn.shape[:2] == (size + 2 * frame, size + frame)
    kept = np.asarray(picture)[: size - frame, frame:]
    assert np.array_equal(drawn[: size - frame, 2 * frame :], kept)
    assert not np.array_equal(drawn[:size, frame:], np.asarray(picture))


def test_an_extension_is_rounded_up_and_told() -> None:
    frame = Frame(8, 64, 3)
    with pytest.warns(LimnerWarning, match="extended by left=16,top=8: this model paints multiples of 8"):
        layout = plan((64, 64), None, None, "top=8,left=9", frame)
    assert layout.margins == (16, 8, 0, 0)
    assert layout.painted == (80, 72)


def test_an_extension_and_a_mask_are_both_repainted(four: Sides) -> None:
    (drawn,) = paint(four.pipe, image=PICTURES[0], mask=box(48, 48, 64, 64), extend="left=8", feather=0)
    old = np.asarray(PICTURES[0])
    assert np.array_equal(drawn[:, 16:][:48], old[:48, 8:])
    assert np.array_equal(drawn[48:, 16:56], old[48:, 8:48])
    assert not np.array_equal(drawn[48:, 56:], old[48:, 48:])


def test_the_added_pixels_start_from_the_edge(four: Sides) -> None:
    from limner.canvas import open_canvas

    layout = plan((64, 64), None, None, "right=8,top=16", Frame(8, 64, 3))
    canvas = open_canvas(PICTURES[:1], [], layout, Frame(8, 64, 3))
    old = np.asarray(PICTURES[0])
    assert np.array_equal(canvas.pictures[0][16:, :64], old)
    assert np.array_equal(canvas.pictures[0][16:, 64:], old[:, -1:].repeat(8, axis=1))
    assert np.array_equal(canvas.pictures[0][:16, :64], old[:1].repeat(16, axis=0))
    assert canvas.overlap == 8
    wanted = np.ones((80, 72), bool)
    wanted[24:, :56] = False
    assert np.array_equal(canvas.masks[0], wanted)


@pytest.mark.parametrize(
    "text", ["", "left", "left=", "left=-8", "up=8", "left=8;top=8", "left=0", "left=1e3", "left=8,left=16", "top=8,"]
)
def test_an_extension_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(LimnerError, match="such as left=128,top=64|adds nothing"):
        parse_extend(text)


# Sizes


@pytest.mark.parametrize(
    ("own", "asked", "painted"),
    [
        ((64, 64), (None, None), (64, 64)),
        ((70, 100), (None, None), (64, 96)),
        ((3, 300), (None, None), (8, 296)),
        ((128, 128), (None, None), (128, 128)),
        ((4000, 3000), (None, None), (72, 48)),  # as large as the model was trained at
        ((200, 100), (64, None), (64, 32)),
        ((200, 100), (None, 64), (128, 64)),
        ((200, 100), (96, 96), (96, 96)),
    ],
)
def test_the_size_of_a_picture(
    own: tuple[int, int], asked: tuple[int | None, int | None], painted: tuple[int, int]
) -> None:
    with pytest.warns(LimnerWarning) if own != painted else contextlib.nullcontext() as caught:
        assert plan(own, *asked, None, Frame(8, 64, 3)).size == painted
    if own != painted:
        assert str(caught[0].message) == f"the picture of {own[0]}x{own[1]} is resized to {painted[0]}x{painted[1]}"


# Variations


def test_a_variation_at_zero_and_one_is_either_seeds_picture(four: Sides) -> None:
    for sampler in ("euler", "euler_a"):  # the second draws noise at every step
        request = {"width": SIZE, "height": SIZE, "sampler": sampler}
        one, other = paint(four.pipe, seed=3, **request), paint(four.pipe, seed=8, **request)
        between = [paint(four.pipe, seed=3, variation_seed=8, variation_strength=s, **request) for s in (0, 0.3, 1)]
        assert np.array_equal(between[0], one) and np.array_equal(between[2], other)
        assert not np.array_equal(between[1], one) and not np.array_equal(between[1], other)


def test_several_variations_turn_one_seed_towards_several(pixels: Pipeline) -> None:
    turned = paint(pixels, seed=3, variation_seed=8, variation_strength=0.2, num_images=3)
    for k in range(3):
        assert np.array_equal(turned[k], paint(pixels, seed=3, variation_seed=8 + k, variation_strength=0.2)[0])


def test_turned_noise_is_unit_noise() -> None:
    shape = (4, 64, 64)
    a, b = normal(1, shape), normal(2, shape)
    for t in (0.1, 0.5, 0.9):
        noise = KeyedNoise([1], shape, others=[2], turn=t).start()[0].numpy()
        assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.02
        angle = np.arccos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
        turned = np.arccos(np.vdot(a, noise) / np.linalg.norm(a) / np.linalg.norm(noise))
        assert abs(turned - t * angle) < 0.02
        assert noise.dtype == np.float32
    assert np.abs(slerp(a, a, 0.5) - a).max() < 1e-6


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": PICTURES[0], "strength": 1.1}, "strength must be from 0 to 1, not 1.1"),
        ({"image": PICTURES[0], "strength": float("nan")}, "strength must be a number, not nan"),
        ({"image": PICTURES[0], "strength": 0.2}, "strength 0.2 runs none of 4 steps; the least is 0.25"),
        ({"mask": MASKS[0]}, "mask needs a picture to repaint: give an image"),
        ({"extend": "left=8"}, "extend needs a picture to repaint: give an image"),
        ({"image": []}, "no image was given"),
        ({"image": ""}, "no image was given"),
        ({"image": PICTURES[0], "mask": []}, "no mask was given"),
        ({"num_images": 2**16 + 1}, "65537 pictures are over the most at once, 65536"),
        ({"image": PICTURES}, "2 pictures were given for 1 prompts; give one, or one each"),
        ({"image": PICTURES[0], "mask": MASKS}, "2 masks were given for 1 pictures; give one, or one each"),
        ({"image": 3}, "must be a file or a PIL picture, not a int"),
        ({"image": "nowhere.png"}, "nowhere.png cannot be read as a picture: there is no such file"),
        ({"image": PICTURES[0], "width": 20}, "width 20 is not a multiple of 8"),
        ({"image": PICTURES[0], "width": 0}, "width must be at least 8, not 0"),
        ({"image": PICTURES[0], "feather": -1}, "feather must be at least 0 pixels, not -1"),
        ({"variation_seed": 3}, "a variation needs both"),
        ({"variation_strength": 0.5}, "a variation needs both"),
        ({"variation_seed": 3, "variation_strength": 2.0}, "variation_strength must be from 0 to 1, not 2"),
        ({"variation_seed": -1, "variation_strength": 0.5}, "seed -1 must be a whole number"),
        ({"variation_seed": 3, "variation_strength": 0.5, "rng": "torch"}, "a variation turns keyed noise"),
    ],
)
@pytest.mark.filterwarnings("ignore::limner.errors.LimnerWarning")
def test_what_cannot_be_done_is_refused(four: Sides, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        paint(four.pipe, **options)


def test_pictures_of_other_sizes_in_a_batch_are_told(four: Sides) -> None:
    with pytest.warns(LimnerWarning, match="the picture of 96x64 is resized to 64x64"):
        paint(four.pipe, PROMPTS, image=[PICTURES[0], smooth(1, (96, 64))])


def test_the_kept_pixels_fade_over_the_feather(four: Sides) -> None:
    """Between the pasted picture without feather and the original, by the distance to the kept area."""
    request = {"image": PICTURES[0], "mask": box(16, 0, 64, 64)}
    (hard,), (soft,) = paint(four.pipe, **request), paint(four.pipe, **request, feather=3)
    old = np.asarray(PICTURES[0]).astype(float)
    for distance, weight in ((0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (9, 1.0)):
        x = 15 + distance
        assert np.abs(old[:, x] + weight * (hard[:, x] - old[:, x]) - soft[:, x]).max() <= 1
    (wide,) = paint(four.pipe, image=PICTURES[0], extend="right=16")
    (half,) = paint(four.pipe, image=PICTURES[0], extend="right=16", feather=4)  # half of the overlap
    (none,) = paint(four.pipe, image=PICTURES[0], extend="right=16", feather=0)
    assert np.array_equal(wide, half) and not np.array_equal(wide, none)
    with pytest.warns(LimnerWarning, match="the feather is cut to the extension's overlap, 8"):
        (cut,) = paint(four.pipe, image=PICTURES[0], extend="right=16", feather=64)
    assert np.array_equal(cut[:, 64:], none[:, 64:])


def test_the_default_strengths(pixels: Pipeline) -> None:
    request = {"image": grey(4), "steps": 10}
    for more, strength in (({}, 0.8), ({"mask": box(0, 0, 4, 8, (8, 8))}, 1.0), ({"extend": "left=2"}, 1.0)):
        assert np.array_equal(
            paint(pixels, **request | more)[0], paint(pixels, **request | more | {"strength": strength})[0]
        )
        assert f"Denoising strength: {strength:g}" in pixels.paint("a red star", **request | more).records[0]


def test_a_batch_of_pictures_of_torch_s_generator_is_told_apart(four: Sides) -> None:
    request = {"rng": "torch", "steps": 4, "seed": 5}
    one = four.pipe.paint(PROMPTS, image=PICTURES[0], **request).records
    two = four.pipe.paint(PROMPTS, image=[PICTURES[0]] * 2, **request).records
    assert one != two and all("Init images: 2" in record for record in two)


def test_a_strength_that_starts_from_noise_alone_is_told(pixels: Pipeline) -> None:
    """A flow's first level holds nothing of the picture, and the steps of a strength are rounded up there."""
    with pytest.warns(LimnerWarning, match="strength 0.8 of 3 steps starts from noise alone, without the picture"):
        pixels.paint("a red star", image=grey(0), steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels.paint("a red star", image=grey(0), steps=5)


def test_what_has_no_effect_is_told(four: Sides) -> None:
    for options, message in (
        ({"image": PICTURES[0], "mask": MASKS[0], "paste": False, "feather": 4}, "no effect with pasting off"),
        ({"strength": 0.5}, "the strength has no effect with no picture to start from"),
        ({"feather": 4}, "the feather has no effect with no picture to start from"),
        ({"image": PICTURES[0], "feather": 4}, "the feather has no effect with no mask"),
        ({"image": PICTURES[0], "mask": smooth(1, (32, 32))}, "the mask of 32x32 is resized to 64x64"),
    ):
        with pytest.warns(LimnerWarning, match=message):
            paint(four.pipe, **{"width": SIZE, "height": SIZE} | options)


# The command line and the record


def test_the_command_line_and_what_it_writes(
    four: Sides, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    PICTURES[0].save("in.png")
    MASKS[0].save("mask.png")
    base = ["generate", "a red star", "--model", str(four.folder), "--steps", "4", "--dtype", "float32"]
    main([*base, "--image", "in.png", "--strength", "0.5", "-o", "a.png"])
    assert "2 of 4 steps" in capsys.readouterr().out
    text = Image.open("a.png").info["parameters"]
    assert "Steps: 4, " in text and "Denoising strength: 0.5" in text and "Init image hash: " in text
    more = ["--mask", "mask.png", "--feather", "3", "--extend", "top=8", "-o", "b.png"]
    main([*base, "--init-img", "in.png", *more])
    text = Image.open("b.png").info["parameters"]
    for entry in ("Denoising strength: 1", "Extend: top=8", "Feather: 3", "Mask hash: ", "Size: 64x72"):
        assert entry in text
    main([*base, "--image", "in.png", "--mask", "mask.png", "--no-paste", "-o", "d.png"])
    assert "Paste: off" in Image.open("d.png").info["parameters"]
    variation = ["--variation-seed", "8", "--variation-strength", "0.3", "--width", "64", "--height", "64"]
    main([*base, *variation, "-n", "2", "-o", "c/"])
    text = Image.open("c/00001.png").info["parameters"]
    assert "Seed: 0, " in text and "Variation seed: 9" in text and "Variation seed strength: 0.3" in text
    direct = four.pipe("a red star", steps=4, image="in.png", strength=0.5)[0]
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(direct))
    with pytest.raises(SystemExit) as stopped:
        main([*base, "--mask", "mask.png"])
    assert stopped.value.code == 2
    assert "mask needs a picture" in capsys.readouterr().err


def test_the_hashes_are_of_the_pixels(four: Sides, tmp_path: Path) -> None:
    def hashes(**request: Any) -> dict[str, str]:
        (record,) = four.pipe.paint("a red star", steps=4, **request).records
        return dict(part.split(": ", 1) for part in record.splitlines()[-1].split(", ") if "hash" in part)

    PICTURES[0].save(tmp_path / "a.png")
    PICTURES[0].save(tmp_path / "a.webp", lossless=True)
    one = hashes(image=tmp_path / "a.png", mask=MASKS[0])
    assert one == hashes(image=tmp_path / "a.webp", mask=MASKS[0])
    other = hashes(image=PICTURES[1], mask=MASKS[1])
    assert len({*one.values(), *other.values()}) == 4
    flat = [hashes(image=Image.new("L", size, 9))["Init image hash"] for size in ((64, 128), (128, 64))]
    assert flat[0] != flat[1]  # of the same pixels in another shape
    both = four.pipe.paint(PROMPTS, steps=4, image=PICTURES, mask=MASKS, num_images=2).records
    for k, record in enumerate(both):  # each picture's own
        assert all(f"{name}: {value}" in record for name, value in (one, other)[k // 2].items())


def test_every_tensor_of_an_inpainting_model_is_used(nine: Sides) -> None:
    model = nine.pipe.model
    reports = [run(call) for call in calls(model, "a red star", SIZE)]
    assert {part: used.unused for part, used in usage(model.parts(), reports).items()} == {
        "unet": [], "text_encoder": [], "vae": []
    }  # fmt: skip
