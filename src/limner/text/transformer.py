"""What the text transformers have in common."""

from typing import Any, NamedTuple

from torch import Tensor, nn


class TextOutput(NamedTuple):
    """`hidden` (B, L, C), the selected state; `pooled` (B, C), (B, projection_dim) with a projection, or None for a
    transformer that pools nothing; `states`, all N + 1 hidden states (B, L, C) from the embeddings to the last layer,
    without the final norm."""

    hidden: Tensor
    pooled: Tensor | None
    states: tuple[Tensor, ...]


class TextTransformer(nn.Module):
    """Ids -> hidden states. Its `config` has vocab_size, hidden_size (C) and max_position_embeddings."""

    config: Any

    def forward(self, ids: Tensor, layer: int = -1, norm: bool = True, mask: Tensor | None = None) -> TextOutput:
        """Encode ids (B, L); `hidden` is `states[layer]`, with the final norm if `norm`. `mask` (B, L) is True at real
        tokens, None where padding counts as text."""
        raise NotImplementedError
