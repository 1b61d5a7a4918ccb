"""Stable Diffusion 1.5 at its full size, with random weights, against diffusers and transformers; minutes long and over
4 GB on disk, so that `make test` leaves it out (`make parity`, or `pytest -m full_size tests/test_full_size.py`)."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sd import SAMPLERS, ours, rename_text_encoder, save_with_diffusers, scheduler_like, theirs, with_pictures
from test_pictures_in import Sides, box, compare_with_pictures, smooth
from test_tokenizer import clip, folders, openai_file  # noqa: F401
from test_unet import PUBLISHED
from test_vae import USUAL, error, noise
from torch import Tensor

from limner.nets.unet import UNet2DConditionModel
from limner.nets.vae import AutoencoderKL
from limner.pipeline import Pipeline
from limner.text.clip import CLIPTextModel
from limner.text.tokenizer import Tokenizer
from limner.weights.parts import account, open_part

pytestmark = [pytest.mark.parity, pytest.mark.full_size]

PROMPTS = ["a photograph of an astronaut riding a horse", "a cat on a beach, oil on canvas"]
NEGATIVE = "blurry, ugly, deformed"
TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 77, "projection_dim": 768,
}  # fmt: skip
# Factors on the UNet's weights as they are initialised, with which its output has the size of the noise and depends on
# the time and the text. The autoencoder's pixels have a spread of 0.2 without any.
OUTPUT, TIME, TEXT_STATES = 2.5, 10.0, 3.0


def adjust(parts: dict[str, Any]) -> None:
    """Scale the weights by which a random UNet differs most from a trained one."""
    unet = parts["unet"]
    unet.conv_out.weight *= OUTPUT
    unet.time_embedding.linear_2.weight *= TIME
    for name, weight in unet.named_parameters():
        if name.endswith("attn2.to_out.0.weight"):
            weight *= TEXT_STATES


class FullSize(NamedTuple):
    """diffusers' pipeline, its folder, and ours of that folder."""

    reference: Any
    folder: Path
    pipe: Pipeline


@pytest.fixture(scope="session")
def full(clip: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullSize]:  # noqa: F811
    folder = tmp_path_factory.mktemp("full")
    unet, vae = ({k: v for k, v in config.items() if not k.startswith("_")} for config in (PUBLISHED, USUAL))
    reference = save_with_diffusers(folder, unet, vae, TEXT, clip, adjust=adjust)
    yield FullSize(reference, folder, Pipeline.from_pretrained(folder))
    shutil.rmtree(folder)


def assert_near(drawn: Tensor, wanted: Tensor) -> None:
    """Relative error of every row below 1e-4."""
    assert len(drawn) == len(wanted)
    for row, (mine, other) in enumerate(zip(drawn, wanted, strict=True)):
        assert (got := error(mine, other)) < 1e-4, f"row {row}: relative error {got:.1e}"


def assert_equal(drawn: Tensor, wanted: Tensor) -> None:
    """Pictures equal to 1e-3 on pixels in 0..1, none of them of one colour or clipped to black and white."""
    assert drawn.shape == wanted.shape
    for mine, other in zip(drawn, wanted, strict=True):
        clipped = ((other <= 0) | (other >= 1)).float().mean().item()
        assert other.std() > 0.05 and clipped < 0.2, f"std {other.std():.3f}, clipped {clipped:.1%}"
        assert (got := (mine - other).abs().max().item()) < 1e-3, f"pixels differ by {got:.1e}"


# Parts


def test_every_tensor_is_counted(full: FullSize, tmp_path: Path) -> None:
    kinds = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    held = {name: account(full.folder / name, kind) for name, kind in kinds.items()}
    assert {name: len(each.dtypes) for name, each in held.items()} == {"unet": 686, "vae": 248, "text_encoder": 196}
    assert not any(each.unused for each in held.values())
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in full.pipe.model.parts().items()}
    assert sizes == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    shutil.copytree(full.folder / "text_encoder", tmp_path / "old")
    rename_text_encoder(tmp_path / "old")
    old = account(tmp_path / "old", "CLIPTextModel")
    assert (len(old.dtypes), old.unused) == (197, ["text_model.embeddings.position_ids"])
    again = open_part(tmp_path / "old", "CLIPTextModel", CLIPTextModel).state_dict()
    transformer = full.pipe.model.parts()["text_encoder"].state_dict()
    assert again.keys() == transformer.keys()
    assert all(torch.equal(weight, transformer[name]) for name, weight in again.items())


@torch.inference_mode()
def test_the_text_encoder_is_transformers(full: FullSize, clip: Tokenizer) -> None:  # noqa: F811
    ids = clip.encode([*PROMPTS, NEGATIVE, "", "a red star on a beach, " * 20], truncate=True).ids
    wanted = full.reference.text_encoder(ids)
    drawn = full.pipe.model.parts()["text_encoder"](ids)
    assert_near(drawn.hidden, wanted.last_hidden_state)
    assert_near(drawn.pooled, wanted.pooler_output)
    [states] = full.pipe.model.conditioner([PROMPTS[0]]).values()
    assert_near(states, wanted.last_hidden_state[:1])


@torch.inference_mode()
@pytest.mark.parametrize("side", [8, 64])
def test_the_unet_is_diffusers(full: FullSize, side: int) -> None:
    net = full.pipe.model.network
    assert isinstance(net, UNet2DConditionModel)
    text = full.pipe.model.conditioner(PROMPTS)
    x, t = noise(2, 4, side, side), torch.tensor([981.0, 20.0])
    wanted = full.reference.unet(x, t, encoder_hidden_states=text["text"]).sample
    assert_near(net(x, t, **net.prepare(text)), wanted)


@torch.inference_mode()
def test_the_random_weights_read_picture_time_and_text(full: FullSize) -> None:
    """Else equal pictures would mean little."""
    net = full.pipe.model.network
    prepared = net.prepare(full.pipe.model.conditioner([PROMPTS[0], PROMPTS[0], PROMPTS[0], NEGATIVE]))
    x = noise(1, 4, 8, 8)
    output = net(torch.cat([x, x.flip(2), x, x]), torch.tensor([981.0, 981.0, 500.0, 981.0]), **prepared)
    assert 0.3 < output.std() < 3
    apart = (output[1:] - output[0]).square().mean(dim=(1, 2, 3)).sqrt()
    assert (apart > 0.03).all(), apart


@torch.inference_mode()
@pytest.mark.parametrize("side", [64, 512])
def test_the_autoencoder_is_diffusers(full: FullSize, side: int) -> None:
    vae = full.pipe.model.autoencoder
    assert isinstance(vae, AutoencoderKL)
    x, z = noise(1, 3, side, side), noise(1, 4, side // 8, side // 8, seed=1)
    drawn, wanted = vae.encode(x), full.reference.vae.encode(x).latent_dist
    assert_near(drawn.mean, wanted.mean)
    assert_near(drawn.logvar, wanted.logvar)
    assert_near(vae.decode(z), full.reference.vae.decode(z).sample)


# Pictures


def compare(full: FullSize, sampler: str, prompts: list[str], negative: str | None, scale: float, side: int) -> None:
    """20 steps on both sides, from the same noise."""
    schedule, class_name, options = SAMPLERS[sampler]
    scheduler = scheduler_like(full.folder, class_name, **options)
    wanted = theirs(full.reference, scheduler, prompts, negative, num_inference_steps=20, guidance_scale=scale,
                    height=side, width=side)  # fmt: skip
    drawn = ours(full.pipe, prompts, negative_prompt=negative, steps=20, guidance_scale=scale, sampler=sampler,
                 schedule=schedule, height=side, width=side)  # fmt: skip
    assert_equal(drawn, wanted)


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler", "euler_a", "dpmpp_2m", "unipc"])
def test_pictures_are_diffusers(full: FullSize, sampler: str) -> None:
    """Two prompts in a batch, guided away from a negative prompt."""
    compare(full, sampler, PROMPTS, NEGATIVE, 7.5, 128)


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "unipc"])
def test_a_picture_without_guidance_is_diffusers(full: FullSize, sampler: str) -> None:
    compare(full, sampler, PROMPTS[1:], None, 1.0, 128)


def test_a_picture_of_the_training_size_is_diffusers(full: FullSize) -> None:
    compare(full, "ddim", PROMPTS[:1], None, 7.5, 512)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpmpp_2m", "unipc"])
def test_image_to_image_and_inpainting(full: FullSize, sampler: str, strength: float) -> None:
    sides, size = Sides(full.pipe, *with_pictures(full.reference), full.folder), (128, 128)
    request = {"image": [smooth(0, size), smooth(1, size)]}
    compare_with_pictures(sides, sampler, strength, None, **request)
    masks = [box(32, 16, 112, 80, size), box(0, 48, 64, 128, size)]
    compare_with_pictures(sides, sampler, strength, masks, **request, width=128, height=128)
