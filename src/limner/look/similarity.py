"""Cosine similarity of prompts by the states of a text encoder."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import LimnerError, unknown
from limner.model import Model
from limner.text.conditioner import Text
from limner.text.encoder import TextEncoder

STATES = ("mean", "pooled")


def text_vectors(model: Model, prompts: Sequence[str], states: str = "mean", encoder: str | None = None) -> Tensor:
    """A vector (N, C), float64, of each prompt; "" is the model's null text.

    `states` is "mean", of the states that the network is given, over the prompt's tokens with start and end but without
    padding, or "pooled", the encoder's pooled state. `encoder` is the folder of one, by default the first. Raises
    LimnerError for a model without text and for an encoder without pooled states.
    """
    if states not in STATES:
        raise unknown("choice of states", states, STATES)
    if not isinstance(model.conditioner, Text):
        raise LimnerError(f"{model.name} reads no text: there are no prompts to compare")
    place, reader = _choose(model, model.conditioner, encoder)
    with torch.inference_mode():
        encoded = [states[place] for states in model.conditioner.encode(prompts)]
    if states == "mean":
        lengths = [len(reader.tokenizer.pieces(prompt)) for prompt in prompts]
        rows = [each.tokens[:length].double().mean(0) for each, length in zip(encoded, lengths, strict=True)]
        return torch.stack(rows)
    pooled = [each.pooled for each in encoded if each.pooled is not None]
    if len(pooled) < len(encoded):
        raise LimnerError(f"not all of these texts have a pooled state in {reader.reads.folder}; take --states mean")
    return torch.stack(pooled).double()


def cosines(vectors: Tensor) -> Tensor:
    """(N, C) -> their cosine similarities (N, N)."""
    unit = F.normalize(vectors, dim=1)
    return unit @ unit.T


def _choose(model: Model, conditioner: Text, folder: str | None) -> tuple[int, TextEncoder]:
    """The place among the encoders, and the encoder, of this folder; the first that was not left out."""
    places = {each.reads.folder: k for k, each in enumerate(conditioner.encoders) if isinstance(each, TextEncoder)}
    if not places:
        raise LimnerError(f"{model.name} has no text encoder")
    name = next(iter(places)) if folder is None else folder
    if name not in places:
        raise unknown("text encoder", name, places)
    return places[name], conditioner.encoders[places[name]]
