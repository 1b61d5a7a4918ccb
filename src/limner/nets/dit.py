"""The diffusion transformer (Peebles & Xie 2023), unconditional, class-conditional or text-conditional.

Text conditioning follows PixArt-alpha (Chen et al. 2024): adaLN for the timestep, cross-attention for the text.
Optional convolutional stages before and after the transformer work at full resolution (Hoogeboom et al. 2023, "simple
diffusion", section 2.3), so that it can use few, large patches.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.configs import CONV_GROUP, DiTConfig
from limner.nets.layers import (
    ResnetBlock,
    TimestepEmbedder,
    attention,
    conv3,
    masked_mean,
    merge_heads,
    modulate,
    norm,
    position_table,
    silu,
    split_heads,
)
from limner.nets.mmdit_config import MMDiTConfig
from limner.nets.network import Condition, Network


class CrossAttention(nn.Module):
    """Projections of the cross-attention from picture tokens (B, N, D) to text tokens (B, L, C)."""

    def __init__(self, dim: int, text_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(text_dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)

    def project_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text (B, L, C) -> keys and values, each (B, H, L, d)."""
        k, v = self.to_kv(text).chunk(2, dim=-1)
        return split_heads(k, self.heads), split_heads(v, self.heads)


class DiTBlock(nn.Module):
    """Self-attention, cross-attention if there is text, and feed-forward, with adaLN-Zero modulation."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim, self.heads = config.hidden_size, config.num_heads
        inner = int(dim * config.mlp_ratio)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 6 * dim)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.cross = CrossAttention(dim, config.text_dim, config.num_heads) if config.text_dim else None
        self.mlp_in = nn.Linear(dim, inner)
        self.mlp_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, c: Tensor, kv: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)  # each (B, D)
        q, k, v = self.to_qkv(modulate(self.norm(x), shift1, scale1)).chunk(3, dim=-1)
        h = attention(split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads))
        x = torch.addcmul(x, gate1[:, None], self.to_out(merge_heads(h)))
        if self.cross is not None and kv is not None:
            h = attention(split_heads(self.cross.to_q(self.norm(x)), self.heads), *kv, mask)
            x = x + self.cross.to_out(merge_heads(h))
        # The exact GELU is twice as fast as the tanh approximation on a CPU.
        h = F.gelu(self.mlp_in(modulate(self.norm(x), shift2, scale2)))
        return torch.addcmul(x, gate2[:, None], self.mlp_out(h))


class ConvStem(nn.Module):
    """Full-resolution convolutional stages before and after the transformer.

    `encode` maps x (B, C, H, W) to features (B, S, H, W), which are then cut into patches; `decode` maps the sum of
    features and transformer output (B, S, H, W) to the output (B, C, H, W). c (B, D) is the time embedding.
    """

    def __init__(self, config: DiTConfig | MMDiTConfig) -> None:
        super().__init__()
        width, groups = config.conv_channels, config.conv_channels // CONV_GROUP

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                ResnetBlock(width, width, groups, config.hidden_size) for _ in range(config.conv_layers)
            )

        self.conv_in = conv3(config.in_channels, width)
        self.down, self.up = blocks(), blocks()
        self.conv_norm_out = norm(width, groups)
        self.conv_out = conv3(width, config.in_channels)
        # With channels-last weights too, a training step on a CPU is a sixth faster.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for block in self.down:
            x = block(x, c)
        return x

    def decode(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.up:
            x = block(x, c)
        return self.conv_out(silu(self.conv_norm_out(x)))


class DiT(Network):
    """Diffusion transformer: x (B, C, H, W), t (B,) in [0, 1000] -> F (B, C, H, W)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        if config.sample_size % config.patch_size:
            raise LimnerError(f"sample_size {config.sample_size} is not divisible by patch_size {config.patch_size}")
        if config.pooled_text and not config.text_dim:
            raise LimnerError("pooled_text needs a text encoder: text_dim is 0")
        self.config = config
        self.latent_channels, self.multiple = config.in_channels, config.patch_size
        dim, patch = config.hidden_size, config.patch_size
        self.ends = ConvStem(config) if config.conv_channels else None
        channels = config.conv_channels or config.in_channels  # of the features that are cut into patches
        self.patch_in = nn.Linear(channels * patch * patch, dim)
        self.time = TimestepEmbedder(dim)
        # The last row is the null class of classifier-free guidance.
        self.classes = nn.Embedding(config.num_classes + 1, dim) if config.num_classes else None
        self.pool = nn.Linear(config.text_dim, dim) if config.pooled_text else None
        self.blocks: Any = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.patch_out = nn.Linear(dim, channels * patch * patch)
        self.initialise()

    def initialise(self) -> None:
        """Xavier weights, zero biases; residual branches and output start at zero (Peebles & Xie 2023, section 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for embedding in (self.time.linear_1, self.time.linear_2, self.classes):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02)
        zero_initialised: list[nn.Linear | nn.Conv2d] = [self.modulation_out]
        # With convolutional stages the transformer is itself a residual branch, and the output is their last layer.
        zero_initialised += [self.patch_out] if self.ends is None else [self.ends.conv_out]
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            zero_initialised += [block.modulation] + ([block.cross.to_out] if block.cross is not None else [])
        if self.ends is not None:
            for resnet in (*self.ends.down, *self.ends.up):
                assert isinstance(resnet, ResnetBlock) and resnet.time_emb_proj is not None
                zero_initialised += [resnet.conv2, resnet.time_emb_proj]
        for layer in zero_initialised:
            nn.init.zeros_(layer.weight)

    @property
    def null_class(self) -> int:
        """The label of the null class."""
        return self.config.num_classes

    @property
    def repeated(self) -> list[nn.Module]:
        # Not the network itself: with convolutions and text of varying length torch applies channels-last to the keys
        # of attention, and compilation fails.
        return list(self.blocks)

    def misfit(self, text_width: int, classes: int) -> str | None:
        config = self.config
        if config.text_dim != text_width:
            return f"the DiT's text_dim is {config.text_dim}, but the text encoder's states have {text_width}"
        if config.num_classes != classes:
            return f"the DiT's num_classes is {config.num_classes}, but there are {classes} class names"
        return None

    def prepare(self, condition: Condition) -> Condition:
        """{"labels": (B,)} unchanged; {"text": (B, L, C), "mask": (B, L)}, True at real tokens, -> keys and values."""
        prepared = dict(condition)
        if "text" not in condition:
            return prepared
        text, mask = prepared.pop("text").to(self.patch_in.weight.dtype), prepared.pop("mask", None)
        kv = [block.cross.project_text(text) for block in self.blocks]  # depth pairs of (B, H, L, d)
        prepared |= {"keys": tuple(k for k, _ in kv), "values": tuple(v for _, v in kv)}
        if mask is not None:
            prepared["mask"] = mask[:, None, None, :]
        if self.pool is not None:
            prepared["pooled"] = self.pool(masked_mean(text, mask))
        return prepared

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        keys: tuple[Tensor, ...] | None = None,
        values: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """With classes `labels` (B,), by default `null_class`; with text the output of `prepare`: `keys` and `values`,
        one (B, H, L, d) per block, `mask` (B, 1, 1, L) and `pooled` (B, D)."""
        config, patch = self.config, self.config.patch_size
        height, width = x.shape[2:]
        if height % patch or width % patch:
            raise LimnerError(f"a picture of {width}x{height} does not divide into patches of {patch}x{patch}")
        if (keys is None) != (not config.text_dim) or (labels is not None and self.classes is None):
            raise LimnerError("a network with text_dim must be given text, and only one with num_classes takes labels")
        c = self.time(t)
        if self.classes is not None:
            c = c + self.classes(labels if labels is not None else torch.full_like(t, self.null_class).long())
        if pooled is not None:
            c = c + pooled
        c = F.silu(c)  # (B, D)
        features = x if self.ends is None else self.ends.encode(x, c)
        x = self.patch_in(rearrange(features, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch))  # (B, N, D)
        base = config.sample_size // patch
        table = position_table(height // patch, width // patch, config.hidden_size, base, x.device)
        x = x + config.position_scale * table.to(x.dtype)
        kv = [None] * config.depth if keys is None or values is None else zip(keys, values, strict=True)
        for block, block_kv in zip(self.blocks, kv, strict=True):
            x = block(x, c, block_kv, mask)
        shift, scale = self.modulation_out(c).chunk(2, dim=-1)
        x = self.patch_out(modulate(self.norm_out(x), shift, scale))
        x = rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=height // patch, p=patch, q=patch)
        return x if self.ends is None else self.ends.decode(features + x, c)
