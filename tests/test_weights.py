"""Files of weights: names that others wrote, what a file is that holds none, and what is said to a damaged folder."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from limner.errors import LimnerError
from limner.folders import PRETRAINED
from limner.model import Model
from limner.nets.dit import DiT, DiTConfig
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.pipeline import Pipeline
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.conditioner import Classes, NullText, NullTextConfig
from limner.weights.dialects import clip_text
from limner.weights.file import read_tensors
from limner.weights.load import check_finite, convert, load
from limner.weights.parts import Account, account, open_part, save_part

TEXT = CLIPTextConfig(100, 32, 64, 2, 4, 16, eos_token_id=99)
TINY = DiTConfig(4, 1, 2, 16, 1, 2, num_classes=2)
VAE = AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, latent_channels=2, norm_num_groups=4)
NAMES = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]  # of shards


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder that is told a class."""
    torch.manual_seed(0)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    defaults = {"steps": 2, "guidance_scale": 3.0}
    Model(DiT(TINY).eval(), Classes(["a", "b"]), scheduler, defaults=defaults).save(tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def damage(model: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change one tensor of the denoiser's file."""
    file = model / "denoiser/diffusion_pytorch_model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    save_file(tensors | {name: change(tensors[name])}, file)


@pytest.fixture
def text(tmp_path: Path) -> CLIPTextModel:
    """A text encoder, saved in tmp_path/text."""
    torch.manual_seed(0)
    net = CLIPTextModel(TEXT).eval()
    save_part(net, tmp_path / "text")
    return net


def split(folder: Path, **changes: Any) -> dict[str, str]:
    """Store the weights of a folder as two shards and an index; returns its weight_map, updated by `changes`."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {name: NAMES[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in NAMES:
        save_file({name: tensors[name].clone() for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map | changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


def equal(net: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two networks have the same weights."""
    ours, theirs = net.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@torch.no_grad()
def test_a_text_encoder_saved_by_transformers_opens(tmp_path: Path, kind: str) -> None:
    """As the installed version writes it, and with the names and the positions' numbers that older ones wrote."""
    import transformers

    torch.manual_seed(0)
    numbers = {name: value for name, value in vars(TEXT).items() if value is not None}
    theirs = getattr(transformers, kind)(transformers.CLIPTextConfig(**numbers, projection_dim=8)).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.tensor([[98, 5, 7, 99, 0, 0], [98, 3, 99, 0, 0, 0]])
    states = theirs(input_ids=ids).last_hidden_state
    file = tmp_path / "model.safetensors"
    written = load_file(file)
    if kind == "CLIPTextModel":
        assert not any(name.startswith("text_model.") for name in written)  # else the next line compares nothing new
    torch.testing.assert_close(
        open_part(tmp_path, "CLIPTextModel", CLIPTextModel)(ids).hidden, states, rtol=1e-5, atol=1e-5
    )
    old = {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in written.items()}
    for positions in (torch.arange(16)[None], torch.arange(16)[None].half()):
        save_file(old | {"text_model.embeddings.position_ids": positions}, file)
        torch.testing.assert_close(
            open_part(tmp_path, "CLIPTextModel", CLIPTextModel)(ids).hidden, states, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parity
@torch.no_grad()
def test_an_autoencoder_with_the_first_names_of_its_attention_opens_as_in_diffusers(tmp_path: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    ours = AutoencoderKL(VAE).eval()
    save_part(ours, tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    now_and_then = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    old = load_file(file)
    for now, then in now_and_then:
        old = {name.replace(f"attentions.0.{now}.", f"attentions.0.{then}."): old[name].clone() for name in old}
    assert sum(any(f".{then}." in name for _, then in now_and_then) for name in old) == 16
    save_file(old, file, metadata={"format": "pt"})
    x = torch.randn(1, 3, 16, 16)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    again = open_part(tmp_path, "AutoencoderKL", AutoencoderKL)
    assert equal(again, ours)
    torch.testing.assert_close(again.encode(x).mean, theirs.encode(x).latent_dist.mean, rtol=1e-4, atol=1e-5)


def test_names_are_mapped_and_still_accounted_for(tmp_path: Path) -> None:
    net, file = CLIPTextModel(TEXT), tmp_path / "model.safetensors"
    ours = net.state_dict()
    short = {name.removeprefix("text_model."): tensor for name, tensor in ours.items()}
    save_file(short, file)
    again = load(lambda: CLIPTextModel(TEXT), file, rename=clip_text)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.state_dict().items())
    with pytest.raises(
        LimnerError, match=r"missing text_model\.embeddings\.token_embedding\.weight .*the file has embed"
    ):
        load(lambda: CLIPTextModel(TEXT), file)
    save_file(short | {"final_layer.weight": torch.ones(3)}, file)
    with pytest.raises(LimnerError, match=r"extra final_layer\.weight \(3,\)"):
        load(lambda: CLIPTextModel(TEXT), file, rename=clip_text)
    twice = {"text_model.final_layer_norm.bias": torch.zeros(32)}
    save_file(short | twice, file)
    load(lambda: CLIPTextModel(TEXT), file, rename=clip_text)  # the same values under both names
    save_file(short | {"text_model.final_layer_norm.bias": torch.ones(32)}, file)
    with pytest.raises(LimnerError, match=r"holds text_model\.final_layer_norm\.bias twice"):
        load(lambda: CLIPTextModel(TEXT), file, rename=clip_text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html></html>", "web page"),
        (pickle.dumps({"weight": [1.0] * 99}), "it is a pickle, which can run programs.*--allow-pickle\\), named .bin"),
        (b"PK\x03\x04" + bytes(99), "zip archive, as torch.save writes: a pickle, .*--allow-pickle"),
        (b"GGUF" + bytes(99), "GGUF"),
        (b'{"metadata": {}, "weight_map": {}}', "it is JSON, not weights"),
        (b'{"error": "Repository not found"}', "it is JSON, not weights: .* a server's answer"),
        (b"", "it is empty"),
        (b"\x80\x04" + bytes(6) + b'{"a":', "cut short"),  # a header as long as a pickle's first bytes say
        (b"\xff" * 64, "cut short"),
    ],
)
def test_what_is_no_safetensors_file_is_called_by_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(LimnerError, match=f"model.safetensors is not a valid safetensors file .*{message}"):
        read_tensors(file)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, 15),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, 17),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [4, 20]}}, 20),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]}}, 16),
        ({"a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 16]}}, 16),
        ({"a": {"dtype": "F31", "shape": [2, 2], "data_offsets": [0, 16]}}, 16),
        ({"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}, 16),
        ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, 0),
        ({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}, 16),
        ({"a": {"dtype": "F32", "shape": [4]}}, 16),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: dict[str, Any], size: int) -> None:
    text, file = json.dumps(header).encode(), tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(LimnerError, match=f"{file} is not a valid safetensors file .*: it was probably cut short"):
        read_tensors(file)


def test_a_file_that_was_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    file, content = tmp_path / "model.safetensors", save({"a": torch.ones(3)})
    for length in range(1, len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(LimnerError, match="not a valid safetensors file .*cut short"):
            read_tensors(file)
    file.write_bytes(content)
    assert read_tensors(file)["a"].tolist() == [1, 1, 1]
    file.write_bytes((2**63).to_bytes(8, "little") + content[8:])
    with pytest.raises(LimnerError, match="not a valid safetensors file .*cut short"):
        read_tensors(file)


def test_shards_open_as_the_file_that_was_split(tmp_path: Path, text: CLIPTextModel) -> None:
    split(tmp_path / "text")
    assert equal(open_part(tmp_path / "text", "CLIPTextModel", CLIPTextModel), text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_model.new": NAMES[1]}, f"text_model.new is said to be in {NAMES[1]}, which does not hold it"),
        ({"text_model.new": "gone.safetensors"}, "text_model.new is said to be in gone.safetensors, which is absent"),
        ({"x": "../model.safetensors"}, "x is said to be in '../model.safetensors', which is no file of weights"),
        ({"x": "model.safetensors.index.json"}, "x is said to be in 'model.safetensors.index.json', which is no file"),
        ({"x": 3}, "x is said to be in 3, which is no file of weights beside it"),
        (
            {"text_model.embeddings.position_embedding.weight": NAMES[1]},
            f"position_embedding.weight is said to be in {NAMES[1]}, but {NAMES[0]} holds it",
        ),
    ],
)
def test_an_index_that_is_wrong_names_file_and_tensor(
    tmp_path: Path, text: CLIPTextModel, changes: dict[str, Any], message: str
) -> None:
    assert split(tmp_path / "text", **changes)["text_model.embeddings.position_embedding.weight"] == NAMES[0]
    with pytest.raises(LimnerError, match=rf"text/model\.safetensors\.index\.json: .*{message}"):
        open_part(tmp_path / "text", "CLIPTextModel", CLIPTextModel)


def test_shards_that_do_not_fit_their_index_are_refused(tmp_path: Path, text: CLIPTextModel) -> None:
    folder = tmp_path / "text"
    weight_map = split(folder)
    index = folder / "model.safetensors.index.json"
    first = next(name for name in weight_map if weight_map[name] == NAMES[0])
    second = {name: tensor.clone() for name, tensor in load_file(folder / NAMES[1]).items()}

    def refused(message: str) -> None:
        with pytest.raises(LimnerError, match=message):
            open_part(folder, "CLIPTextModel", CLIPTextModel)

    save_file(second | {first: torch.ones(1)}, folder / NAMES[1])
    refused(f"{first} is said to be in {NAMES[0]}, but {NAMES[1]} holds it")
    save_file(second | {"more": torch.ones(1)}, folder / NAMES[1])
    refused(f"more is not listed, but {NAMES[1]} holds it")
    (folder / NAMES[1]).write_bytes(save(second)[:-1])
    refused(f"{NAMES[1]} is not a valid safetensors file .*cut short")
    (folder / NAMES[1]).unlink()
    refused("text: no complete set of shards")
    save_file(second, folder / NAMES[1])
    for content, message in (("{", "is not valid JSON"), ("{}", "weight_map must be an object of .*, not None"),
                             ('{"weight_map": []}', r"not \[\]"), ('{"weight_map": {}}', r"not \{\}")):  # fmt: skip
        index.write_text(content)
        refused(f"index.json.* {message}")


def test_the_account_names_the_files_and_what_the_network_does_not_use(tmp_path: Path, text: CLIPTextModel) -> None:
    folder, dtypes = tmp_path / "text", dict.fromkeys(text.state_dict(), torch.float32)
    file = folder / "model.safetensors"
    assert account(folder, "CLIPTextModel") == Account([file], dtypes, [])
    positions = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file({name: tensor.clone() for name, tensor in load_file(file).items()} | positions, file)
    dtypes |= dict.fromkeys(positions, torch.int64)
    assert account(folder, "CLIPTextModel") == Account([file], dtypes, list(positions))
    assert equal(open_part(folder, "CLIPTextModel", CLIPTextModel), text)
    split(folder)
    files = [folder / name for name in ("model.safetensors.index.json", *NAMES)]
    assert account(folder, "CLIPTextModel") == Account(files, dtypes, list(positions))
    with pytest.raises(LimnerError, match="unknown class of .*/text 'ClipTextModel'; did you mean 'CLIPTextModel'"):
        account(folder, "ClipTextModel")


def test_weights_keep_their_dtype_or_are_converted(tmp_path: Path, text: CLIPTextModel) -> None:
    folder, name = tmp_path / "text", "text_model.final_layer_norm.weight"
    for stored in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.float32):
        save_part(text, folder, stored)
        original = load_file(folder / "model.safetensors")
        for dtype in (None, torch.float32, torch.bfloat16, torch.float16):
            again = open_part(folder, "CLIPTextModel", CLIPTextModel, dtype).state_dict()
            assert {weight.dtype for weight in again.values()} == {dtype or stored}
            assert torch.equal(again[name].float(), original[name].to(dtype or stored).float())


def test_only_what_changes_is_copied() -> None:
    for shape, channels_last in (((3, 4), True), ((3, 4, 1, 1), True), ((3, 4, 2, 2), False), ((3,), True)):
        tensor = torch.randn(shape)
        for each in (None, torch.float32):  # in channels-last format nothing keeps the file mapped
            assert (convert(tensor, each, channels_last).data_ptr() != tensor.data_ptr()) == channels_last
    kernel = torch.randn(3, 4, 2, 2)
    for dtype in (None, torch.bfloat16):
        assert torch.equal(convert(kernel, dtype, True), kernel.to(dtype))
        assert convert(kernel, dtype, True).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's list of mapped files")
def test_weights_lie_in_their_mapped_file(tmp_path: Path, text: CLIPTextModel) -> None:
    """But for those of an autoencoder, in channels-last format, which keep nothing mapped."""

    def mapped(net: torch.nn.Module, file: Path) -> dict[str, bool]:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
        ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines]
        weights = net.state_dict().items()
        return {name: any(a <= weight.data_ptr() < b for a, b in ranges) for name, weight in weights}

    file = tmp_path / "text/model.safetensors"
    assert all(mapped(open_part(file.parent, "CLIPTextModel", CLIPTextModel, torch.float32), file).values())
    assert not any(mapped(open_part(file.parent, "CLIPTextModel", CLIPTextModel, torch.bfloat16), file).values())
    save_part(AutoencoderKL(VAE), tmp_path)
    vae = open_part(tmp_path, "AutoencoderKL", AutoencoderKL)
    assert not any(mapped(vae, tmp_path / "diffusion_pytorch_model.safetensors").values())
    assert str(tmp_path / "diffusion_pytorch_model.safetensors") not in Path("/proc/self/maps").read_text()
    assert vae.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_was_saved_last_is_opened(tmp_path: Path, text: CLIPTextModel) -> None:
    """Over a variant, shards and a pickle of another model."""
    folder = tmp_path / "text"
    split(folder)
    save_file({"other": torch.ones(1)}, folder / "model.fp16.safetensors")
    torch.save({"other": torch.ones(1)}, folder / "pytorch_model.bin")
    new = CLIPTextModel(TEXT)
    save_part(new, folder)
    assert equal(open_part(folder, "CLIPTextModel", CLIPTextModel, allow_pickle=True), new)
    for left in folder.glob("*model*"):
        left.unlink()
    (folder / "model.safetensors").symlink_to(folder / "removed")
    with pytest.raises(LimnerError, match=r"/text: no weights in config\.json"):
        open_part(folder, "CLIPTextModel", CLIPTextModel)


def test_weights_under_another_name_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "model.fp16.safetensors").touch()
    (tmp_path / "config.json").touch()
    with pytest.raises(LimnerError, match=r"no weights at .*; its folder holds model\.fp16\.safetensors$"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"depth": "6"}, r"denoiser/config\.json: depth must be a whole number, not '6'"),
        ({"depth": 1.0}, "depth must be a whole number, not 1.0"),
        ({"num_heads": None}, "num_heads must be a whole number, not None"),
        ({"num_classes": True}, "num_classes must be a whole number, not True"),
        ({"pooled_text": 0}, "pooled_text must be true or false, not 0"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a number, not nan"),
        ({"depth": 10**9}, "depth must be at most 512, not 1000000000"),
        ({"depth": 10**30}, "depth 10+ is too large"),
        ({"hidden_size": 10**9}, "mlp_ratio 4.0 of hidden_size 1000000000 is no width of a layer"),
        ({"hidden_size": 10**9, "mlp_ratio": 1}, r"safetensors: .*too large a network"),
        ({"hidden_size": 10**6}, r"patch_in\.weight is \(16, 4\) in the file, \(1000000, 4\) in the network"),
        ({"sample_size": 10**9}, "sample_size 1000000000 is more than 256 patches of 2"),
        ({"num_classes": 0}, r"extra classes\.weight"),
    ],
)
def test_entries_of_a_network_that_cannot_be_used(model: Path, entries: dict[str, Any], message: str) -> None:
    edit(model / "denoiser/config.json", **entries)
    with pytest.raises(LimnerError, match=f"(?s){message}"):
        Pipeline.from_pretrained(model)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"_class_name": "LimnerPipline"}, r"model_index\.json: models of the class 'LimnerPipline' are not supported"),
        ({"class_names": 3}, r"model_index\.json: class_names must be a list of different names, not 3"),
        ({"class_names": ["a"]}, r"/model: the DiT's num_classes is 2, but there are 1 class names"),
        ({"defaults": None}, r"model_index\.json: defaults must be an object .*, not None"),
        ({"defaults": {"steps": "x"}}, "steps must be a whole number or null, not 'x'"),
        ({"defaults": {"steps": 0}}, "steps must be at least 1, not 0"),
        ({"vae": ["diffusers"]}, r"model_index\.json: vae must be a library and a class, .*, not \['diffusers'\]"),
        ({"vae": ["diffusers", 1]}, "vae must be a library and a class"),
        ({"denoiser": ["limner", "Dit"]}, "unknown class of .*/model/denoiser 'Dit'; did you mean 'DiT'"),
    ],
)
def test_entries_of_an_index_that_cannot_be_used(model: Path, entries: dict[str, Any], message: str) -> None:
    edit(model / "model_index.json", **entries)
    with pytest.raises(LimnerError, match=message):
        Pipeline.from_pretrained(model)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"shift": 0}, "shift must be from 0.001 to 1000, not 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be from 2 to 100000, not 0"),
        ({"num_train_timesteps": 99.5}, "num_train_timesteps must be a whole number, not 99.5"),
        ({"num_train_timesteps": None}, "num_train_timesteps must be a number, not None"),
        ({"_class_name": []}, r"_class_name must be a name in quotes, not \[\]"),
        ({"use_karras_sigmas": "no"}, "use_karras_sigmas must be true or false, not 'no'"),
    ],
)
def test_entries_of_a_scheduler_that_cannot_be_used(model: Path, entries: dict[str, Any], message: str) -> None:
    edit(model / "scheduler/scheduler_config.json", **entries)
    with pytest.raises(LimnerError, match=f"^model/scheduler/scheduler_config.json: {message}"):
        Pipeline.from_pretrained(model)("a")


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """A folder of sound parts, each from another model."""
    words = Pipeline.from_pretrained(PRETRAINED)
    words.save(tmp_path / "words")
    tokenizer = tmp_path / "words/tokenizer/tokenizer_config.json"
    edit(tokenizer, model_max_length=49)
    over = r"/words/tokenizer: .* a model_max_length of 49, over the text encoder's max_position_embeddings 48"
    with pytest.raises(LimnerError, match=over):
        Pipeline.from_pretrained(tmp_path / "words")
    edit(tokenizer, model_max_length=None)
    with pytest.raises(
        LimnerError, match=r"tokenizer_config\.json: model_max_length must be a whole number .*, not None"
    ):
        Pipeline.from_pretrained(tmp_path / "words")
    edit(tokenizer, model_max_length=48)
    edit(tmp_path / "words/model_index.json", vae=None)
    with pytest.raises(
        LimnerError, match="/words: what is painted has 8 channels, and model_index.json names no vae; .* has 1 or 3"
    ):
        Pipeline.from_pretrained(tmp_path / "words")
    (tmp_path / "words/text_encoder").rename(tmp_path / "words/elsewhere")
    with pytest.raises(LimnerError, match=r"no file .*/words/text_encoder/config\.json"):
        Pipeline.from_pretrained(tmp_path / "words")
    edit(tmp_path / "words/model_index.json", text_encoder=None, vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(LimnerError, match="/words: the DiT's text_dim is 128, but the text encoder's states have 0"):
        Pipeline.from_pretrained(tmp_path / "words")


def test_text_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """More tokens than embeddings, a learned null of another width, latents of another number of channels."""
    model = Model.open()
    width, folder = model.conditioner.width, tmp_path / "words"
    model.conditioner.null = NullText(NullTextConfig(width + 1))
    model.save(folder)
    with pytest.raises(LimnerError, match=f"/words: .*null text has {width + 1} channels, .* states have {width}"):
        Model.open(folder)
    (folder / "null_text/config.json").write_text("{}")
    with pytest.raises(LimnerError, match=r"null_text/config\.json: this does not describe a null text: .* no width"):
        Model.open(folder)
    model.conditioner.null = None
    model.save(folder)
    text = folder / "text_encoder"
    size = json.loads((text / "config.json").read_text())["vocab_size"]
    weights = load_file(text / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    save_file({key: t[:-1].clone() if key == name else t.clone() for key, t in weights.items()}, text / "new")
    (text / "new").replace(text / "model.safetensors")
    edit(text / "config.json", vocab_size=size - 1)
    with pytest.raises(
        LimnerError, match=f"/words/tokenizer: .* has {size} ids, the text encoder a vocab_size of {size - 1}"
    ):
        Model.open(folder)
    model.save(folder)
    model.autoencoder = AutoencoderKL(
        AutoencoderKLConfig(block_out_channels=(8,), latent_channels=2, norm_num_groups=4)
    )
    model.save(folder)
    with pytest.raises(LimnerError, match="/words: the network paints 8 channels, the autoencoder's latents have 2"):
        Model.open(folder)


def test_weights_that_are_no_fractions_are_refused(model: Path) -> None:
    damage(model, "patch_in.bias", lambda tensor: tensor.long())
    with pytest.raises(LimnerError, match=r"patch_in\.bias holds torch\.int64, not floating-point numbers"):
        Pipeline.from_pretrained(model)
    damage(model, "patch_in.bias", lambda tensor: tensor.double())
    assert Pipeline.from_pretrained(model).model.network.patch_in.bias.dtype == torch.float32


def test_weights_that_are_not_finite_are_named(model: Path) -> None:
    damage(model, "blocks.0.to_out.weight", lambda tensor: tensor.index_fill(0, torch.tensor(3), float("nan")))
    pipe = Pipeline.from_pretrained(model)
    message = r"weights of the denoiser are not finite: blocks\.0\.to_out\.weight holds NaN"
    with pytest.raises(LimnerError, match=message):
        check_finite({"vae": None, "text encoder": CLIPTextModel(TEXT), "denoiser": pipe.model.network})
    with pytest.raises(LimnerError, match=message):
        pipe("a")
    check_finite({"vae": None, "text encoder": CLIPTextModel(TEXT)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_that_are_not_finite_are_named(
    tmp_path: Path, text: CLIPTextModel, dtype: torch.dtype
) -> None:
    """In shards, and where the number was finite before it was converted."""
    folder = tmp_path / "text"
    text.double()
    text.text_model.final_layer_norm.bias.data[3] = 1e39
    save_part(text, folder)
    split(folder)
    check_finite({"text_encoder": open_part(folder, "CLIPTextModel", CLIPTextModel)})
    message = r"text_encoder are not finite: text_model\.final_layer_norm\.bias holds .* need --dtype float32"
    with pytest.raises(LimnerError, match=message):
        check_finite({"text_encoder": open_part(folder, "CLIPTextModel", CLIPTextModel, dtype)})


def test_opening_a_model_draws_nothing_and_imports_no_compiler() -> None:
    """nn.init.normal_ on the meta device imports torch's compiler and sympy, a second of work."""
    code = (
        "import sys, torch, limner; before = torch.get_rng_state(); limner.Pipeline.from_pretrained();"
        "sys.exit('sympy' in sys.modules or not torch.equal(before, torch.get_rng_state()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
