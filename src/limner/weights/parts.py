"""Loading and saving the parts of a model folder, by class name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from limner.errors import LimnerError, unknown
from limner.files import read_config, write_json
from limner.nets.dit import DiT, DiTConfig
from limner.nets.mmdit import MMDiT, SD3Transformer2DModel
from limner.nets.mmdit_config import MMDiTConfig, SD3TransformerConfig
from limner.nets.unet import UNet2DConditionModel, UNet2DModel
from limner.nets.unet_config import UNet2DConfig, UNetConfig
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.text.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from limner.text.conditioner import NullText, NullTextConfig
from limner.text.t5 import T5Config, T5EncoderModel, t5_encoder
from limner.weight_names import choose_weights
from limner.weights.dialects import autoencoder_kl, clip_text
from limner.weights.file import read_weights, write_tensors
from limner.weights.load import Rename, load

DIFFUSERS_FILE, TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"

Module = TypeVar("Module", bound=nn.Module)


class Part(NamedTuple):
    """A module class: the `library` that defines it, its configuration class, the file that its weights are saved
    in, the mapping of tensor names for `load`, called as rename(name, config=config), and the dtypes in which it is
    fastest in channels-last format."""

    library: str
    module: type[Any]
    config: Any
    file: str = DIFFUSERS_FILE
    rename: Callable[..., str | None] | None = None
    channels_last: tuple[torch.dtype, ...] = ()


HALF_DTYPES = (torch.bfloat16, torch.float16)
ALL_DTYPES = (torch.float32, *HALF_DTYPES)
# Stable Diffusion's UNet in float32 is no faster in channels-last format, which would copy two thirds of its mapped
# weights; in bfloat16, converted anyway, a step is a tenth faster.
PARTS: dict[str, Part] = {
    "DiT": Part("limner", DiT, DiTConfig),
    "UNet2DModel": Part("diffusers", UNet2DModel, UNet2DConfig, DIFFUSERS_FILE, autoencoder_kl, ALL_DTYPES),
    "UNet2DConditionModel": Part("diffusers", UNet2DConditionModel, UNetConfig, channels_last=HALF_DTYPES),
    "NullText": Part("limner", NullText, NullTextConfig, TRANSFORMERS_FILE),
    "AutoencoderKL": Part("diffusers", AutoencoderKL, AutoencoderKLConfig, DIFFUSERS_FILE, autoencoder_kl, ALL_DTYPES),
    "SD3Transformer2DModel": Part("diffusers", SD3Transformer2DModel, SD3TransformerConfig),
    "MMDiT": Part("limner", MMDiT, MMDiTConfig),
    "CLIPTextModel": Part("transformers", CLIPTextModel, CLIPTextConfig, TRANSFORMERS_FILE, clip_text),
    "CLIPTextModelWithProjection": Part(
        "transformers", CLIPTextModelWithProjection, CLIPTextConfig, TRANSFORMERS_FILE, clip_text
    ),
    "T5EncoderModel": Part("transformers", T5EncoderModel, T5Config, TRANSFORMERS_FILE, t5_encoder),
}


class Account(NamedTuple):
    """What a part's folder holds: its `files` of weights, the dtype of each tensor in them by name, and the names of
    those that the network does not use."""

    files: list[Path]
    dtypes: dict[str, torch.dtype]
    unused: list[str]


def build(config: Any) -> Any:
    """The untrained module that a configuration describes."""
    return next(part.module for part in PARTS.values() if part.config is type(config))(config)


def open_part(
    folder: Path, name: str, base: type[Module], dtype: torch.dtype | None = None, allow_pickle: bool = False
) -> Module:
    """Load the module of class `name`, a subclass of `base`, from `folder`: config.json and weights.

    The weights are converted to `dtype`, or keep that of their file. Pickles are refused unless `allow_pickle`.
    """
    part = _part(folder, name, base)
    config = read_part_config(folder, name)

    def build() -> Module:
        try:
            return part.module(config)
        except LimnerError as error:
            raise LimnerError(f"{folder / 'config.json'}: {error}") from error

    file = weight_files(folder, allow_pickle)[0]
    return load(build, file, _rename(part, config), dtype, (dtype or torch.float32) in part.channels_last, allow_pickle)


def read_part_config(folder: Path, name: str) -> Any:
    """The configuration of the part of class `name` in `folder`."""
    return read_config(folder / "config.json", _part(folder, name, nn.Module).config.from_dict)


def _rename(part: Part, config: Any) -> Rename | None:
    """The mapping of tensor names for a network of this configuration."""
    return None if part.rename is None else partial(part.rename, config=config)


def _part(folder: Path, name: str, base: type[nn.Module]) -> Part:
    names = [each for each, part in PARTS.items() if issubclass(part.module, base)]
    if name not in names:
        raise unknown(f"class of {folder}", name, names)
    return PARTS[name]


def weight_files(folder: Path, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights of a part: one file, or an index and its shards."""
    try:
        names = choose_weights((file.name for file in folder.glob("*") if file.is_file()), allow_pickle)
    except LimnerError as error:
        raise LimnerError(f"{folder}: {error}") from error
    return [folder / name for name in names]


def account(folder: Path, name: str, allow_pickle: bool = False) -> Account:
    """The tensors in the folder of a part of class `name`; `open_part` uses all but the `unused` or raises."""
    files, part = weight_files(folder, allow_pickle), _part(folder, name, nn.Module)
    rename = _rename(part, read_part_config(folder, name))
    tensors = read_weights(files[0], allow_pickle)  # mapped: only the headers are read
    unused = [name for name in tensors if rename is not None and rename(name) is None]
    return Account(files, {name: tensor.dtype for name, tensor in tensors.items()}, unused)


def save_part(module: Any, folder: Path, dtype: torch.dtype | None = None) -> tuple[str, str]:
    """Write config.json and weights, converted to `dtype` if given, and delete all other weights that could be opened
    there. Returns (library, class) for model_index.json."""
    name = type(module).__name__
    tensors = {key: t if dtype is None else t.to(dtype) for key, t in module.state_dict().items()}
    write_tensors(folder / PARTS[name].file, tensors)
    write_json(folder / "config.json", module.config.to_dict())
    _delete_weights(folder, keep=PARTS[name].file)
    return PARTS[name].library, name


def _delete_weights(folder: Path, keep: str) -> None:
    """Delete all files of weights in a part's folder that could be opened: variants, shards and pickles."""
    present = {file.name for file in folder.iterdir() if file.is_file()} - {keep}
    while True:
        try:
            found = choose_weights(present, allow_pickle=True)
        except LimnerError:
            return
        for name in found:
            (folder / name).unlink()
        present.difference_update(found)
