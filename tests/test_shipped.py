"""The shipped model, graded: does it paint the digit that the words ask for?"""

from pathlib import Path

import pytest
import torch

from limner.data.captions import DIGITS
from limner.data.pictures import to_tensor
from limner.data.sources import Source, open_source
from limner.data.world.dataset import World
from limner.evaluate.grade import grade
from limner.picture import to_pictures
from limner.pipeline import EMBEDDED, Pipeline, find_autoencoder
from limner.weights.file import read_tensors


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained()


@pytest.fixture(scope="module")
def nearest(shared_data: Path):
    """A reader of digits: the label of the nearest of 10,000 real ones, the picture blurred a little."""
    real = open_source(Source(path=str(shared_data / "mnist"), split="test"), captions=False)
    images = torch.stack([to_tensor(real.image(i), 28, 1) for i in range(len(real))])
    labels = torch.tensor(real.labels)

    def blurred(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x.float(), 3, stride=1, padding=1).flatten(1)

    known = blurred(images)

    def read(pictures: list) -> torch.Tensor:
        asked = blurred(torch.stack([to_tensor(p, 28, 1) for p in pictures]))
        return labels[torch.cdist(asked, known).argmin(dim=1)]

    return read


def test_it_obeys(pipe: Pipeline, nearest) -> None:
    """Ten digits in a trained phrasing and in one never trained on; the nearest neighbour errs in 4% by itself."""
    for captions in (DIGITS.all, DIGITS.held_out_captions):
        prompts = [captions(digit)[0] for digit in range(10)]
        pictures = pipe(prompts, num_images=8, seed=1)
        right = (nearest(pictures) == torch.arange(10).repeat_interleave(8)).float().mean()
        assert right >= 0.9, f"{right:.0%} right of {prompts}"


def test_the_null_text_paints_any_digit(pipe: Pipeline, nearest) -> None:
    painted = nearest(pipe("", num_images=60, seed=1, guidance_scale=1.0))
    assert len(painted.unique()) >= 7


def test_guidance_sharpens_obedience_and_samplers_agree_on_it(pipe: Pipeline, nearest) -> None:
    prompts = [DIGITS.canonical(digit) for digit in range(10)]
    for name in ("euler", "heun", "dpmpp_2m", "unipc", "ddpm"):
        right = (
            (
                nearest(pipe(prompts, num_images=4, seed=7, sampler=name, steps=16))
                == torch.arange(10).repeat_interleave(4)
            )
            .float()
            .mean()
        )
        assert right >= 0.85, f"{name}: {right:.0%}"


def test_it_is_small_and_half_precision() -> None:
    files = [f for f in EMBEDDED.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 24_000_000
    for file in EMBEDDED.rglob("*.safetensors"):
        assert {t.dtype for t in read_tensors(file).values()} == {torch.float16}


def test_the_shipped_autoencoder_keeps_what_it_is_given() -> None:
    """200 fresh renders: PSNR, and what is in them by the grader. A picture decoded alone is the one of the batch."""
    vae, world = find_autoencoder("shipped"), World(seed=98)
    x = world.load(range(200), 64, 3).images.float() / 127.5 - 1
    with torch.inference_mode():
        latents = vae.to_latents(vae.encode(x).mean)
        y = torch.cat([vae.decode(vae.from_latents(z)) for z in latents.split(50)]).clamp(-1, 1)
        alone = vae.decode(vae.from_latents(latents[7:8])).clamp(-1, 1)
    psnr = -10 * ((x - y) / 2).square().mean((1, 2, 3)).log10()
    assert psnr.mean() >= 34 and psnr.min() >= 24
    same = sum(grade(picture, world.scene(k)).obeyed for k, picture in enumerate(to_pictures(y)))
    assert same >= 190
    assert torch.allclose(alone, y[7:8], atol=1e-4)
    assert latents.mean().abs() < 0.1 and abs(latents.std() - 1) < 0.1
