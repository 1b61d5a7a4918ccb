"""Text encoders: a tokenizer, a transformer, and the choice of its hidden state."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.files import read_json
from limner.text.tokenizer import Tokenizer
from limner.text.transformer import TextTransformer
from limner.text.unigram import UnigramTokenizer

PAD_TO_MULTIPLE = 8  # padded lengths are multiples of it, which limits the shapes to compile for

AnyTokenizer = Tokenizer | UnigramTokenizer


class Reads(NamedTuple):
    """Which hidden state of which text encoder a model family uses."""

    suffix: str = ""
    """Suffix of its folders text_encoder and tokenizer: "", "_2" or "_3"."""
    layer: int = -1
    """Index of the hidden state."""
    norm: bool = True
    """Whether the final norm is applied to it."""
    padded: bool = False
    """Whether the states of the padding belong to the text, as in the published families: L is the context length."""
    length: int | None = None
    """L, if it is not the tokenizer's context length."""
    name: str = ""
    """The encoder's name by which it can be left out; "" if the family needs it."""

    @property
    def folder(self) -> str:
        """The folder of its transformer."""
        return f"text_encoder{self.suffix}"

    @property
    def tokenizer(self) -> str:
        """The folder of its tokenizer."""
        return f"tokenizer{self.suffix}"


LAST_STATE = Reads()


class TextStates(NamedTuple):
    """An encoded prompt: `tokens` (L, C), with start and end but no padding unless `Reads.padded`; `pooled` (D,) or
    None."""

    tokens: Tensor
    pooled: Tensor | None = None


def open_tokenizer(folder: Path) -> AnyTokenizer:
    """The tokenizer of a folder: T5's where its files are of a Unigram model, else CLIP's."""
    if (folder / "spiece.model").is_file():
        return UnigramTokenizer.from_pretrained(folder)
    path = folder / "tokenizer.json"
    model = read_json(path).get("model") if path.is_file() else None
    is_unigram = isinstance(model, dict) and model.get("type") == "Unigram"
    return (UnigramTokenizer if is_unigram else Tokenizer).from_pretrained(folder)


class TextEncoder(nn.Module):
    """Prompts -> hidden states. Raises LimnerError for a tokenizer and transformer that are incompatible."""

    def __init__(self, tokenizer: AnyTokenizer, transformer: TextTransformer, reads: Reads = LAST_STATE) -> None:
        super().__init__()
        self.tokenizer, self.transformer, self.reads = tokenizer, transformer, reads
        config, length = transformer.config, reads.length or tokenizer.length
        if tokenizer.vocab_size > config.vocab_size:
            raise LimnerError(
                f"the tokenizer{reads.suffix} has {tokenizer.vocab_size} ids, the text encoder a vocab_size of "
                f"{config.vocab_size}"
            )
        if length > config.max_position_embeddings:
            raise LimnerError(
                f"the tokenizer{reads.suffix} has a model_max_length of {length}, over the text encoder's "
                f"max_position_embeddings {config.max_position_embeddings}"
            )

    @property
    def width(self) -> int:
        """C of the states."""
        return self.transformer.config.hidden_size

    def parts(self) -> dict[str, nn.Module]:
        """The transformer, by its folder."""
        return {self.reads.folder: self.transformer}

    def tokenizers(self) -> dict[str, AnyTokenizer]:
        """The tokenizer, by its folder."""
        return {self.reads.tokenizer: self.tokenizer}

    def with_parts(self, parts: dict[str, nn.Module]) -> "TextEncoder":
        """The encoder with its transformer replaced by the one in `parts`, if there is one."""
        return TextEncoder(self.tokenizer, parts.get(self.reads.folder, self.transformer), self.reads)  # type: ignore[arg-type]

    def encode(self, prompts: Sequence[str], truncate: bool = False) -> list[TextStates]:
        """The states of each prompt, computed in one batch.

        Raises LimnerError for a prompt over the context length, unless `truncate`.
        """
        ids, real = self.tokenizer.encode(list(prompts), truncate=truncate, length=self.reads.length)
        mask = torch.ones_like(real) if self.reads.padded else real
        lengths = mask.sum(dim=1).tolist()
        longest = min(-(-max(lengths) // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE, ids.shape[1])
        device = next(self.transformer.parameters()).device
        ids, mask = ids[:, :longest].to(device), mask[:, :longest].to(device)
        output = self.transformer(ids, self.reads.layer, self.reads.norm, None if self.reads.padded else mask)
        # In one piece, as the backward pass of a slice for each prompt would cost more than the small networks here.
        tokens = output.hidden[mask].split(lengths)
        pooled = [None] * len(lengths) if output.pooled is None else output.pooled
        return [TextStates(*states) for states in zip(tokens, pooled, strict=True)]


class LeftOut(nn.Module):
    """A text encoder that was left out: zeros in place of its states."""

    def __init__(self, reads: Reads, length: int, width: int, pooled: int) -> None:
        """Of texts of L = `length` tokens: states (L, width) and a pooled state (pooled,), none if that is 0."""
        super().__init__()
        self.reads, self.length, self.width, self.pooled = reads, length, width, pooled
        self.device_marker = nn.Buffer(torch.empty(0), persistent=False)  # states are created on its device

    def parts(self) -> dict[str, nn.Module]:
        return {}

    def tokenizers(self) -> dict[str, AnyTokenizer]:
        return {}

    def with_parts(self, parts: dict[str, nn.Module]) -> "LeftOut":
        return self

    def encode(self, prompts: Sequence[str], truncate: bool = False) -> list[TextStates]:
        zeros = self.device_marker.new_zeros
        pooled = zeros(self.pooled) if self.pooled else None
        return [TextStates(zeros(self.length, self.width), pooled) for _ in prompts]
