"""Recipes: the configuration of a training run. `limner train NAME --steps 100` overrides a field."""

import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from limner.data.sources import Source
from limner.errors import LimnerError, unknown
from limner.files import MAX_LAYERS
from limner.nets.configs import AutoencoderKLConfig, DiTConfig
from limner.nets.mmdit_config import MMDiTConfig
from limner.nets.unet_config import UNet2DConfig, UNetConfig
from limner.train.fields import (
    Amount,
    Decay,
    Fraction,
    Natural,
    Number,
    Positive,
    PositiveNumber,
    Range,
    check_derived,
    check_fields,
)

if TYPE_CHECKING:
    from limner.data.collection import Collection
    from limner.train.task import Task

MAX_LR = 1e3
SMALL_AUTOENCODER = AutoencoderKLConfig(
    block_out_channels=(32, 64, 128), layers_per_block=1, latent_channels=4, norm_num_groups=8,
    use_quant_conv=False, use_post_quant_conv=False,
)  # fmt: skip


@dataclass(frozen=True)
class TextRecipe:
    """A text encoder, trained from nothing or pretrained."""

    hidden_size: Annotated[int, Range(1, 2**16)] = 128
    layers: Annotated[int, Range(1, MAX_LAYERS)] = 2
    num_heads: Positive = 4
    length: Annotated[int, Range(2, 2**16)] = 16
    """Most tokens of a prompt, start and end included."""
    vocab_size: Annotated[int, Range(514, 2**22)] = 1000
    """Most entries of the tokenizer that is trained on the captions."""
    pretrained: str | None = None
    """Folder with a CLIP text model and its tokenizer, or a training run (limner train world-text)."""
    lr_scale: Amount | None = None
    """Its learning rate as a multiple of the denoiser's; 0 freezes it. None: 1 from nothing, 0 if pretrained."""
    learned_null: bool = False
    """Use a learned embedding for dropped captions instead of the encoded empty one."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.pretrained is not None:
            sizes = ("hidden_size", "layers", "num_heads", "length", "vocab_size")
            check_derived("text", self, sizes, f"the text encoder of {self.pretrained} has its own")

    @property
    def scale(self) -> float:
        """`lr_scale` with its default resolved."""
        return self.lr_scale if self.lr_scale is not None else float(self.pretrained is None)


@dataclass(frozen=True)
class Run:
    """The fields of every training run."""

    data: Source
    """Where pictures and captions come from."""
    output: str
    """Folder for checkpoint-<step> folders, TensorBoard logs and sample sheets."""
    size: Annotated[int, Range(1, 2**14)] = 32
    """Side of the square pictures in pixels."""
    channels: Literal[1, 3] = 3
    flip: bool = False
    """Mirror half of the pictures."""
    held_out: Natural = 0
    """Pictures kept out of training; their loss by the averaged weights is logged with each sheet."""
    steps: Positive = 10_000
    """Optimiser steps."""
    epochs: PositiveNumber | None = None
    """Passes over the pictures, in place of steps."""
    batch_size: Annotated[int, Range(1, 2**16)] = 64
    """Pictures per step over all processes."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the matrices of the blocks (Jordan et al. 2024), AdamW for the rest."""
    lr: Annotated[float, Range(0, MAX_LR, above=True)] = 1e-4
    warmup: Natural = 100
    """Steps of linear learning-rate warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    beta1: Decay = 0.9
    """AdamW's decay of the gradients' average."""
    beta2: Decay = 0.999
    """AdamW's decay of the squared gradients' average."""
    weight_decay: Amount = 0.0
    clip: PositiveNumber = 1.0
    """Largest gradient norm."""
    ema: Fraction = 0.999
    """Decay of the averaged weights; early on it is (1+step)/(10+step)."""
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    """torch.compile the transformer blocks, or the autoencoder."""
    seed: Annotated[int, Range(0, 2**64 - 1)] = 0
    workers: Annotated[int, Range(0, 1024)] = 0
    """Worker processes of the DataLoader."""
    log_every: Positive = 50
    save_every: Natural = 1000
    """Steps between checkpoints; 0: only at the end."""
    sample_every: Natural = 1000
    """Steps between sample sheets and metrics; 0: only at the end."""
    keep: Natural = 2
    """Checkpoints kept, the newest; 0 keeps all."""

    use: ClassVar[str] = "limner generate PROMPT --model"
    """The command for the finished run, up to the run's folder."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def captions(self) -> bool:
        """Whether every picture needs a caption."""
        return False

    @property
    def unused_parameters(self) -> bool:
        """Whether a process's share of a batch may leave parameters without gradient."""
        return False

    def task(self, pictures: "Collection", start: Path | None) -> "Task":
        """The task of this recipe; `start` is the checkpoint to resume."""
        raise NotImplementedError


def check_cache(recipe: "Recipe | ContrastiveRecipe") -> None:
    """LimnerError for a cache without an autoencoder, or with mirrored pictures."""
    if recipe.cache and recipe.autoencoder is None:
        raise LimnerError("--cache keeps latents: give an --autoencoder, or leave it out")
    if recipe.cache and recipe.flip:
        raise LimnerError("--flip mirrors pictures, and --cache keeps latents that cannot be mirrored: leave one out")


@dataclass(frozen=True)
class AutoencoderRecipe(Run):
    """The training of an autoencoder (Rombach et al. 2022)."""

    use: ClassVar[str] = "limner train world --autoencoder"

    network: AutoencoderKLConfig = SMALL_AUTOENCODER
    """block_out_channels: a width for each level, each at half the resolution of the one before."""
    kl: Amount = 1e-6
    """Weight of the KL divergence per latent value."""
    edges: Amount = 1.0
    """Weight of the L1 error of finite differences between neighbouring pixels."""

    def task(self, pictures: "Collection", start: Path | None) -> "Task":
        from limner.train.autoencoder import Autoencoding

        return Autoencoding.from_recipe(self, pictures)


@dataclass(frozen=True)
class ContrastiveRecipe(Run):
    """The contrastive pre-training of a text encoder (Radford et al. 2021)."""

    use: ClassVar[str] = "limner train world-quick --text.pretrained"
    autoencoder: str | None = None
    """Training run or model folder of the autoencoder whose latents are the input; None: pixels."""
    cache: Natural = 0
    """Pictures whose latents are encoded once, at the start; 0: latents are encoded at every step."""
    text: TextRecipe = field(default_factory=TextRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cache(self)
        if self.text != replace(self.text, pretrained=None, lr_scale=None, learned_null=False):
            raise LimnerError(
                "a text encoder is trained from nothing and alone here: leave --text.pretrained, --text.lr-scale and "
                "--text.learned-null out"
            )

    @property
    def captions(self) -> bool:
        return True

    def task(self, pictures: "Collection", start: Path | None) -> "Task":
        from limner.train.contrastive import Contrastive

        return Contrastive.from_recipe(self, pictures, start)


@dataclass(frozen=True)
class Recipe(Run):
    """The training of a denoiser on pixels or, with an autoencoder, on latents."""

    init: str | None = None
    """Model whose weights training starts from: a model folder, a training run, or "shipped"; None: from nothing."""
    autoencoder: str | None = None
    """Training run or model folder of the autoencoder whose latents are denoised; None: pixels."""
    cache: Natural = 0
    """Pictures whose latents are encoded once, at the start; 0: latents are encoded at every step."""
    condition: Literal["none", "class", "text"] = "text"
    network: DiTConfig | MMDiTConfig | UNet2DConfig | UNetConfig = field(default_factory=DiTConfig)
    """Sizes, channels, classes and the width of the text follow from the data and the condition."""
    text: TextRecipe = field(default_factory=TextRecipe)
    path: Literal["flow", "linear", "scaled_linear", "cosine"] = "flow"
    predicts: Literal["flow", "eps", "v", "sample"] = "flow"
    loss: Literal["prediction", "velocity"] = "prediction"
    """The error that is squared: of what the network predicts, or of the velocity that follows from a predicted sample
    (Li & He 2025)."""
    snr_gamma: PositiveNumber | None = None
    """Signal-to-noise ratio above which the weight of the error of x0 is constant (min-SNR, Hang et al. 2023, who take
    5); None: no weight. Not for flow."""
    times: Literal["uniform", "logit_normal", "log_normal", "mode"] = "uniform"
    """Distribution of training times (logit_normal, mode: Esser et al. 2024; log_normal: Karras et al. 2022)."""
    shift: Number = 1.0
    """Shift of training times and sampling levels of the flow path towards noise (Esser et al. 2024, equation 23)."""
    dropout: Fraction = 0.1
    """Probability of dropping the caption or class, for classifier-free guidance."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts (or class names) of the sample sheet; empty: taken from the data."""
    guidance_scale: Amount = 3.0
    """Guidance scale of the sample sheets, and the finished model's default."""
    sample_steps: Annotated[int, Range(1, 100_000)] = 20
    """Sampling steps of the sample sheets, and the finished model's default."""
    grade: Annotated[int, Range(0, 10_000)] = 0
    """World prompts of each kind of scene graded with each sheet; the share obeyed is logged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_derived("network", self.network, self.network.derived, "it follows from the pictures and the condition")
        if not self.shift > 0 or (self.shift != 1 and self.path != "flow"):
            raise LimnerError(f"shift must be more than 0, and 1 but for the flow path, not {self.shift}")
        if self.loss == "velocity" and (self.path, self.predicts) != ("flow", "sample"):
            raise LimnerError("--loss velocity is for --path flow --predicts sample, whose output is not the velocity")
        if self.snr_gamma is not None and (self.path == "flow" or self.predicts == "flow"):
            raise LimnerError("--snr-gamma weights eps, v and sample on a path of noise levels, not flow: leave it out")
        check_cache(self)

    @property
    def captions(self) -> bool:
        return self.condition == "text"

    @property
    def unused_parameters(self) -> bool:
        return self.text.learned_null  # a share may have no dropped caption, or no other

    def task(self, pictures: "Collection", start: Path | None) -> "Task":
        from limner.train.diffusion import Diffusion

        return Diffusion.from_recipe(self, pictures, start)


def recipe_names() -> list[str]:
    """The names of the shipped recipes: the files of `train/recipes`."""
    folder = importlib.import_module("limner.train.recipes")
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(folder.__path__))


def load_recipe(name: str) -> tuple[Run, str]:
    """The recipe `name` and the docstring of its file. LimnerError for an unknown name."""
    if name not in recipe_names():
        raise unknown("recipe", name, recipe_names())
    module = importlib.import_module(f"limner.train.recipes.{name.replace('-', '_')}")
    return module.RECIPE, module.__doc__ or ""
