"""The parts of a model folder: each made of its config.json and its weights, and checked to fit the others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limner.errors import LimnerError
from limner.files import check_range, check_types, from_entries, read_config
from limner.nets.dit import DiT, DiTConfig
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.tokenizer import Tokenizer
from limner.weights.dialects import clip_text
from limner.weights.load import load

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Defaults:
    """How a model paints unless it is told otherwise."""

    steps: int | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, ("steps",), 1)


@dataclass(frozen=True)
class Index:
    """What limner reads in a model_index.json; `class_names` is empty where the model is not told a class."""

    class_names: tuple[str, ...]
    defaults: dict[str, Any]
    has_autoencoder: bool

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Index":
        names, defaults, vae = content.get("class_names", []), content.get("defaults", {}), content.get("vae")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
            raise LimnerError(f"class_names must be a list of different names, not {names!r:.60}")
        if not isinstance(defaults, dict):
            raise LimnerError(f"defaults must be an object of names and values, not {defaults!r:.60}")
        from_entries(Defaults, defaults, "how to paint (defaults)")
        if vae is not None and (not isinstance(vae, list) or len(vae) != 2):
            raise LimnerError(
                f"vae must be a library and a class, as in ['diffusers', 'AutoencoderKL'], not {vae!r:.60}"
            )
        is_there = vae not in (None, [None, None])  # diffusers writes nulls for a part that is left out
        return cls(tuple(names), defaults, is_there)


def read_denoiser(folder: Path) -> DiT:
    """The denoiser in folder/denoiser."""
    config = read_config(folder / "denoiser/config.json", DiTConfig.from_dict)
    return load(lambda: DiT(config), folder / "denoiser" / WEIGHTS)


def read_text_encoder(folder: Path) -> CLIPTextModel:
    """The text encoder whose files are in `folder`, as limner or any version of transformers wrote them."""
    config = read_config(folder / "config.json", CLIPTextConfig.from_dict)
    return load(lambda: CLIPTextModel(config), folder / "model.safetensors", rename=clip_text)


def read_autoencoder(folder: Path) -> AutoencoderKL:
    """The autoencoder in folder/vae; on a CPU it is fastest with channels last."""
    config = read_config(folder / "vae/config.json", AutoencoderKLConfig.from_dict)
    vae = load(lambda: AutoencoderKL(config), folder / "vae" / WEIGHTS)
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_fit(
    folder: Path, denoiser: DiT, tokenizer: Tokenizer | None, encoder: CLIPTextModel | None, vae: AutoencoderKL | None,
    class_names: tuple[str, ...],
) -> None:  # fmt: skip
    """Raises LimnerError for parts that each are sound and cannot paint together."""
    config = denoiser.config
    width = encoder.config.hidden_size if encoder is not None else 0
    latent, painted = (
        (config.in_channels,) * 2 if vae is None else (vae.config.latent_channels, vae.config.out_channels)
    )
    pairs = [
        ("denoiser/config.json: text_dim", config.text_dim, "the text encoder's hidden_size", width),
        ("denoiser/config.json: num_classes", config.num_classes, "the number of class_names", len(class_names)),
        ("denoiser/config.json: in_channels", config.in_channels, "the autoencoder's latent_channels", latent),
    ]
    for name, value, other, wanted in pairs:
        if value != wanted:
            raise LimnerError(f"{folder}: {name} is {value}, but {other} is {wanted}")
    if painted not in (1, 3):
        where = "denoiser/config.json: in_channels" if vae is None else "vae/config.json: out_channels"
        hint = ", and model_index.json names no vae" if vae is None else ""
        raise LimnerError(f"{folder}: {where} is {painted}{hint}; a picture has 1 channel or 3")
    if tokenizer is not None and encoder is not None:
        text = encoder.config
        if tokenizer.vocab_size > text.vocab_size:
            raise LimnerError(
                f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, over the text encoder's vocab_size "
                f"{text.vocab_size}"
            )
        if tokenizer.length > text.max_position_embeddings:
            raise LimnerError(
                f"{folder}: the tokenizer's model_max_length {tokenizer.length} is over the text encoder's "
                f"max_position_embeddings {text.max_position_embeddings}"
            )
