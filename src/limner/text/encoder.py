"""Text encoders: a tokenizer, a transformer, and the choice of its hidden state."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.text.clip import CLIPTextModel
from limner.text.tokenizer import Tokenizer

PAD_TO_MULTIPLE = 8  # padded lengths are multiples of it, which limits the shapes to compile for


class Reads(NamedTuple):
    """Which hidden state of which text encoder a model family uses."""

    suffix: str = ""
    """Suffix of its folders text_encoder and tokenizer: "" or "_2"."""
    layer: int = -1
    """Index of the hidden state."""
    norm: bool = True
    """Whether the final norm is applied to it."""
    padded: bool = False
    """Whether the states of the padding belong to the text, as in the published families: L is the context length."""


LAST_STATE = Reads()


class TextStates(NamedTuple):
    """An encoded prompt: `tokens` (L, C), with start and end but no padding unless `Reads.padded`; `pooled` (D,) or
    None."""

    tokens: Tensor
    pooled: Tensor | None = None


class TextEncoder(nn.Module):
    """Prompts -> hidden states. Raises LimnerError for a tokenizer and transformer that are incompatible."""

    def __init__(self, tokenizer: Tokenizer, transformer: CLIPTextModel, reads: Reads = LAST_STATE) -> None:
        super().__init__()
        self.tokenizer, self.transformer, self.reads = tokenizer, transformer, reads
        config = transformer.config
        if tokenizer.vocab_size > config.vocab_size:
            raise LimnerError(
                f"the tokenizer{reads.suffix} has {tokenizer.vocab_size} ids, the text encoder a vocab_size of "
                f"{config.vocab_size}"
            )
        if tokenizer.length > config.max_position_embeddings:
            raise LimnerError(
                f"the tokenizer{reads.suffix} has a model_max_length of {tokenizer.length}, over the text encoder's "
                f"max_position_embeddings {config.max_position_embeddings}"
            )

    @property
    def width(self) -> int:
        """C of the states."""
        return self.transformer.config.hidden_size

    def encode(self, prompts: Sequence[str], truncate: bool = False) -> list[TextStates]:
        """The states of each prompt, computed in one batch.

        Raises LimnerError for a prompt over the context length, unless `truncate`.
        """
        ids, mask = self.tokenizer.encode(list(prompts), truncate=truncate)
        mask = torch.ones_like(mask) if self.reads.padded else mask
        lengths = mask.sum(dim=1).tolist()
        longest = min(-(-max(lengths) // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE, ids.shape[1])
        device = next(self.transformer.parameters()).device
        output = self.transformer(ids[:, :longest].to(device), self.reads.layer, self.reads.norm)
        # In one piece, as the backward pass of a slice for each prompt would cost more than the small networks here.
        tokens = output.hidden[mask[:, :longest].to(device)].split(lengths)
        return [TextStates(*states) for states in zip(tokens, output.pooled, strict=True)]
