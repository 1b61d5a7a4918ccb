"""Layers shared by the networks: attention, timestep and position embeddings, adaLN modulation, residual blocks."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    q (B, H, Lq, d), k and v (B, H, Lk, d); `mask`, True at the keys to attend to or a float added to the scores,
    broadcasts to (B, H, Lq, Lk); `scale` of the scores is 1/sqrt(d) by default. Returns (B, H, Lq, d).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        # On a CPU the backward pass is thirty times slower in bfloat16 than in float32.
        bias = mask.float() if mask is not None and mask.is_floating_point() else mask
        with torch.autocast("cpu", enabled=False):
            return attention(q.float(), k.float(), v.float(), bias, causal, scale).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, H*d) -> (B, H, L, d), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, H*d)."""
    return x.transpose(1, 2).flatten(2)


def masked_mean(text: Tensor, mask: Tensor | None) -> Tensor:
    """The mean (B, C) of the tokens (B, L, C) where the mask (B, L) is True."""
    if mask is None:
        return text.mean(dim=1)
    real = mask[..., None].to(text.dtype)
    return (text * real).sum(dim=1) / real.sum(dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D) shifted and scaled per picture by (B, D) (Peebles & Xie 2023, section 3.2)."""
    return torch.addcmul(shift.unsqueeze(1), x, (1 + scale).unsqueeze(1))


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0, freq_shift: int = 0) -> Tensor:
    """Cosines and sines of t (B,) at `dim`/2 frequencies from 1 down to 1/max_period: (B, dim), float32.

    The frequencies suit t in [0, 1000] (Ho et al. 2020; Vaswani et al. 2017, section 3.5); over t in [0, 1] nearly all
    of them would be constant. The last is 1/max_period exactly if `freq_shift` is 1, as in the code of Ho et al.
    """
    half = dim // 2
    step = -math.log(max_period) / (half - freq_shift)
    freqs = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * step)
    angles = t.float()[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """t (B,) in [0, 1000] -> (B, D): sinusoidal embedding, its sines first unless `cosines_first`, then a two-layer
    MLP."""

    def __init__(self, dim: int, frequencies: int = 256, freq_shift: int = 0, cosines_first: bool = True) -> None:
        super().__init__()
        self.frequencies, self.freq_shift, self.cosines_first = frequencies, freq_shift, cosines_first
        self.linear_1 = nn.Linear(frequencies, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        x = timestep_embedding(t, self.frequencies, freq_shift=self.freq_shift)
        x = x if self.cosines_first else x.roll(self.frequencies // 2, dims=-1)
        return self.linear_2(F.silu(self.linear_1(x.to(self.linear_1.weight.dtype))))


@lru_cache(maxsize=32)
def position_table(height: int, width: int, dim: int, base: int, device: torch.device) -> Tensor:
    """2D sine-cosine position embedding of a height x width grid: (height*width, dim), float32.

    Half of the channels encode y, half x. Positions are interpolated to the `base` cells a side of the training size,
    as ViT does (Dosovitskiy et al. 2021, section 3.2): at that size cell i has position i, at twice that size the
    positions are -0.25, 0.25, 0.75 and so on.
    """

    def axis(n: int) -> Tensor:
        position = (torch.arange(n, dtype=torch.float32, device=device) + 0.5) * (base / n) - 0.5
        freqs = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))
        angles = position[:, None] * freqs
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (n, dim/2)

    y = axis(height)[:, None].expand(height, width, dim // 2)
    x = axis(width)[None, :].expand(height, width, dim // 2)
    return torch.cat([y, x], dim=-1).reshape(height * width, dim)


def rope(positions: Tensor, dims: Sequence[int], theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, sum(dims)/2), float32, of rotary position embedding over n axes (Su et al. 2021).

    positions (L, n) are in the units of the axes; axis i has `dims[i]` channels, in pairs of frequency
    theta^(-2j/dims[i]). Their product q k depends on differences of positions alone.
    """
    positions = positions.double()
    axes = [
        positions[:, i, None] * theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
        for i, dim in enumerate(dims)
    ]
    angles = torch.cat(axes, dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, L, d), whose channels 2j and 2j+1 are a pair, rotated by the angles of `rope` (L, d/2)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x) (Elfwing et al. 2018), written over x where no gradient is taken: x must have no other reader."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class RMSNorm(nn.Module):
    """x (..., C) divided by its root mean square, with a gain (Zhang & Sennrich 2019); computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class SwiGLU(nn.Module):
    """An MLP gated by the SiLU of half of its first layer (Shazeer 2020, section 2): x (..., C), same shape."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, 2 * inner)
        self.proj_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(hidden * silu(gate))


def norm(channels: int, groups: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018), by default with the eps of Stable Diffusion's autoencoder."""
    return nn.GroupNorm(groups, channels, eps=eps)


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)


class ResnetBlock(nn.Module):
    """Residual block, x (B, C, H, W) -> (B, D, H, W): norm, SiLU and convolution twice; the skip is 1x1 if D is not C.

    With a `time_dim`, a projection of c (B, time_dim), the time embedding after SiLU, is added between the convolutions
    (Ho et al. 2020, appendix B). `dropout` acts in training, before the second convolution. State-dict names are those
    of diffusers' ResnetBlock2D.
    """

    def __init__(
        self, inputs: int, outputs: int, groups: int, time_dim: int = 0, eps: float = 1e-6, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = norm(inputs, groups, eps)
        self.conv1 = conv3(inputs, outputs)
        self.time_emb_proj = nn.Linear(time_dim, outputs) if time_dim else None
        self.norm2 = norm(outputs, groups, eps)
        self.conv2 = conv3(outputs, outputs)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, kernel_size=1) if inputs != outputs else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))  # (B, D, H, W)
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(c)[:, :, None, None]
        h = silu(self.norm2(h))  # the last state is given up before the convolution needs room for the next
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3x3 convolution: x (B, C, H, W) -> (B, C, *size), by default (2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        double = (2 * x.shape[2], 2 * x.shape[3])
        large = x.shape[1:].numel() >= (2**19 if x.dtype == torch.float32 else 2**23)
        if x.device.type == "cpu" and large and (size or double) == double:
            return self._double(x)
        return self.conv(F.interpolate(x, size=size or double, mode="nearest"))

    def _double(self, x: Tensor) -> Tensor:
        """The same at (2H, 2W) as one transposed convolution, with 4/9 of the multiplications.

        Of the three taps that meet an output, those that meet the same input are summed. On a CPU this takes half the
        time where x is large; where it is small, summing the weights takes longer than it saves.
        """
        weight = self.conv.weight  # (D, C, 3, 3)
        for dim in (2, 3):
            first, middle, last = weight.unbind(dim)
            weight = torch.stack([last, middle + last, first + middle, first], dim)  # (D, C, 4, 4) after both
        return F.conv_transpose2d(x, weight.transpose(0, 1), self.conv.bias, stride=2, padding=1)
