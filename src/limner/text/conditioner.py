"""From prompts to the condition of a network: words, classes, or nothing.

`encode` is one prompt at a time and can be cached; `combine` makes of the encoded prompts one condition, row by row.
Both are differentiable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from limner.errors import LimnerError, unknown
from limner.files import check_range, check_types, from_entries
from limner.nets.network import Condition
from limner.text.encoder import MULTIPLE, TextEncoder, TextStates
from limner.text.tokenizer import Tokenizer

Combine = Callable[[Sequence[Sequence[TextStates]]], Condition]


class Ask(NamedTuple):
    """What a request says beside its prompts."""

    truncate: bool = False
    """Cut prompts that are too long."""


ASK = Ask()


class Conditioner(nn.Module):
    """Prompts -> condition. None and "" are the null prompt of classifier-free guidance."""

    acts: bool = True
    """Whether another prompt gives another picture."""
    names: tuple[str, ...] = ()
    """The prompts that are understood, where they are classes."""
    width: int = 0
    """C of the text's states; 0 without text."""
    null: "NullText | None"
    """What stands for the null prompt where it is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.null = None  # of the instance: an attribute of the class would hide a module of this name

    def parts(self) -> dict[str, nn.Module]:
        """The modules with weights, by their folders."""
        return {}

    def tokenizers(self) -> dict[str, Tokenizer]:
        """The tokenizers, by their folders."""
        return {}

    def with_parts(self, parts: Mapping[str, Any]) -> "Conditioner":
        """The same conditioner with these modules in place of those of the same folders."""
        return self

    def encode(self, prompts: Sequence[str | None], ask: Ask = ASK) -> list[Any]:
        """The prompts, each encoded by itself."""
        raise NotImplementedError

    def combine(self, encoded: Sequence[Any], ask: Ask = ASK) -> Condition:
        """The condition of these prompts, one a row."""
        raise NotImplementedError

    def forward(self, prompts: Sequence[str | None], ask: Ask = ASK) -> Condition:
        return self.combine(self.encode(prompts, ask), ask)


class Nothing(Conditioner):
    """No condition: prompts must be empty."""

    acts = False

    def encode(self, prompts: Sequence[str | None], ask: Ask = ASK) -> list[None]:
        if any(prompts):
            raise LimnerError("this model reads no text; leave the prompt out")
        return [None for _ in prompts]

    def combine(self, encoded: Sequence[None], ask: Ask = ASK) -> Condition:
        return {}


class Classes(Conditioner):
    """A class by its name -> {"labels": (B,)}; the null class comes after the last."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.numbers = {name: number for number, name in enumerate(names)}
        self.position = nn.Buffer(torch.empty(0), persistent=False)  # is where the condition is wanted

    def encode(self, prompts: Sequence[str | None], ask: Ask = ASK) -> list[int]:
        """Raises LimnerError for a name that is no class."""
        wrong = next((prompt for prompt in prompts if prompt and prompt not in self.numbers), None)
        if wrong is not None:
            raise unknown("class", wrong, self.names)
        return [self.numbers[prompt] if prompt else len(self.names) for prompt in prompts]

    def combine(self, encoded: Sequence[int], ask: Ask = ASK) -> Condition:
        return {"labels": torch.tensor(encoded, device=self.position.device)}


@dataclass(frozen=True)
class NullTextConfig:
    """C, the width of the text encoder's states."""

    width: int

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, ("width",), 1)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "NullTextConfig":
        if "width" not in config:
            raise LimnerError("this does not describe a null text: it has no width")
        return from_entries(cls, config, "a null text")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class NullText(nn.Module):
    """A learned state (1, C) in place of the null prompt's."""

    def __init__(self, config: NullTextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.randn(1, config.width))


class Text(Conditioner):
    """Words by one text encoder or several; `combine` is the family's way to join their states.

    A learned `null` stands for the null prompt where there is one (and one encoder).
    """

    def __init__(self, encoders: Sequence[TextEncoder], combine: Combine, null: NullText | None = None) -> None:
        super().__init__()
        self.encoders: Any = nn.ModuleList(encoders)
        self.join, self.null = combine, null
        self.width = encoders[0].width

    def parts(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {f"text_encoder{each.reads.suffix}": each.transformer for each in self.encoders}
        return parts | ({"null_text": self.null} if self.null is not None else {})

    def tokenizers(self) -> dict[str, Tokenizer]:
        return {f"tokenizer{each.reads.suffix}": each.tokenizer for each in self.encoders}

    def with_parts(self, parts: Mapping[str, Any]) -> "Text":
        encoders = [
            TextEncoder(each.tokenizer, parts.get(f"text_encoder{each.reads.suffix}", each.transformer), each.reads)
            for each in self.encoders
        ]
        return Text(encoders, self.join, parts.get("null_text", self.null))

    def encode(self, prompts: Sequence[str | None], ask: Ask = ASK) -> list[tuple[TextStates, ...]]:
        """The states of each prompt by each encoder; every distinct prompt is encoded once."""
        texts = [prompt or "" for prompt in prompts]
        distinct = list(dict.fromkeys(texts if self.null is None else filter(None, texts)))
        states: dict[str, tuple[TextStates, ...]] = {}
        if distinct:
            by_encoder = [encoder.encode(distinct, ask.truncate) for encoder in self.encoders]
            states = dict(zip(distinct, zip(*by_encoder, strict=True), strict=True))
        if self.null is not None:
            states[""] = (TextStates(self.null.tokens),)
        return [states[text] for text in texts]

    def combine(self, encoded: Sequence[tuple[TextStates, ...]], ask: Ask = ASK) -> Condition:
        return self.join(encoded)


def masked_text(encoded: Sequence[Sequence[TextStates]]) -> Condition:
    """The first encoder's states, padded to the longest: {"text": (B, L, C), "mask": (B, L)}, True at real tokens."""
    rows = [states[0].tokens for states in encoded]
    text = pad_sequence(rows, batch_first=True)
    text = nn.functional.pad(text, (0, 0, 0, -text.shape[1] % MULTIPLE))
    lengths = torch.tensor([len(row) for row in rows], device=text.device)
    return {"text": text, "mask": torch.arange(text.shape[1], device=text.device) < lengths[:, None]}


def no_text(encoded: Sequence[Sequence[TextStates]]) -> Condition:
    """The condition of a family without text."""
    return {}
