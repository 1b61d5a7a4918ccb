"""The UNet of diffusion (Ronneberger et al. 2015; Ho et al. 2020; Rombach et al. 2022, section 3.3), with diffusers'
names.

Residual blocks with the time embedding, and at some levels attention: of the positions to each other alone, in the
unconditional or class-conditional UNet of DDPM, or a transformer whose cross-attention reads the text, in Stable
Diffusion 1.x and 2.x.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.layers import ResnetBlock, TimestepEmbedder, Upsample, conv3, norm, silu
from limner.nets.network import Condition, Network
from limner.nets.unet_attention import SpatialAttention, SpatialTransformer, Text, TransformerBlock
from limner.nets.unet_config import Level, UNet2DConfig, UNetBaseConfig, UNetConfig

# The class of the attention layers, if there are any.
AttentionClass = type[SpatialAttention] | type[SpatialTransformer] | None

# The attention after each residual block, by the type of the block.
ATTENTION: dict[str, AttentionClass] = {
    "DownBlock2D": None,
    "UpBlock2D": None,
    "AttnDownBlock2D": SpatialAttention,
    "AttnUpBlock2D": SpatialAttention,
    "CrossAttnDownBlock2D": SpatialTransformer,
    "CrossAttnUpBlock2D": SpatialTransformer,
}


class Downsample(nn.Module):
    """x (B, C, H, W) -> (B, C, H/2, W/2), rounded up."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if not self.padding:  # as TensorFlow's "SAME": on the right and bottom only where the side is even
            x = F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
        return self.conv(x)


def _resnet(inputs: int, level: Level, config: UNetBaseConfig) -> ResnetBlock:
    time_dim = 4 * config.block_out_channels[0]
    return ResnetBlock(inputs, level.width, config.norm_num_groups, time_dim, config.norm_eps, config.dropout)


def _attentions(kind: AttentionClass, count: int, level: Level, config: Any) -> nn.ModuleList:
    return nn.ModuleList([] if kind is None else [kind(level, config) for _ in range(count)])


class DownBlock(nn.Module):
    """x (B, C, H, W) -> (B, D, H/2, W/2), or (B, D, H, W) if `last`; every state on the way is appended to `skips`."""

    def __init__(
        self, inputs: int, level: Level, attention: AttentionClass, config: UNetBaseConfig, last: bool
    ) -> None:
        super().__init__()
        count = config.layers_per_block
        self.resnets = nn.ModuleList(_resnet(level.width if i else inputs, level, config) for i in range(count))
        self.attentions = _attentions(attention, count, level, config)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(level.width, config.downsample_padding)])

    def forward(self, x: Tensor, c: Tensor, text: Text | None, skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, c)
            for attend in self.attentions[i : i + 1]:
                x = attend(x, text)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution: x (B, C, H, W), same shape."""

    def __init__(self, level: Level, attention: AttentionClass, config: UNetBaseConfig) -> None:
        super().__init__()
        self.attentions = _attentions(attention, 1, level, config)
        self.resnets = nn.ModuleList(_resnet(level.width, level, config) for _ in range(2))

    def forward(self, x: Tensor, c: Tensor, text: Text | None) -> Tensor:
        x = self.resnets[0](x, c)
        for attend in self.attentions:
            x = attend(x, text)
        return self.resnets[1](x, c)


class UpBlock(nn.Module):
    """x (B, C, H, W) -> (B, D, H', W'), or (B, D, H, W) if `last`; each residual block takes a state off `skips`, and
    H' and W' are the sides of the next."""

    def __init__(
        self,
        inputs: int,
        skips: list[int],
        level: Level,
        attention: AttentionClass,
        config: UNetBaseConfig,
        last: bool,
    ) -> None:
        """`skips` are the widths of the states on the stack; those used are taken off."""
        super().__init__()
        count = config.layers_per_block + 1
        self.resnets = nn.ModuleList(
            _resnet((level.width if i else inputs) + skips.pop(), level, config) for i in range(count)
        )
        self.attentions = _attentions(attention, count, level, config)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(level.width)])

    def forward(self, x: Tensor, c: Tensor, text: Text | None, skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), c)
            for attend in self.attentions[i : i + 1]:
                x = attend(x, text)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:])
        return x


class UNet(Network):
    """The levels that both UNets have; the classes below add their conditions."""

    multiple = 1

    def __init__(self, config: UNetBaseConfig, mid_attention: AttentionClass) -> None:
        """`mid_attention` is the attention at the lowest resolution, between the way down and the way up."""
        super().__init__()
        self.config, self.latent_channels = config, config.out_channels
        levels, width = config.levels, config.block_out_channels[0]
        self.conv_in = conv3(config.in_channels, width)
        self.time_embedding = TimestepEmbedder(4 * width, width, config.freq_shift, config.flip_sin_to_cos)
        skips = [width]
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, (level, name) in enumerate(zip(levels, config.down_block_types, strict=True), start=1):
            last = i == len(levels)
            self.down_blocks.append(DownBlock(skips[-1], level, ATTENTION[name], config, last))
            skips += [level.width] * (config.layers_per_block + (not last))
        self.mid_block = MidBlock(levels[-1], mid_attention, config)
        inputs = levels[-1].width
        for i, (level, name) in enumerate(zip(levels[::-1], config.up_block_types, strict=True), start=1):
            self.up_blocks.append(UpBlock(inputs, skips, level, ATTENTION[name], config, last=i == len(levels)))
            inputs = level.width
        self.conv_norm_out = norm(width, config.norm_num_groups, config.norm_eps)
        self.conv_out = conv3(width, config.out_channels)
        if not self.conv_out.weight.is_meta:  # a network that is loaded waits for no initial weights
            self.initialise()

    @property
    def blocks(self) -> list[Any]:
        """In the order of the forward pass."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def initialise(self) -> None:
        """Xavier weights, zero biases; residual branches and output start at zero, as in the code of Ho et al. 2020."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        branches = [resnet.conv2 for block in self.blocks for resnet in block.resnets]
        branches += [attention.last for block in self.blocks for attention in block.attentions]
        for layer in (*branches, self.conv_out):
            nn.init.zeros_(layer.weight)

    def output(self, x: Tensor, c: Tensor, text: Text | None = None) -> Tensor:
        """x (B, C, H, W) and the embedding c (B, 4 * the first width) of what it depends on -> F (B, C, H, W)."""
        c = F.silu(c)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, c, text, skips)
        x = self.mid_block(x, c, text)
        for block in self.up_blocks:
            x = block(x, c, text, skips)
        return self.conv_out(silu(self.conv_norm_out(x)))


class UNet2DModel(UNet):
    """x (B, C, H, W), t (B,) in [0, 1000] and, if it is class-conditional, labels -> F (B, C, H, W)."""

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__(config, SpatialAttention if config.add_attention else None)
        self.class_embedding: nn.Embedding | None = None
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, 4 * config.block_out_channels[0])
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        # With channels-last weights a training step on a CPU is faster.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def null_class(self) -> int:
        """The label of the null class."""
        return (self.config.num_class_embeds or 0) - 1

    def misfit(self, text_width: int, classes: int) -> str | None:
        config, known = self.config, (self.config.num_class_embeds or 1) - 1
        if config.in_channels != config.out_channels:
            return f"the UNet takes {config.in_channels} channels and gives {config.out_channels}"
        if text_width:
            return "a UNet2DModel takes no text; a UNet2DConditionModel does"
        if known != classes:
            return (
                f"the UNet's num_class_embeds has {known} classes beside the null class, but there are {classes} class "
                "names"
            )
        return None

    def prepare(self, condition: Condition) -> Condition:
        """{"labels": (B,)} unchanged, or nothing."""
        return condition

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """With classes `labels` (B,), by default `null_class`."""
        c = self.time_embedding(t)
        if self.class_embedding is not None:
            c = c + self.class_embedding(torch.full_like(t, self.null_class).long() if labels is None else labels)
        elif labels is not None:
            raise LimnerError("only a UNet with num_class_embeds takes labels")
        return self.output(x, c)


class UNet2DConditionModel(UNet):
    """x (B, C, H, W), t (B,) in [0, 1000] and text -> F (B, C, H, W); an inpainting UNet is given a mask and the
    latents of the masked picture beside x."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, SpatialTransformer)
        self.concat_channels = config.in_channels - config.out_channels

    @property
    def transformer_blocks(self) -> list[TransformerBlock]:
        """In the order of the forward pass."""
        transformers = [transformer for block in self.blocks for transformer in block.attentions]
        return [block for transformer in transformers for block in transformer.transformer_blocks]

    def misfit(self, text_width: int, classes: int) -> str | None:
        config = self.config
        inpainting = 2 * config.out_channels + 1
        if config.in_channels not in (config.out_channels, inpainting):
            return (
                f"the UNet takes {config.in_channels} channels and gives {config.out_channels}; supported are "
                f"{config.out_channels} and, for inpainting, {inpainting}"
            )
        if config.cross_attention_dim != text_width:
            return (
                f"the UNet's cross_attention_dim is {config.cross_attention_dim}, but the text encoder's states have "
                f"{text_width}"
            )
        return "a UNet takes no class names" if classes else None

    def prepare(self, condition: Condition) -> Condition:
        """{"text": (B, L, C)} and, optionally, "mask" (B, L), True at real tokens, -> keys and values of each block;
        "concat" (B, concat_channels, H, W) is passed on."""
        text, mask = condition["text"].to(self.conv_in.weight.dtype), condition.get("mask")
        kv = [block.attn2.project(text) for block in self.transformer_blocks]
        prepared: dict[str, object] = {"keys": tuple(k for k, _ in kv), "values": tuple(v for _, v in kv)}
        if "concat" in condition:
            prepared["concat"] = condition["concat"].to(text.dtype)
        return prepared | ({} if mask is None else {"mask": mask[:, None, None, :]})

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """With the output of `prepare`: `keys` and `values`, one (B, H, L, d) per transformer block in the order of the
        forward pass, `mask` (B, 1, 1, L), and `concat` (B, concat_channels, H, W), channels after those of x."""
        text = Text(iter(zip(keys, values, strict=True)), mask)
        x = x if concat is None else torch.cat([x, concat], dim=1)
        return self.output(x, self.time_embedding(t), text)
