"""Conditioners: prompts -> the condition of a network, which is text, class labels or nothing.

`encode` is independent per prompt, so its result can be cached; `combine` joins encoded prompts to one condition, a row
each. Both are differentiable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import LimnerError, unknown
from limner.files import check_range, check_types, from_entries
from limner.nets.network import Condition
from limner.text.encoder import PAD_TO_MULTIPLE, AnyTokenizer, LeftOut, TextEncoder, TextStates

Combine = Callable[[Sequence[Sequence[TextStates]]], Condition]
Width = Callable[[Sequence[int]], int]


class Ask(NamedTuple):
    """The options of a request that conditioning depends on."""

    truncate: bool = False
    """Truncate prompts that are too long."""


ASK = Ask()


class Conditioner(nn.Module):
    """Prompts -> condition. None and "" are the null prompt of classifier-free guidance."""

    kind: str = "text"
    """What prompts are: "text", "class" (names) or "none"."""
    names: tuple[str, ...] = ()
    """The class names, if prompts are classes."""
    width: int = 0
    """C of the text encoder's states; 0 without text."""
    null: "NullText | None"
    """A learned null embedding, if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.null = None  # not a class attribute, which would shadow a submodule of this name

    @property
    def acts(self) -> bool:
        """Whether the condition depends on the prompt."""
        return self.kind != "none"

    def parts(self) -> dict[str, nn.Module]:
        """The modules with weights, by their folders."""
        return {}

    def tokenizers(self) -> dict[str, AnyTokenizer]:
        """The tokenizers, by their folders."""
        return {}

    def with_parts(self, parts: Mapping[str, Any]) -> "Conditioner":
        """A copy of the conditioner with the modules of these folders replaced."""
        return self

    def encode(self, prompts: Sequence[str | None], ask: Ask = ASK) -> list[Any]:
        """Encode each prompt independently."""
        raise NotImplementedError

    def combine(self, encoded: Sequence[Any], ask: Ask = ASK) -> Condition:
        """Join encoded prompts to one condition, a row each."""
        raise NotImplementedError

    def forward(self, prompts: Sequence[str | None], ask: Ask = ASK) -> Condition:
        return self.combine(self.encode(prompts, ask), ask)


class Nothing(Conditioner):
    """Unconditional: prompts must be empty."""

    kind = "none"

    def encode(self, prompts: Sequence[str | None], ask: Ask = ASK) -> list[None]:
        if any(prompts):
            raise LimnerError("this model reads no text; leave the prompt out")
        return [None for _ in prompts]

    def combine(self, encoded: Sequence[None], ask: Ask = ASK) -> Condition:
        return {}


class Classes(Conditioner):
    """Class names -> {"labels": (B,)}; the null class has the label len(names)."""

    kind = "class"

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.labels = {name: label for label, name in enumerate(names)}
        self.device_marker = nn.Buffer(torch.empty(0), persistent=False)  # labels are created on its device

    def encode(self, prompts: Sequence[str | None], ask: Ask = ASK) -> list[int]:
        """The label of each prompt. Raises LimnerError for an unknown class."""
        wrong = next((prompt for prompt in prompts if prompt and prompt not in self.labels), None)
        if wrong is not None:
            raise unknown("class", wrong, self.names)
        return [self.labels[prompt] if prompt else len(self.names) for prompt in prompts]

    def combine(self, encoded: Sequence[int], ask: Ask = ASK) -> Condition:
        return {"labels": torch.tensor(encoded, device=self.device_marker.device)}


@dataclass(frozen=True)
class NullTextConfig:
    """`width` is C of the text encoder's states."""

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
    """A learned null embedding (1, C), used as the text states of the null prompt."""

    def __init__(self, config: NullTextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.randn(1, config.width))

    def forward(self) -> Tensor:
        return self.tokens  # (1, C)


class Text(Conditioner):
    """Text, by one or more encoders; `combine` is the family's function that joins their states, `width` that of the
    width of the joined ones.

    `null` replaces the states of the null prompt; it needs a single encoder.
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder | LeftOut],
        combine: Combine,
        null: NullText | None = None,
        width: Width = max,
    ) -> None:
        super().__init__()
        self.encoders: Any = nn.ModuleList(encoders)
        self.join, self.null, self.width_of = combine, null, width
        self.width = width([each.width for each in encoders])

    def parts(self) -> dict[str, nn.Module]:
        parts = {name: part for each in self.encoders for name, part in each.parts().items()}
        return parts | ({"null_text": self.null} if self.null is not None else {})

    def tokenizers(self) -> dict[str, AnyTokenizer]:
        return {name: tokenizer for each in self.encoders for name, tokenizer in each.tokenizers().items()}

    def with_parts(self, parts: Mapping[str, Any]) -> "Text":
        encoders = [each.with_parts(parts) for each in self.encoders]
        return Text(encoders, self.join, parts.get("null_text", self.null), self.width_of)

    def encode(self, prompts: Sequence[str | None], ask: Ask = ASK) -> list[tuple[TextStates, ...]]:
        """The states of each prompt from each encoder; duplicate prompts are encoded once."""
        texts = [prompt or "" for prompt in prompts]
        distinct = list(dict.fromkeys(texts if self.null is None else filter(None, texts)))
        states: dict[str, tuple[TextStates, ...]] = {}
        if distinct:
            by_encoder = [encoder.encode(distinct, ask.truncate) for encoder in self.encoders]
            states = dict(zip(distinct, zip(*by_encoder, strict=True), strict=True))
        if self.null is not None:
            states[""] = (TextStates(self.null()),)
        return [states[text] for text in texts]

    def combine(self, encoded: Sequence[tuple[TextStates, ...]], ask: Ask = ASK) -> Condition:
        return self.join(encoded)


def masked_text(encoded: Sequence[Sequence[TextStates]]) -> Condition:
    """The first encoder's states, padded to the longest: {"text": (B, L, C), "mask": (B, L)}, True at real tokens."""
    rows = [states[0].tokens for states in encoded]
    lengths = torch.tensor([len(row) for row in rows])
    longest = -(-int(lengths.max()) // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    mask = torch.arange(longest) < lengths[:, None]
    states = torch.cat(rows)  # (sum of lengths, C)
    places = mask.flatten().nonzero()[:, 0].to(states.device)
    text = states.new_zeros(mask.numel(), states.shape[1]).index_copy(0, places, states)
    return {"text": text.unflatten(0, mask.shape), "mask": mask.to(states.device)}


def padded_text(encoded: Sequence[Sequence[TextStates]]) -> Condition:
    """The first encoder's states at the full context length, without a mask: {"text": (B, L, C)}."""
    return {"text": torch.stack([states[0].tokens for states in encoded])}


def joint_text(encoded: Sequence[Sequence[TextStates]]) -> Condition:
    """The states of two CLIP encoders side by side, padded to the width of T5's and followed by them, without a mask:
    {"text": (B, L, C)}; {"pooled": (B, P)}, the pooled states of the two (Esser et al. 2024, section 4)."""

    def row(one: TextStates, two: TextStates, t5: TextStates) -> Tensor:
        clip = torch.cat([one.tokens, two.tokens], dim=-1)
        return torch.cat([F.pad(clip, (0, t5.tokens.shape[-1] - clip.shape[-1])), t5.tokens])

    pooled = [torch.cat([one.pooled, two.pooled]) for one, two, _ in encoded]  # type: ignore[list-item]
    return {"text": torch.stack([row(*states) for states in encoded]), "pooled": torch.stack(pooled)}


def joint_width(widths: Sequence[int]) -> int:
    """The width of `joint_text`, where T5's states are at least as wide as CLIP's."""
    one, two, t5 = widths
    if one + two > t5:
        raise LimnerError(f"the CLIP encoders' states, {one} + {two} wide, do not fit into T5's {t5}")
    return t5


def no_text(encoded: Sequence[Sequence[TextStates]]) -> Condition:
    """The `combine` of a family without text encoders."""
    return {}
