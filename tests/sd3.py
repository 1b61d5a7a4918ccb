"""Stable Diffusion 3 folders with random weights, written by diffusers."""

from pathlib import Path
from typing import Any

import torch
from sd import CAPTIONS, stir

from limner.text.tokenizer import Tokenizer
from limner.text.unigram import UnigramTokenizer

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
TINY_TRANSFORMER = {
    "sample_size": 8, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 48, "pooled_projection_dim": 40,
    "pos_embed_max_size": 12, "qk_norm": "rms_norm", "dual_attention_layers": (0,),
}  # fmt: skip
TINY_VAE = {
    "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "latent_channels": 16, "sample_size": 64,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
TINY_CLIP = {"intermediate_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 77}
WIDTHS = {"": 16, "_2": 24}  # of the CLIP encoders' states and of their pooled output
TINY_T5 = {"d_model": 48, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}


def clip_encoder(folder: Path, suffix: str) -> dict[str, Any]:
    """A CLIP text encoder with its projection, and its tokenizer; the second pads with another token."""
    import transformers

    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=600)
    pad = {} if suffix == "" else {"pad_token": "!"}
    tokenizer.save(folder / f"tokenizer{suffix}")
    width = WIDTHS[suffix]
    config = transformers.CLIPTextConfig(
        **TINY_CLIP, hidden_size=width, projection_dim=width, num_attention_heads=2, vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.start, eos_token_id=tokenizer.end,
        hidden_act="quick_gelu" if suffix == "" else "gelu",
    )  # fmt: skip
    return {
        f"text_encoder{suffix}": transformers.CLIPTextModelWithProjection(config),
        f"tokenizer{suffix}": transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", **pad),
    }


def save_with_diffusers(
    folder: Path, transformer: dict[str, Any] = TINY_TRANSFORMER, scheduler: dict[str, Any] = FLOW, t5: bool = True
) -> Any:
    """A tiny StableDiffusion3Pipeline with random weights, saved in `folder`."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    parts = clip_encoder(folder, "") | clip_encoder(folder, "_2")
    unigram = UnigramTokenizer.train(CAPTIONS, vocab_size=150)
    unigram.save(folder / "tokenizer_3")
    config = transformers.T5Config(**TINY_T5, vocab_size=unigram.vocab_size)
    parts["text_encoder_3"] = transformers.T5EncoderModel(config) if t5 else None
    parts["tokenizer_3"] = transformers.T5TokenizerFast.from_pretrained(folder / "tokenizer_3") if t5 else None
    parts["transformer"] = diffusers.SD3Transformer2DModel(**transformer)
    parts["vae"] = diffusers.AutoencoderKL(**TINY_VAE)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            stir(part.requires_grad_(False).eval())
    pipe = diffusers.StableDiffusion3Pipeline(
        **parts, scheduler=getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def with_pictures(reference: Any) -> tuple[Any, Any]:
    """diffusers' pipelines for image to image and for inpainting, of the parts of a text-to-image pipeline."""
    import diffusers

    names = ("transformer", "scheduler", "vae")
    names += tuple(f"{kind}{suffix}" for kind in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3"))
    parts = {name: reference.components[name] for name in names}
    pipes = diffusers.StableDiffusion3Img2ImgPipeline(**parts), diffusers.StableDiffusion3InpaintPipeline(**parts)
    for each in pipes:
        each.set_progress_bar_config(disable=True)
    return pipes
