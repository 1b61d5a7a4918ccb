"""Loading and saving the parts of a model folder, by class name."""

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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

Module = TypeVar("Module", bound=nn.Module)


class Part(NamedTuple):
    """A module class: the `library` that defines it, its configuration class, the name of its weights file, the
    mapping of tensor names for `load`, and whether it is fastest in channels-last format."""

    library: str
    module: type[Any]
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


def open_part(folder: Path, name: str, base: type[Module]) -> Module:
    """Load the module of class `name`, a subclass of `base`, from `folder`: config.json and weights."""
    names = [each for each, part in PARTS.items() if issubclass(part.module, base)]
    if name not in names:
        raise unknown(f"class of {folder}", name, names)
    part = PARTS[name]
    config = read_config(folder / "config.json", part.config.from_dict)

    def build() -> Module:
        try:
            return part.module(config)
        except LimnerError as error:
            raise LimnerError(f"{folder / 'config.json'}: {error}") from error

    module = load(build, folder / part.file, part.rename)
    if part.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def save_part(module: Any, folder: Path, dtype: torch.dtype | None = None) -> tuple[str, str]:
    """Write config.json and weights, converted to `dtype` if given. Returns (library, class) for model_index.json."""
    name = type(module).__name__
    tensors = {key: t if dtype is None else t.to(dtype) for key, t in module.state_dict().items()}
    write_tensors(folder / PARTS[name].file, tensors)
    write_json(folder / "config.json", module.config.to_dict())
    return PARTS[name].library, name
