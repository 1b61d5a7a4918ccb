"""T5's text encoder (Raffel et al. 2020, section 2.1), with the state-dict names of transformers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import LimnerError, unknown
from limner.files import MAX_INT, MAX_LAYERS, check_range, check_types, from_entries
from limner.nets.layers import RMSNorm, attention, merge_heads, split_heads
from limner.text.transformer import TextOutput, TextTransformer

# Factor on the hidden units of a feed-forward layer in float16: they and their sums exceed its largest number, 65504.
FP16_SCALE = 2.0**-8


@dataclass(frozen=True)
class T5Config:
    """Hyperparameters of a text encoder, with transformers' names and the values of t5-small as defaults."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"

    def __post_init__(self) -> None:
        check_types(self)
        if self.feed_forward_proj not in FEED_FORWARDS:
            raise unknown("feed_forward_proj", self.feed_forward_proj, FEED_FORWARDS)
        check_range(self, ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads"), 1)
        check_range(self, ("num_layers",), 1, MAX_LAYERS)
        check_range(self, ("relative_attention_num_buckets",), 4)
        check_range(self, ("relative_attention_max_distance",), self.relative_attention_num_buckets // 4 + 1)
        if self.layer_norm_epsilon <= 0:
            raise LimnerError(f"layer_norm_epsilon must be more than 0, not {self.layer_norm_epsilon}")

    @property
    def hidden_size(self) -> int:
        """Width of the states."""
        return self.d_model

    @property
    def max_position_embeddings(self) -> int:
        """Positions are relative: a text may have any length."""
        return MAX_INT

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> T5Config:
        """From transformers' config.json, of an encoder or of a whole T5; other entries are ignored."""
        known = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        return from_entries(cls, known, "a T5 encoder")

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json, for `from_dict` and transformers."""
        return {"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": False, **asdict(self)}


def t5_encoder(name: str, config: T5Config | None = None) -> str | None:
    """T5: the embedding is saved under one of two names, and a whole T5 holds its decoder."""
    if name.startswith(("decoder.", "lm_head.")):
        return None
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name


@lru_cache(maxsize=32)
def relative_position_buckets(length: int, buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """The bucket of each relative position, key - query: (L, L), int64.

    Half of the buckets are for keys after the query. Of each half, one half has a bucket per distance, the other is
    logarithmic in the distance up to `max_distance`, with all greater ones in the last.
    """
    place = torch.arange(length, device="cpu")  # everywhere the same roundings
    relative = place[None, :] - place[:, None]
    distance, half = relative.abs(), buckets // 2
    exact = half // 2
    scaled = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact) * (half - exact)
    bucket = torch.where(distance < exact, distance, (exact + scaled.long()).clamp(max=half - 1))
    return (bucket + half * (relative > 0)).to(device)


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    """A linear layer without bias, initialised as in T5 (mesh_tensorflow's transformer_layers.py)."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=std)
    return linear


class T5LayerNorm(RMSNorm):
    """RMSNorm with the output in the dtype of its weight; x, a sum of sub-layers, is float32 where that is float16."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.weight.dtype)


class T5Attention(nn.Module):
    """Self-attention without scaling of the scores, to which a bias (B or 1, H, L, L) is added."""

    def __init__(self, config: T5Config, has_table: bool) -> None:
        super().__init__()
        self.config = config
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.q = _linear(width, inner, std=(width * config.d_kv) ** -0.5)  # in place of the scaling
        self.k = _linear(width, inner, std=width**-0.5)
        self.v = _linear(width, inner, std=width**-0.5)
        self.o = _linear(inner, width, std=inner**-0.5)
        if has_table:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=width**-0.5)

    def bias(self, length: int) -> Tensor:
        """The bias of each relative position: (1, H, L, L)."""
        table, config = self.relative_attention_bias, self.config
        sizes = (config.relative_attention_num_buckets, config.relative_attention_max_distance)
        bias = table(relative_position_buckets(length, *sizes, table.weight.device))  # (L, L, H)
        return bias.permute(2, 0, 1)[None].contiguous()  # else every layer's attention would copy it

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (split_heads(proj(x), self.config.num_heads) for proj in (self.q, self.k, self.v))
        return self.o(merge_heads(attention(q, k, v, bias, scale=1.0)))  # (B, L, C)


class T5LayerSelfAttention(nn.Module):
    def __init__(self, config: T5Config, has_table: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, has_table)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)  # (B, L, C)


class T5DenseActDense(nn.Module):
    """The feed-forward layer of T5 1.0, with ReLU."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi = _linear(config.d_model, config.d_ff, std=config.d_model**-0.5)
        self.wo = _linear(config.d_ff, config.d_model, std=config.d_ff**-0.5)

    def hidden(self, x: Tensor, scaled: Tensor) -> Tensor:
        """The hidden units of x, times the factor of `scaled` to x."""
        return F.relu(self.wi(scaled), inplace=not torch.is_grad_enabled())

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            return self.wo(self.hidden(x, x * FP16_SCALE)).float() / FP16_SCALE
        return self.wo(self.hidden(x, x))  # (B, L, C)


class T5DenseGatedActDense(T5DenseActDense):
    """The feed-forward layer of T5 1.1, GEGLU (Shazeer 2020, section 2)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        del self.wi
        self.wi_0 = _linear(config.d_model, config.d_ff, std=config.d_model**-0.5)
        self.wi_1 = _linear(config.d_model, config.d_ff, std=config.d_model**-0.5)

    def hidden(self, x: Tensor, scaled: Tensor) -> Tensor:
        return F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(scaled)


FEED_FORWARDS: dict[str, type[T5DenseActDense]] = {"relu": T5DenseActDense, "gated-gelu": T5DenseGatedActDense}


class T5LayerFF(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = FEED_FORWARDS[config.feed_forward_proj](config)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))  # (B, L, C)


class T5Block(nn.Module):
    def __init__(self, config: T5Config, has_table: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([T5LayerSelfAttention(config, has_table), T5LayerFF(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attend, feed_forward = self.layer
        return feed_forward(attend(x, bias))  # (B, L, C)


class T5Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(T5Block(config, has_table=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """The states of x (B, L, C), N + 1 of the same shape; `mask` (B, L), True at the keys to attend to."""
        first: Any = self.block[0]
        bias = first.layer[0].SelfAttention.bias(x.shape[1])  # (1, H, L, L), the same in all layers
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None, :], torch.finfo(bias.dtype).min)  # (B, H, L, L)
        states = [x]
        for block in self.block:
            states.append(block(states[-1], bias))
        return tuple(states)


class T5EncoderModel(TextTransformer):
    """T5's encoder: bidirectional, so that padding has an effect unless it is masked."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)  # N(0, 1)
        self.encoder = T5Stack(config)

    def forward(self, ids: Tensor, layer: int = -1, norm: bool = True, mask: Tensor | None = None) -> TextOutput:
        """Encode ids (B, L); `mask` (B, L) is True at the tokens to attend to, all of them without it.

        `hidden` is `states[layer]`, with the final norm if `norm`; T5 has no `pooled`. Raises LimnerError for a layer
        that does not exist.
        """
        count = self.config.num_layers + 1
        if not -count <= layer < count:
            raise LimnerError(f"layer {layer} does not exist: the encoder has states {-count} to {count - 1}")
        states = self.encoder(self.shared(ids), mask)
        hidden = self.encoder.final_layer_norm(states[layer]) if norm else states[layer]
        return TextOutput(hidden, None, states)
