"""T5's Unigram tokenizer: transformers' ids for models trained by SentencePiece and here, and damaged files."""

import base64
import json
import random
import shutil
import subprocess
import sys

import pytest
import torch
from test_tokenizer import CAPTIONS, strings

from limner.errors import LimnerError
from limner.text.spiece import CONTROL, UNKNOWN, Piece, Vocabulary, dump, parse
from limner.text.unigram import UnigramTokenizer

STRINGS = [
    *strings(2150),
    "<extra_id_0> a <extra_id_99>cat<extra_id_7>", "a<pad>b </s> c<unk>d", "＜pad＞ ＜/s＞", "<extra_id_100>",
    "▁▁ a▁b ▁",
    "ﬁ ﬂ ﬃ ﬆ ĳ Ǆ ㎏ ㍿ ½ ² ℡ ™ … ‥ ＡＢＣ１２３　ｱｲｳ ｶﾞ",
    "e\u0301 é A\u030a Å \u1100\u1161 가", "a\u200bb\u2060c\ufeffd\u00ade",
    "a\u0000b\u0001c\u007fd\u0085e\u009ff", "\u2028 \u2029 \u1680 \u3000 \u202f", "قطة حمراء नमस्ते 猫の写真 кошка",
    "\ud83d\udc08".encode("utf-16", "surrogatepass").decode("utf-16"), "'\"`´‘’“”«»", "\r\n\t\v\f", "́", "\U0010ffff",
]  # fmt: skip


def corpus():
    """Captions with words of several scripts, some frequent and many rare."""
    words = 'naïve café 3 42 кошка кот 猫 写真 photo 가 hdr 8k, "art" (deco) it\'s e-mail émigré'.split()
    draw = random.Random(2)
    syllables = "ka to mi re su no ta li bo dra fen gor ing ed".split()
    words += ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(600)]
    odds = [1 / (i + 1) for i in range(len(words))]
    return [" ".join([caption, *draw.choices(words, odds, k=4)]) for caption in CAPTIONS * 2]


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A spiece.model as T5's is made: SentencePiece's NFKC rules, ids of pad, end and unknown 0, 1, 2, no start."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("t5")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(folder / "spiece"), vocab_size=500, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 20, "extra_ids": 100}')
    return folder


@pytest.fixture(scope="session")
def converted(published, tmp_path_factory):
    """The same as transformers saves it."""
    from transformers import T5Tokenizer

    folder = tmp_path_factory.mktemp("converted")
    T5Tokenizer.from_pretrained(published).save_pretrained(folder)
    assert not (folder / "spiece.model").exists()
    return folder


@pytest.fixture(scope="session")
def trained():
    return UnigramTokenizer.train(corpus(), vocab_size=300, length=20)


@pytest.fixture(scope="session")
def saved(trained, tmp_path_factory):
    """The trained one in two folders, each with one of the two formats."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("json", "spiece"):
        trained.save(folder / name)
        assert {file.name for file in (folder / name).iterdir()} == {
            "tokenizer.json", "spiece.model", "tokenizer_config.json",
        }  # fmt: skip
    (folder / "json/spiece.model").unlink()
    (folder / "spiece/tokenizer.json").unlink()
    return folder


def check_same_as_transformers(folder, texts):
    from transformers import T5Tokenizer

    ours, reference = UnigramTokenizer.from_pretrained(folder), T5Tokenizer.from_pretrained(folder)
    assert (ours.vocab_size, ours.end, ours.pad) == (len(reference), 1, 0)
    assert ours.length == reference.model_max_length == 20
    expected = reference(texts, truncation=False)["input_ids"]
    for text, ids in zip(texts, expected, strict=True):
        assert [i for _, i in ours.pieces(text)] == ids, repr(text)
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True), repr(text)
    theirs = reference(texts, truncation=True, padding="max_length", max_length=20, return_tensors="pt")
    ids, mask = ours.encode(texts, truncate=True)
    assert torch.equal(ids, theirs["input_ids"]) and torch.equal(mask.long(), theirs["attention_mask"])
    return ours


SAMPLE = STRINGS[10:2150:12] + STRINGS[2150:]  # 195 of them, the special ones among them


def test_ids_of_spiece_model(published):
    assert len(SAMPLE) >= 190
    check_same_as_transformers(published, SAMPLE)


def test_ids_of_tokenizer_json(converted):
    check_same_as_transformers(converted, SAMPLE)


def test_ids_of_a_trained_model(saved):
    for name in ("json", "spiece"):
        check_same_as_transformers(saved / name, SAMPLE)


@pytest.mark.parity
@pytest.mark.full_size
def test_ids_of_all_strings(published, converted, saved):
    assert len(set(STRINGS)) >= 2000
    folders = (published, converted, saved / "json", saved / "spiece")
    ours = [check_same_as_transformers(folder, STRINGS) for folder in folders]
    for one, other in (ours[:2], ours[2:]):
        assert [one.pieces(text) for text in STRINGS] == [other.pieces(text) for text in STRINGS]
    assert sum(2 in [i for _, i in ours[0].pieces(text)] for text in STRINGS) > 500, "nothing is unknown"


def test_a_saved_one_is_the_same(published, converted, tmp_path):
    for folder in (published, converted):
        ours = UnigramTokenizer.from_pretrained(folder)
        ours.save(tmp_path)
        again = UnigramTokenizer.from_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        of_spiece = UnigramTokenizer.from_pretrained(tmp_path)
        for other in (again, of_spiece):
            assert [getattr(other, name) for name in ("end", "pad", "length", "vocab_size")] == [
                1,
                0,
                20,
                ours.vocab_size,
            ]
            assert [other.pieces(text) for text in SAMPLE] == [ours.pieces(text) for text in SAMPLE]


@pytest.mark.parametrize("name", ["published", "trained"])
def test_sentencepiece_reads_what_is_written(published, trained, tmp_path, name):
    import sentencepiece

    ours = {"published": UnigramTokenizer.from_pretrained(published), "trained": trained}[name]
    ours.save(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert (reference.pad_id(), reference.eos_id(), reference.unk_id(), reference.bos_id()) == (0, 1, 2, -1)
    assert reference.vocab_size() == ours.vocab_size - (100 if name == "published" else 0)
    texts = [*corpus()[:200], "a Zebra, ~1920x1080!  spaces ", "", "ＡＢＣ ﬁ" if name == "published" else "ABC fi"]
    for text in texts:
        assert [*reference.encode(text), 1] == [i for _, i in ours.pieces(text)], text
    before = parse((published / "spiece.model").read_bytes())
    assert parse(dump(before, {"unk": "<unk>", "eos": "</s>", "pad": "<pad>"})) == before


def test_special_tokens_and_extra_ids(published):
    ours = UnigramTokenizer.from_pretrained(published)
    size = ours.vocab_size
    assert ours.pieces("<extra_id_0> red<extra_id_99>") == [
        ("<extra_id_0>", size - 1), ("▁red", ours.pieces("red")[0][1]), ("<extra_id_99>", size - 100), ("</s>", 1),
    ]  # fmt: skip
    ids, mask = ours.encode(["red </s> red", ""])
    assert mask.sum(dim=1).tolist() == [4, 1] and ids[1].tolist() == [1] + [0] * 19
    assert ours.decode(ids[0].tolist()) == "red red"


def test_lengths(trained):
    ids, mask = trained.encode(["red star", "red"], length=6)
    assert ids.shape == mask.shape == (2, 6) and ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert mask.tolist() == [[True] * 3 + [False] * 3, [True] * 2 + [False] * 4]
    assert trained.encode("red").ids.shape == (1, 20) and trained.encode([]).ids.shape == (0, 20)


def test_over_the_length(trained):
    exact = " ".join(["red"] * 19)
    ids, mask = trained.encode(exact)
    assert ids[0, -1] == 1 and mask.all()
    with pytest.raises(LimnerError, match=r"has 22 tokens, 2 over the text encoder's 20 .*fit: 'star blue'\. Shorten"):
        trained.encode(["red", exact + " star blue"])
    cut = trained.encode(["red", exact + " star"], truncate=True)
    assert cut.ids[1].tolist() == ids[0].tolist() and cut.mask.sum(dim=1).tolist() == [2, 20]
    with pytest.raises(LimnerError, match=r"has 4 tokens, 1 over the text encoder's 3 .*fit: 'blue'"):
        trained.encode("red star blue", length=3)


def test_trained_round_trip(trained):
    assert 250 < trained.vocab_size <= 300
    ids, _ = trained.encode(CAPTIONS)
    assert [trained.decode(row) for row in ids.tolist()] == CAPTIONS
    assert [piece for piece, _ in trained.pieces("purple star")] == ["▁purple", "▁star", "</s>"]
    for text in ("Zebra ~!@#$%^&*()_+{}|", "q"):
        assert (
            2 not in [i for _, i in trained.pieces(text)] and trained.decode(i for _, i in trained.pieces(text)) == text
        )
    assert [i for _, i in trained.pieces("☃")][-2:] == [2, 1]


def test_training_without_captions_leaves_ascii():
    ours = UnigramTokenizer.train([], vocab_size=98)
    assert ours.vocab_size == 98
    assert ours.decode(i for _, i in ours.pieces("A b~")) == "A b~"


TRAIN = """
import random
from limner.text.unigram import UnigramTokenizer
draw = random.Random(1)
words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(1000)]
tokenizer = UnigramTokenizer.train([" ".join(draw.choices(words, k=12)) for _ in range(1000)], vocab_size=600)
pieces = str(tokenizer._vocabulary.pieces)
"""


def test_training_is_repeatable_in_another_process():
    here: dict = {}
    exec(TRAIN, here)
    assert here["tokenizer"].vocab_size == 600
    there = subprocess.run([sys.executable, "-c", TRAIN + "print(pieces)"], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here["pieces"]


def test_import_is_light():
    code = "import sys, limner.text.unigram; sys.exit(any(m in sys.modules for m in ('torch', 'google.protobuf')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def spiece(*pieces, charsmap=b""):
    special = {"unk": "<unk>", "eos": "</s>", "pad": "<pad>"}
    return dump(Vocabulary(list(pieces), charsmap), special)


SPECIAL = (Piece("<pad>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL), Piece("<unk>", 0.0, UNKNOWN))
BPE = b"\x12\x02\x18\x02"  # trainer_spec {model_type: BPE}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-LFS pointer"),
        (b"<!doctype html>", "it is a web page"),
        (spiece(*SPECIAL)[:-5], "it ends early"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "more than ten bytes"),
        (spiece(*SPECIAL) + b"\x0b", "wire type 3"),
        (b"\x08\x01", "wrong type"),
        (b"\x0a\x04\x0a\x02\xff\xfe", "utf-8"),
        (spiece(*SPECIAL) + BPE, "its model_type is 2, not 1"),
        (spiece(*SPECIAL, Piece("a", float("nan"))), "score is not a finite number"),
        (spiece(*SPECIAL, Piece("", -1.0)), "an empty piece"),
        (spiece(*SPECIAL, Piece("a", -1.0), Piece("a", -2.0)), "holds 'a' twice"),
        (spiece(*SPECIAL, Piece("a", -1.0, UNKNOWN)), "one token for what is unknown, not 2"),
        (spiece(*SPECIAL, charsmap=b"\1\2\3"), "is damaged: it ends early"),
        (spiece(*SPECIAL, charsmap=b"\x04\0\0\0\1\2\3\4\0"), "points beyond its end"),
        (spiece(*SPECIAL, charsmap=b"\x04\0\0\0\0\0\0\0\0"), "points beyond its end"),
        (
            spiece(Piece("<pad>", 0.0, CONTROL), *SPECIAL[2:], Piece("</s>", 0.0)).replace(b"</s>", b"</t>"),
            "no token '</s>'",
        ),
    ],
)
def test_a_damaged_spiece_model(tmp_path, content, message):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(LimnerError, match=message) as raised:
        UnigramTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path / "spiece.model") in str(raised.value)


def change(content, path, value):
    *way, last = path
    for step in way:
        content = content[step]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["model"], 3, "not the tokenizer.json of a Unigram model"),
        (["model"], {}, "not the tokenizer.json of a Unigram model"),
        (["model", "type"], "BPE", "its model is a BPE, not a Unigram model"),
        (["model", "vocab"], {"a": 1}, "cannot be read"),
        (["model", "vocab", 3], [3, -1.0], "a list of texts with their scores"),
        (["model", "vocab", 3], ["a"], "cannot be read"),
        (["model", "vocab", 3], ["\ud800", -1.0], "surrogates not allowed"),
        (["model", "vocab", 3], ["a", 1e999], "a list of texts with their scores"),
        (["model", "unk_id"], None, "not the tokenizer.json of a Unigram model"),
        (["model", "unk_id"], 10**6, "not the tokenizer.json of a Unigram model"),
        (["added_tokens", 0], {"id": 0}, "not the tokenizer.json of a Unigram model"),
        (["added_tokens", 0, "id"], 7, "do not continue"),
        (["added_tokens", 0, "id"], 10**6, "not the tokenizer.json"),
        (["normalizer", "precompiled_charsmap"], "AAAA", "is damaged"),
        (["normalizer", "precompiled_charsmap"], 3, "not the tokenizer.json of a Unigram model"),
        (["normalizer"], [1], "not the tokenizer.json"),
    ],
)
def test_a_damaged_tokenizer_json(converted, tmp_path, path, value, message):
    content = json.loads((converted / "tokenizer.json").read_text())
    change(content, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LimnerError, match=message) as raised:
        UnigramTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(raised.value)


def test_no_damage_is_another_exception(published, converted, tmp_path):
    """Bytes flipped or cut off anywhere: refused by a LimnerError, or a tokenizer that encodes any text."""
    draw, refused = random.Random(4), 0
    vocabulary = parse((published / "spiece.model").read_bytes())
    stored = json.loads((converted / "tokenizer.json").read_text())
    for case in range(30):
        data = bytearray(vocabulary.charsmap if case % 3 else (published / "spiece.model").read_bytes())
        for _ in range(draw.choice((1, 1, 1, 20))):
            data[draw.randrange(len(data) if case % 2 else 3000)] = draw.randrange(256)
        data = data[: draw.randrange(len(data))] if case % 5 == 0 else data
        if case % 3 == 0:
            (tmp_path / "spiece.model").write_bytes(data)
        elif case % 3 == 1:
            (tmp_path / "spiece.model").write_bytes(spiece(*vocabulary.pieces, charsmap=bytes(data)))
        else:
            stored["normalizer"]["precompiled_charsmap"] = base64.b64encode(data).decode()
            (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
        try:
            UnigramTokenizer.from_pretrained(tmp_path).encode(SAMPLE[::4] + SAMPLE[-25:], truncate=True)
        except LimnerError:
            refused += 1
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    assert 5 < refused < 30


def test_what_cannot_be_used_is_said(published, trained, tmp_path):
    def refuses(pattern, action, *args, **options):
        with pytest.raises(LimnerError, match=pattern):
            action(*args, **options)

    refuses(
        r"no T5 tokenizer in .*expected tokenizer\.json or spiece\.model", UnigramTokenizer.from_pretrained, tmp_path
    )
    (tmp_path / "tokenizer.json").write_text("{")
    refuses(r"tokenizer\.json is not valid JSON", UnigramTokenizer.from_pretrained, tmp_path)
    shutil.copy(published / "spiece.model", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for entry, pattern in (
        ({"model_max_length": 0}, "model_max_length must be a whole number of at least 1, not 0"),
        ({"model_max_length": "512"}, "model_max_length must be a whole number"),
        ({"extra_ids": -1}, "extra_ids must be a whole number of at least 0"),
        ({"extra_ids": 2.5}, "extra_ids must be a whole number"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(entry))
        refuses(pattern, UnigramTokenizer.from_pretrained, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30, "extra_ids": 0}))
    opened = UnigramTokenizer.from_pretrained(tmp_path)
    assert opened.length == 512 and "<extra_id_0>" not in [piece for piece, _ in opened.pieces("<extra_id_0>")]
    refuses("vocab_size 97 has no room for ASCII.*give 98 or more", UnigramTokenizer.train, CAPTIONS, vocab_size=97)
    many = ["".join(map(chr, range(0x4E00, 0x4E00 + 500)))]
    refuses("vocab_size 200 has no room .*give 598 or more", UnigramTokenizer.train, many, vocab_size=200)
    refuses("a length of 0 tokens", UnigramTokenizer.train, CAPTIONS, length=0)
    refuses("must be a string, got int", UnigramTokenizer.train, [3])
    refuses("must be a string, got int", trained.encode, ["a", 3])
    refuses("lone surrogate", trained.encode, "\ud800")
