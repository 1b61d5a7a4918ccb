"""Hyperparameters of the networks. No torch is imported here, so that recipes are quick to list."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from limner.errors import LimnerError
from limner.files import MAX_INT, MAX_LAYERS, check_range, check_types, from_entries

CONV_GROUP = 8  # channels per group of the group normalisation
MAX_PATCHES = 256  # per side of sample_size

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True)
class DiTConfig:
    """Hyperparameters of a DiT. `num_classes` and `text_dim` are 0 without that condition.

    `conv_channels` is the width of the convolutional stages, 0 for none; `conv_layers` the residual blocks of each.
    `position_scale` multiplies the position embedding. With `pooled_text` the mean of the text tokens is projected and
    added to the time embedding, as Stable Diffusion 3 adds pooled text (Esser et al. 2024, section 4).
    """

    sample_size: int = 32
    in_channels: int = 3
    patch_size: int = 4
    hidden_size: int = 256
    depth: int = 6
    num_heads: int = 8
    mlp_ratio: float = 4.0
    num_classes: int = 0
    text_dim: int = 0
    conv_channels: int = 0
    conv_layers: int = 2
    position_scale: float = 1.0
    pooled_text: bool = False

    derived: ClassVar[tuple[str, ...]] = ("sample_size", "in_channels", "num_classes", "text_dim")
    """The fields that `fit` sets."""

    def fit(self, size: int, channels: int, classes: int, text_width: int) -> DiTConfig:
        """The configuration for x (B, channels, size, size), this many classes and text states of this width."""
        return replace(self, sample_size=size, in_channels=channels, num_classes=classes, text_dim=text_width)

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, ("sample_size", "in_channels", "patch_size", "hidden_size", "num_heads"), 1)
        check_range(self, ("depth", "conv_layers"), 0, MAX_LAYERS)
        check_range(self, ("num_classes", "text_dim"), 0)
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise LimnerError(
                f"hidden_size {self.hidden_size} must be divisible by num_heads {self.num_heads} and by 4"
            )
        if self.conv_channels < 0 or self.conv_channels % CONV_GROUP or self.conv_layers < 1:
            raise LimnerError(
                f"conv_channels must be a multiple of {CONV_GROUP} (0 for none) and conv_layers at least 1, not "
                f"{self.conv_channels} and {self.conv_layers}"
            )
        if self.sample_size // self.patch_size > MAX_PATCHES:
            raise LimnerError(f"sample_size {self.sample_size} is more than {MAX_PATCHES} patches of {self.patch_size}")
        if not 1 <= self.hidden_size * self.mlp_ratio <= MAX_INT:
            raise LimnerError(f"mlp_ratio {self.mlp_ratio} of hidden_size {self.hidden_size} is no width of a layer")
        if self.position_scale <= 0:
            raise LimnerError(f"position_scale must be more than 0, not {self.position_scale}")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> DiTConfig:
        """From the content of a config.json. Raises LimnerError for unknown entries."""
        return from_entries(cls, config, "a DiT")

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json."""
        return asdict(self)


def from_published(kind: type[Config], config: dict[str, Any], fixed: dict[str, tuple[Any, ...]], what: str) -> Config:
    """The dataclass `kind` from the content of diffusers' config.json; entries irrelevant to the network are ignored.

    `fixed` holds the supported values of options that the network does not have. Raises LimnerError for other values.
    """
    for name, values in fixed.items():
        if name in config and config[name] not in values:
            raise LimnerError(f"{what} with {name} {config[name]!r:.60} is not supported, only {values[0]!r}")
    known = {field.name: config[field.name] for field in fields(kind) if field.name in config}
    return from_entries(kind, known, what)


BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}  # one per level
AUTOENCODER_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKL",), "act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,),
}  # fmt: skip


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Hyperparameters of an autoencoder, with diffusers' names and defaults.

    `block_out_channels` are the widths of the levels, from full resolution down, each half the size of the one before.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        widths, groups = self.block_out_channels, self.norm_num_groups
        if not widths or min(widths) < 1:
            raise LimnerError(f"block_out_channels must hold a width of at least 1 for each level, not {widths}")
        check_range(self, ("in_channels", "out_channels", "latent_channels", "norm_num_groups"), 1)
        check_range(self, ("layers_per_block",), 1, MAX_LAYERS // len(widths))
        for width in widths:
            if width % groups:
                raise LimnerError(f"block_out_channels {width} is not divisible by norm_num_groups {groups}")
        if self.scaling_factor <= 0:
            raise LimnerError(f"scaling_factor must be more than 0, not {self.scaling_factor}")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> AutoencoderKLConfig:
        """From the content of a config.json, see `from_published`."""
        result = from_published(cls, config, AUTOENCODER_FIXED, "an autoencoder")
        for name, usual in result._block_types().items():
            if config.get(name) not in (None, usual, tuple(usual)):
                raise LimnerError(f"an autoencoder with {name} {config[name]!r} is not supported, only {usual!r}")
        return result

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json, for `from_dict` and diffusers' `AutoencoderKL.from_config`."""
        fixed = {name: values[0] for name, values in AUTOENCODER_FIXED.items()}
        return fixed | self._block_types() | asdict(self) | {"block_out_channels": list(self.block_out_channels)}

    def _block_types(self) -> dict[str, list[str]]:
        return {name: [value] * len(self.block_out_channels) for name, value in BLOCK_TYPES.items()}
