"""Stable Diffusion 3 at its sizes: the largest picture that it paints, and pictures of networks of the true widths, cut
in depth, against diffusers; minutes long and 5 GB on disk (`pytest -m full_size tests/test_sd3_full_size.py`)."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sd3
import torch
from sd import CAPTIONS, ours, stir
from test_mmdit import PUBLISHED
from test_sd3 import PROMPTS, Sides, compare

from limner.errors import LimnerError
from limner.nets.mmdit_config import SD3TransformerConfig
from limner.pipeline import Pipeline
from limner.text.conditioner import Text
from limner.text.tokenizer import Tokenizer
from limner.text.unigram import UnigramTokenizer

# The text encoders of the published model: ViT-L/14, ViT-bigG/14 and T5 XXL, with two layers each.
CLIP = {
    "": {
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    "_2": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "projection_dim": 1280,
        "hidden_act": "gelu",
    },
}  # fmt: skip
CLIP_DEPTH = {"num_hidden_layers": 2, "max_position_embeddings": 77, "vocab_size": 49408}
T5 = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 2, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
TRANSFORMER = PUBLISHED | {"num_layers": 4}
VAE = sd3.TINY_VAE | {
    "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "layers_per_block": 2, "sample_size": 1024,
}  # fmt: skip


def parts(folder: Path) -> dict[str, Any]:
    """The parts with random weights; the tokenizers are small, and saved in `folder`."""
    import diffusers
    import transformers

    made: dict[str, Any] = {}
    for suffix, config in CLIP.items():
        tokenizer = Tokenizer.train(CAPTIONS, vocab_size=600)
        tokenizer.save(folder / f"tokenizer{suffix}")
        ids = {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end}
        pad = {} if suffix == "" else {"pad_token": "!"}
        made |= {
            f"text_encoder{suffix}": transformers.CLIPTextModelWithProjection(
                transformers.CLIPTextConfig(**config, **CLIP_DEPTH, **ids)
            ),
            f"tokenizer{suffix}": transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", **pad),
        }
    UnigramTokenizer.train(CAPTIONS, vocab_size=150).save(folder / "tokenizer_3")
    transformer = {name: value for name, value in TRANSFORMER.items() if not name.startswith("_")}
    return made | {
        "text_encoder_3": transformers.T5EncoderModel(transformers.T5Config(**T5)),
        "tokenizer_3": transformers.T5TokenizerFast.from_pretrained(folder / "tokenizer_3"),
        "transformer": diffusers.SD3Transformer2DModel(**transformer),
        "vae": diffusers.AutoencoderKL(**VAE),
    }


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    import diffusers

    folder = tmp_path_factory.mktemp("sd3-full")
    torch.manual_seed(0)
    held = parts(folder)
    for part in held.values():
        if isinstance(part, torch.nn.Module):
            stir(part.requires_grad_(False).eval())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(sd3.FLOW)
    reference = diffusers.StableDiffusion3Pipeline(**held, scheduler=scheduler)
    reference.set_progress_bar_config(disable=True)
    reference.save_pretrained(folder)
    yield Sides(reference, *sd3.with_pictures(reference), folder, Pipeline.from_pretrained(folder))
    shutil.rmtree(folder)
    gc.collect()


@pytest.mark.parity
@pytest.mark.full_size
def test_pictures_of_the_true_widths_are_diffusers(full: Sides) -> None:
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in full.pipe.model.parts().items()}
    assert sizes["transformer"] > 3e8 and sizes["text_encoder_3"] > 5e8 and sizes["vae"] > 8e7
    compare(full.text, full.pipe, width=256, height=192, steps=3)


@pytest.mark.parity
@pytest.mark.full_size
def test_offloaded_parts_of_the_true_widths_paint_the_same_picture(full: Sides) -> None:
    options: dict[str, Any] = {"steps": 1, "width": 64, "height": 64}
    offloaded = Pipeline.from_pretrained(full.folder, offload=True)
    assert torch.equal(ours(offloaded, PROMPTS[:1], **options), ours(full.pipe, PROMPTS[:1], **options))


def test_a_picture_over_the_position_table_is_refused_before_its_text_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sd3.save_with_diffusers(tmp_path)
    pipe = Pipeline.from_pretrained(tmp_path)  # 12 patches of 2 latents of 8 pixels
    pipe("a red star", width=192, height=64, steps=1)
    monkeypatch.setattr(Text, "encode", lambda *_: pytest.fail("text was encoded"))
    for name in ("width", "height"):
        with pytest.raises(LimnerError, match=f"{name} 208 is over this model's largest.*192"):
            pipe("a red star", **{name: 208})


def test_a_transformer_without_out_channels_gives_as_many_as_it_takes() -> None:
    config = SD3TransformerConfig.from_dict(PUBLISHED | {"out_channels": None, "in_channels": 8})
    assert (config.in_channels, config.out_channels) == (8, 8)
    assert SD3TransformerConfig.from_dict({"out_channels": None}).out_channels == 16
    with pytest.raises(LimnerError, match="in_channels must be"):
        SD3TransformerConfig.from_dict({"out_channels": None, "in_channels": None})
