"""Tables of captions, tokenizer files and prompts that were damaged, or made to harm: each is read, or
refused in words; nothing else happens.

`LIMNER_FUZZ=10` tries ten times as many cases, others in each run.
"""

import csv
import io
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from PIL import Image
from test_fuzz import FILES, OTHERS, bounded, cases
from test_fuzz_pictures import other_bytes, sound_pictures

from limner.canvas import parse_extend
from limner.data.sources import Source, open_source
from limner.errors import LimnerError
from limner.evaluate.report import EvalPrompt, load_prompts
from limner.folders import find_model
from limner.hub import is_name
from limner.picture import save
from limner.record import parameters_text
from limner.text.tokenizer import END, START, Tokenizer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the settings are not stored"),
]

# Pieces that prompts and captions are made of.
WORDS = ["a red star", "two small blue circles", " on a green background", "Star", "17", "ﬁ", "ß", "İ", "e\u0301", "é",
         "שלום", "مرحبا", "\u202e", "👩\u200d👧", "👍🏽", "\u200b", "\ufeff", "\x00", "\x1b[31m", "\x7f", "\r", "\n",
         "\r\n", "\t", "\u2028", "\x85", " ", "   ", "\ud83d", "\udcff", "\U0010ffff", "<|endoftext|>", "</w>", "'s",
         '"', "\\", ",", ":", "Steps: 20, Sampler: euler", "x" * 5000, "ab " * 3000, "\u0301" * 500, "猫"]  # fmt: skip
long_texts = st.sampled_from([" " * 100_000, "a" * 20_000, "\u0301" * 5000, "🎈 " * 3000, "\x00" * 100])
short_texts = [st.text(st.characters(), max_size=30), st.lists(st.sampled_from(WORDS), max_size=6).map("".join)]
texts = st.one_of(*short_texts * 4, long_texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, to be captioned."""
    folder = tmp_path_factory.mktemp("data")
    for k in range(3):
        Image.new("RGB", (4, 4), (80 * k, 0, 0)).save(folder / f"{k}.png")
    return folder


captions = st.one_of(texts, st.sampled_from([None, 3, 1.5, True, [], ["a", "b"], ["a", None], {"a": 1}, [["a"]]]))
names = st.sampled_from(["0.png", "1.png", "2.png", "./2.png", "", "../x", "\x00", "3.png"])
usual = [("0.png", "a"), ("1.png", "b"), ("2.png", "c")]
rows = st.lists(st.tuples(names, captions), max_size=5).map(lambda more: usual + more)
encodings = st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-7"])
ends = st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "\x00\n", "\u2028", "\n\r"])


def as_jsonl(rows: list[tuple[str, Any]], end: str) -> str:
    return end.join(
        json.dumps({"file_name": name, "text": text}, ensure_ascii=bool(k % 2)) for k, (name, text) in enumerate(rows)
    )


def as_csv(rows: list[tuple[str, Any]], end: str) -> str:
    table = io.StringIO()
    csv.writer(table, lineterminator=end).writerows([("file_name", "text"), *rows])
    return table.getvalue()


def in_bytes(text: str, encoding: str) -> bytes:
    """The text, half characters among it, as far as the encoding has them."""
    try:
        return text.encode(encoding, "surrogatepass")
    except UnicodeError:
        return text.encode(encoding, "replace")


def opens(folder: Path, *names: str) -> None:
    """The folder's captions are texts, or an error names the file, and the line where it is one line's."""
    try:
        collection = open_source(Source(path=str(folder)))
    except LimnerError as error:
        told = str(error)
        assert any(str(folder / name) in told for name in names) or "have no caption" in told, told
        of_a_row = re.search("is not JSON|fields|file_name must|a caption (is|holds)", told) and not names[0].endswith(
            "txt"
        )
        assert not of_a_row or re.search(r", (line|row) \d+\b", told), told
        return
    found = collection.all_captions()
    assert found and all(isinstance(each, str) and each.strip() for each in found)
    "".join(found).encode()  # no half characters


@cases(70)
@given(st.data())
def test_tables_of_captions(folder: Path, data: st.DataObject) -> None:
    name, write = data.draw(st.sampled_from([("metadata.jsonl", as_jsonl), ("metadata.csv", as_csv)]))
    whole = in_bytes(write(data.draw(rows), data.draw(ends)), data.draw(encodings))
    content = data.draw(st.one_of(st.just(whole), other_bytes(whole), st.sampled_from([*FILES[1:], *OTHERS[1:]])))
    (folder / name).write_bytes(content)
    try:
        with bounded():
            opens(folder, name)
    finally:
        (folder / name).unlink()


@cases(20)
@given(st.data())
def test_captions_beside_pictures(folder: Path, data: st.DataObject) -> None:
    names = [f"{k}.txt" for k in range(3)]
    try:
        for name in names:
            whole = in_bytes(data.draw(texts), data.draw(encodings))
            (folder / name).write_bytes(data.draw(st.one_of(st.just(whole), other_bytes(whole))))
        with bounded():
            opens(folder, *names)
    finally:
        for name in names:
            (folder / name).unlink(missing_ok=True)


@cases(6)
@given(st.data())
def test_tables_in_parquet(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    from pyarrow import ArrowException, parquet, table

    file = tmp_path_factory.mktemp("parquet") / "train.parquet"
    cells = st.lists(captions, min_size=2, max_size=2)
    try:
        columns = {"image": [sound_pictures()["png"], sound_pictures()["jpeg"]], "text": data.draw(cells)}
        parquet.write_table(table(columns), file)
    except (ArrowException, UnicodeError):  # of two types, or no text
        parquet.write_table(table(columns | {"text": ["a", "b"]}), file)
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(other_bytes(file.read_bytes())))
    with bounded():
        opens(file.parent, file.name, "")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red star", "two small blue circles"], vocab_size=560, length=12)


def reads(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text is encoded, twice alike; if not, it is refused in words."""
    try:
        ids, mask = tokenizer.encode(text, truncate=True)
    except LimnerError as error:
        assert "not valid Unicode" in str(error), error
        assert any("\ud800" <= letter <= "\udfff" for letter in text)
        return False
    assert ids.shape == mask.shape == (1, tokenizer.length) and 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert ids[0, 0] == tokenizer.start and bool((ids[mask] == tokenizer.end).any())
    assert tokenizer.encode([text, "a"], truncate=True).ids[0].tolist() == ids[0].tolist()
    assert isinstance(tokenizer.decode(ids[0].tolist()), str)
    return True


@cases(40)
@given(st.data())
def test_prompts(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """What can be encoded is stored with the picture, to the letter."""
    prompt, negative = data.draw(texts), data.draw(st.one_of(st.just(""), texts))
    with bounded():
        if not (reads(tokenizer, prompt) and reads(tokenizer, negative)):
            return
        record = parameters_text(prompt, negative, {"Steps": 3, "Model": f"{prompt}\udcff"})
        for suffix in ("png", data.draw(st.sampled_from(["jpg", "webp", "avif"]))):
            file = tmp_path_factory.getbasetemp() / f"prompt.{suffix}"
            save(Image.new("L", (8, 8)), file, record)
            with Image.open(file) as picture:
                stored = picture.info.get("parameters")
                comment = picture.getexif().get_ifd(0x8769).get(0x9286, b"")
            if suffix == "png":
                assert stored == record
                lines = [prompt, f"Negative prompt: {negative}"] if negative else [prompt]
                assert record.startswith("\n".join([*lines, "Steps: 3, Model: "]))
            else:
                assert not comment or comment[8:].decode("utf-16-be") == record
                assert comment or (suffix == "jpg" and len(record.encode("utf-16-be")) > 60_000)


@cases(30)
@given(st.data())
def test_files_of_prompts(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = tmp_path_factory.getbasetemp() / "prompts.txt"
    lines = in_bytes(data.draw(st.lists(texts, max_size=4).map("\n".join)), data.draw(encodings))
    file.write_bytes(
        data.draw(st.one_of(st.just(lines), other_bytes(lines), st.sampled_from([*FILES[1:], *OTHERS[1:]])))
    )
    with bounded():
        try:
            prompts = load_prompts(str(file), 100)
        except LimnerError as error:
            assert str(file) in str(error)
        else:
            assert prompts and all(each.prompt == each.prompt.strip() != "" for each in prompts)


@cases(40)
@given(st.data())
def test_files_of_tokenizers(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Damaged byte by byte, or another file's content; what is opened encodes any text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    whole = {file.name: file.read_bytes() for file in folder.glob("*.json")}
    if data.draw(st.booleans()):
        (folder / "tokenizer.json").unlink()
        model = json.loads(whole.pop("tokenizer.json"))["model"]
        whole["vocab.json"] = json.dumps(model["vocab"]).encode()
        whole["merges.txt"] = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])]).encode() + b"\n"
    whole["special_tokens_map.json"] = json.dumps({"bos_token": START, "eos_token": {"content": END}}).encode()
    name = data.draw(st.sampled_from(sorted(whole)))
    others = st.sampled_from([*FILES[1:], *OTHERS[1:], *whole.values()])
    whole[name] = data.draw(st.one_of(other_bytes(whole[name]), others))
    for file, content in whole.items():
        (folder / file).write_bytes(content)
    with bounded():
        try:
            opened = Tokenizer.from_pretrained(folder)
        except LimnerError as error:
            assert str(folder) in str(error) and len(str(error)) < 2000
        else:
            reads(opened, data.draw(texts))


@cases(20)
@given(st.one_of(texts, st.lists(st.sampled_from(["left", "=", "1", "²", "١", ",", "top=8", "-"])).map("".join)))
def test_names(text: str) -> None:
    """Of a model, of a set of prompts, of the sides of an extension: refused in words."""
    with bounded():
        for read in (parse_extend, load_prompts_of, find_model):
            if read is parse_extend or not (is_name(text) or os.path.exists(text)):
                with suppress(LimnerError):
                    read(text)
                    assert read is parse_extend


def load_prompts_of(name: str) -> list[EvalPrompt]:
    return load_prompts(name, 1)
