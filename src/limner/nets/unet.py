"""The UNet of latent diffusion (Ronneberger et al. 2015; Rombach et al. 2022, section 3.3), with diffusers' names.

Residual blocks with the time embedding, and at most levels a transformer whose cross-attention reads the text. Stable
Diffusion 1.x and 2.x use it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nets.configs import DOWN_TYPES, UP_TYPES, UNetConfig
from limner.nets.layers import (
    ResnetBlock,
    TimestepEmbedder,
    Upsample,
    attention,
    conv3,
    merge_heads,
    norm,
    silu,
    split_heads,
)
from limner.nets.network import Condition, Network

KV = tuple[Tensor, Tensor]


class Text(NamedTuple):
    """What the cross-attentions read: keys and values (B, H, L, d) in the order of the transformer blocks, and the mask
    (B, 1, 1, L), True at the tokens to attend to."""

    kv: Iterator[KV]
    mask: Tensor | None


class Attention(nn.Module):
    """Attention of x (B, N, D) to keys and values: projections of x itself, or of the text (B, L, C)."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list, for the published name to_out.0

    def project(self, context: Tensor) -> KV:
        """(B, L, C) -> keys and values, each (B, H, L, d)."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def forward(self, x: Tensor, kv: KV, mask: Tensor | None = None) -> Tensor:
        return self.to_out[0](merge_heads(attention(split_heads(self.to_q(x), self.heads), *kv, mask)))


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020, section 2): x (B, N, D) -> (B, N, 4D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(hidden)


class FeedForward(nn.Module):
    """x (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The identity stands where the published models had dropout.
        self.net = nn.Sequential(GEGLU(dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward: x (B, N, D), same shape."""

    def __init__(self, dim: int, heads: int, text_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, text_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, kv: KV, mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, self.attn1.project(h))
        x = x + self.attn2(self.norm2(x), kv, mask)
        return x + self.ff(self.norm3(x))


class PointwiseLinear(nn.Linear):
    """A linear layer at every position: x (B, C, H, W) -> (B, D, H, W), a 1x1 convolution with a linear's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of x (B, C, H, W), with a residual connection."""

    def __init__(self, width: int, heads: int, depth: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = norm(width, config.norm_num_groups)
        linear = config.use_linear_projection
        self.proj_in, self.proj_out = (
            PointwiseLinear(width, width) if linear else nn.Conv2d(width, width, kernel_size=1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, config.cross_attention_dim) for _ in range(depth)
        )

    def forward(self, x: Tensor, text: Text) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, C), a view if x is channels-last
        for block in self.transformer_blocks:
            h = block(h, next(text.kv), text.mask)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """x (B, C, H, W) -> (B, C, H/2, W/2), rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Level(NamedTuple):
    """One resolution of the UNet: its width, and heads and depth of its transformers, depth 0 for none."""

    width: int
    heads: int
    depth: int

    def resnet(self, inputs: int, config: UNetConfig) -> ResnetBlock:
        time_dim = 4 * config.block_out_channels[0]
        return ResnetBlock(inputs, self.width, config.norm_num_groups, time_dim, config.norm_eps)

    def transformers(self, count: int, config: UNetConfig) -> nn.ModuleList:
        transformers = range(count if self.depth else 0)
        return nn.ModuleList(SpatialTransformer(self.width, self.heads, self.depth, config) for _ in transformers)


def _levels(config: UNetConfig, has_attention: list[bool]) -> list[Level]:
    depths = config.per_level("transformer_layers_per_block")
    heads = config.per_level("attention_head_dim")
    return [
        Level(width, heads, depth if attends else 0)
        for width, heads, depth, attends in zip(config.block_out_channels, heads, depths, has_attention, strict=True)
    ]


class DownBlock(nn.Module):
    """x (B, C, H, W) -> (B, D, H/2, W/2), or (B, D, H, W) if `last`; every state on the way is appended to `skips`."""

    def __init__(self, inputs: int, level: Level, config: UNetConfig, last: bool) -> None:
        super().__init__()
        count = config.layers_per_block
        self.resnets = nn.ModuleList(level.resnet(level.width if i else inputs, config) for i in range(count))
        self.attentions = level.transformers(count, config)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(level.width)])

    def forward(self, x: Tensor, c: Tensor, text: Text, skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, c)
            for transformer in self.attentions[i : i + 1]:
                x = transformer(x, text)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """Residual block, transformer, residual block, at the lowest resolution: x (B, C, H, W), same shape."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__()
        self.attentions = level.transformers(1, config)
        self.resnets = nn.ModuleList(level.resnet(level.width, config) for _ in range(2))

    def forward(self, x: Tensor, c: Tensor, text: Text) -> Tensor:
        x = self.resnets[0](x, c)
        for transformer in self.attentions:
            x = transformer(x, text)
        return self.resnets[1](x, c)


class UpBlock(nn.Module):
    """x (B, C, H, W) -> (B, D, H', W'), or (B, D, H, W) if `last`; each residual block takes a state off `skips`, and
    H' and W' are the sides of the next."""

    def __init__(self, inputs: int, skips: list[int], level: Level, config: UNetConfig, last: bool) -> None:
        """`skips` are the widths of the states on the stack; those used are taken off."""
        super().__init__()
        count = config.layers_per_block + 1
        self.resnets = nn.ModuleList(
            level.resnet((level.width if i else inputs) + skips.pop(), config) for i in range(count)
        )
        self.attentions = level.transformers(count, config)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(level.width)])

    def forward(self, x: Tensor, c: Tensor, text: Text, skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), c)
            for transformer in self.attentions[i : i + 1]:
                x = transformer(x, text)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:])
        return x


class UNet2DConditionModel(Network):
    """x (B, C, H, W), t (B,) in [0, 1000] and text -> F (B, C, H, W); an inpainting UNet is given a mask and the
    latents of the masked picture beside x."""

    multiple = 1

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config, self.latent_channels = config, config.out_channels
        self.concat_channels = config.in_channels - config.out_channels
        widths, count = config.block_out_channels, len(config.block_out_channels)
        down = _levels(config, [DOWN_TYPES[name] for name in config.down_block_types])
        up = _levels(config, [UP_TYPES[name] for name in config.up_block_types[::-1]])[::-1]
        mid = _levels(config, [True] * count)[-1]
        self.conv_in = conv3(config.in_channels, widths[0])
        self.time_embedding = TimestepEmbedder(4 * widths[0], frequencies=widths[0])
        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for i, level in enumerate(down):
            last = i == count - 1
            self.down_blocks.append(DownBlock(skips[-1], level, config, last))
            skips += [level.width] * (config.layers_per_block + (not last))
        self.mid_block = MidBlock(mid, config)
        inputs = [mid.width, *(level.width for level in up)]
        self.up_blocks = nn.ModuleList(
            UpBlock(inputs[i], skips, level, config, last=i == count - 1) for i, level in enumerate(up)
        )
        self.conv_norm_out = norm(widths[0], config.norm_num_groups, config.norm_eps)
        self.conv_out = conv3(widths[0], config.out_channels)

    @property
    def transformer_blocks(self) -> list[TransformerBlock]:
        """In the order of the forward pass."""
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [each for b in blocks for transformer in b.attentions for each in transformer.transformer_blocks]

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
        c = F.silu(self.time_embedding(t))  # (B, 4 * the first width)
        x = self.conv_in(x if concat is None else torch.cat([x, concat], dim=1))
        skips = [x]
        for block in self.down_blocks:
            x = block(x, c, text, skips)
        x = self.mid_block(x, c, text)
        for block in self.up_blocks:
            x = block(x, c, text, skips)
        return self.conv_out(silu(self.conv_norm_out(x)))
