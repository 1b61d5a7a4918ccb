"""Model folders that were damaged, or made to harm: each paints, or is refused in words; nothing else happens.

`LIMNER_FUZZ=10` tries ten times as many cases, others in each run.
"""

import copy
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from sd import PNDM

from limner.errors import LimnerError
from limner.model import Model
from limner.nets.dit import DiT, DiTConfig
from limner.nets.network import Network
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.pipeline import Pipeline
from limner.sample import check_grid
from limner.schedulers import PRESETS, SAMPLERS, SCHEDULES, read_schedule
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.conditioner import Classes, NullText, NullTextConfig, Text, masked_text, padded_text
from limner.text.encoder import Reads, TextEncoder
from limner.text.tokenizer import Tokenizer, _byte_letters
from limner.weights.file import read_tensors
from limner.weights.parts import PARTS

pytestmark = pytest.mark.usefixtures("one_thread")

MANY = int(os.environ.get("LIMNER_FUZZ", "1"))
SECONDS, BYTES = 30, 2**30  # that one case may take, beside what the process holds already

WORDS = ["", "x", "6", "\x00", "\ud800", "é" * 1000, "gelu", "linspace", "sigma_min", "v_prediction", *PRESETS]
NUMBERS = [0, 1, -1, 2, 3, 7, 10**9, 2**31, 2**53, 2**63, 10**30, 10**400, 0.0, -0.5, 1.5, 1e-300, 1e300]
VALUES = [None, True, False, *WORDS, *NUMBERS, float("nan"), float("inf"), -float("inf"),
          [], [1], ["x"], [None], [[1]], {}, {"a": {"b": 1}}, {"content": 3},
          {"content": "x", "lstrip": 1}]  # fmt: skip
# What may stand where a file of JSON stood; None: the file is gone.
FILES = [None, b"", b"[]", b'"x"', b"null", b"{}", b"{", b"\x00\x01\x02" * 99, b"\xff\xfe{}", b'{"a": "\xff"}',
         b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 100_000, b'{"depth": ' + b"9" * 5000 + b"}"]  # fmt: skip
# What may stand where weights stood.
OTHERS = [None, b"", b"\x00", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html><html>", b"PK\x03\x04",
          b"\x80\x04\x95" + b"\x00" * 99, b"GGUF", b"{}", b"\xff" * 64, b"\x02" + b"\x00" * 7 + b"{}"]  # fmt: skip
DTYPES = [torch.int64, torch.uint8, torch.bool, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
          torch.complex64]  # fmt: skip


def cases(count: int) -> settings:
    return settings(
        max_examples=count * MANY, deadline=None, derandomize=MANY == 1, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three tiny models: `words` reads text, its null learned, and paints in latents along a flow, `classes` paints
    pixels by a table, and `stable` is a Stable Diffusion."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red star", "a blue circle"], vocab_size=540, length=8)
    text = CLIPTextModel(CLIPTextConfig(tokenizer.vocab_size, 16, 32, 1, 2, 8, eos_token_id=tokenizer.end))
    vae = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8,), latent_channels=2, norm_num_groups=4))
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 2.0}
    reads = DiT(DiTConfig(4, 2, 2, 16, 1, 2, text_dim=16, conv_channels=8, conv_layers=1, pooled_text=True))
    words = Text([TextEncoder(tokenizer, text)], masked_text, NullText(NullTextConfig(16)))
    defaults = {"steps": 2, "guidance_scale": 2.0}
    models = {
        "words": Model(reads, words, flow, vae, defaults),
        "classes": Model(
            DiT(DiTConfig(4, 1, 2, 16, 1, 2, num_classes=2)),
            Classes(["0", "1"]),
            table("DDIMScheduler"),
            None,
            defaults,
        ),
        "stable": Model(unet(), Text([TextEncoder(tokenizer, text, Reads(padded=True))], padded_text), PNDM, vae,
                        defaults, pipeline="StableDiffusionPipeline"),
    }  # fmt: skip
    folders = {name: tmp_path_factory.mktemp("fuzz") / name for name in models}
    for name, model in models.items():
        for p in model.network.parameters():
            torch.nn.init.normal_(p, std=0.1)
        model.save(folders[name])
        assert outcome(folders[name]) == "painted"
    return folders


def unet() -> Network:
    """The smallest UNet with attention to text."""
    part = PARTS["UNet2DConditionModel"]
    config = {
        "sample_size": 4, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 8), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 4, "attention_head_dim": 2,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16,
    }  # fmt: skip
    return part.module(part.config.from_dict(config))


def table(name: str) -> dict[str, Any]:
    """A scheduler's configuration that says everything."""
    return {
        "_class_name": name, "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
        "skip_prk_steps": True,
        "beta_schedule": "linear", "trained_betas": None, "prediction_type": "epsilon", "timestep_spacing": "leading",
        "steps_offset": 1, "clip_sample": True, "clip_sample_range": 1.0, "set_alpha_to_one": True,
        "thresholding": False, "rescale_betas_zero_snr": False, "final_sigmas_type": "zero", "use_karras_sigmas": False,
        "use_flow_sigmas": False, "flow_shift": 1.0, "algorithm_type": "dpmsolver++", "solver_order": 2, "shift": 1.0,
    }  # fmt: skip


@contextmanager
def bounded() -> Iterator[None]:
    """No more than so many seconds and bytes; going over either ends the case with an error that is not LimnerError."""

    def late(*_: object) -> None:
        raise TimeoutError(f"a case took over {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, before[1]))
    usual = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def instead(path: Path, content: bytes | None) -> Iterator[None]:
    """The file with another content for a while, or gone. Replaced, not overwritten: it may be mapped into memory."""
    kept = path.with_name("kept")
    path.rename(kept)
    try:
        if content is not None:
            path.write_bytes(content)
        before = listing(path.parents[1])
        yield
        assert listing(path.parents[1]) == before, "something was written"
    finally:
        kept.replace(path)


def listing(folder: Path) -> list[tuple[str, int, int]]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def outcome(folder: Path) -> str:
    """Open the model and paint one step of one picture: "painted", or why not. Other errors go through."""
    try:
        pipe = Pipeline.from_pretrained(folder)
    except LimnerError as error:
        assert str(folder) in str(error), f"no file is named: {error}"
        return f"not opened: {error}"
    try:
        names = pipe.model.conditioner.names
        pictures = pipe(names[-1] if names else "a red star", steps=1)
    except LimnerError as error:
        assert re.search(
            "scheduler|beta|prediction_type|spacing|grid|context length|not numbers|not finite|too large for"
            "|pure noise",
            str(error),
        ), error
        return f"not painted: {error}"
    assert len(pictures) == 1 and min(pictures[0].size) > 0
    return "painted"


@st.composite
def other_json(draw: st.DrawFn, content: Any) -> Any:
    """The content with one to three of its entries, at any depth, taken out, replaced or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = content, None
        while holder:
            key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
            if not (isinstance(holder[key], dict | list) and holder[key] and draw(st.booleans())):
                break
            holder = holder[key]
        action = draw(st.sampled_from(["replace"] * 6 + ["near"] * 3 + ["remove", "add"]))
        if key is None:
            break
        if action == "remove":
            del holder[key]
        elif action == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["extra", *content]))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif action == "near":
            holder[key] = draw(st.sampled_from(near(holder[key])))
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return content


def near(value: Any) -> list[Any]:
    """Values that are much like this one."""
    if isinstance(value, bool) or value is None:
        return [not value, str(value), int(bool(value))]
    if isinstance(value, int | float) and abs(value) < 1e300:
        return [value + 1, value - 1, 2 * value, -value, value / 2, float(value), str(value), [value], bool(value)]
    return [
        str(value),
        [value],
        {"value": value},
        *([value + value, value[:1]] if isinstance(value, str | list) else []),
    ]


@st.composite
def other_weights(draw: st.DrawFn, data: bytes) -> bytes | None:
    """A safetensors file damaged in its length, its header, its numbers or its tensors; or another file."""
    length = int.from_bytes(data[:8], "little")
    header, numbers = data[8 : 8 + length], data[8 + length :]
    kind = draw(st.sampled_from(["cut", "flip", "length", "header", "junk", "tensors", "tensors", "twice", "other"]))
    if kind == "cut":
        return data[: draw(st.integers(0, len(data)))] + b"\x00" * draw(st.sampled_from([0, 0, 1, 8]))
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            changed[draw(st.integers(0, draw(st.sampled_from([8, 8 + length, len(data)])) - 1))] ^= draw(
                st.integers(1, 255)
            )
        return bytes(changed)
    if kind == "length":
        lies = [0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1]
        return draw(st.sampled_from(lies)).to_bytes(8, "little") + header + numbers
    if kind == "header":
        header = json.dumps(draw(other_json(json.loads(header)))).encode()
    elif kind == "junk":
        header = draw(st.sampled_from(FILES)) or b""
    elif kind == "twice":
        first = json.dumps(dict([draw(st.sampled_from(list(json.loads(header).items())))])).encode()
        header = first[:-1] + b", " + header[1:] if draw(st.booleans()) else header.rstrip()[:-1] + b", " + first[1:]
    elif kind == "other":
        return draw(st.sampled_from(OTHERS))
    else:
        return draw(other_tensors(data))
    return len(header).to_bytes(8, "little") + header + numbers


@st.composite
def other_tensors(draw: st.DrawFn, data: bytes) -> bytes:
    """A sound file, some tensors of which are not those of the network."""
    whole = safetensors.torch.load(data)
    tensors = dict(whole)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(whole)))
        tensor = whole[name]
        tensors.pop(name, None)
        action = draw(st.sampled_from(["dtype", "dtype", "value", "value", "shape", "remove", "rename", "extra"]))
        if action == "dtype":
            tensors[name] = tensor.to(draw(st.sampled_from(DTYPES)))
        elif action == "value" and tensor.is_floating_point():
            tensors[name] = torch.full_like(tensor, draw(st.sampled_from([float("nan"), float("inf"), 1e30, 0.0])))
        elif action == "shape":
            shapes = [tensor.flatten(), tensor[None], tensor[:0], tensor.new_zeros(()), tensor.new_zeros(0, 2**40)]
            tensors[name] = draw(st.sampled_from(shapes)).contiguous()
        elif action == "rename":
            tensors[draw(st.sampled_from([f"model.{name}", name[1:], "", "x" * 10_000]))] = tensor
        elif action == "extra":
            tensors |= {name: tensor, f"{name}2": tensor.clone()}
    return safetensors.torch.save({name: tensor.clone() for name, tensor in tensors.items()})


def files(folders: dict[str, Path], suffix: str, within: str = "") -> list[Path]:
    return sorted(file for folder in folders.values() for file in folder.rglob(f"*{suffix}") if within in str(file))


def model_of(folders: dict[str, Path], file: Path) -> Path:
    return next(folder for folder in folders.values() if folder in file.parents)


@cases(200)
@given(st.data())
def test_configurations(folders: dict[str, Path], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from([f for f in files(folders, ".json") if f.name != "tokenizer.json"]))
    changed = other_json(json.loads(file.read_text())).map(lambda content: json.dumps(content).encode())
    content = data.draw(st.one_of(*[changed] * 7, st.sampled_from(FILES)))
    with instead(file, content), bounded():
        outcome(model_of(folders, file))


@cases(50)
@given(st.data())
def test_tokenizers(folders: dict[str, Path], data: st.DataObject) -> None:
    file = folders["words"] / "tokenizer/tokenizer.json"
    changed = other_json(json.loads(file.read_text())).map(lambda content: json.dumps(content).encode())
    content = data.draw(st.one_of(*[changed] * 7, st.sampled_from(FILES)))
    with instead(file, content), bounded():
        outcome(model_of(folders, file))


@cases(30)
@given(st.data())
def test_older_tokenizers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Those in vocab.json and merges.txt, with special_tokens_map.json."""
    folder = tmp_path_factory.getbasetemp() / "older"
    vocab = {letter + end: 256 * bool(end) + n for end in ("", "</w>") for n, letter in enumerate(_byte_letters())}
    vocab |= {"re": 512, "red</w>": 513, "<|startoftext|>": 514, "<|endoftext|>": 515}
    ends = {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": False}}
    contents = {"vocab.json": vocab, "special_tokens_map.json": ends, "tokenizer_config.json": {"model_max_length": 8}}
    whole = {name: json.dumps(content).encode() for name, content in contents.items()}
    whole["merges.txt"] = b"#version: 0.2\nr e\nre d</w>\n"
    name = data.draw(st.sampled_from(sorted(whole)))
    if name == "merges.txt":
        whole[name] = data.draw(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
    else:
        whole[name] = json.dumps(data.draw(other_json(contents[name]))).encode()
    folder.mkdir(exist_ok=True)
    for file, content in whole.items():
        (folder / file).write_bytes(content)
    with bounded():
        try:
            ids, mask = Tokenizer.from_pretrained(folder).encode("red", truncate=True)
        except LimnerError as error:
            assert str(folder) in str(error)
        else:
            assert ids.shape == mask.shape and ids.min() >= 0


@cases(140)
@given(st.data())
def test_weights(folders: dict[str, Path], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files(folders, ".safetensors")))
    content = data.draw(other_weights(file.read_bytes()))
    with instead(file, content), bounded():
        outcome(model_of(folders, file))


@cases(30)
@given(st.data())
def test_tensors_alone(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The reader by itself, on bytes of any kind: what it returns can be used."""
    file = tmp_path_factory.getbasetemp() / "alone.safetensors"
    whole = safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.arange(4), "c": torch.zeros(0, 2)})
    content = data.draw(st.one_of(other_weights(whole), st.binary(max_size=200)))
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
    with bounded():
        try:
            tensors = read_tensors(file)
        except LimnerError as error:
            assert str(file) in str(error)
        else:
            assert all(tensor.clone().shape == tensor.shape for tensor in tensors.values())


@cases(50)
@given(st.data())
def test_schedulers(data: st.DataObject) -> None:
    """Any configuration gives finite levels that fall from noise to data, or is refused."""
    config = data.draw(other_json(table(data.draw(st.sampled_from(sorted(PRESETS))))))
    steps = data.draw(st.sampled_from([1, 2, 3, 20, 999, 1000]))
    sampler = data.draw(st.sampled_from([None, None, None, *SAMPLERS]))
    schedule = data.draw(st.sampled_from([None, None, None, *SCHEDULES]))
    with bounded():
        try:
            grid = read_schedule(config, steps, sampler, schedule).grid
            check_grid(grid)
        except LimnerError:
            return
    assert len(grid) == steps + 1 and all(abs(number) < 1e6 for level in grid for number in level)
