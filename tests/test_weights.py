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
from safetensors.torch import load_file, save_file

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
from limner.weights.load import check_finite, load
from limner.weights.parts import open_part

TEXT = CLIPTextConfig(100, 32, 64, 2, 4, 16, eos_token_id=99)
TINY = DiTConfig(4, 1, 2, 16, 1, 2, num_classes=2)


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
    with pytest.raises(LimnerError, match=r"holds text_model\.final_layer_norm\.bias twice"):
        load(lambda: CLIPTextModel(TEXT), file, rename=clip_text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html></html>", "web page"),
        (pickle.dumps({"weight": [1.0] * 99}), "pickle"),
        (b"PK\x03\x04" + bytes(99), "zip archive, as torch.save writes: a pickle"),
        (b"GGUF" + bytes(99), "GGUF"),
        (b'{"metadata": {}, "weight_map": {}}', "it is JSON, not weights"),
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
        ({"_class_name": "LimnerPipline"}, r"model_index\.json: unknown family .*; did you mean 'LimnerPipeline'"),
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
    with pytest.raises(LimnerError, match=f"the scheduler's {message}"):
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


def test_opening_a_model_draws_nothing_and_imports_no_compiler() -> None:
    """nn.init.normal_ on the meta device imports torch's compiler and sympy, a second of work."""
    code = (
        "import sys, torch, limner; before = torch.get_rng_state(); limner.Pipeline.from_pretrained();"
        "sys.exit('sympy' in sys.modules or not torch.equal(before, torch.get_rng_state()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
