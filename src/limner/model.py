"""Model: a network with its conditioner, autoencoder and scheduler, stored as one folder in diffusers' layout."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner.devices import dtypes_of, fast_dtype, find_device, keep_freed_memory
from limner.errors import LimnerError, unknown
from limner.families import Family, family
from limner.files import read_config, read_json, write_json
from limner.folders import Index, find_model
from limner.nets.network import Network
from limner.nets.vae import AutoencoderKL
from limner.offload import Offload
from limner.text.conditioner import Classes, Conditioner, Nothing, NullText, Text
from limner.text.encoder import AnyTokenizer, LeftOut, Reads, TextEncoder, open_tokenizer
from limner.text.transformer import TextTransformer
from limner.weights.parts import open_part, read_part_config, save_part

Module = TypeVar("Module", bound=nn.Module)


@dataclass
class Model:
    """The parts of a text-to-image model. `scheduler` is the content of scheduler_config.json, `defaults` are the
    sampling settings used where a request gives none."""

    network: Network
    conditioner: Conditioner
    scheduler: dict[str, Any]
    autoencoder: AutoencoderKL | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    name: str = "model"
    pipeline: str = "LimnerPipeline"
    offloaded: bool = False

    @classmethod
    def open(
        cls,
        source: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        allow_pickle: bool = False,
        without: Sequence[str] = (),
        offload: bool = False,
    ) -> "Model":
        """Open a model folder, a training run (its newest checkpoint), a model of the hub ("owner/name"), or, with
        None, the shipped model.

        `device` is torch's name or auto: cuda, mps or cpu. `dtype` is float32, bfloat16, float16 or auto: bfloat16
        where the device has it natively and the family tolerates it; "auto,vae=float32" makes an exception of a part.
        `allow_pickle` opens weights that torch.save wrote, which run no code. The text encoders `without` are left out
        where the family has several: t5, clip_l, clip_g. With `offload` a part is in memory only while it is in use,
        loaded each time from the folder. Raises LimnerError for any other folder, and for files that are truncated,
        hold other tensors or are incompatible with each other.
        """
        keep_freed_memory()
        folder, where = find_model(source), find_device(device)
        index = read_config(folder / "model_index.json", Index.from_dict)
        row = _family_of(index, folder)
        auto = fast_dtype(where) if row.tolerates_bf16 else torch.float32
        dtypes = dtypes_of(dtype, auto, _part_names(row, index))
        parts = Parts(folder, index, dtypes, allow_pickle, where, lazy=offload)
        network = parts.open(row.network, row.network_class, Network)
        model = cls(
            network,
            _open_conditioner(parts, row, network, without),
            read_json(folder / "scheduler/scheduler_config.json"),
            parts.open("vae", "AutoencoderKL", AutoencoderKL) if "vae" in index.parts else None,
            row.defaults | {name: value for name, value in asdict(index.defaults).items() if value is not None},
            "limner" if source in (None, "shipped") else Path(os.path.abspath(source)).name,
            index.pipeline,
        )
        check_compatible(model, folder)
        if offload:
            Offload(model.parts(), parts.load, dtypes, where)
        model.to(where).offloaded = offload
        return model

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `open` can load; `dtype` converts the saved weights."""
        folder = Path(folder)
        stale = _parts_in(folder) - {*self.parts(), *self.tokenizers()}
        index: dict[str, Any] = {"_class_name": self.pipeline}
        index |= {name: save_part(part, folder / name, dtype) for name, part in self.parts().items()}
        for name, tokenizer in self.tokenizers().items():
            tokenizer.save(folder / name)
            index[name] = ("transformers", tokenizer.published_name)
        encoders = family(self.pipeline, self.conditioner.kind).encoders
        absent = [name for reads in encoders for name in (reads.folder, reads.tokenizer) if name not in index]
        index |= dict.fromkeys(absent, (None, None))
        write_json(folder / "scheduler/scheduler_config.json", self.scheduler)
        index["scheduler"] = ("diffusers", self.scheduler.get("_class_name", ""))
        index |= {"class_names": self.conditioner.names} if self.conditioner.names else {}
        write_json(folder / "model_index.json", index | {"defaults": self.defaults})
        for name in stale:
            shutil.rmtree(folder / name)

    def parts(self) -> dict[str, nn.Module]:
        """Every module with weights, by its folder, named as in diffusers and transformers."""
        network = family(self.pipeline, self.conditioner.kind).network
        parts: dict[str, nn.Module] = {network: self.network} | self.conditioner.parts()
        return parts | ({"vae": self.autoencoder} if self.autoencoder is not None else {})

    def tokenizers(self) -> dict[str, AnyTokenizer]:
        """The tokenizers, by their folders."""
        return self.conditioner.tokenizers()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Model":
        """Move all parts to `device` and convert them to `dtype`. Raises LimnerError for an offloaded model."""
        if self.offloaded:
            raise LimnerError(
                "the parts of an offloaded model are loaded as it was opened; open it with that device or dtype"
            )
        for part in (self.network, self.conditioner, self.autoencoder):
            if part is not None:
                part.to(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's weights, in which it computes."""
        return next(self.network.parameters()).dtype

    @property
    def precision(self) -> str:
        """The network's dtype, then that of each part with another, as `open` takes them: "bfloat16,vae=float32"."""
        own = str(self.dtype).removeprefix("torch.")
        dtypes = {
            name: str(next(part.parameters()).dtype).removeprefix("torch.") for name, part in self.parts().items()
        }
        return ",".join([own, *(f"{name}={dtype}" for name, dtype in dtypes.items() if dtype != own)])

    @property
    def factor(self) -> int:
        """Downsampling factor of the autoencoder; 1 without one."""
        return 1 if self.autoencoder is None else self.autoencoder.factor

    @property
    def size(self) -> int:
        """Height and width, in pixels, that the model was trained at."""
        return self.network.config.sample_size * self.factor

    @property
    def channels(self) -> int:
        """Of a picture: 1, grey, or 3, RGB."""
        return self.network.latent_channels if self.autoencoder is None else self.autoencoder.config.out_channels

    @torch.inference_mode()
    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] -> latents (B, c, h, w), float32: the mean of the posterior or, with unit
        noise, a sample; the identity without an autoencoder."""
        if self.autoencoder is None:
            return x
        pixels = x.to(next(self.autoencoder.parameters()).dtype).contiguous(memory_format=torch.channels_last)
        posterior = self.autoencoder.encode(pixels)
        z = posterior.mean if noise is None else posterior.sample(noise.to(pixels.dtype))
        return self.autoencoder.to_latents(z).float()

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        """Latents (B, c, h, w) -> pictures (B, C, H, W) in [-1, 1]; the identity without an autoencoder."""
        if self.autoencoder is None:
            return x
        z = self.autoencoder.from_latents(x.to(next(self.autoencoder.parameters()).dtype))
        return self.autoencoder.decode(z.contiguous(memory_format=torch.channels_last)).float()


def _parts_in(folder: Path) -> set[str]:
    """The folders of the parts of the model that is saved in `folder`; none where there is no model."""
    if not (folder / "model_index.json").is_file():
        return set()
    index = read_config(folder / "model_index.json", Index.from_dict)
    files = ("config.json", "tokenizer.json")
    names = {*index.parts, "text_encoder", "tokenizer"} - {"scheduler"}
    return {name for name in names if any((folder / name / file).is_file() for file in files)}


def _family_of(index: Index, folder: Path) -> Family:
    """The family of a model folder. Old folders have a text_encoder that their index does not list."""
    has_text = any(name.startswith("text_encoder") for name in index.parts) or (folder / "text_encoder").is_dir()
    try:
        return family(index.pipeline, "class" if index.class_names else "text" if has_text else "none")
    except LimnerError as error:
        raise LimnerError(f"{folder / 'model_index.json'}: {error}") from error


def _part_names(row: Family, index: Index) -> list[str]:
    """The folders of the parts with weights that a model of this family opens."""
    optional = [name for name in ("vae", "null_text") if name in index.parts]
    return [row.network, *(reads.folder for reads in row.encoders), *optional]


@dataclass(frozen=True)
class Parts:
    """A model folder's parts, opened with the dtype of each, on `device`."""

    folder: Path
    index: Index
    dtypes: dict[str, torch.dtype]
    allow_pickle: bool
    device: torch.device
    lazy: bool = False
    """Whether `open` leaves weights in the dtype of their files, which are mapped, so that nothing is read."""

    def open(self, name: str, default: str, base: type[Module]) -> Module:
        """The part in the folder `name`; `default` is its class if the index does not list it."""
        kind = self.index.class_of(name, default)
        if self.lazy:
            return open_part(self.folder / name, kind, base, None, self.allow_pickle)
        return self.load(name, kind, base)

    def load(self, name: str, kind: str, base: type[Any] = nn.Module) -> Any:
        """The part of class `kind` in the folder `name`, with its dtype, on the device."""
        return open_part(self.folder / name, kind, base, self.dtypes[name], self.allow_pickle).to(self.device)


def _open_conditioner(parts: Parts, row: Family, network: Network, without: Sequence[str]) -> Conditioner:
    """The conditioner of the family. The text encoders `without`, and those that are null in the index, are left
    out."""
    names = [reads.name for reads in row.encoders if reads.name]
    for name in without:
        if name not in names:
            if not names:
                raise LimnerError(f"{name} cannot be left out: this model needs every text encoder that it has")
            raise unknown("text encoder that can be left out", name, names)
    if parts.index.class_names:
        return Classes(parts.index.class_names)
    if not row.encoders:
        return Nothing()

    def open_encoder(reads: Reads) -> TextEncoder | LeftOut:
        if reads.name in without or (reads.name and reads.folder in parts.index.absent):
            return _left_out(parts, reads, network)
        if reads.name and not (parts.folder / reads.folder).is_dir():
            missing = f"{parts.folder} has no {reads.folder}, the text encoder {reads.name}"
            raise LimnerError(f"{missing}; fetch it, or leave it out (--without {reads.name})")
        transformer = parts.open(reads.folder, "CLIPTextModel", TextTransformer)
        folder = parts.folder / reads.tokenizer
        tokenizer = open_tokenizer(folder)
        try:
            return TextEncoder(tokenizer, transformer, reads)
        except LimnerError as error:
            raise LimnerError(f"{folder}: {error}") from error

    null = parts.open("null_text", "NullText", NullText) if "null_text" in parts.index.parts else None
    return Text([open_encoder(reads) for reads in row.encoders], row.combine, null, row.width)


def _left_out(parts: Parts, reads: Reads, network: Network) -> LeftOut:
    """The stand-in of a text encoder, whose widths its config.json tells. Without that file, states of a fixed length
    have the network's width and no pooled state."""
    folder = parts.folder / reads.folder
    if reads.length is not None and not (folder / "config.json").is_file():
        return LeftOut(reads, reads.length, network.text_width, 0)
    config = read_part_config(folder, parts.index.class_of(reads.folder, "CLIPTextModelWithProjection"))
    length = reads.length or config.max_position_embeddings
    return LeftOut(reads, length, config.hidden_size, getattr(config, "projection_dim", None) or 0)


def check_compatible(model: Model, folder: Path) -> None:
    """Raises LimnerError for parts whose shapes are incompatible with each other."""
    network, autoencoder = model.network, model.autoencoder
    width, null = model.conditioner.width, model.conditioner.null
    problem = network.misfit(width, len(model.conditioner.names))
    latent = network.latent_channels if autoencoder is None else autoencoder.config.latent_channels
    painted = model.channels
    if network.latent_channels != latent:
        problem = f"the network paints {network.latent_channels} channels, the autoencoder's latents have {latent}"
    elif painted not in (1, 3):
        hint = ", and model_index.json names no vae" if autoencoder is None else ""
        problem = f"what is painted has {painted} channels{hint}; a picture has 1 or 3"
    elif network.concat_channels and family(model.pipeline, model.conditioner.kind).picture is None:
        problem = f"the network is given {network.concat_channels} channels of a picture, which no {model.pipeline} has"
    elif null is not None and null.config.width != width:
        problem = f"the null text has {null.config.width} channels, the text encoder's states have {width}"
    if problem:
        raise LimnerError(f"{folder}: {problem}")
