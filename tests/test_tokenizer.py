"""Ids, context lengths and files of the tokenizer: equal to transformers', to the number."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch

from limner.errors import LimnerError
from limner.text.tokenizer import Tokenizer

CAT = [49406, 320, 1125, 539, 320, 2368, 49407]
CAPTIONS = [
    f"{article} {size} {colour} {shape} {place} the {other} one"
    for article in ("a", "the", "one")
    for size in ("small", "large")
    for colour in ("red", "green", "blue", "purple")
    for shape in ("circle", "star", "heart")
    for place in ("above", "below", "left of")
    for other in ("yellow", "white")
]


def special(content):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


# The two files as the published Stable Diffusion 1.5 and 2.1 have them.
SETTINGS = {
    "sd1": (
        {"add_prefix_space": False, "model_max_length": 77, "pad_token": "<|endoftext|>", "do_lower_case": True},
        {"pad_token": "<|endoftext|>"},
    ),
    "sd2": ({"add_prefix_space": False, "model_max_length": 77, "pad_token": "<|endoftext|>"}, {"pad_token": "!"}),
}
for config, special_map in SETTINGS.values():
    for target in (config, special_map):
        target |= {
            "bos_token": special("<|startoftext|>"),
            "eos_token": special("<|endoftext|>"),
            "unk_token": special("<|endoftext|>"),
        }


def strings(count=2200):
    """Texts of all kinds, the same ones every time."""
    draw = random.Random(7)
    ranges = [
        (32, 126), (32, 126), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
        (0xE00, 0xE7F), (0x1100, 0x11FF), (0x2000, 0x206F), (0x20A0, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
        (0xAC00, 0xD7A3), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0, 31),
        (0x7F, 0x9F), (0xE000, 0xF8FF), (0x10000, 0x10FFFF), (0, 0xD7FF),
    ]  # fmt: skip
    words = (
        "a photo of the cat's dog isn't WE'LL they've I'm he'd DON'T 'tis 42 3.14 1,000 x2 1920x1080 ½ ² Ⅷ ٣ 8k hdr "
        "naïve Ünïcödé ＡＢＣ ﬁ İstanbul ẞ ǅ 猫の写真 고양이 кошка قطة แมว नमस्ते 👩‍👩‍👧‍👦 🇫🇷 ❤️ é e\u0301 a\u0308\u0323 "
        "&amp; &lt;b&gt; &#39; <b> <|startoftext|> <|endoftext|> <|ENDOFTEXT|> </w> cat</w> (red:1.2) [a|b] ((x)) "
        '-- ... !!! ?! " ` ~ \\ / | _ snake_case kebab-case C++ C# @me #tag http://x.y/z?q=1&r=2 \u200b \ufeff \u00ad'
    ).split(" ")
    spaces = [" ", " ", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\x0b", "\x85", "\x1c", ""]
    fixed = ["", " ", "\n\n", "\x00", "a" * 3000, "cat " * 500, "猫" * 400, "!" * 200, "'s't're", "a  b\tc\n d "]
    texts = list(fixed)
    while len(texts) < count:
        if draw.random() < 0.5:
            texts.append("".join(draw.choice(words) + draw.choice(spaces) for _ in range(draw.randint(1, 30))))
        else:
            low, high = draw.choice(ranges)
            letters = [chr(draw.randint(low, high)) for _ in range(draw.randint(1, 40))]
            texts.append("".join(letter if draw.random() < 0.9 else draw.choice(spaces) for letter in letters))
    return texts


@pytest.fixture(scope="session")
def openai_file(shared_data):
    return shared_data / "clip" / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="session")
def folders(openai_file, tmp_path_factory):
    """Folders as published: vocab.json and merges.txt, made here as openai/CLIP's simple_tokenizer.py makes them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = (chr(256 + i) for i in range(256))
    letters = {byte: chr(byte) for byte in printable} | {b: next(extra) for b in range(256) if b not in printable}
    merges = gzip.decompress(openai_file.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    vocab = list(letters.values()) + [letter + "</w>" for letter in letters.values()]
    vocab += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    assert len(set(vocab)) == 49408
    root = tmp_path_factory.mktemp("published")
    for name, (config, special_map) in SETTINGS.items():
        folder = root / name
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "special_tokens_map.json").write_text(json.dumps(special_map))
    return root


@pytest.fixture(scope="session")
def clip(folders):
    return Tokenizer.from_pretrained(folders / "sd1")


@pytest.fixture(scope="session")
def trained():
    return Tokenizer.train(CAPTIONS, vocab_size=600, length=24)


def padded(reference):
    options = {"truncation": True, "padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    return reference(strings(), **options)["input_ids"]


def assert_same_as_transformers(ours, reference):
    texts = strings()
    assert len(set(texts)) >= 2000
    expected = reference(texts, truncation=False)["input_ids"]
    for text, ids in zip(texts, expected, strict=True):
        assert [i for _, i in ours.pieces(text)] == ids, repr(text)
    assert torch.equal(ours.encode(texts, truncate=True).ids, padded(reference))


def test_a_photo_of_a_cat(clip):
    assert (clip.vocab_size, clip.start, clip.end, clip.pad, clip.length) == (49408, 49406, 49407, 49407, 77)
    assert clip.pieces("A photo  of a cat")[4:] == [("a</w>", 320), ("cat</w>", 2368), ("<|endoftext|>", 49407)]
    ids, mask = clip.encode(["a photo of a cat", ""])
    assert ids.shape == mask.shape == (2, 77) and ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert ids.tolist() == [CAT + [49407] * 70, [49406] + [49407] * 76]
    assert mask.sum(1).tolist() == [7, 2] and mask[0, :7].all()
    assert clip.encode([]).ids.shape == (0, 77)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "pad"), [("sd1", 49407), ("sd2", 0)])
def test_published_folder_gives_transformers_ids(folders, name, pad):
    from transformers import CLIPTokenizer

    ours = Tokenizer.from_pretrained(folders / name)
    assert (ours.pad, ours.length, ours.vocab_size) == (pad, 77, 49408)
    assert_same_as_transformers(ours, CLIPTokenizer.from_pretrained(folders / name))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_tokenizer_json_written_by_transformers_or_by_us(folders, tmp_path, name):
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(folders / name)
    reference.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs/tokenizer.json").is_file()
    assert_same_as_transformers(Tokenizer.from_pretrained(tmp_path / "theirs"), reference)
    Tokenizer.from_pretrained(folders / name).save(tmp_path / "ours")
    again = Tokenizer.from_pretrained(tmp_path / "ours")
    assert_same_as_transformers(again, CLIPTokenizer.from_pretrained(tmp_path / "ours"))
    assert torch.equal(again.encode(strings(), truncate=True).ids, padded(reference))


def test_model_max_length(folders, tmp_path):
    shutil.copytree(folders / "sd1", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    ours = Tokenizer.from_pretrained(tmp_path)
    assert ours.encode("a photo of a cat").ids.tolist() == [CAT + [49407] * 2]


def test_padding_and_truncation_written_into_a_tokenizer_json_are_ours_to_decide(clip, tmp_path):
    clip.save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert len(Tokenizer.from_pretrained(tmp_path).pieces("cat " * 20)) == 22


def test_over_the_context_length(clip):
    exact = " ".join(["cat"] * 75)
    ids, mask = clip.encode(exact)
    assert ids[0, -1] == 49407 and mask.all()
    with pytest.raises(
        LimnerError, match=r"has 80 tokens, 3 over .* context length of 77 .*fit: 'Unbelievable, dog'\. Shorten"
    ):
        clip.encode(["cat", " ".join(["cat"] * 75) + " Unbelievable, dog"])
    cut = clip.encode(["cat", exact + " dog"], truncate=True)
    assert cut.ids[1].tolist() == ids[0].tolist() and cut.mask[1].all() and cut.mask[0].sum() == 3
    with pytest.raises(LimnerError, match="does not fit: '猫の写真'"):
        clip.encode("cat " * 74 + "猫の写真")


def test_mask_stops_at_the_first_end_token(clip):
    ids, mask = clip.encode("cat <|endoftext|> dog")
    assert ids[0, :5].tolist() == [49406, 2368, 49407, 1929, 49407]
    assert mask[0].tolist() == [True] * 3 + [False] * 74


def test_trained_round_trip(trained, tmp_path):
    assert 514 < trained.vocab_size <= 600
    assert (trained.start, trained.end) == (trained.vocab_size - 2, trained.vocab_size - 1)
    ids, mask = trained.encode(CAPTIONS)
    assert ids.shape == (len(CAPTIONS), 24) and ids.max() < trained.vocab_size
    assert [trained.decode(row) for row in ids.tolist()] == CAPTIONS
    # the words of the captions have become single tokens, and no two captions are encoded alike
    assert [piece for piece, _ in trained.pieces("Purple star")] == [
        "<|startoftext|>", "purple</w>", "star</w>", "<|endoftext|>",
    ]  # fmt: skip
    assert len({tuple(row) for row in ids.tolist()}) == len(CAPTIONS)
    for stale in ("special_tokens_map.json", "vocab.json", "merges.txt"):  # of another tokenizer
        (tmp_path / stale).write_text('{"pad_token": "!"}')
    trained.save(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    attributes = ("start", "end", "pad", "length", "vocab_size")
    assert [getattr(again, name) for name in attributes] == [getattr(trained, name) for name in attributes]
    assert torch.equal(again.encode(strings(), truncate=True).ids, trained.encode(strings(), truncate=True).ids)
    assert sorted(os.listdir(tmp_path)) == ["tokenizer.json", "tokenizer_config.json"]


def test_trained_encodes_any_string_losslessly(trained):
    for text in ("zebra ☃ 猫 👩‍👩‍👧‍👦", "\x00\x7f", "q"):
        pieces = trained.pieces(text)
        assert all(i not in (trained.start, trained.end) for _, i in pieces[1:-1]), "a byte was unknown"
        assert trained.decode([i for _, i in pieces]) == text


TRAIN_ON_TIES = """
import random
from limner.text.tokenizer import Tokenizer
draw = random.Random(1)
words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(3000)]
tokenizer = Tokenizer.train([" ".join(draw.choices(words, k=12)) for _ in range(3000)], vocab_size=900)
ids = [i for _, i in tokenizer.pieces(" ".join(words))]
"""


def test_training_is_repeatable_in_another_process():
    here: dict = {}
    exec(TRAIN_ON_TIES, here)
    assert here["tokenizer"].vocab_size == 900
    code = TRAIN_ON_TIES + "print(*ids)"
    for _ in range(2):
        there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert [int(i) for i in there.stdout.split()] == here["ids"]


def test_training_without_captions_leaves_the_bytes():
    bytes_only = Tokenizer.train([], vocab_size=514)
    assert bytes_only.vocab_size == 514
    assert bytes_only.decode(i for _, i in bytes_only.pieces("été")) == "été"


@pytest.mark.parity
def test_transformers_opens_a_trained_tokenizer(trained, tmp_path):
    from transformers import CLIPTokenizer

    trained.save(tmp_path)
    reference = CLIPTokenizer.from_pretrained(tmp_path)
    assert reference.model_max_length == 24
    for text in CAPTIONS[:50] + strings(200):
        assert reference(text, truncation=False)["input_ids"] == [i for _, i in trained.pieces(text)], repr(text)


def test_what_cannot_be_used_is_said(clip, trained, tmp_path):
    def refuses(pattern, action, *args, **options):
        with pytest.raises(LimnerError, match=pattern):
            action(*args, **options)

    refuses("no tokenizer in .*expected tokenizer.json", Tokenizer.from_pretrained, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    refuses("tokenizer.json cannot be read", Tokenizer.from_pretrained, tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer.json").unlink()
    refuses("it has no token", Tokenizer.from_pretrained, tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    refuses("vocab.json cannot be read", Tokenizer.from_pretrained, tmp_path)
    (tmp_path / "merges.txt").unlink()
    refuses("no tokenizer in .*expected tokenizer.json", Tokenizer.from_pretrained, tmp_path)
    refuses("vocab_size 100 has no room.*514", Tokenizer.train, CAPTIONS, vocab_size=100)
    refuses("context length of 1", Tokenizer.train, CAPTIONS, length=1)
    refuses("must be a string, got int", trained.encode, ["a", 3])
    refuses("lone surrogate", trained.encode, "\ud800")


def test_import_is_light():
    code = "import sys, limner.text.tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_panic_of_the_engine_is_an_error_of_the_file(trained, tmp_path):
    """Merges whose tokens are shorter than the prefix that is to be cut off them."""
    trained.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "x" * 20
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LimnerError, match=r"tokenizer\.json cannot be read as a tokenizer file"):
        Tokenizer.from_pretrained(tmp_path)
