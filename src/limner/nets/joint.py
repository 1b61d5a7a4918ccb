"""Blocks of two streams, pictures and words, each with its own weights, that meet in one attention over all tokens
(Esser et al. 2024, section 4, figure 2). State-dict names are those of diffusers' JointTransformerBlock."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nets.layers import RMSNorm, attention, merge_heads, modulate, rotate, split_heads

Rope = tuple[Tensor, Tensor]  # cosines and sines of the picture's tokens, (N, d/2)


def layer_norm(x: Tensor) -> Tensor:
    """Layer normalisation of x (B, N, D) without gain."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Modulation(nn.Module):
    """c (B, D), the embedding of time and text after SiLU -> `count` vectors, each (B, D)."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(dim, count * dim)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(c).chunk(self.count, dim=-1)


class FeedForward(nn.Module):
    """An MLP with the tanh approximation of GELU: x (B, N, D), same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        first, last = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        # Nested for the published names net.0.proj and net.2; the identity stands where there was dropout.
        self.net: Any = nn.ModuleList([nn.ModuleDict({"proj": first}), nn.Identity(), last])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0]["proj"](x), approximate="tanh"))


class Attention(nn.Module):
    """Self-attention of x (B, N, D), with RMSNorm of queries and keys if `qk_norm` (Esser et al. 2024, section 5.3)."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list, for the published name to_out.0
        self.norm_q, self.norm_k = (_norm(dim // heads, qk_norm) for _ in range(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, N, d)."""
        q, k, v = (split_heads(project(x), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](merge_heads(attention(*self.project(x))))


class JointAttention(Attention):
    """Attention of picture tokens x (B, N, D) and text tokens (B, L, D) to both; if `last`, of the picture alone."""

    def __init__(self, dim: int, heads: int, qk_norm: bool, last: bool) -> None:
        super().__init__(dim, heads, qk_norm)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_added_q, self.norm_added_k = (_norm(dim // heads, qk_norm) for _ in range(2))
        self.to_add_out = None if last else nn.Linear(dim, dim)

    def forward(  # type: ignore[override]
        self, x: Tensor, text: Tensor, mask: Tensor | None, rotation: Rope | None
    ) -> tuple[Tensor, Tensor | None]:
        """`mask` (B, 1, 1, N + L) is True at the keys to attend to; `rotation` is that of the picture's tokens."""
        q, k, v = self.project(x)
        if rotation is not None:  # words are at the origin, which is no rotation
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        k = torch.cat([k, self.norm_added_k(split_heads(self.add_k_proj(text), self.heads))], dim=2)
        v = torch.cat([v, split_heads(self.add_v_proj(text), self.heads)], dim=2)
        if self.to_add_out is None:
            return self.to_out[0](merge_heads(attention(q, k, v, mask))), None
        q = torch.cat([q, self.norm_added_q(split_heads(self.add_q_proj(text), self.heads))], dim=2)
        h, h_text = merge_heads(attention(q, k, v, mask)).split([x.shape[1], text.shape[1]], dim=1)
        # On a CPU the product with a strided tensor takes twice the time.
        return self.to_out[0](h.contiguous()), self.to_add_out(h_text.contiguous())


def _norm(width: int, present: bool) -> nn.Module:
    return RMSNorm(width, eps=1e-6) if present else nn.Identity()


class JointTransformerBlock(nn.Module):
    """Joint attention and an MLP a stream, with adaLN-Zero modulation: x (B, N, D) and text (B, L, D), same shapes.

    If `dual`, the picture has a second attention, over itself alone; if `last`, the text ends in the attention.
    """

    def __init__(
        self, dim: int, heads: int, mlp: Callable[[], nn.Module], qk_norm: bool, last: bool, dual: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = Modulation(dim, 9 if dual else 6)
        self.norm1_context = Modulation(dim, 2 if last else 6)
        self.attn = JointAttention(dim, heads, qk_norm, last)
        self.attn2 = Attention(dim, heads, qk_norm) if dual else None
        self.ff = mlp()
        self.ff_context = None if last else mlp()

    def forward(
        self, x: Tensor, text: Tensor, c: Tensor, mask: Tensor | None = None, rotation: Rope | None = None
    ) -> tuple[Tensor, Tensor]:
        shift1, scale1, gate1, shift2, scale2, gate2, *second = self.norm1(c)  # each (B, D)
        shift, scale, *rest = self.norm1_context(c)
        if self.ff_context is None:
            shift, scale = scale, shift  # the published order where nothing follows
        normed = layer_norm(x)
        h, h_text = self.attn(
            modulate(normed, shift1, scale1), modulate(layer_norm(text), shift, scale), mask, rotation
        )
        x = torch.addcmul(x, gate1[:, None], h)
        if self.attn2 is not None:
            shift3, scale3, gate3 = second
            x = torch.addcmul(x, gate3[:, None], self.attn2(modulate(normed, shift3, scale3)))
        x = torch.addcmul(x, gate2[:, None], self.ff(modulate(layer_norm(x), shift2, scale2)))
        if self.ff_context is None:
            return x, text
        gate1, shift2, scale2, gate2 = rest
        text = torch.addcmul(text, gate1[:, None], h_text)
        return x, torch.addcmul(text, gate2[:, None], self.ff_context(modulate(layer_norm(text), shift2, scale2)))
