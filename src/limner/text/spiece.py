"""SentencePiece's model file: the protobuf `ModelProto` of sentencepiece_model.proto (Kudo & Richardson 2018)."""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type
UNIGRAM = 1  # TrainerSpec.ModelType
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf


class Piece(NamedTuple):
    """A token's text, its log probability and its type."""

    text: str
    score: float
    kind: int = NORMAL


class Vocabulary(NamedTuple):
    """The pieces by id, and the table of replacements by which text is normalised, empty for none."""

    pieces: list[Piece]
    charsmap: bytes = b""


def parse(data: bytes) -> Vocabulary:
    """The vocabulary of a model file. Raises ValueError for one that is damaged or not of a Unigram model."""
    pieces, charsmap = [], b""
    model: int | bytes = UNIGRAM
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_as(bytes, value)))
        elif number == 2:
            model = dict(_fields(_as(bytes, value))).get(3, UNIGRAM)
        elif number == 3:
            charsmap = _as(bytes, dict(_fields(_as(bytes, value))).get(2, b""))
    if model != UNIGRAM:
        raise ValueError(f"its model_type is {model!r}, not {UNIGRAM} (Unigram)")
    if not pieces:
        raise ValueError("it holds no pieces")
    return Vocabulary(pieces, charsmap)


def dump(vocabulary: Vocabulary, special: Mapping[str, str]) -> bytes:
    """The model file of a vocabulary; `special` has the token of each role: "unk", "eos", "pad"; "bos" has none."""
    pieces, charsmap = vocabulary
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    numbers = {"unk": (40, 45), "bos": (41, 46), "eos": (42, 47), "pad": (43, 48)}  # of its id and of its text
    trainer = _field(3, UNIGRAM) + _field(4, len(pieces)) + _field(41, -1)
    for role, token in special.items():
        number, text = numbers[role]
        trainer += _field(number, ids[token]) + _field(text, token.encode())
    name = b"precompiled" if charsmap else b"identity"
    normalizer = _field(1, name) + _field(2, charsmap) + _field(3, 1) + _field(4, 1) + _field(5, 1)
    entries = [_field(1, each.text.encode()) + _field(2, each.score) + _field(3, each.kind) for each in pieces]
    return b"".join(_field(1, entry) for entry in entries) + _field(2, trainer) + _field(3, normalizer)


def _piece(data: bytes) -> Piece:
    entries = dict(_fields(data))
    score = _as(bytes, entries.get(2, bytes(4)))
    if len(score) != 4:
        raise ValueError("the score of a piece is not a float")
    return Piece(
        _as(bytes, entries.get(1, b"")).decode(), struct.unpack("<f", score)[0], _as(int, entries.get(3, NORMAL))
    )


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError("a field has the wrong type")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message as (number, value): a varint as an integer, all else as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == VARINT:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if wire == BYTES:
            size, place = _varint(data, place)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} does not exist in SentencePiece's files")
        if place + size > len(data):
            raise ValueError("it ends early")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The integer at `place`, seven bits a byte from the lowest, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("it ends early")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has more than ten bytes")


def _field(number: int, value: int | float | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, float):
        return _encode_varint(number << 3 | FIXED32) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return _encode_varint(number << 3 | BYTES) + _encode_varint(len(value)) + value
    return _encode_varint(number << 3 | VARINT) + _encode_varint(value)


def _encode_varint(value: int) -> bytes:
    value &= 2**64 - 1  # two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
