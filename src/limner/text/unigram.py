"""T5's Unigram tokenizer, loaded from a Hugging Face folder or trained on captions.

Text is normalised by a table of replacements (NFKC in the published vocabularies), split at white space, and each word
is segmented into the pieces of highest total log probability (Kudo 2018, section 3.1). The vocabulary is read from
tokenizer.json or from spiece.model, SentencePiece's protobuf (Kudo & Richardson 2018). The engine is Hugging Face's
`tokenizers`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine
from tokenizers.models import Unigram

from limner.errors import LimnerError
from limner.files import JSON, is_number, other_kind, read_json, write_atomically, write_json
from limner.text.spiece import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Piece, Vocabulary, dump, parse
from limner.text.tokenizer import OTHER_FILES, Encoded

PAD, END, UNKNOWN_TOKEN, SPACE = "<pad>", "</s>", "<unk>", "▁"
T5_LENGTH, EXTRA_IDS = 512, 100  # where tokenizer_config.json has none
EXTRA_ID = re.compile(r"<extra_id_\d+>")
ALPHABET = [SPACE, *map(chr, range(ord("!"), ord("~") + 1))]


class UnigramTokenizer:
    """Text to ids and back.

    `end`, `pad` are ids; `length` is the length L in tokens, end included, to which texts are padded.
    """

    published_name = "T5TokenizerFast"

    def __init__(self, vocabulary: Vocabulary, length: int = T5_LENGTH) -> None:
        if length < 1:
            raise LimnerError(f"a length of {length} tokens has no room for the end token; give 1 or more")
        self._vocabulary = vocabulary
        self._engine = _engine(vocabulary)
        self.length = length
        texts = [piece.text for piece in vocabulary.pieces]
        self.end, self.pad = texts.index(END), texts.index(PAD)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> UnigramTokenizer:
        """From a Hugging Face `tokenizer` folder: tokenizer.json, else spiece.model.

        The length is the model_max_length of its tokenizer_config.json, or 512. As in transformers, of a tokenizer.json
        only the vocabulary and the table of replacements count. Raises LimnerError for files that are absent, damaged
        or not of a T5 tokenizer.
        """
        folder = Path(folder)
        length, extra_ids = _load_settings(folder / "tokenizer_config.json")
        readers = {"tokenizer.json": _read_tokenizer_json, "spiece.model": lambda path: _read_spiece(path, extra_ids)}
        path = next((folder / name for name in readers if (folder / name).is_file()), None)
        if path is None:
            raise LimnerError(f"no T5 tokenizer in {folder}: expected tokenizer.json or spiece.model")
        vocabulary = readers[path.name](path)
        try:
            return cls(vocabulary, length)
        except LimnerError as error:
            raise LimnerError(f"{path}: {error}") from error

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 4096, length: int = T5_LENGTH) -> UnigramTokenizer:
        """Learn pieces and their probabilities from `captions` by expectation maximisation (Kudo 2018, section 3.2).

        Text is not normalised. The vocabulary has at most `vocab_size` ids, fewer if the captions yield fewer pieces,
        among them all printable ASCII; other characters that no caption has are unknown.
        """
        split = [_checked(caption).split() for caption in captions]
        letters = {letter for words in split for word in words for letter in word}.union(ALPHABET)
        if vocab_size < 3 + len(letters):
            raise LimnerError(
                f"vocab_size {vocab_size} has no room for ASCII and the captions' characters; give {3 + len(letters)} "
                "or more"
            )
        ranked = sorted(_learn(split, vocab_size).items(), key=lambda piece: (-piece[1], piece[0]))
        special = [Piece(PAD, 0.0, CONTROL), Piece(END, 0.0, CONTROL), Piece(UNKNOWN_TOKEN, 0.0, UNKNOWN)]
        # In float32, as spiece.model holds them.
        pieces = special + [Piece(text, float(np.float32(score)), NORMAL) for text, score in ranked]
        return cls(Vocabulary(pieces), length)

    @property
    def vocab_size(self) -> int:
        """The highest id + 1, the rows of an embedding table."""
        return len(self._vocabulary.pieces)

    def encode(self, texts: str | list[str], truncate: bool = False, length: int | None = None) -> Encoded:
        """Ids of one text (B = 1) or of many, each followed by the end token and padded to `length`, or to its own.

        Raises LimnerError for a text over the length, unless `truncate`, which keeps the end token.
        """
        import torch

        texts = [texts] if isinstance(texts, str) else list(texts)
        length = length or self.length
        rows = [
            encoding.ids if len(encoding) <= length else self._truncated(text, encoding, length, truncate)
            for text, encoding in zip(texts, self._encode_batch(texts), strict=True)
        ]
        ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows], dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return Encoded(ids.reshape(len(rows), length), torch.arange(length) < lengths[:, None])

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """The tokens of `text` and their ids, with the end token but no padding ("▁cat" starts a word)."""
        [encoding] = self._encode_batch([text])
        return list(zip(encoding.tokens, encoding.ids, strict=True))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens: normalised, words separated by single spaces."""
        return self._engine.decode(list(ids))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, spiece.model and tokenizer_config.json, for `from_pretrained` and transformers."""
        folder = Path(folder)
        pieces, charsmap = self._vocabulary
        # spiece.model has no extra ids: readers append them, from the highest down.
        kept = [piece for piece in pieces if not (piece.kind == CONTROL and EXTRA_ID.fullmatch(piece.text))]
        unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
        config = {
            "tokenizer_class": "T5Tokenizer",
            "model_max_length": self.length,
            "extra_ids": len(pieces) - len(kept),
            "eos_token": END,
            "pad_token": PAD,
            "unk_token": unknown,
        }
        model = dump(Vocabulary(kept, charsmap), {"unk": unknown, "eos": END, "pad": PAD})
        write_atomically(folder / "tokenizer.json", lambda path: self._engine.save(str(path)))
        write_atomically(folder / "spiece.model", lambda path: path.write_bytes(model))
        write_json(folder / "tokenizer_config.json", config)
        for name in set(OTHER_FILES) - {"spiece.model"}:
            (folder / name).unlink(missing_ok=True)

    def _encode_batch(self, texts: list[str]) -> list[Encoding]:
        return self._engine.encode_batch([_checked(text) for text in texts])

    def _truncated(self, text: str, encoding: Encoding, length: int, truncate: bool) -> list[int]:
        """The ids of a text that is too long, truncated."""
        ids = encoding.ids
        if truncate:
            return [*ids[: length - 1], self.end]
        word = encoding.token_to_word(length - 1)  # the first token that is cut
        span = encoding.word_to_chars(word) if word is not None else None
        tail = text[(span or encoding.offsets[length - 1])[0] :].strip()
        tail = tail if len(tail) <= 80 else f"{tail[:80]}..."
        raise LimnerError(
            f"the prompt has {len(ids)} tokens, {len(ids) - length} over the text encoder's {length} (end included); "
            f"what does not fit: {tail!r}. Shorten it, or have it cut (--truncate, truncate=True)"
        )


def _checked(text: Any) -> str:
    if not isinstance(text, str):
        raise LimnerError(f"a text must be a string, got {type(text).__name__}: {text!r:.60}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise LimnerError(f"a text holds half a character (a lone surrogate), not valid Unicode: {text!r:.60}")
    return text


def _learn(captions: list[list[str]], vocab_size: int) -> dict[str, float]:
    """The pieces of captions, given as words, and their log probabilities, rounded to four places."""
    letters = {letter for words in captions for word in words for letter in word} | {SPACE}
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(set(ALPHABET) - letters) + 1,  # the mark below
        special_tokens=[PAD, END, UNKNOWN_TOKEN],
        unk_token=UNKNOWN_TOKEN,
        show_progress=False,
    )
    engine = Engine(Unigram())
    engine.pre_tokenizer = _pre_tokenizer()
    # The engine takes a piece into account if two different words have it; a mark, of which it makes no piece with
    # other characters, makes two of each word.
    twice = (" ".join([*words, *(f"{word}\1" for word in words)]) for words in captions)
    engine.train_from_iterator(twice, trainer)
    scores = json.loads(engine.to_str())["model"]["vocab"][3:]
    # Last digits vary between runs, and so do the scores of characters that no segmentation needs: the engine puts them
    # in any order, 0.0001 apart, at the end.
    learned = {text: round(score, 4) for text, score in scores if "\1" not in text}
    lowest = min(learned.values(), default=-1.0)
    needless = [text for text in learned if len(text) == 1 and learned[text] < lowest + 1e-4 * len(letters)]
    return learned | dict.fromkeys([*needless, *(letter for letter in ALPHABET if letter not in learned)], lowest)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=True)]
    )


def _engine(vocabulary: Vocabulary) -> Engine:
    """An engine with T5's normalizer, pre-tokenizer, decoder and post-processor."""
    pieces, charsmap = vocabulary
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    absent = [token for token in (PAD, END) if token not in ids]
    if absent:
        raise LimnerError(f"this is no T5 vocabulary: it has no token {absent[0]!r}")
    if len(ids) < len(pieces):
        twice = next(piece.text for i, piece in enumerate(pieces) if ids[piece.text] != i)
        raise LimnerError(f"the vocabulary holds {twice!r} twice")
    if any(not piece.text or not np.isfinite(piece.score) for piece in pieces):
        raise LimnerError("the vocabulary holds an empty piece, or one whose score is not a finite number")
    unknown = [i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN]
    if len(unknown) != 1:
        raise LimnerError(f"the vocabulary must have one token for what is unknown, not {len(unknown)}")
    engine = Engine(Unigram([(piece.text, piece.score) for piece in pieces], unk_id=unknown[0]))
    if charsmap:
        _check_charsmap(charsmap)
        engine.normalizer = normalizers.Precompiled(charsmap)
    engine.pre_tokenizer = _pre_tokenizer()
    engine.decoder = decoders.Metaspace(SPACE, prepend_scheme="always", split=True)
    engine.post_processor = processors.TemplateProcessing(
        single=["$A", END], pair=["$A", END, "$B", END], special_tokens=[(END, ids[END])]
    )
    special = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    engine.add_tokens(
        [AddedToken(each.text, special=special[each.kind], normalized=False) for each in pieces if each.kind in special]
    )
    return engine


def _check_charsmap(charsmap: bytes) -> None:
    """Raises LimnerError for a table of replacements that the engine would read beyond its end.

    It is the size of a double-array trie in bytes, the trie in units of 32 bits, and the replacements, each ended by a
    zero. A unit refers to another by its own index XOR an offset XOR the next byte of the text, and to the unit with
    the position of a replacement by its index XOR the offset (Yata et al. 2007; darts-clone).
    """
    size = int.from_bytes(charsmap[:4], "little")
    replacements = np.frombuffer(charsmap[4 + size :], np.uint8)
    if size % 4 or not 0 < size <= len(charsmap) - 4 or not len(replacements):
        raise LimnerError("the table of replacements (precompiled_charsmap) is damaged: it ends early")
    units = np.frombuffer(charsmap[4 : 4 + size], "<u4").astype(np.int64)
    inner = units >> 31 == 0
    targets = (np.arange(len(units)) ^ (units >> 10 << ((units & 1 << 9) >> 6)))[inner]
    fits = bool(((targets | 0xFF) < len(units)).all())
    if fits:
        positions = units[targets[(units[inner] & 1 << 8) != 0]] & 0x7FFFFFFF
        fits = bool((positions < len(replacements)).all()) and bool((replacements[positions] & 0xC0 != 0x80).all())
    if not fits:
        raise LimnerError("the table of replacements (precompiled_charsmap) is damaged: it points beyond its end")
    try:
        normalizers.Precompiled(charsmap)
    except Exception as error:  # the engine raises plain Exception
        raise LimnerError(f"the table of replacements (precompiled_charsmap) is damaged: {error}") from error


def _load_settings(path: Path) -> tuple[int, int]:
    """The length and the number of extra ids, from a tokenizer_config.json."""
    config = read_json(path) if path.is_file() else {}
    values = []
    for name, default, least in (("model_max_length", T5_LENGTH, 1), ("extra_ids", EXTRA_IDS, 0)):
        value = config.get(name, default)
        if not is_number(value) or value < least or value != int(value):
            raise LimnerError(f"{path}: {name} must be a whole number of at least {least}, not {value!r:.60}")
        # transformers writes 10**30 for an unknown length
        values.append(default if value > 1_000_000 else int(value))
    return values[0], values[1]


def _read_spiece(path: Path, extra_ids: int) -> Vocabulary:
    """The vocabulary of a spiece.model, followed by the extra ids, the highest first."""
    pieces, charsmap = _read(path, lambda: parse(path.read_bytes()))
    return Vocabulary(pieces + [Piece(f"<extra_id_{i}>", 0.0, CONTROL) for i in reversed(range(extra_ids))], charsmap)


def _read_tokenizer_json(path: Path) -> Vocabulary:
    """The vocabulary of a tokenizer.json, with the extra ids that it holds."""
    content = read_json(path)
    return _read(path, lambda: _parse_json(content))


def _parse_json(content: dict[str, Any]) -> Vocabulary:
    model, added, normalizer = content["model"], content.get("added_tokens") or [], content.get("normalizer") or {}
    if model.get("type", "Unigram") != "Unigram":
        raise ValueError(f"its model is a {model['type']}, not a Unigram model")
    kinds = {each["content"]: CONTROL if each["special"] else USER_DEFINED for each in added}
    entries = [(text, score) for text, score in model["vocab"]]
    entries += [(each["content"], 0.0) for each in sorted(added, key=lambda e: e["id"]) if each["id"] >= len(entries)]
    if any(not isinstance(text, str) or not is_number(score) for text, score in entries):
        raise ValueError("its vocabulary must be a list of texts with their scores")
    "".join(text for text, _ in entries).encode()  # raises ValueError for half a character
    if any(entries[each["id"]][0] != each["content"] for each in added):
        raise ValueError("the ids of its added tokens do not continue those of its vocabulary")
    kinds |= {text: CONTROL for text, _ in entries if text in (PAD, END) or EXTRA_ID.fullmatch(text)}
    kinds[entries[model["unk_id"]][0]] = UNKNOWN
    pieces = [Piece(text, score, kinds.get(text, NORMAL)) for text, score in entries]
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    charsmaps = [base64.b64decode(step["precompiled_charsmap"]) for step in steps if step.get("type") == "Precompiled"]
    return Vocabulary(pieces, charsmaps[0] if charsmaps else b"")


def _read(path: Path, parsed: Callable[[], Vocabulary]) -> Vocabulary:
    """parsed(), with what a damaged file raises as a LimnerError that names it."""
    try:
        return parsed()
    except OSError as error:
        raise LimnerError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        reason = other_kind(path, JSON) or error
        raise LimnerError(f"{path} cannot be read as a T5 tokenizer file: {reason}") from error
    except (TypeError, LookupError, AttributeError) as error:
        raise LimnerError(f"{path} is not the {path.name} of a Unigram model ({error!r:.100})") from error
