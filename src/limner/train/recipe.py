"""A recipe: every number of a training run, typed, and nothing else. `limner train NAME --steps 100` changes one."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from limner.data.sources import Source
from limner.errors import LimnerError, unknown
from limner.nets.dit import DiTConfig
from limner.nets.vae import AutoencoderKLConfig

if TYPE_CHECKING:
    from limner.data.collection import Collection
    from limner.train.task import Task

SMALL_AUTOENCODER = AutoencoderKLConfig(
    block_out_channels=(32, 64, 128), layers_per_block=1, latent_channels=4, norm_num_groups=8,
    use_quant_conv=False, use_post_quant_conv=False,
)  # fmt: skip


@dataclass(frozen=True)
class TextRecipe:
    """A text encoder: made from nothing, or one that was trained before."""

    hidden_size: int = 128
    layers: int = 2
    num_heads: int = 4
    length: int = 16
    """Longest prompt in tokens, start and end included."""
    vocab_size: int = 1000
    """Most entries of the tokenizer that is trained on the captions."""
    pretrained: str | None = None
    """Folder with a CLIP text model and its tokenizer, or a training run (limner train world-text)."""
    lr_scale: float | None = None
    """Its learning rate as a multiple of the denoiser's; 0 keeps it as it is. None: 1 from nothing, 0 if pretrained."""
    learned_null: bool = False
    """Learn a state for the dropped caption instead of encoding the empty one."""

    def __post_init__(self) -> None:
        check_min(self, {"hidden_size": 1, "layers": 1, "num_heads": 1, "length": 2, "vocab_size": 514})
        if not 0 <= self.scale < float("inf"):
            raise LimnerError(f"lr_scale must be at least 0, not {self.lr_scale}")

    @property
    def scale(self) -> float:
        """The multiple of the learning rate that `lr_scale` means."""
        return self.lr_scale if self.lr_scale is not None else float(self.pretrained is None)


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

    use: ClassVar[str] = "limner generate PROMPT --model"
    """The command that uses the finished run."""

    def __post_init__(self) -> None:
        least = {"size": 1, "steps": 1, "batch_size": 1, "log_every": 1, "seed": 0, "warmup": 0,
                 "workers": 0, "save_every": 0, "sample_every": 0, "keep": 0, "weight_decay": 0}  # fmt: skip
        check_min(self, least)
        check_fraction(self, "ema")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise LimnerError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise LimnerError(f"beta2 must be from 0 to below 1, not {self.beta2}")

    @property
    def captions(self) -> bool:
        """Whether pictures need captions."""
        return False

    def task(self, pictures: "Collection", start: Path | None) -> "Task":
        """What is trained; `start` is the checkpoint to resume."""
        raise NotImplementedError


def check_min(config: object, least: Mapping[str, float]) -> None:
    """LimnerError for a field below its least value."""
    for name, low in least.items():
        if not getattr(config, name) >= low:
            raise LimnerError(f"{name} must be at least {low}, not {getattr(config, name)}")


def check_cache(recipe: "Recipe | ContrastiveRecipe") -> None:
    """LimnerError for latents that cannot be kept."""
    if recipe.cache and recipe.autoencoder is None:
        raise LimnerError("--cache keeps latents: give an --autoencoder, or leave it out")
    if recipe.cache and recipe.flip:
        raise LimnerError("--flip mirrors pictures, and --cache keeps latents that cannot be mirrored: leave one out")


def check_fraction(config: object, name: str) -> None:
    """LimnerError for a field that is not from 0 to 1."""
    if not 0 <= getattr(config, name) <= 1:
        raise LimnerError(f"{name} must be from 0 to 1, not {getattr(config, name)}")


@dataclass(frozen=True)
class AutoencoderRecipe(Run):
    """The training of an autoencoder, in whose latents a denoiser can be trained then."""

    use: ClassVar[str] = "limner train world --autoencoder"

    network: AutoencoderKLConfig = SMALL_AUTOENCODER
    """A width for each level, each half the size of the one before."""
    kl: float = 1e-6
    """Weight of the Kullback-Leibler term, per latent number."""
    edges: float = 1.0
    """Weight of the absolute error of differences between neighbouring pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_min(self, {"kl": 0, "edges": 0})

    def task(self, pictures: "Collection", start: Path | None) -> "Task":
        from limner.train.autoencoder import Autoencoding

        return Autoencoding(self, pictures)


@dataclass(frozen=True)
class ContrastiveRecipe(Run):
    """The training of a text encoder by contrast, before a denoiser is trained with it."""

    use: ClassVar[str] = "limner train world-quick --text.pretrained"
    autoencoder: str | None = None
    """Training run or model folder with an autoencoder, whose latents are compared; None: pixels."""
    cache: int = 0
    """Pictures whose latents are computed once, at the start; 0: each is encoded anew."""
    text: TextRecipe = field(default_factory=TextRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_min(self, {"cache": 0})
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

        return Contrastive(self, pictures, start)


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
    network: DiTConfig = field(default_factory=DiTConfig)
    """Sizes that follow from the pictures and the condition (sample_size, in_channels, num_classes, text_dim) are set
    from these."""
    text: TextRecipe = field(default_factory=TextRecipe)
    path: Literal["flow", "linear", "scaled_linear", "cosine"] = "flow"
    predicts: Literal["flow", "eps", "v", "sample"] = "flow"
    times: Literal["uniform", "logit_normal", "log_normal"] = "uniform"
    """How training times are drawn (logit_normal: Esser et al. 2024; log_normal: Karras et al. 2022)."""
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
        check_min(self, {"sample_steps": 1, "grade": 0, "cache": 0})
        check_fraction(self, "dropout")
        if not 0 < self.shift < float("inf") or (self.shift != 1 and self.path != "flow"):
            raise LimnerError(f"shift must be more than 0, and 1 but for the flow path, not {self.shift}")
        check_cache(self)

    @property
    def captions(self) -> bool:
        return self.condition == "text"

    def task(self, pictures: "Collection", start: Path | None) -> "Task":
        from limner.train.diffusion import Diffusion

        return Diffusion(self, pictures, start)


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
