"""CLIP's text encoder (Radford et al. 2021, section 2.4), with the state-dict names of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import LimnerError, unknown
from limner.files import MAX_LAYERS, check_range, check_types, from_entries
from limner.nets.layers import attention, merge_heads, split_heads
from limner.text.transformer import TextOutput, TextTransformer


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks & Gimpel 2016, section 2) that OpenAI's models were trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class CLIPTextConfig:
    """Hyperparameters of a text encoder, with transformers' names and the values of ViT-B/32 as defaults.

    `projection_dim` is None for a model without a projection of its pooled output.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    eos_token_id: int = 49407
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.hidden_act not in ACTIVATIONS:
            raise unknown("hidden_act", self.hidden_act, ACTIVATIONS)
        check_range(self, ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"), 1)
        check_range(self, ("max_position_embeddings", "projection_dim"), 1)
        check_range(self, ("num_hidden_layers",), 1, MAX_LAYERS)
        check_range(self, ("eos_token_id",), 0)
        if self.layer_norm_eps <= 0:
            raise LimnerError(f"layer_norm_eps must be more than 0, not {self.layer_norm_eps}")
        if self.hidden_size % self.num_attention_heads:
            raise LimnerError(
                f"hidden_size {self.hidden_size} cannot be split into num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> CLIPTextConfig:
        """From transformers' config.json, of a text encoder or a CLIPModel; other entries are ignored.

        Every such config has a projection_dim (default 512), but only a CLIPTextModelWithProjection has the projection.
        """
        nested = config.get("text_config")
        config = nested if isinstance(nested, dict) else config
        known = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        names = config.get("architectures") or []
        projects = isinstance(names, list) and "CLIPTextModelWithProjection" in names
        known["projection_dim"] = config.get("projection_dim", 512) if projects else None
        return from_entries(cls, known, "a CLIP text encoder")

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json, for `from_dict` and transformers."""
        numbers = {name: value for name, value in asdict(self).items() if value is not None}
        name = "CLIPTextModel" if self.projection_dim is None else "CLIPTextModelWithProjection"
        return {"architectures": [name], "model_type": "clip_text_model", **numbers}


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    """A linear layer initialised as in CLIP (`initialize_parameters` in openai/CLIP's model.py), with zero bias."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear


def _residual_std(config: CLIPTextConfig) -> float:
    """Keeps the sum of all 2 * depth residual branches of order one."""
    return (config.hidden_size * 2 * config.num_hidden_layers) ** -0.5


class CLIPTextEmbeddings(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        # Of the scale of all residual branches together, not CLIP's 0.02: early in training attention adds the mean of
        # all tokens so far, which would swamp smaller embeddings.
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        nn.init.normal_(self.position_embedding.weight, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        length, longest = ids.shape[1], self.position_embedding.num_embeddings
        if length > longest:
            raise LimnerError(
                f"a text of {length} tokens is over this encoder's {longest}; encode it in shorter pieces"
            )
        positions = torch.arange(length, device=ids.device)
        return self.token_embedding(ids) + self.position_embedding(positions)  # (B, L, C)


class CLIPAttention(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = _linear(width, width, std=width**-0.5)
        self.k_proj = _linear(width, width, std=width**-0.5)
        self.v_proj = _linear(width, width, std=width**-0.5)
        self.out_proj = _linear(width, width, std=_residual_std(config))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(attention(q, k, v, causal=True)))  # (B, L, C)


class CLIPMLP(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.fc1 = _linear(config.hidden_size, config.intermediate_size, std=(2 * config.hidden_size) ** -0.5)
        self.fc2 = _linear(config.intermediate_size, config.hidden_size, std=_residual_std(config))
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # (B, L, C)


class CLIPEncoderLayer(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))  # (B, L, C)


class CLIPEncoder(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)  # N + 1 of (B, L, C)


class CLIPTextTransformer(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(self.embeddings(ids))


class CLIPTextModel(TextTransformer):
    """CLIP's text transformer. It is causal: padding after the end token has no effect on earlier states."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
            nn.init.normal_(self.text_projection.weight, std=config.hidden_size**-0.5)

    def forward(self, ids: Tensor, layer: int = -1, norm: bool = True, mask: Tensor | None = None) -> TextOutput:
        """Encode ids (B, L), L up to max_position_embeddings; every row must contain an end token. A `mask` of the
        padding has no effect, since the transformer is causal.

        `hidden` is `states[layer]`, with the final norm if `norm`: Stable Diffusion 1 uses (-1, True), with "clip skip"
        n (-1-n, True), Stable Diffusion XL (-2, False). `pooled` is the last state at the first end token, with the
        final norm. Raises LimnerError for a layer that does not exist and for a text that is too long.
        """
        count = self.config.num_hidden_layers + 1
        if not -count <= layer < count:
            raise LimnerError(f"layer {layer} does not exist: the encoder has states {-count} to {count - 1}")
        final_norm = self.text_model.final_layer_norm
        states = self.text_model(ids)
        last = final_norm(states[-1])
        pooled = last[torch.arange(len(ids), device=ids.device), self._first_end(ids)]  # (B, C)
        if self.config.projection_dim is not None:
            pooled = self.text_projection(pooled)
        hidden = last if layer in (-1, count - 1) else final_norm(states[layer])
        return TextOutput(hidden if norm else states[layer], pooled, states)

    def _first_end(self, ids: Tensor) -> Tensor:
        """Index of the first end token in each row: (B,).

        Configs from before July 2023 have a wrong eos_token_id of 2; with those it is the highest id.
        """
        is_end = ids if self.config.eos_token_id == 2 else (ids == self.config.eos_token_id).int()
        return is_end.argmax(dim=-1)


class CLIPTextModelWithProjection(CLIPTextModel):
    """CLIP's text transformer with the projection of its pooled output, under transformers' name for it."""
