"""Hyperparameters of the transformers of pictures and words. No torch is imported here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from limner.errors import LimnerError
from limner.files import MAX_INT, MAX_LAYERS, check_range, check_types, from_entries
from limner.nets.configs import CONV_GROUP, MAX_PATCHES, from_published

SD3_FIXED: dict[str, tuple[Any, ...]] = {"_class_name": ("SD3Transformer2DModel",)}


@dataclass(frozen=True)
class SD3TransformerConfig:
    """Hyperparameters of Stable Diffusion 3's transformer, with diffusers' names and defaults.

    `pos_embed_max_size` is the side of the position table in patches; the blocks of `dual_attention_layers` have a
    second attention, over the picture alone (Stable Diffusion 3.5 medium).
    """

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int = 16
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, ("sample_size", "patch_size", "in_channels", "attention_head_dim", "num_attention_heads"), 1)
        check_range(self, ("joint_attention_dim", "pooled_projection_dim", "out_channels", "pos_embed_max_size"), 1)
        check_range(self, ("num_layers",), 1, MAX_LAYERS)
        if self.patch_size > self.sample_size:
            raise LimnerError(f"sample_size {self.sample_size} is smaller than patch_size {self.patch_size}")
        if self.caption_projection_dim != self.hidden_size or self.hidden_size % 4:
            raise LimnerError(
                f"caption_projection_dim {self.caption_projection_dim} must be num_attention_heads "
                f"{self.num_attention_heads} times attention_head_dim {self.attention_head_dim}, a multiple of 4"
            )
        if self.qk_norm not in (None, "rms_norm"):
            raise LimnerError(f"qk_norm must be rms_norm or null, not {self.qk_norm!r:.60}")

    @property
    def hidden_size(self) -> int:
        """The width of the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> SD3TransformerConfig:
        """From the content of a config.json, see `from_published`; `out_channels` null is `in_channels`."""
        if config.get("out_channels", 0) is None:
            config = config | {"out_channels": config.get("in_channels", cls.in_channels)}
        return from_published(cls, config, SD3_FIXED, "a transformer of Stable Diffusion 3")

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json, for `from_dict` and diffusers' `SD3Transformer2DModel.from_config`."""
        fixed = {name: values[0] for name, values in SD3_FIXED.items()}
        return fixed | asdict(self) | {"dual_attention_layers": list(self.dual_attention_layers)}


@dataclass(frozen=True)
class MMDiTConfig:
    """Hyperparameters of an MMDiT, with the names of DiTConfig; `text_dim` is the width of the text encoder's states.

    The MLPs are SwiGLU with 2/3 of `mlp_ratio`, which leaves their parameters as many (Shazeer 2020, section 3).
    `rope_theta` is the base of the rotary frequencies (100 for pictures: Heo et al. 2024, section 3).
    """

    sample_size: int = 32
    in_channels: int = 3
    patch_size: int = 4
    hidden_size: int = 256
    depth: int = 6
    num_heads: int = 8
    mlp_ratio: float = 4.0
    text_dim: int = 0
    rope_theta: float = 100.0
    conv_channels: int = 0
    conv_layers: int = 2

    derived: ClassVar[tuple[str, ...]] = ("sample_size", "in_channels", "text_dim")
    """The fields that `fit` sets."""

    def fit(self, size: int, channels: int, classes: int, text_width: int) -> MMDiTConfig:
        """The configuration for x (B, channels, size, size) and text states of this width."""
        if not text_width:
            raise LimnerError("an MMDiT is conditioned on text alone; set --condition text, or take another network")
        return replace(self, sample_size=size, in_channels=channels, text_dim=text_width)

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, ("sample_size", "in_channels", "patch_size", "hidden_size", "num_heads"), 1)
        check_range(self, ("depth", "conv_layers"), 1, MAX_LAYERS)
        check_range(self, ("text_dim", "conv_channels"), 0)
        if self.hidden_size % (4 * self.num_heads):
            raise LimnerError(f"hidden_size {self.hidden_size} must be divisible by 4 * num_heads {self.num_heads}")
        if self.conv_channels % CONV_GROUP:
            raise LimnerError(f"conv_channels must be a multiple of {CONV_GROUP}, not {self.conv_channels}")
        if self.sample_size % self.patch_size or self.sample_size // self.patch_size > MAX_PATCHES:
            raise LimnerError(
                f"sample_size {self.sample_size} must be 1 to {MAX_PATCHES} times patch_size {self.patch_size}"
            )
        if not 1 <= self.mlp_size <= MAX_INT:
            raise LimnerError(f"mlp_ratio {self.mlp_ratio} of hidden_size {self.hidden_size} is no width of a layer")
        if self.rope_theta < 1:
            raise LimnerError(f"rope_theta must be at least 1, not {self.rope_theta}")

    @property
    def mlp_size(self) -> int:
        """The width of the MLPs between their layers."""
        return int(2 * self.mlp_ratio * self.hidden_size / 3)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> MMDiTConfig:
        """From the content of a config.json. Raises LimnerError for unknown entries."""
        return from_entries(cls, config, "an MMDiT")

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json."""
        return asdict(self)
