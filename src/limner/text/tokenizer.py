"""CLIP's byte-pair tokenizer: the published ones, read from any of their three file forms, and our own, trained.

All of them lower-case the text, make white space single, split it into words, numbers and signs, and merge each
word's bytes (Radford et al. 2021, section 2.4; `simple_tokenizer.py` of openai/CLIP). A vocabulary is nothing more
than its list of merges: 256 bytes, 256 bytes that end a word, one token a merge, then start and end.
The engine is the `tokenizers` library.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import AddedToken, Encoding, Regex, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE

from limner.errors import LimnerError
from limner.files import is_number, read_json, write_atomically, write_json

if TYPE_CHECKING:
    from torch import Tensor

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
CLIP_LENGTH = 77
CLIP_MERGES = 49152 - 256 - 2
SMALLEST_VOCAB = 2 * 256 + 2
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Encoded(NamedTuple):
    """`ids` (B, L) int64, padded to the budget L; `mask` (B, L) bool, True up to and including the first end token."""

    ids: Tensor
    mask: Tensor


class Tokenizer:
    """Text to ids and back.

    `start`, `end`, `pad` are ids; `length` is the budget L in tokens, start and end included; `vocab_size` counts
    every id an embedding table needs. Raises LimnerError for files that are absent, broken or of another family.
    """

    def __init__(self, engine: Engine, length: int = CLIP_LENGTH, specials: dict[str, Any] | None = None) -> None:
        """`specials` are the named tokens of a Hugging Face folder ("pad_token", ...), each a string or a dict."""
        specials = {"bos_token": START, "eos_token": END, "pad_token": END} | (specials or {})
        added = {name: _added_token(name, value) for name, value in specials.items()}
        ids = {name: _id_of(token.content, engine) for name, token in added.items()}
        if length < 2:
            raise LimnerError(
                f"a budget of {length} tokens has no room for the start and the end token; give 2 or more"
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

        The budget and the padding token come from its tokenizer_config.json and special_tokens_map.json: Stable
        Diffusion 1 pads with the end token, 2 with "!" (id 0).
        """
        folder = Path(folder)
        length, specials = _read_settings(folder)
        if (folder / "tokenizer.json").is_file():
            engine = _reading(folder / "tokenizer.json", lambda path: Engine.from_file(str(path)))
        elif all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            engine = _read_vocab_and_merges(folder / "vocab.json", folder / "merges.txt")
        else:
            raise LimnerError(f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json with merges.txt")
        try:
            made = cls(engine, length, specials)
            made._check_ends()
        except LimnerError as error:
            raise LimnerError(f"{folder}: {error}") from error
        return made

    @classmethod
    def from_files(cls, vocab_json: str | Path, merges_txt: str | Path, length: int = CLIP_LENGTH) -> Tokenizer:
        """From a vocab.json and a merges.txt; pads with the end token."""
        return cls(_read_vocab_and_merges(Path(vocab_json), Path(merges_txt)), length)

    @classmethod
    def from_openai(cls, path: str | Path) -> Tokenizer:
        """From OpenAI's bpe_simple_vocab_16e6.txt.gz: CLIP's 49,408 ids; pads with the end token."""
        path = Path(path)
        lines = _reading(path, lambda path: gzip.decompress(path.read_bytes()).decode("utf-8").split("\n"))
        pairs = [line.split() for line in lines[1 : CLIP_MERGES + 1]]  # the first line is a heading
        if len(pairs) < CLIP_MERGES or any(len(pair) != 2 for pair in pairs):
            raise LimnerError(f"{path} is not OpenAI's merge table: expected {CLIP_MERGES} pairs below a heading")
        return cls(_engine_from_merges([(left, right) for left, right in pairs]))

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 4096, length: int = CLIP_LENGTH) -> Tokenizer:
        """Byte-pair merges learned from `captions`; any text can be encoded, for every byte is a token.

        The vocabulary has at most `vocab_size` ids (514 at least), fewer where the captions give no more merges.
        """
        if vocab_size < SMALLEST_VOCAB:
            raise LimnerError(f"vocab_size {vocab_size} has no room for the bytes; give {SMALLEST_VOCAB} or more")
        letters = _byte_letters()
        # Letters that end a word are numbered here: numbered as the trainer meets them they break ties at random.
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
        merges = [(left, right) for left, right in learned[: vocab_size - SMALLEST_VOCAB]]
        return cls(_engine_from_merges(merges), length)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id: a damaged vocabulary may have gaps."""
        return 1 + max(self._engine.get_vocab(with_added_tokens=True).values())

    def _check_ends(self) -> None:
        """Raises LimnerError for a file of another family: CLIP's put a start before any text and an end after."""
        try:
            ids = self._engine.encode("a 1!").ids
        except Exception as error:  # the engine raises plain Exception
            raise LimnerError(f"the tokenizer cannot read a text: {error}") from error
        if len(ids) < 3 or ids[0] != self.start or ids[-1] != self.end:
            raise LimnerError("this is no CLIP tokenizer: it puts no start and end token around a text")

    def encode(self, texts: str | list[str], truncate: bool = False) -> Encoded:
        """Ids of one text (B = 1) or of many, each between start and end, padded to the budget.

        A text over the budget is an error, or with `truncate` loses its tail (the end token stays).
        """
        import torch

        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [self._fit(text, encoding, truncate) for text, encoding in zip(texts, self._run(texts), strict=True)]
        ids = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)
        ends = (ids == self.end).long()
        return Encoded(ids, ends.cumsum(1) - ends == 0)

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """The tokens of `text` and their ids, start and end included, unpadded and uncut ("cat</w>" ends a word)."""
        [encoding] = self._run([text])
        return list(zip(encoding.tokens, encoding.ids, strict=True))

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` without start, end and padding: lower case, one space after each word or sign."""
        return self._engine.decode(list(ids)).replace(WORD_END, " ").strip()

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `from_pretrained` and transformers read back."""
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

    def _run(self, texts: list[str]) -> list[Encoding]:
        for text in texts:
            if not isinstance(text, str):
                raise LimnerError(f"a prompt must be a string, got {type(text).__name__}: {text!r:.60}")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise LimnerError(
                    f"a prompt holds half a character (a lone surrogate), not valid Unicode: {text!r:.60}"
                )
        return self._engine.encode_batch(texts)

    def _fit(self, text: str, encoding: Encoding, truncate: bool) -> list[int]:
        """The encoding's ids cut or padded to the budget."""
        ids = encoding.ids
        over = len(ids) - self.length
        if over <= 0:
            return ids + [self.pad] * -over
        if truncate:
            return [*ids[: self.length - 1], self.end]
        first = self.length - 1  # the first token whose place the end token needs
        word = encoding.token_to_word(first)
        span = encoding.word_to_chars(word) if word is not None else None
        tail = text[(span or encoding.offsets[first])[0] :].rstrip()
        tail = tail if len(tail) <= 80 else f"{tail[:80]}..."
        raise LimnerError(
            f"the prompt has {len(ids)} tokens, {over} over the text encoder's budget of {self.length} (start and end "
            f"included); what does not fit: {tail!r}. Shorten it, or have it cut (--truncate, truncate=True)"
        )


def _id_of(token: str, engine: Engine) -> int:
    found = engine.token_to_id(token)
    if found is None:
        raise LimnerError(f"this is no CLIP vocabulary: it has no token {token!r}")
    return found


def _byte_letters() -> list[str]:
    """A printable letter for each byte, in the order of OpenAI's `bytes_to_unicode`: the printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


def _engine_from_merges(merges: list[tuple[str, str]]) -> Engine:
    """The vocabulary that the merges imply, in CLIP's order."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(merge) for merge in merges), START, END]
    return _engine({token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges)


def _engine(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Engine:
    """CLIP's normaliser, word splitter and special tokens around a vocabulary."""
    engine = Engine(BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END, unk_token=END))
    engine.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    if END in vocab and START in vocab:  # absent ones are reported by Tokenizer.__init__
        engine.post_processor = processors.RobertaProcessing(
            (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
        )
    return engine


def _reading(path: Path, read: Any) -> Any:
    """read(path), where whatever goes wrong is an error that names the file."""
    try:
        return read(path)
    except FileNotFoundError:
        raise LimnerError(f"no such file: {path}") from None
    except Exception as error:  # the engine raises plain Exception
        raise LimnerError(f"{path} cannot be read as a tokenizer file: {error}") from error


def _read_vocab_and_merges(vocab_json: Path, merges_txt: Path) -> Engine:
    for path in (vocab_json, merges_txt):
        if not path.is_file():
            raise LimnerError(f"no such file: {path}")
    return _reading(vocab_json, lambda path: _engine(*BPE.read_file(str(path), str(merges_txt))))


def _read_settings(folder: Path) -> tuple[int, dict[str, Any]]:
    """The budget and the special tokens that a tokenizer folder names.

    special_tokens_map.json wins over tokenizer_config.json, except where the latter is of the newer kind that lists
    its added tokens: transformers' rule, and Stable Diffusion 2's two files do differ.
    """
    files = (folder / "tokenizer_config.json", folder / "special_tokens_map.json")
    config, special = (read_json(path) if path.is_file() else {} for path in files)
    named = config if "added_tokens_decoder" in config else config | special
    names = ("bos_token", "eos_token", "pad_token")
    length = config.get("model_max_length", CLIP_LENGTH)
    if not is_number(length) or length < 2 or length != int(length):
        raise LimnerError(f"{files[0]}: model_max_length must be a whole number of at least 2, not {length!r:.60}")
    unlimited = length > 1_000_000  # transformers writes 10**30 for "not known"
    return CLIP_LENGTH if unlimited else int(length), {name: named[name] for name in names if named.get(name)}


def _added_token(name: str, value: str | dict[str, Any]) -> AddedToken:
    try:
        if isinstance(value, str):
            return AddedToken(value, special=True, normalized=False)
        options = {key: value[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in value}
        return AddedToken(value["content"], special=True, **options)
    except (TypeError, KeyError, ValueError) as error:
        raise LimnerError(f"{name} must be a token's text, or an object with its content, not {value!r:.60}") from error
