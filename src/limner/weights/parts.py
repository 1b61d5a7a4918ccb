"""The parts of model folders: for each class its configuration, its file of weights and who else has it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from limner.errors import LimnerError, unknown
from limner.files import read_config, write_json
from limner.nets.dit import DiT, DiTConfig
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.conditioner import NullText, NullTextConfig
from limner.weights.dialects import clip_text
from limner.weights.file import write_tensors
from limner.weights.load import Rename, load

DIFFUSERS_FILE, TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


class Part(NamedTuple):
    """A class of modules: `library` has it under the same name, `config.from_dict` reads its config.json, `file` holds
    its weights, `rename` gives its name of a tensor from the file's, and `channels_last` is its fastest layout."""

    library: str
    module: Callable[[Any], nn.Module]
    config: Any
    file: str = DIFFUSERS_FILE
    rename: Rename | None = None
    channels_last: bool = False


PARTS: dict[str, Part] = {
    "DiT": Part("limner", DiT, DiTConfig),
    "NullText": Part("limner", NullText, NullTextConfig, TRANSFORMERS_FILE),
    "AutoencoderKL": Part("diffusers", AutoencoderKL, AutoencoderKLConfig, channels_last=True),
    "CLIPTextModel": Part("transformers", CLIPTextModel, CLIPTextConfig, TRANSFORMERS_FILE, clip_text),
}


def open_part(folder: Path, name: str) -> Any:
    """The module of the class `name` in `folder`: config.json and weights, every tensor accounted for."""
    if name not in PARTS:
        raise unknown(f"class in {folder.parent}", name, PARTS)
    part = PARTS[name]
    config = read_config(folder / "config.json", part.config.from_dict)

    def make() -> nn.Module:
        try:
            return part.module(config)
        except LimnerError as error:
            raise LimnerError(f"{folder / 'config.json'}: {error}") from error

    module = load(make, folder / part.file, part.rename)
    if part.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def save_part(module: Any, folder: Path, dtype: torch.dtype | None = None) -> tuple[str, str]:
    """Write config.json and weights, converted to `dtype` if given; returns (library, class) for model_index.json."""
    name = type(module).__name__
    tensors = {key: t if dtype is None else t.to(dtype) for key, t in module.state_dict().items()}
    write_tensors(folder / PARTS[name].file, tensors)
    write_json(folder / "config.json", module.config.to_dict())
    return PARTS[name].library, name
