"""Transformers of pictures and words in one sequence, MMDiT (Esser et al. 2024, section 4).

`SD3Transformer2DModel` is that of Stable Diffusion 3 and 3.5, with diffusers' names; `MMDiT`, trained from nothing, has
rotary positions, and padding of the text changes nothing.
"""

from collections import OrderedDict
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.dit import ConvStem
from limner.nets.joint import FeedForward, JointTransformerBlock, Modulation, Rope, layer_norm
from limner.nets.layers import ResnetBlock, SwiGLU, TimestepEmbedder, masked_mean, modulate, rope
from limner.nets.mmdit_config import MMDiTConfig, SD3TransformerConfig
from limner.nets.network import Condition, Network


class PatchEmbed(nn.Module):
    """x (B, C, H, W) -> tokens (B, N, D) of its patches, with the middle of a position table of `side` patches a side,
    0 for none, whose positions run to `base`."""

    def __init__(self, channels: int, dim: int, patch: int, side: int = 0, base: int = 1) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        self.pos_embed = nn.Buffer(position_table(side, base, dim)) if side else None

    def forward(self, x: Tensor) -> Tensor:
        (height, width), patch = x.shape[2:], self.patch
        if height % patch or width % patch:
            raise LimnerError(f"a picture of {width}x{height} does not divide into patches of {patch}x{patch}")
        if self.side and max(height, width) > self.side * patch:
            raise LimnerError(
                f"a picture of {width}x{height} is too large: positions end at {self.side * patch} a side"
            )
        patches = rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=patch, q=patch)
        x = F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        if self.pos_embed is None:
            return x.flatten(1, 2)
        height, width = x.shape[1:3]
        top, left = (self.side - height) // 2, (self.side - width) // 2
        table = self.pos_embed.unflatten(1, (self.side, self.side))[:, top : top + height, left : left + width]
        return (x + table.to(x.dtype)).flatten(1, 2)


def position_table(side: int, base: int, dim: int) -> Tensor:
    """Sines and cosines of x, then of y, of side x side cells (1, side * side, dim), float32."""
    position = torch.arange(side, dtype=torch.float64) * (base / side)
    angles = position[:, None] * 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (side, dim/2)
    x, y = axis[None].expand(side, side, -1), axis[:, None].expand(side, side, -1)
    return torch.cat([x, y], dim=-1).reshape(1, side * side, dim)


class TimeTextEmbedding(nn.Module):
    """t (B,) in [0, 1000] and the embedding of the pooled text (B, D) -> c (B, D), after SiLU."""

    def __init__(self, dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(dim)
        layers = {"linear_1": nn.Linear(pooled_dim, dim), "act_1": nn.SiLU(), "linear_2": nn.Linear(dim, dim)}
        self.text_embedder = nn.Sequential(OrderedDict(layers))

    def forward(self, t: Tensor, pooled: Tensor) -> Tensor:
        return F.silu(self.timestep_embedder(t) + pooled)


class JointTransformer(Network):
    """What both networks share: embeddings of patches, text and time, joint blocks, and the output."""

    transformer_blocks: Any  # of JointTransformerBlock, built by the subclass

    def __init__(self, embed: PatchEmbed, dim: int, text_dim: int, pooled_dim: int, out: int) -> None:
        super().__init__()
        self.multiple = embed.patch
        self.pos_embed = embed
        self.time_text_embed = TimeTextEmbedding(dim, pooled_dim)
        self.context_embedder = nn.Linear(text_dim, dim)
        self.norm_out = Modulation(dim, 2)
        self.proj_out = nn.Linear(dim, embed.patch**2 * out)

    @property
    def repeated(self) -> list[nn.Module]:
        return list(self.transformer_blocks)

    def prepare(self, condition: Condition) -> Condition:
        """{"text": (B, L, C), "pooled": (B, P)} and, optionally, "mask" (B, L), True at real tokens, and "concat"
        (B, concat_channels, H, W) -> the same, text and pooled embedded to the width of the transformer."""
        dtype = self.proj_out.weight.dtype
        prepared = dict(condition) | {
            "text": self.context_embedder(condition["text"].to(dtype)),
            "pooled": self.time_text_embed.text_embedder(condition["pooled"].to(dtype)),
        }
        return prepared | ({"concat": condition["concat"].to(dtype)} if "concat" in condition else {})

    def transform(
        self, x: Tensor, text: Tensor, c: Tensor, mask: Tensor | None, rotation: Rope | None = None
    ) -> Tensor:
        """x (B, C, H, W), embedded text (B, L, D) and c (B, D) -> (B, out, H, W)."""
        height = x.shape[2] // self.multiple
        x = self.pos_embed(x)  # (B, N, D)
        if mask is not None:
            mask = F.pad(mask, (x.shape[1], 0), value=True)[:, None, None]
        for block in self.transformer_blocks:
            x, text = block(x, text, c, mask, rotation)
        scale, shift = self.norm_out(c)
        x = self.proj_out(modulate(layer_norm(x), shift, scale))
        return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=height, p=self.multiple, q=self.multiple)


class SD3Transformer2DModel(JointTransformer):
    """x (B, C, H, W), t (B,) in [0, 1000], text and pooled text -> F (B, C, H, W), with diffusers' names; an inpainting
    transformer is given a mask and the latents of the masked picture beside x."""

    def __init__(self, config: SD3TransformerConfig) -> None:
        dim, heads, patch = config.hidden_size, config.num_attention_heads, config.patch_size
        base = config.sample_size // patch
        embed = PatchEmbed(config.in_channels, dim, patch, config.pos_embed_max_size, base)
        super().__init__(embed, dim, config.joint_attention_dim, config.pooled_projection_dim, config.out_channels)
        self.config, self.latent_channels, self.largest = config, config.out_channels, patch * config.pos_embed_max_size
        self.concat_channels, self.text_width = config.in_channels - config.out_channels, config.joint_attention_dim
        depth, qk_norm = config.num_layers, config.qk_norm is not None
        self.transformer_blocks = nn.ModuleList(
            JointTransformerBlock(
                dim, heads, lambda: FeedForward(dim), qk_norm, i == depth - 1, i in config.dual_attention_layers
            )
            for i in range(depth)
        )

    def misfit(self, text_width: int, classes: int) -> str | None:
        config, inpainting = self.config, 2 * self.config.out_channels + 1
        if config.in_channels not in (config.out_channels, inpainting):
            return (
                f"the transformer takes {config.in_channels} channels and gives {config.out_channels}; supported are "
                f"{config.out_channels} and, for inpainting, {inpainting}"
            )
        if config.joint_attention_dim != text_width:
            return (
                f"the transformer's joint_attention_dim is {config.joint_attention_dim}, but the text encoders' states "
                f"have {text_width}"
            )
        return "this transformer takes no class names" if classes else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        pooled: Tensor,
        mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """With the output of `prepare`: `text` (B, L, D), `pooled` (B, D), `mask` (B, L), and `concat`, channels after
        those of x."""
        x = x if concat is None else torch.cat([x, concat], dim=1)
        return self.transform(x, text, self.time_text_embed(t, pooled), mask)


class MMDiT(JointTransformer):
    """x (B, C, H, W), t (B,) in [0, 1000] and text -> F (B, C, H, W), trained from nothing.

    Positions are rotary over two axes, words at their origin; queries and keys are normalised; the pooled text is the
    mean of its tokens. Optional convolutional stages as in DiT.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        if not config.text_dim:
            raise LimnerError("an MMDiT needs a text encoder: text_dim is 0")
        dim, channels = config.hidden_size, config.conv_channels or config.in_channels
        super().__init__(PatchEmbed(channels, dim, config.patch_size), dim, config.text_dim, config.text_dim, channels)
        self.config, self.latent_channels = config, config.in_channels
        self.ends = ConvStem(config) if config.conv_channels else None
        self.transformer_blocks = nn.ModuleList(
            JointTransformerBlock(
                dim, config.num_heads, lambda: SwiGLU(dim, config.mlp_size), qk_norm=True, last=i == config.depth - 1
            )
            for i in range(config.depth)
        )
        # Nothing reads the last words: parameters without a gradient would stop a run on several devices.
        attn: Any = self.transformer_blocks[-1].attn
        del attn.add_q_proj, attn.norm_added_q
        self.initialise()

    def initialise(self) -> None:
        """Xavier weights, zero biases; residual branches and output start at zero, as in DiT."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1) if module is self.pos_embed.proj else module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        time = self.time_text_embed.timestep_embedder
        for layer in (time.linear_1, time.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        zero_initialised: list[Any] = [self.proj_out if self.ends is None else self.ends.conv_out]
        zero_initialised += [module.linear for module in self.modules() if isinstance(module, Modulation)]
        for resnet in (module for module in self.modules() if isinstance(module, ResnetBlock)):
            zero_initialised += [resnet.conv2, resnet.time_emb_proj]
        for layer in zero_initialised:
            nn.init.zeros_(layer.weight)

    def misfit(self, text_width: int, classes: int) -> str | None:
        if self.config.text_dim != text_width:
            return f"the MMDiT's text_dim is {self.config.text_dim}, but the text encoder's states have {text_width}"
        return "an MMDiT takes no class names" if classes else None

    def prepare(self, condition: Condition) -> Condition:
        """{"text": (B, L, C) and, optionally, "mask" (B, L), True at real tokens} -> text and its mean, embedded."""
        pooled = masked_mean(condition["text"], condition.get("mask"))
        return super().prepare(dict(condition) | {"pooled": pooled})

    def forward(self, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor, mask: Tensor | None = None) -> Tensor:
        """With the output of `prepare`: `text` (B, L, D), `pooled` (B, D) and `mask` (B, L)."""
        config, patch = self.config, self.config.patch_size
        c = self.time_text_embed(t, pooled)
        features = x if self.ends is None else self.ends.encode(x, c)
        base, width = config.sample_size // patch, config.hidden_size // config.num_heads
        rotation = grid_rope(x.shape[2] // patch, x.shape[3] // patch, base, width, config.rope_theta, x.device)
        out = self.transform(features, text, c, mask, rotation)
        return out if self.ends is None else self.ends.decode(features + out, c)


@lru_cache(maxsize=32)
def grid_rope(height: int, width: int, base: int, dim: int, theta: float, device: torch.device) -> Rope:
    """The rotation of height x width cells, row by row, as `rope`: half of the `dim` channels turn by y, half by x.

    Positions are interpolated to `base` cells a side, as those of `position_table` of DiT.
    """

    def axis(n: int) -> Tensor:
        return (torch.arange(n, dtype=torch.float64) + 0.5) * (base / n) - 0.5

    with torch.inference_mode(False):  # tensors of inference could not be kept for a later backward pass
        cos, sin = rope(torch.cartesian_prod(axis(height), axis(width)), (dim // 2, dim // 2), theta)
        return cos.to(device), sin.to(device)
