"""A text encoder as denoisers use it: a tokenizer, a transformer, and which of its states they attend to."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from limner.errors import LimnerError
from limner.text.clip import CLIPTextModel
from limner.text.tokenizer import Tokenizer

MULTIPLE = 8  # lengths are rounded up to it, so that few different ones are compiled for


class Reads(NamedTuple):
    """What a family of models takes from one of its text encoders."""

    suffix: str = ""
    """Of its folders, text_encoder and tokenizer: "" or "_2"."""
    layer: int = -1
    """Index of the hidden state."""
    norm: bool = True
    """Whether the final norm is applied to it."""


LAST_STATE = Reads()


class TextStates(NamedTuple):
    """One prompt encoded: `tokens` (L, C), start and end included, no padding; `pooled` (D,) or None."""

    tokens: Tensor
    pooled: Tensor | None = None


class TextEncoder(nn.Module):
    """Prompts -> hidden states of the transformer. Raises LimnerError for a tokenizer of another vocabulary."""

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
        """The states of each prompt, padded to the longest while they are computed.

        Raises LimnerError for a prompt over the tokenizer's budget, unless `truncate` cuts it.
        """
        ids, mask = self.tokenizer.encode(list(prompts), truncate=truncate)
        lengths = mask.sum(dim=1).tolist()
        longest = -(-max(lengths) // MULTIPLE) * MULTIPLE
        device = next(self.transformer.parameters()).device
        output = self.transformer(ids[:, :longest].to(device), self.reads.layer, self.reads.norm)
        return [
            TextStates(tokens[:length], pooled)
            for tokens, length, pooled in zip(output.hidden, lengths, output.pooled, strict=True)
        ]
