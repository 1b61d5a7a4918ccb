"""Model: a network with its conditioner, autoencoder and scheduler. One folder on disk, as Hugging Face lays it out."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import LimnerError, unknown
from limner.families import Family, family
from limner.files import read_config, read_json, write_json
from limner.folders import Index, find_model
from limner.nets.network import Network
from limner.nets.vae import AutoencoderKL
from limner.text.conditioner import Classes, Conditioner, Nothing, Text
from limner.text.encoder import Reads, TextEncoder
from limner.text.tokenizer import Tokenizer
from limner.weights.parts import open_part, save_part

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Model:
    """Everything a picture is painted with. `scheduler` is a scheduler_config.json, `defaults` how to paint unless
    told otherwise."""

    network: Network
    conditioner: Conditioner
    scheduler: dict[str, Any]
    autoencoder: AutoencoderKL | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    name: str = "model"

    @classmethod
    def open(cls, source: str | Path | None = None, device: str = "cpu", dtype: str = "float32") -> "Model":
        """Open a model folder, a training run (its newest checkpoint), or, with None, the shipped model.

        `dtype` is float32, bfloat16 or float16. Raises LimnerError for a folder that is neither, and for files that
        are cut short, hold other tensors or do not fit each other.
        """
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        folder, where = find_model(source), _device(device)
        index = read_config(folder / "model_index.json", Index.from_dict)
        row = _row(index, folder)
        defaults = row.defaults | {name: value for name, value in asdict(index.defaults).items() if value is not None}
        model = cls(
            open_part(folder / row.network, index.class_of(row.network, "DiT")),
            _open_conditioner(index, row, folder),
            read_json(folder / "scheduler/scheduler_config.json"),
            open_part(folder / "vae", index.class_of("vae", "AutoencoderKL")) if "vae" in index.parts else None,
            defaults,
            "limner" if source is None else Path(os.path.abspath(source)).name,
        )
        check_fit(model, folder)
        return model.to(where, DTYPES[dtype])

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `open` opens; `dtype` converts the weights on the way."""
        folder = Path(folder)
        _remove_parts(folder, {*self.parts(), *self.tokenizers()})
        index: dict[str, Any] = {"_class_name": "LimnerPipeline"}
        index |= {name: save_part(part, folder / name, dtype) for name, part in self.parts().items()}
        for name, tokenizer in self.tokenizers().items():
            tokenizer.save(folder / name)
            index[name] = ("transformers", "CLIPTokenizer")
        write_json(folder / "scheduler/scheduler_config.json", self.scheduler)
        index |= {"class_names": self.conditioner.names} if self.conditioner.names else {}
        write_json(folder / "model_index.json", index | {"defaults": self.defaults})

    def parts(self) -> dict[str, nn.Module]:
        """Every module with weights, by its folder: the names are those of diffusers and transformers."""
        parts: dict[str, nn.Module] = {"denoiser": self.network} | self.conditioner.parts()
        return parts | ({"vae": self.autoencoder} if self.autoencoder is not None else {})

    def tokenizers(self) -> dict[str, Tokenizer]:
        """The tokenizers, by their folders."""
        return self.conditioner.tokenizers()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Model":
        """Move all parts to `device` and convert them to `dtype`."""
        for part in (self.network, self.conditioner, self.autoencoder):
            if part is not None:
                part.to(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

    @property
    def factor(self) -> int:
        """Pixels on the side of one latent; 1 without an autoencoder."""
        return 1 if self.autoencoder is None else self.autoencoder.factor

    @property
    def size(self) -> int:
        """Side in pixels of the pictures the model was trained on."""
        return self.network.config.sample_size * self.factor

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        """What the network paints -> pictures (B, C, H, W) in [-1, 1]; the same tensor without an autoencoder."""
        if self.autoencoder is None:
            return x
        z = self.autoencoder.from_latents(x.to(next(self.autoencoder.parameters()).dtype))
        return self.autoencoder.decode(z.contiguous(memory_format=torch.channels_last)).float()


def _remove_parts(folder: Path, keep: set[str]) -> None:
    """Delete the parts of the model that is in `folder` but for those to `keep`, which are written anew."""
    if (folder / "model_index.json").is_file():
        index = read_config(folder / "model_index.json", Index.from_dict)
        for name in {*index.parts, "text_encoder", "tokenizer"} - keep - {"scheduler"}:
            if (folder / name / "config.json").is_file() or (folder / name / "tokenizer.json").is_file():
                shutil.rmtree(folder / name)


def _row(index: Index, folder: Path) -> Family:
    """The family's row of a model folder. Folders of before text encoders stood in the index are known by theirs."""
    has_text = any(name.startswith("text_encoder") for name in index.parts) or (folder / "text_encoder").is_dir()
    try:
        return family(index.pipeline, "class" if index.class_names else "text" if has_text else "none")
    except LimnerError as error:
        raise LimnerError(f"{folder / 'model_index.json'}: {error}") from error


def _open_conditioner(index: Index, row: Family, folder: Path) -> Conditioner:
    if index.class_names:
        return Classes(index.class_names)
    if not row.encoders:
        return Nothing()

    def open_encoder(reads: Reads) -> TextEncoder:
        name = f"text_encoder{reads.suffix}"
        transformer = open_part(folder / name, index.class_of(name, "CLIPTextModel"))
        tokenizer = Tokenizer.from_pretrained(folder / f"tokenizer{reads.suffix}")
        try:
            return TextEncoder(tokenizer, transformer, reads)
        except LimnerError as error:
            raise LimnerError(f"{folder / f'tokenizer{reads.suffix}'}: {error}") from error

    null = open_part(folder / "null_text", "NullText") if "null_text" in index.parts else None
    return Text([open_encoder(reads) for reads in row.encoders], row.combine, null)


def check_fit(model: Model, folder: Path) -> None:
    """Raises LimnerError for parts that each are sound and cannot paint together."""
    network, autoencoder = model.network, model.autoencoder
    width, null = model.conditioner.width, model.conditioner.null
    problem = network.misfit(width, len(model.conditioner.names))
    latent = network.latent_channels if autoencoder is None else autoencoder.config.latent_channels
    painted = network.latent_channels if autoencoder is None else autoencoder.config.out_channels
    if network.latent_channels != latent:
        problem = f"the network paints {network.latent_channels} channels, the autoencoder's latents have {latent}"
    elif painted not in (1, 3):
        hint = ", and model_index.json names no vae" if autoencoder is None else ""
        problem = f"what is painted has {painted} channels{hint}; a picture has 1 or 3"
    elif null is not None and null.config.width != width:
        problem = f"the null text has {null.config.width} channels, the text encoder's states have {width}"
    if problem:
        raise LimnerError(f"{folder}: {problem}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LimnerError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device
