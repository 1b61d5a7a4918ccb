"""The attention layers of the UNets: of the positions to each other alone, or transformers that also read the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from limner.nets.layers import attention, merge_heads, norm, split_heads
from limner.nets.unet_config import Level, UNetBaseConfig, UNetConfig

KV = tuple[Tensor, Tensor]


class Text(NamedTuple):
    """What the cross-attentions read: keys and values (B, H, L, d) in the order of the transformer blocks, and the mask
    (B, 1, 1, L), True at the tokens to attend to."""

    kv: Iterator[KV]
    mask: Tensor | None


class Attention(nn.Module):
    """Attention of x (B, N, D) to keys and values: projections of x itself, or of the text (B, L, C)."""

    def __init__(self, dim: int, heads: int, context_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(context_dim, dim, bias=bias)
        self.to_v = nn.Linear(context_dim, dim, bias=bias)
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


class SpatialAttention(Attention):
    """Self-attention over the positions of x (B, C, H, W), with a residual connection."""

    def __init__(self, level: Level, config: UNetBaseConfig) -> None:
        super().__init__(level.width, level.heads, level.width, bias=True)
        self.group_norm = norm(level.width, config.norm_num_groups, config.norm_eps)

    @property
    def last(self) -> nn.Module:
        """The last layer of the residual branch."""
        return self.to_out[0]

    def forward(self, x: Tensor, text: Text | None) -> Tensor:  # type: ignore[override]
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        h = super().forward(h, self.project(h))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of x (B, C, H, W), with a residual connection."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__()
        width, linear = level.width, config.use_linear_projection
        self.norm = norm(width, config.norm_num_groups)
        self.proj_in, self.proj_out = (
            PointwiseLinear(width, width) if linear else nn.Conv2d(width, width, kernel_size=1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, level.heads, config.cross_attention_dim) for _ in range(level.depth)
        )

    @property
    def last(self) -> nn.Module:
        """The last layer of the residual branch."""
        return self.proj_out

    def forward(self, x: Tensor, text: Text) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, C), a view if x is channels-last
        for block in self.transformer_blocks:
            h = block(h, next(text.kv), text.mask)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))
