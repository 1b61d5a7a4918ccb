"""Weights in pickles: refused unless allowed, and then only tensors are read and nothing is run."""

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from limner.errors import LimnerError
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.weights.file import read_weights
from limner.weights.load import load
from limner.weights.parts import Account, account, open_part

TEXT = CLIPTextConfig(100, 32, 64, 2, 4, 16, eos_token_id=99)
OLD = {"_use_new_zipfile_serialization": False}  # as torch.save wrote before 1.6


@pytest.fixture
def text(tmp_path: Path) -> CLIPTextModel:
    """A text encoder, whose configuration is in tmp_path."""
    torch.manual_seed(0)
    (tmp_path / "config.json").write_text(json.dumps(TEXT.to_dict()))
    return CLIPTextModel(TEXT)


def opened(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    return open_part(folder, "CLIPTextModel", CLIPTextModel, **options).state_dict()


class Payload:
    """A pickle of it makes a folder when it is loaded by Python's own pickle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_of_weights_opens_if_allowed(tmp_path: Path, text: CLIPTextModel, old: bool, wrapped: bool) -> None:
    weights = text.state_dict() | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    name = "text_model.final_layer_norm.weight"
    weights |= {name: torch.nn.Parameter(weights[name])}
    content = {"state_dict": weights, "epoch": 3} if wrapped else weights
    torch.save(content, tmp_path / "pytorch_model.bin", **(OLD if old else {}))
    with pytest.raises(LimnerError, match=f"{tmp_path}: .*pickles.*pytorch_model.bin.*run programs.*--allow-pickle"):
        opened(tmp_path)
    again = opened(tmp_path, allow_pickle=True)
    assert again.keys() == text.state_dict().keys()
    assert all(torch.equal(again[name], weights[name]) for name in again)
    assert {tensor.dtype for tensor in opened(tmp_path, allow_pickle=True, dtype=torch.bfloat16).values()} == {
        torch.bfloat16
    }
    dtypes = {name: tensor.dtype for name, tensor in weights.items()}
    expected = Account([tmp_path / "pytorch_model.bin"], dtypes, ["text_model.embeddings.position_ids"])
    assert account(tmp_path, "CLIPTextModel", allow_pickle=True) == expected
    with pytest.raises(LimnerError, match="--allow-pickle"):
        account(tmp_path, "CLIPTextModel")


def test_attributes_of_a_pickled_dictionary_are_ignored(tmp_path: Path, text: CLIPTextModel) -> None:
    weights = text.state_dict()
    weights._metadata = 3  # torch's load_state_dict would call its `get`
    torch.save(weights, tmp_path / "a.bin")
    again = load(lambda: CLIPTextModel(TEXT), tmp_path / "a.bin", allow_pickle=True)
    assert again.state_dict().keys() == weights.keys()


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's list of mapped files")
def test_a_pickle_is_mapped(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(99)}, tmp_path / "a.bin")
    tensors = read_weights(tmp_path / "a.bin", allow_pickle=True)
    assert str(tmp_path / "a.bin") in Path("/proc/self/maps").read_text()
    assert tensors["a"].sum() == 99


def test_an_index_names_pickles_only_where_they_are_allowed(tmp_path: Path, text: CLIPTextModel) -> None:
    """An index of safetensors cannot bring them in."""
    weights = text.state_dict()
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    weight_map = {name: names[i % 2] for i, name in enumerate(weights)}
    for file in names:
        torch.save({name: weights[name] for name in weights if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    again = opened(tmp_path, allow_pickle=True)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(LimnerError, match=rf"{names[0]} is not opened: it is a pickle, .*allow_pickle=True"):
        read_weights(index)


@pytest.mark.parametrize("old", [False, True])
def test_what_is_no_tensor_is_refused_and_not_run(tmp_path: Path, old: bool) -> None:
    file, made = tmp_path / "a.bin", tmp_path / "made"
    torch.save({"weight": torch.ones(2), "other": Payload(made)}, file, **(OLD if old else {}))
    with pytest.raises(
        LimnerError, match=rf"{file} is not .* it holds posix\.mkdir, not tensors alone; nothing .* run"
    ):
        read_weights(file, allow_pickle=True)
    file.write_bytes(pickle.dumps(Payload(made), protocol=2))
    with pytest.raises(LimnerError, match=r"it holds posix\.mkdir"):
        read_weights(file, allow_pickle=True)
    assert not made.exists()
    pickle.loads(file.read_bytes())
    assert made.exists()  # the payload would have worked


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.nn.Linear(2, 2), "it holds torch.nn.modules.linear.Linear, not tensors alone"),
        ([torch.ones(2)], "a.bin holds a list; expected a dictionary of tensors"),
        ({"w": torch.ones(2), "epoch": 3, "name": "x"}, r"more than dense tensors .*: 'epoch' \(int\), 'name' \(str\)"),
        ({"state_dict": {"w": torch.ones(2), "more": {"b": 1}}}, r"more than dense tensors .*: 'more' \(dict\)"),
        ({"state_dict": torch.ones(2), "step": 3}, r"more than dense tensors .*: 'step' \(int\)"),
        ({1: torch.ones(2)}, r"more than dense tensors .*: 1 \(Tensor\)"),
        ({"w": torch.ones(2).to_sparse()}, r"more than dense tensors .*: 'w' \(Tensor\)"),
        ({"w": torch.ones(2, device="meta")}, r"more than dense tensors .*: 'w' \(Tensor\)"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(LimnerError, match=message):
        read_weights(tmp_path / "a.bin", allow_pickle=True)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b'{"error": "not found"}', "it is JSON"),
        (b"GGUF" + bytes(99), "GGUF"),
        (save({"a": torch.ones(3)}), "it is a safetensors file: rename it"),
        (b"PK\x03\x04" + bytes(99), "cut short"),
        (b"\x80\x02" + bytes(99), "cut short"),
        (struct.pack("<6d", *range(6)), "cut short"),
    ],
)
def test_what_is_no_pickle_is_called_by_its_name(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    with pytest.raises(LimnerError, match=f"{file} is not a valid pickle of tensors: .*{message}"):
        read_weights(file, allow_pickle=True)
    with pytest.raises(LimnerError, match=f"{file} is not opened: it is a pickle, .*--allow-pickle"):
        read_weights(file)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_was_cut_short_is_refused(tmp_path: Path, old: bool) -> None:
    file = tmp_path / "a.bin"
    torch.save({"weight": torch.ones(20)}, file, **(OLD if old else {}))
    content, what = file.read_bytes(), r"it was probably cut short|it holds [a-z]+\."  # within the name of a class
    for length in range(1, len(content), 23):
        file.write_bytes(content[:length])
        with pytest.raises(LimnerError, match=f"{file} is not a valid pickle of tensors: ({what})"):
            read_weights(file, allow_pickle=True)
