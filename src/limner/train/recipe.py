"""A recipe: every number of a training run, typed, and nothing else. `limner train NAME --steps 100` changes one."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from limner.data.sources import Source
from limner.errors import LimnerError, unknown


@dataclass(frozen=True)
class Transformer:
    """The denoiser: a DiT over patches, with convolutions at its ends or without."""

    patch_size: int = 4
    hidden_size: int = 256
    depth: int = 6
    num_heads: int = 8
    conv_channels: int = field(default=0, metadata={"least": 0})
    """Width of the convolutional ends, which draw what large patches cannot; 0 for none."""
    conv_layers: int = 2
    """Residual blocks of each end."""
    position_scale: float = 1.0
    """How loud positions are beside the patches: in a grid of few tokens most of the table's channels hardly change."""
    pooled_text: bool = False
    """Tell the mean of the words with the time as well."""


@dataclass(frozen=True)
class TextEncoder:
    """The text encoder, trained before the denoiser, with it, or both; or a CLIP folder, kept frozen."""

    hidden_size: int = 128
    layers: int = 2
    num_heads: int = 4
    length: int = 16
    """Longest prompt in tokens, start and end included."""
    vocab_size: int = 1000
    """Most entries of the tokenizer that is trained on the captions."""
    lr_scale: float = 1.0
    """Its learning rate as a multiple of the denoiser's: early on it hears little but noise, and a high rate undoes it.
    0 keeps it as it is."""
    contrastive: int = field(default=0, metadata={"least": 0})
    """Steps in which it first learns which caption belongs to which picture (train/contrastive.py); 0: none. Not
    done to one that `init` brings."""
    pretrained: str | None = None
    """Folder of a CLIP text model and its tokenizer: used as it is, encoded once per distinct caption."""


@dataclass(frozen=True)
class Autoencoder:
    """A KL autoencoder: a width for each level, each half the size of the one before."""

    widths: tuple[int, ...] = (32, 64, 128)
    layers: int = 1
    """Residual blocks in each level of the encoder; the decoder has one more."""
    latent_channels: int = 4
    groups: int = 8
    """Groups of the group norms."""


@dataclass(frozen=True)
class Run:
    """What every training run has."""

    data: Source
    """Where pictures and captions come from."""
    output: str
    """Folder of the run; it gets checkpoint-<step> folders, TensorBoard logs and sample sheets."""
    size: int = 32
    """Side of the square pictures in pixels."""
    channels: Literal[1, 3] = 3
    flip: bool = False
    """Mirror half of the pictures."""
    steps: int = 10_000
    """Optimiser steps."""
    batch_size: int = 64
    """Pictures per step over all processes."""
    lr: float = 1e-4
    warmup: int = 100
    """Steps in which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    beta2: float = 0.999
    """AdamW's decay of the squared gradients' average."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights; early on it is (1+step)/(10+step)."""
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    """torch.compile the network: its transformer blocks, or the whole autoencoder."""
    seed: int = 0
    workers: int = 0
    """Processes that decode pictures ahead."""
    log_every: int = 50
    save_every: int = 1000
    """Steps between checkpoints; 0: only at the end."""
    sample_every: int = 1000
    """Steps between sample sheets and measures; 0: only at the end."""
    keep: int = 2
    """Checkpoints kept, the newest; 0 keeps all."""

    def __post_init__(self) -> None:
        least = {"size": 1, "steps": 1, "batch_size": 1, "log_every": 1, "seed": 0, "warmup": 0,
                 "workers": 0, "save_every": 0, "sample_every": 0, "keep": 0, "weight_decay": 0}  # fmt: skip
        self.at_least(least)
        self.share("ema")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise LimnerError(f"{name} must be more than 0, not {getattr(self, name)}")
        for part in vars(self).values():
            if isinstance(part, Transformer | TextEncoder | Autoencoder):
                for number in fields(part):
                    value, least = getattr(part, number.name), number.metadata.get("least", 1)
                    if type(value) is int and value < least:
                        raise LimnerError(f"{number.name} must be at least {least}, not {value}")
        if not 0 <= self.beta2 < 1:
            raise LimnerError(f"beta2 must be from 0 to below 1, not {self.beta2}")

    def at_least(self, least: Mapping[str, float]) -> None:
        """LimnerError for a field below its least value."""
        for name, low in least.items():
            if getattr(self, name) < low:
                raise LimnerError(f"{name} must be at least {low}, not {getattr(self, name)}")

    def share(self, name: str) -> None:
        """LimnerError for a field that is not from 0 to 1."""
        if not 0 <= getattr(self, name) <= 1:
            raise LimnerError(f"{name} must be from 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class AutoencoderRecipe(Run):
    """The training of an autoencoder, in whose latents a denoiser can be trained then."""

    model: Autoencoder = field(default_factory=Autoencoder)
    kl: float = 1e-6
    """Weight of the Kullback-Leibler term, per latent number."""
    edges: float = 1.0
    """Weight of the absolute error of differences between neighbouring pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least({"kl": 0, "edges": 0})


@dataclass(frozen=True)
class Recipe(Run):
    """The training of a denoiser, of pixels or, with an autoencoder, of latents."""

    init: str | None = None
    """Model whose weights training starts from: a model folder, a training run, or "shipped"; None: from nothing."""
    autoencoder: str | None = None
    """Training run or model folder with an autoencoder, in whose latents the denoiser works; None: on pixels."""
    cache: int = 0
    """Pictures whose latents are computed once, at the start, and trained on in turn; 0: each is encoded anew."""
    condition: Literal["none", "class", "text"] = "text"
    model: Transformer = field(default_factory=Transformer)
    text: TextEncoder = field(default_factory=TextEncoder)
    path: Literal["flow", "linear", "scaled_linear", "cosine"] = "flow"
    predicts: Literal["flow", "eps", "v", "sample"] = "flow"
    times: Literal["uniform", "logit_normal"] = "uniform"
    """How training times are drawn (logit_normal: Esser et al. 2024)."""
    shift: float = 1.0
    """Moves the training times and the sampling levels of the flow path towards noise, where what is painted where is
    decided (Esser et al. 2024, equation 23)."""
    dropout: float = 0.1
    """Share of pictures that lose their caption or class, for guidance."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts (or class names) of the sample sheet; made from the data when empty."""
    guidance_scale: float = 3.0
    """Guidance of the sample sheets, and the default of the finished model."""
    sample_steps: int = 20
    """Sampling steps of the sheets, and the default of the finished model."""
    grade: int = 0
    """World prompts of each kind that are painted and graded with each sheet; their share obeyed is logged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least({"sample_steps": 1, "grade": 0, "cache": 0})
        if not 0 <= self.text.lr_scale < float("inf"):
            raise LimnerError(f"lr_scale must be at least 0, not {self.text.lr_scale}")
        if self.text.contrastive and (self.condition != "text" or self.text.pretrained is not None):
            raise LimnerError("--text.contrastive is for a text encoder that is trained: this run has none")
        self.share("dropout")
        if not 0 < self.shift < float("inf") or (self.shift != 1 and self.path != "flow"):
            raise LimnerError(f"shift must be more than 0, and 1 but for the flow path, not {self.shift}")
        if self.cache and self.autoencoder is None:
            raise LimnerError("--cache keeps latents: give an --autoencoder, or leave it out")
        if self.cache and self.flip:
            raise LimnerError(
                "--flip mirrors pictures, and --cache keeps latents that cannot be mirrored: leave one out"
            )


def recipe_names() -> list[str]:
    """The names of the shipped recipes: the files of `train/recipes`."""
    folder = importlib.import_module("limner.train.recipes")
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(folder.__path__))


def load_recipe(name: str) -> tuple[Run, str]:
    """The recipe called `name` and its file's text, which tells what it gave when it was run."""
    if name not in recipe_names():
        raise unknown("recipe", name, recipe_names())
    module = importlib.import_module(f"limner.train.recipes.{name.replace('-', '_')}")
    return module.RECIPE, module.__doc__ or ""
