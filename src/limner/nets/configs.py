"""Hyperparameters of the networks. No torch is imported here, so that recipes are quick to list."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from limner.errors import LimnerError, unknown
from limner.files import MAX_INT, MAX_LAYERS, check_range, check_types, from_entries

CONV_GROUP = 8  # channels per group of the group normalisation
MAX_PATCHES = 256  # per side of sample_size

Config = TypeVar("Config", bound="DiTConfig | AutoencoderKLConfig | UNetConfig")


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


DOWN_TYPES = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # whether the block has attention
UP_TYPES = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}


@dataclass(frozen=True)
class UNetConfig:
    """Hyperparameters of a text-conditional UNet, with diffusers' names and the values of Stable Diffusion 1 as
    defaults.

    `block_out_channels` are the widths of the levels, from full resolution down, each half the size of the one before.
    `attention_head_dim` is the number of attention heads (not their width, despite the published name) and
    `transformer_layers_per_block` the depth of each transformer, of all levels or of each.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_types(self)
        widths, names = self.block_out_channels, ("down_block_types", "up_block_types")
        check_range(self, ("sample_size", "in_channels", "out_channels", "cross_attention_dim", "norm_num_groups"), 1)
        if not widths or min(widths) < 1:
            raise LimnerError(f"block_out_channels must hold a width of at least 1 for each level, not {widths}")
        check_range(self, ("layers_per_block",), 1, MAX_LAYERS // len(widths))
        for name, known in zip(names, (DOWN_TYPES, UP_TYPES), strict=True):
            types = getattr(self, name)
            if len(types) != len(widths):
                raise LimnerError(f"{name} names {len(types)} levels, block_out_channels {len(widths)}")
            for each in types:
                if each not in known:
                    raise unknown(name, each, known)
        if self.norm_eps <= 0:
            raise LimnerError(f"norm_eps must be more than 0, not {self.norm_eps}")
        for name in ("attention_head_dim", "transformer_layers_per_block"):
            values = self.per_level(name)
            if len(values) != len(widths) or not 1 <= min(values) <= max(values) <= MAX_LAYERS:
                raise LimnerError(f"{name} must be from 1 to {MAX_LAYERS}, one for each level, not {values}")
        for width, heads in zip(widths, self.per_level("attention_head_dim"), strict=True):
            if width % self.norm_num_groups or width % heads:
                raise LimnerError(
                    f"block_out_channels {width} must be divisible by norm_num_groups {self.norm_num_groups} and by "
                    f"the heads, attention_head_dim {heads}"
                )

    def per_level(self, name: str) -> tuple[int, ...]:
        """The value of `attention_head_dim` or `transformer_layers_per_block` at each level."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> UNetConfig:
        """From the content of a config.json, see `from_published`."""
        # diffusers' default differs from Stable Diffusion's.
        return from_published(cls, {"cross_attention_dim": 1280} | config, UNET_FIXED, "a UNet")

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json, for `from_dict` and diffusers' `UNet2DConditionModel.from_config`."""
        fixed = {name: values[0] for name, values in UNET_FIXED.items()}
        return fixed | {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
