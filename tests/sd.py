"""Stable Diffusion folders with random weights, written by diffusers, and the same folder as older versions wrote it;
pictures before they are rounded, on both sides."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from limner.pipeline import Pipeline
from limner.text.tokenizer import Tokenizer

CAPTIONS = ["a cat on a beach", "a red star", "two green squares", "blurry, ugly"]
# As the folders of Stable Diffusion 1 have it.
PNDM = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
# A sampler and a schedule by name, and the scheduler and the option that say the same to diffusers.
SAMPLERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("normal", "DDIMScheduler", {}),
    "pndm": ("normal", "PNDMScheduler", {}),
    "euler": ("normal", "EulerDiscreteScheduler", {}),
    "euler_a": ("normal", "EulerAncestralDiscreteScheduler", {}),
    "heun": ("normal", "HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("normal", "UniPCMultistepScheduler", {}),
}
TINY_UNET = {
    "sample_size": 8, "block_out_channels": (16, 32, 32), "norm_num_groups": 8, "cross_attention_dim": 24,
    "attention_head_dim": 4, "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
TINY_VAE = {
    "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 64,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TINY_TEXT = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 77, "projection_dim": 24,
}  # fmt: skip
# Names of diffusers before 0.16 for the autoencoder's attention.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@torch.no_grad()
def stir(module: torch.nn.Module) -> None:
    """Move biases and norms off zero and one, where they would hide."""
    draw = torch.Generator().manual_seed(1)
    for weight in module.parameters():
        if weight.ndim == 1:
            weight += 0.1 * torch.randn(weight.shape, generator=draw)


def save_with_diffusers(
    folder: Path,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    scheduler: dict[str, Any] = PNDM,
    adjust: Callable[[dict[str, Any]], None] = lambda parts: None,
) -> Any:
    """A StableDiffusionPipeline with random weights, saved in `folder`; the networks are tiny unless told otherwise.

    `adjust` may change the weights of the parts, given by their folders, before they are saved.
    """
    import diffusers
    import transformers

    tokenizer = tokenizer or Tokenizer.train(CAPTIONS, vocab_size=600)
    tokenizer.save(folder / "tokenizer")
    ids = {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**({"vocab_size": tokenizer.vocab_size} | ids | (text or TINY_TEXT)))
    parts = {
        "unet": diffusers.UNet2DConditionModel(**(unet or TINY_UNET)),
        "vae": diffusers.AutoencoderKL(**(vae or TINY_VAE)),
        "text_encoder": transformers.CLIPTextModel(config),
    }
    for part in parts.values():
        stir(part.requires_grad_(False))
    adjust(parts)
    pipe = diffusers.StableDiffusionPipeline(
        **{name: part.eval() for name, part in parts.items()},
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=getattr(diffusers, scheduler["_class_name"]).from_config(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def rename_text_encoder(folder: Path) -> None:
    """Give the tensors of a text encoder the names that transformers wrote until 4.30, position_ids among them."""
    file = folder / "model.safetensors"
    text = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(text, file)


def as_older_versions_saved(folder: Path, old: Path) -> Path:
    """A copy of a folder in the layout of 2022: `text_model.` and position_ids in the text encoder, the old names of
    the autoencoder's attention, slow tokenizer files, a short scheduler, and a safety checker."""
    shutil.copytree(folder, old)
    rename_text_encoder(old / "text_encoder")
    vae = load_file(old / "vae/diffusion_pytorch_model.safetensors")
    for new, was in OLD_ATTENTION.items():
        vae = {name.replace(f"attentions.0.{new}.", f"attentions.0.{was}."): t for name, t in vae.items()}
    save_file(vae, old / "vae/diffusion_pytorch_model.safetensors")
    tokenizer = json.loads((old / "tokenizer/tokenizer.json").read_text())
    (old / "tokenizer/vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    (old / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (old / "tokenizer/tokenizer.json").unlink()
    (old / "scheduler/scheduler_config.json").write_text(json.dumps(PNDM | {"_diffusers_version": "0.6.0"}))
    (old / "safety_checker").mkdir()
    (old / "safety_checker/config.json").write_text("{}")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (old / "model_index.json").write_text(json.dumps(index))
    return old


def scheduler_like(folder: Path, class_name: str, **options: Any) -> Any:
    """diffusers' scheduler of this class on the configuration that `folder` has."""
    import diffusers

    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    return getattr(diffusers, class_name).from_config(config, **options)


def theirs(
    pipe: Any, scheduler: Any, prompt: list[str], negative: str | None = None, seed: int = 3, **options: Any
) -> Any:
    """The pictures (B, 3, H, W) in 0..1 of a pipeline of diffusers."""
    pipe.scheduler = scheduler
    negatives = None if negative is None else [negative] * len(prompt)
    draw = torch.Generator().manual_seed(seed)
    return pipe(prompt, negative_prompt=negatives, generator=draw, **{"output_type": "pt"} | options).images


def ours(pipe: Pipeline, prompt: list[str], seed: Any = 3, rng: str = "torch", **options: Any) -> torch.Tensor:
    """The pictures (B, 3, H, W) in 0..1 before they are rounded, by default of diffusers' noise."""
    *_, last = pipe.paint(prompt, seed=seed, rng=rng, **options).steps
    return (pipe.model.decode(last.x) / 2 + 0.5).clamp(0, 1)


def with_pictures(reference: Any) -> tuple[Any, Any]:
    """diffusers' pipelines for image to image and for inpainting, of the parts of a text-to-image pipeline."""
    import diffusers

    parts = {**reference.components, "requires_safety_checker": False}
    pipes = diffusers.StableDiffusionImg2ImgPipeline(**parts), diffusers.StableDiffusionInpaintPipeline(**parts)
    for each in pipes:
        each.set_progress_bar_config(disable=True)
    return pipes
