"""The KL autoencoder of latent diffusion (Rombach et al. 2022, section 3.1), with diffusers' state-dict names.

Stable Diffusion 1.x, 2.x, XL, SD3 and Flux use it. It is a variational autoencoder (Kingma & Welling 2014): a picture
is encoded to a diagonal Gaussian over latents, and a latent decoded to a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.configs import AutoencoderKLConfig
from limner.nets.layers import ResnetBlock, Upsample, attention, conv3, merge_heads, norm, silu, split_heads


class Posterior(NamedTuple):
    """q(z|x), a diagonal Gaussian: `mean` and `logvar`, each (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Unit noise (B, C, h, w) -> a sample of the latents (Kingma & Welling 2014, section 2.4)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, 1)) in nats, summed over C, h and w: (B,), float32 (Kingma & Welling 2014, appendix B)."""
        mean, logvar = self.mean.float(), self.logvar.float()
        # expm1, because near the unit Gaussian exp(logvar) - 1 - logvar would cancel
        return 0.5 * (mean.square() + (torch.expm1(logvar) - logvar)).sum(dim=(1, 2, 3))


class SpatialAttention(nn.Module):
    """Single-head self-attention over the positions of x (B, C, H, W), with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list, for the published name to_out.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        q, k, v = (split_heads(proj(h), 1) for proj in (self.to_q, self.to_k, self.to_v))  # (B, 1, H*W, C)
        h = self.to_out[0](merge_heads(attention(q, k, v)))  # (B, H*W, C)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class MidBlock(nn.Module):
    """Residual block, optional self-attention, residual block, at the lowest resolution: x (B, C, H, W), same shape."""

    def __init__(self, channels: int, groups: int, add_attention: bool) -> None:
        super().__init__()
        self.attentions = nn.Sequential(*([SpatialAttention(channels, groups)] if add_attention else []))
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions(self.resnets[0](x)))


class Downsample(nn.Module):
    """x (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # Padded on the right and bottom only, as in the published models.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def _resnets(inputs: int, outputs: int, count: int, groups: int) -> nn.Sequential:
    return nn.Sequential(*(ResnetBlock(outputs if i else inputs, outputs, groups) for i in range(count)))


class DownBlock(nn.Module):
    """x (B, C, H, W) -> (B, D, H/2, W/2), or (B, D, H, W) if `last`."""

    def __init__(self, inputs: int, outputs: int, config: AutoencoderKLConfig, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(inputs, outputs, config.layers_per_block, config.norm_num_groups)
        self.downsamplers = nn.Sequential(*([] if last else [Downsample(outputs)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsamplers(self.resnets(x))


class UpBlock(nn.Module):
    """The layers from x (B, C, H, W) to (B, D, 2H, 2W), or (B, D, H, W) if `last`; the decoder calls them."""

    def __init__(self, inputs: int, outputs: int, config: AutoencoderKLConfig, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(inputs, outputs, config.layers_per_block + 1, config.norm_num_groups)
        self.upsamplers = nn.Sequential(*([] if last else [Upsample(outputs)]))

    def __iter__(self) -> Iterator[nn.Module]:
        return chain(self.resnets, self.upsamplers)


def _levels(widths: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(inputs, outputs, last) of the block of each level; the first keeps its width."""
    pairs = enumerate(pairwise([widths[0], *widths]), start=1)
    return [(inputs, outputs, i == len(widths)) for i, (inputs, outputs) in pairs]


class Encoder(nn.Module):
    """Pictures (B, in_channels, H, W) -> the posterior's moments (B, 2 * latent_channels, H/factor, W/factor)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = conv3(config.in_channels, widths[0])
        self.down_blocks = nn.Sequential(*(DownBlock(i, o, config, last) for i, o, last in _levels(widths)))
        self.mid_block = MidBlock(widths[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = norm(widths[-1], groups)
        self.conv_out = conv3(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) -> pictures (B, out_channels, h * factor, w * factor)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = conv3(config.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0], groups, config.mid_block_add_attention)
        self.up_blocks: Any = nn.ModuleList(UpBlock(i, o, config, last) for i, o, last in _levels(widths))
        self.conv_norm_out = norm(widths[-1], groups)
        self.conv_out = conv3(widths[-1], config.out_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            for layer in block:  # a block called as a module would hold on to its large input until it returns
                x = layer(x)
        return self.conv_out(silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Pictures (B, C, H, W), in [-1, 1] in the published models, to latents (B, c, H/factor, W/factor) and back.

    `encode` and `decode` use the autoencoder's own scale; `to_latents` converts to the denoiser's, of about unit
    variance (Rombach et al. 2022, section 4.3.2).
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, kernel_size=1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, kernel_size=1) if config.use_post_quant_conv else None

    @property
    def factor(self) -> int:
        """Downsampling factor, in pixels per latent along a side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, x: Tensor) -> Posterior:
        """Pictures (B, in_channels, H, W) -> the posterior of their latents (B, latent_channels, h, w)."""
        self._check("pictures", x, self.config.in_channels)
        (height, width), factor = x.shape[2:], self.factor
        if height % factor or width % factor:
            raise LimnerError(f"a picture of {width}x{height} cannot be encoded: its sides must divide by {factor}")
        h = self.encoder(x)
        mean, logvar = (h if self.quant_conv is None else self.quant_conv(h)).chunk(2, dim=1)  # each (B, c, h, w)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent_channels, h, w) -> pictures (B, out_channels, h * factor, w * factor), not clipped."""
        self._check("latents", z, self.config.latent_channels)
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def to_latents(self, z: Tensor) -> Tensor:
        """Latents in the autoencoder's scale -> in the denoiser's: (z - shift_factor) * scaling_factor."""
        return (z - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def from_latents(self, z: Tensor) -> Tensor:
        """The inverse of `to_latents`."""
        return z / self.config.scaling_factor + (self.config.shift_factor or 0.0)

    @staticmethod
    def _check(what: str, x: Tensor, channels: int) -> None:
        if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape:
            raise LimnerError(f"this autoencoder takes {what} of shape (B, {channels}, H, W), not {tuple(x.shape)}")
