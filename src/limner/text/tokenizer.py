"""CLIP's byte-pair tokenizer, loaded from a Hugging Face folder or trained on captions.

Text is lower-cased, its white space collapsed, split into words, digits and punctuation, and each word's bytes are
merged (Radford et al. 2021, section 2.4; `simple_tokenizer.py` of openai/CLIP). The vocabulary follows from the list of
merges: 256 bytes, 256 word-final bytes, one token per merge, then start and end. The engine is Hugging Face's
`tokenizers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import AddedToken, Encoding, Regex, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE

from limner.errors import LimnerError
from limner.files import JSON, is_number, other_kind, read_json, write_atomically, write_json

if TYPE_CHECKING:
    from torch import Tensor

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
CLIP_LENGTH = 77
OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "spiece.model")
MIN_VOCAB_SIZE = 2 * 256 + 2
WORD_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Encoded(NamedTuple):
    """`ids` (B, L) int64, padded to the context length L; `mask` (B, L) bool, True through the first end token."""

    ids: Tensor
    mask: Tensor


class Tokenizer:
    """Text to ids and back.

    `start`, `end`, `pad` are ids; `length` is the context length L in tokens, start and end included.
    """

    published_name = "CLIPTokenizer"

    def __init__(self, engine: Engine, length: int = CLIP_LENGTH, specials: dict[str, Any] | None = None) -> None:
        """`specials` are special tokens under transformers' names ("pad_token", ...), each a string or a dict."""
        specials = {"bos_token": START, "eos_token": END, "pad_token": END} | (specials or {})
        added = {name: _added_token(name, value) for name, value in specials.items()}
        ids = {name: _id_of(token.content, engine) for name, token in added.items()}
        if length < 2:
            raise LimnerError(
                f"a context length of {length} tokens has no room for the start and the end token; give 2 or more"
            )
        known = {token.content for token in engine.get_added_tokens_decoder().values()}
        engine.add_special_tokens([token for token in added.values() if token.content not in known])
        engine.no_padding()
        engine.no_truncation()
        self._engine = engine
        self.length = length
        self.start, self.end, self.pad = ids["bos_token"], ids["eos_token"], ids["pad_token"]

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """From a Hugging Face `tokenizer` folder: tokenizer.json, else vocab.json and merges.txt.

        The context length and the special tokens come from its tokenizer_config.json and special_tokens_map.json:
        Stable Diffusion 1 pads with the end token, 2 with "!" (id 0). Raises LimnerError for files that are absent,
        damaged or not of a CLIP tokenizer.
        """
        folder = Path(folder)
        length, specials = _load_settings(folder)
        if (folder / "tokenizer.json").is_file():
            engine = _load(Engine.from_file, folder / "tokenizer.json")
        elif all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            engine = _load(lambda *files: _engine(*BPE.read_file(*files)), folder / "vocab.json", folder / "merges.txt")
        else:
            raise LimnerError(f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json with merges.txt")
        try:
            tokenizer = cls(engine, length, specials)
            tokenizer._check_ends()
        except LimnerError as error:
            raise LimnerError(f"{folder}: {error}") from error
        return tokenizer

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 4096, length: int = CLIP_LENGTH) -> Tokenizer:
        """Learn byte-pair merges from `captions`. Any text can be encoded, since every byte is a token.

        The vocabulary has at most `vocab_size` ids (514 at least), fewer if the captions yield fewer merges.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise LimnerError(f"vocab_size {vocab_size} has no room for the bytes; give {MIN_VOCAB_SIZE} or more")
        letters = _byte_letters()
        # Fixed ids for word-final letters: those the trainer assigns vary between runs, and ties are broken by id.
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[letter + WORD_END for letter in letters],
            initial_alphabet=letters,
            end_of_word_suffix=WORD_END,
            show_progress=False,
        )
        engine = _engine_from_merges([])
        engine.train_from_iterator(captions, trainer)
        learned = json.loads(engine.to_str())["model"]["merges"]
        merges = [(left, right) for left, right in learned[: vocab_size - MIN_VOCAB_SIZE]]
        return cls(_engine_from_merges(merges), length)

    @property
    def vocab_size(self) -> int:
        """The highest id + 1, the rows of an embedding table; ids may have gaps."""
        return 1 + max(self._engine.get_vocab(with_added_tokens=True).values())

    def _check_ends(self) -> None:
        """Raises LimnerError unless a text is encoded between the start and the end token, as by CLIP's tokenizers."""
        try:
            ids = self._engine.encode("a 1!").ids
        except BaseException as error:
            _check_of_engine(error)
            raise LimnerError(f"the tokenizer cannot read a text: {error}") from error
        if len(ids) < 3 or ids[0] != self.start or ids[-1] != self.end:
            raise LimnerError("this is no CLIP tokenizer: it puts no start and end token around a text")

    def encode(self, texts: str | list[str], truncate: bool = False, length: int | None = None) -> Encoded:
        """Ids of one text (B = 1) or of many, each between start and end, padded to `length` or the context length.

        Raises LimnerError for a text over the context length, unless `truncate`, which keeps the end token.
        """
        import torch

        texts = [texts] if isinstance(texts, str) else list(texts)
        length = length or self.length
        rows = [
            self._pad_or_truncate(text, encoding, length, truncate)
            for text, encoding in zip(texts, self._encode_batch(texts), strict=True)
        ]
        ids = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)
        ends = (ids == self.end).long()
        return Encoded(ids, ends.cumsum(1) - ends == 0)

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """The tokens of `text` and their ids, with start and end but no padding ("cat</w>" ends a word)."""
        [encoding] = self._encode_batch([text])
        return list(zip(encoding.tokens, encoding.ids, strict=True))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens: lower case, words and punctuation separated by spaces."""
        return self._engine.decode(list(ids)).replace(WORD_END, " ").strip()

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, for `from_pretrained` and transformers."""
        folder = Path(folder)
        start, end, pad = (self._engine.id_to_token(i) for i in (self.start, self.end, self.pad))
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.length,
            "bos_token": start,
            "eos_token": end,
            "pad_token": pad,
            "unk_token": end,
        }
        write_atomically(folder / "tokenizer.json", lambda path: self._engine.save(str(path)))
        write_json(folder / "tokenizer_config.json", config)
        for name in OTHER_FILES:  # of another tokenizer, which would be read with these or instead
            (folder / name).unlink(missing_ok=True)

    def _encode_batch(self, texts: list[str]) -> list[Encoding]:
        for text in texts:
            if not isinstance(text, str):
                raise LimnerError(f"a prompt must be a string, got {type(text).__name__}: {text!r:.60}")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise LimnerError(
                    f"a prompt holds half a character (a lone surrogate), not valid Unicode: {text!r:.60}"
                )
        return self._engine.encode_batch(texts)

    def _pad_or_truncate(self, text: str, encoding: Encoding, length: int, truncate: bool) -> list[int]:
        """The encoding's ids, padded or truncated to the length."""
        ids = encoding.ids
        over = len(ids) - length
        if over <= 0:
            return ids + [self.pad] * -over
        if truncate:
            return [*ids[: length - 1], self.end]
        first = length - 1  # the first token that is cut
        word = encoding.token_to_word(first)
        span = encoding.word_to_chars(word) if word is not None else None
        tail = text[(span or encoding.offsets[first])[0] :].rstrip()
        tail = tail if len(tail) <= 80 else f"{tail[:80]}..."
        raise LimnerError(
            f"the prompt has {len(ids)} tokens, {over} over the text encoder's context length of {length} (start "
            f"and end included); what does not fit: {tail!r}. Shorten it, or have it cut (--truncate, truncate=True)"
        )


def _id_of(token: str, engine: Engine) -> int:
    token_id = engine.token_to_id(token)
    if token_id is None:
        raise LimnerError(f"this is no CLIP vocabulary: it has no token {token!r}")
    return token_id


def _byte_letters() -> list[str]:
    """The printable letter of each byte, in the order of OpenAI's `bytes_to_unicode`: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


def _engine_from_merges(merges: list[tuple[str, str]]) -> Engine:
    """The engine for a list of merges, its vocabulary in CLIP's order."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(merge) for merge in merges), START, END]
    return _engine({token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges)


def _engine(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Engine:
    """An engine with CLIP's normalizer, pre-tokenizer, decoder and post-processor."""
    engine = Engine(BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END, unk_token=END))
    engine.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    if END in vocab and START in vocab:  # absent ones are reported by Tokenizer.__init__
        engine.post_processor = processors.RobertaProcessing(
            (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
        )
    return engine


def _check_of_engine(error: BaseException) -> None:
    """Raise the error again unless it is the engine's: a plain Exception, or a panic of Rust, which is none."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _load(read: Callable[..., Engine], *files: Path) -> Engine:
    """The engine that `read` makes of these files, any exception as a LimnerError that names them."""
    try:
        return read(*map(str, files))
    except BaseException as error:
        _check_of_engine(error)
        for file in files:  # one of another kind explains the error
            kind = other_kind(file, JSON)
            if kind and not (file.suffix == ".txt" and kind.startswith("it is text that")):  # as merges are
                raise LimnerError(f"{file} cannot be read as a tokenizer file: {kind}") from error
        others = "".join(f", with {file.name}" for file in files[1:])
        raise LimnerError(f"{files[0]} cannot be read as a tokenizer file{others}: {error!s:.300}") from error


def _load_settings(folder: Path) -> tuple[int, dict[str, Any]]:
    """The context length and the special tokens of a tokenizer folder.

    special_tokens_map.json overrides tokenizer_config.json unless the latter lists added_tokens_decoder, as in
    transformers; the two files of Stable Diffusion 2 differ.
    """
    files = (folder / "tokenizer_config.json", folder / "special_tokens_map.json")
    config, special = (read_json(path) if path.is_file() else {} for path in files)
    named = config if "added_tokens_decoder" in config else config | special
    names = ("bos_token", "eos_token", "pad_token")
    length = config.get("model_max_length", CLIP_LENGTH)
    if not is_number(length) or length < 2 or length != int(length):
        raise LimnerError(f"{files[0]}: model_max_length must be a whole number of at least 2, not {length!r:.60}")
    unlimited = length > 1_000_000  # transformers writes 10**30 for an unknown length
    return CLIP_LENGTH if unlimited else int(length), {name: named[name] for name in names if named.get(name)}


def _added_token(name: str, value: str | dict[str, Any]) -> AddedToken:
    try:
        if isinstance(value, str):
            return AddedToken(value, special=True, normalized=False)
        options = {key: value[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in value}
        return AddedToken(value["content"], special=True, **options)
    except (TypeError, KeyError, ValueError) as error:
        raise LimnerError(f"{name} must be a token's text, or an object with its content, not {value!r:.60}") from error
