"""Hyperparameters of the UNets. No torch is imported here, so that recipes are quick to list."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

from limner.errors import LimnerError, unknown
from limner.files import MAX_LAYERS, check_range, check_types
from limner.nets.configs import from_published

# The supported values of options that neither network has.
UNETS_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "mid_block_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
}
UNET_FIXED: dict[str, tuple[Any, ...]] = UNETS_FIXED | {
    "_class_name": ("UNet2DConditionModel",),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
}
UNET2D_FIXED: dict[str, tuple[Any, ...]] = UNETS_FIXED | {
    "_class_name": ("UNet2DModel",),
    "attn_norm_num_groups": (None,),
    "downsample_type": ("conv",),
    "mid_block_type": ("UNetMidBlock2D",),
    "upsample_type": ("conv",),
}


class Level(NamedTuple):
    """One resolution of a UNet: its width, the heads of its attention and the depth of its transformers."""

    width: int
    heads: int
    depth: int


@dataclass(frozen=True)
class UNetBaseConfig:
    """Hyperparameters that both UNets have, with diffusers' names and defaults.

    `block_out_channels` are the widths of the levels, from full resolution down, each half the size of the one before.
    `dropout` is that of the residual blocks. With `downsample_padding` 0 a downsampling convolution is padded as little
    as its input needs, with 1 on all sides. `flip_sin_to_cos` has the cosines of the time embedding first, and its
    lowest frequency is 1/10000 if `freq_shift` is 1.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownBlock2D", *["AttnDownBlock2D"] * 3)
    up_block_types: tuple[str, ...] = (*["AttnUpBlock2D"] * 3, "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    downsample_padding: int = 1
    dropout: float = 0.0
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

    def check(self, down_types: Collection[str], up_types: Collection[str]) -> None:
        """Raises LimnerError for values that describe no UNet; the types of blocks are those given."""
        check_types(self)
        widths = self.block_out_channels
        check_range(self, ("sample_size", "in_channels", "out_channels", "norm_num_groups"), 1)
        check_range(self, ("downsample_padding", "freq_shift"), 0, 1)
        if not widths or min(widths) < 1:
            raise LimnerError(f"block_out_channels must hold a width of at least 1 for each level, not {widths}")
        check_range(self, ("layers_per_block",), 1, MAX_LAYERS // len(widths))
        for name, known in (("down_block_types", down_types), ("up_block_types", up_types)):
            types = getattr(self, name)
            if len(types) != len(widths):
                raise LimnerError(f"{name} names {len(types)} levels, block_out_channels {len(widths)}")
            for each in types:
                if each not in known:
                    raise unknown(name, each, known)
        for width in widths:
            if width % self.norm_num_groups:
                raise LimnerError(
                    f"block_out_channels {width} must be divisible by norm_num_groups {self.norm_num_groups}"
                )
        if widths[0] % 2 or widths[0] < 4:
            raise LimnerError(
                f"the first of block_out_channels is the width of the time embedding: it must be even and at least 4, "
                f"not {widths[0]}"
            )
        if self.norm_eps <= 0:
            raise LimnerError(f"norm_eps must be more than 0, not {self.norm_eps}")
        if not 0 <= self.dropout < 1:
            raise LimnerError(f"dropout must be from 0 to below 1, not {self.dropout}")

    @property
    def levels(self) -> list[Level]:
        """From full resolution down."""
        raise NotImplementedError

    def entries(self, fixed: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
        """The content of a config.json, for `from_dict` and diffusers' `from_config`."""
        usual = {name: values[0] for name, values in fixed.items()}
        return usual | {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True)
class UNet2DConfig(UNetBaseConfig):
    """Hyperparameters of an unconditional or class-conditional UNet, diffusers' UNet2DModel.

    `attention_head_dim` is the width of an attention head; None: one head. `add_attention` is that of the middle block.
    `num_class_embeds` counts the classes and the null class, which is the last; None: unconditional.
    """

    attention_head_dim: int | None = 8
    add_attention: bool = True
    num_class_embeds: int | None = None

    derived: ClassVar[tuple[str, ...]] = ("sample_size", "in_channels", "out_channels", "num_class_embeds")
    """The fields that `fit` sets."""

    def fit(self, size: int, channels: int, classes: int, text_width: int) -> UNet2DConfig:
        """The configuration for x (B, channels, size, size) and this many classes."""
        if text_width:
            raise LimnerError("this UNet takes no text; a UNetConfig does")
        embeds = classes + 1 if classes else None
        return replace(self, sample_size=size, in_channels=channels, out_channels=channels, num_class_embeds=embeds)

    def __post_init__(self) -> None:
        self.check(("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D"))
        check_range(self, ("attention_head_dim", "num_class_embeds"), 1)
        levels = zip(self.block_out_channels, self.down_block_types, self.up_block_types[::-1], strict=True)
        widths = [width for width, *types in levels if any(each.startswith("Attn") for each in types)]
        for width in (*widths, *([self.block_out_channels[-1]] if self.add_attention else [])):
            if width % (self.attention_head_dim or 1):
                raise LimnerError(
                    f"block_out_channels {width} must be divisible by attention_head_dim {self.attention_head_dim}"
                )

    @property
    def levels(self) -> list[Level]:
        return [Level(width, width // (self.attention_head_dim or width), 0) for width in self.block_out_channels]

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> UNet2DConfig:
        """From the content of a config.json, see `from_published`."""
        return from_published(cls, config, UNET2D_FIXED, "a UNet")

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json, for `from_dict` and diffusers' `UNet2DModel.from_config`."""
        return self.entries(UNET2D_FIXED)


@dataclass(frozen=True)
class UNetConfig(UNetBaseConfig):
    """Hyperparameters of a text-conditional UNet, diffusers' UNet2DConditionModel, with the values of Stable
    Diffusion 1 as defaults.

    `attention_head_dim` is the number of attention heads (not their width, despite the published name) and
    `transformer_layers_per_block` the depth of each transformer, of all levels or of each.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention_dim: int = 768
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False

    derived: ClassVar[tuple[str, ...]] = ("sample_size", "in_channels", "out_channels", "cross_attention_dim")
    """The fields that `fit` sets."""

    def fit(self, size: int, channels: int, classes: int, text_width: int) -> UNetConfig:
        """The configuration for x (B, channels, size, size) and text states of this width."""
        if not text_width:
            raise LimnerError("this UNet is conditioned on text alone; a UNet2DConfig is on classes, or on nothing")
        return replace(
            self, sample_size=size, in_channels=channels, out_channels=channels, cross_attention_dim=text_width
        )

    def __post_init__(self) -> None:
        self.check(("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D"))
        check_range(self, ("cross_attention_dim",), 1)
        for name in ("attention_head_dim", "transformer_layers_per_block"):
            values = self._per_level(getattr(self, name))
            if len(values) != len(self.block_out_channels) or not 1 <= min(values) <= max(values) <= MAX_LAYERS:
                raise LimnerError(f"{name} must be from 1 to {MAX_LAYERS}, one for each level, not {values}")
        for width, heads, _ in self.levels:
            if width % heads:
                raise LimnerError(
                    f"block_out_channels {width} must be divisible by the heads, attention_head_dim {heads}"
                )

    @property
    def levels(self) -> list[Level]:
        heads, depths = map(self._per_level, (self.attention_head_dim, self.transformer_layers_per_block))
        return [Level(*each) for each in zip(self.block_out_channels, heads, depths, strict=True)]

    def _per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> UNetConfig:
        """From the content of a config.json, see `from_published`."""
        # diffusers' default differs from Stable Diffusion's.
        return from_published(cls, {"cross_attention_dim": 1280} | config, UNET_FIXED, "a UNet")

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json, for `from_dict` and diffusers' `UNet2DConditionModel.from_config`."""
        return self.entries(UNET_FIXED)
