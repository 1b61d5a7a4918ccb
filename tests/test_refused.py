"""Files of another kind than their name says, and numbers out of range: the message says what they are."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from safetensors.torch import load_file, save, save_file

from limner.errors import BrokenPicture, LimnerError, LimnerWarning
from limner.evaluate.report import load_prompts
from limner.images import read_image
from limner.model import Model
from limner.nets.dit import DiT, DiTConfig
from limner.picture import save as save_picture
from limner.pipeline import Pipeline
from limner.record import parameters_text
from limner.text.conditioner import Classes
from limner.text.tokenizer import Tokenizer
from limner.weights.file import read_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


def written(write: object, *content: object) -> bytes:
    """The bytes that write(file, *content) writes."""
    stream = io.BytesIO()
    write(stream, *content)  # type: ignore[operator]
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
TAR = tarfile.TarInfo("model").tobuf() + bytes(1024)
# Contents, and what is said of them wherever they lie.
KINDS = {
    "lfs": (LFS, "a git-LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html></html>", "a web page, not the file itself"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an answer in XML, not the file itself"),
    "words": (b"Access denied\n", "text that begins 'Access denied"),
    "pickle": (pickle.dumps({"weight": [1.0]}), "a pickle"),
    "torch": (written(lambda file: torch.save({"a": torch.ones(2)}, file)), "a zip archive, as torch.save writes"),
    "npz": (written(np.savez, np.ones(3)), "an archive of NumPy (npz)"),
    "npy": (written(np.save, np.ones(3)), "an array of NumPy (npy)"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "gguf": (b"GGUF\x03" + bytes(99), "a GGUF file"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(99), "packed with zstd: unpack it"),
    "gzip": (gzip.compress(b"{}"), "packed with gzip: unpack it"),
    "tar": (TAR, "a tar archive: unpack it"),
    "png": (written(lambda file: Image.new("L", (2, 2)).save(file, "PNG")), "a picture"),
    "empty": (b"", "empty"),
}
BROKEN = KINDS | {
    "safetensors": (save({"a": torch.ones(3)}), "a safetensors file"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "text in UTF-16"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_kind_are_called_by_its_name(tmp_path: Path, kind: str) -> None:
    content, name = KINDS[kind]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(LimnerError) as error:
        read_tensors(tmp_path / "model.safetensors")
    told = str(error.value)
    assert f"model.safetensors is not a valid safetensors file ({error.value.__cause__}): it is {name}" in told
    assert "cut short" not in told and ("--allow-pickle" in told) == (kind in ("pickle", "torch"))


@pytest.mark.parametrize("length", [*b'\t\n <[{"P\x80\x89\xff'])
def test_a_header_is_no_other_file_whatever_its_length(tmp_path: Path, length: int) -> None:
    whole = save({"a" * 100: torch.ones(3)})
    (tmp_path / "model.safetensors").write_bytes(bytes([length, 1, *bytes(6)]) + whole[8:])
    with pytest.raises(LimnerError, match="it was probably cut short"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["lfs", "html", "xml", "gzip", "empty"])
def test_pictures_of_another_kind_are_called_by_its_name(tmp_path: Path, kind: str) -> None:
    content, name = KINDS[kind]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BrokenPicture) as error:
        read_image(tmp_path / "a.png")
    told = f"{tmp_path}/a.png cannot be read as a picture: no kind of picture that is known; it is {name}"
    assert str(error.value).startswith(told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused") / "model"
    tiny_pipeline(["a red star"], steps=2).save(folder)
    return folder


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize(
    "name",
    ["model_index.json", "denoiser/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json",
     "tokenizer/tokenizer_config.json"],
)  # fmt: skip
def test_json_of_another_kind_is_called_by_its_name(folder: Path, name: str, kind: str) -> None:
    file = folder / name
    whole = file.read_bytes()
    content, what = BROKEN[kind]
    file.write_bytes(content)
    try:
        with pytest.raises(LimnerError) as error:
            Pipeline.from_pretrained(folder)
    finally:
        file.write_bytes(whole)
    assert f"{file} " in str(error.value) and f": it is {what}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("vocab.json", kind) for kind in BROKEN]
    + [("merges.txt", kind) for kind in BROKEN if kind not in ("empty", "words")],  # which may be merges
)
def test_vocabularies_of_another_kind_are_called_by_their_name(
    folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    model = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    assert Tokenizer.from_pretrained(tmp_path).encode("red").ids[0, 1] < len(model["vocab"])
    content, what = BROKEN[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LimnerError) as error:
        Tokenizer.from_pretrained(tmp_path)
    assert f"{tmp_path / name} cannot be read as a tokenizer file: it is {what}" in str(error.value)


def test_json_that_is_cut_short_is_told_where(folder: Path) -> None:
    file = folder / "denoiser/config.json"
    whole = file.read_text()
    file.write_text(whole[:30])
    with pytest.raises(LimnerError, match=r"config\.json is not valid JSON: .* line \d+ column \d+"):
        Pipeline.from_pretrained(folder)
    file.write_text(whole)


@pytest.mark.parametrize(
    ("dtype", "name", "value", "advice"),
    [
        ("float32", "blocks.0.to_out.weight", 1e30, "too large for float32: blocks.0.to_out.weight holds 1e+30; its"),
        ("bfloat16", "blocks.0.to_out.weight", 1e30, "too large for bfloat16: blocks.0.to_out.weight holds 1e+30; its"),
        ("float16", "patch_in.weight", 6e4, "the picture is not finite, with the denoiser in float16, text_encoder in "
         "float16; try --dtype float32 or less guidance"),
    ],
)  # fmt: skip
def test_a_picture_that_is_not_finite_advises_what_can_help(
    folder: Path, dtype: str, name: str, value: float, advice: str
) -> None:
    file = folder / "denoiser/diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    file.unlink()  # it may be mapped
    save_file(tensors | {name: torch.full_like(tensors[name], value)}, file)
    try:
        with pytest.raises(LimnerError) as error:
            Pipeline.from_pretrained(folder, dtype=dtype)("a red star", steps=1)
    finally:
        file.unlink()
        file.write_bytes(whole)
    assert advice in str(error.value)
    assert ("--dtype" in str(error.value)) == (dtype == "float16")


def test_a_picture_that_takes_too_much_memory_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(BrokenPicture, match="^the picture cannot be read as a picture: it needs more memory than"):
        read_image(Image.new("L", (1, 1)))


def test_settings_that_a_jpeg_cannot_hold_are_told(tmp_path: Path) -> None:
    for length, stored in [(30_000, True), (40_000, False)]:
        with pytest.warns(LimnerWarning) if not stored else pytest.MonkeyPatch.context():
            save_picture(Image.new("L", (8, 8)), tmp_path / "a.jpg", "x" * length)
        with Image.open(tmp_path / "a.jpg") as picture:
            assert (0x9286 in picture.getexif().get_ifd(0x8769)) == stored


def test_a_picture_that_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    for kind in ("webp", "gif", "avif", "jpg"):
        with pytest.raises(LimnerError, match=f"cannot write .*/a.{kind}"):
            save_picture(Image.new("L", (70_000, 1)), tmp_path / f"a.{kind}")
    assert list(tmp_path.iterdir()) == []


def test_half_characters_are_escaped_or_refused(tmp_path: Path) -> None:
    """A folder's name that is no UTF-8, and the name of a class."""
    record = parameters_text("a", "", {"Model": "caf\udce9"})
    save_picture(Image.new("L", (8, 8)), tmp_path / "a.png", record)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["parameters"] == "a\nModel: caf\\udce9"
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    Model(DiT(DiTConfig(4, 1, 2, 16, 1, 2, num_classes=2)), Classes(["a", "b\ud83d"]), flow).save(tmp_path / "model")
    with pytest.raises(LimnerError, match=r"model_index\.json: class_names must be .*'b\\ud83d'"):
        Pipeline.from_pretrained(tmp_path / "model")


def test_a_line_of_the_prompt_is_not_read_as_the_negative_prompt() -> None:
    record = parameters_text("a\nb\n Negative prompt: c", "d\nNegative prompt: e", {"Steps": 1})
    assert record == "a\nb Negative prompt: c\nNegative prompt: d Negative prompt: e\nSteps: 1"
    tokenizer = Tokenizer.train(["a red star"], length=40)
    one, other = tokenizer.encode(["a\nb\n Negative prompt: c", "a\nb Negative prompt: c"]).ids.tolist()
    assert one == other


def test_a_prompt_ends_at_the_end_of_its_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red\u2028star\r\n\n  a\x0bblue\x85circle \r\u3000\n".encode())
    assert [each.prompt for each in load_prompts(str(file), 9)] == ["a red\u2028star", "a\x0bblue\x85circle"]
