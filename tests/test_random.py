"""`limner generate --random`: the untrained model of a recipe, against the one that training starts from."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import limner.train
from limner.cli import main
from limner.data.sources import Source, open_source
from limner.errors import LimnerError, LimnerWarning
from limner.nets.configs import DiTConfig
from limner.pipeline import Pipeline
from limner.train.recipe import Recipe, TextRecipe, load_recipe
from limner.train.setup import make_model
from limner.train.untrained import CLASS_NAMES, denoiser_recipes, describe, make_untrained, open_untrained

pytestmark = pytest.mark.usefixtures("one_thread")

# What each recipe is asked to paint.
PAINTED = {
    "cifar10-text": "a photo of a frog", "mnist-class": "7", "mnist-dit": "", "mnist-text": "a two",
    "mnist-unconditional": "", "world": "three green hearts", "world-quick": "a purple star",
    "world-unet": "a purple star", "world-mmdit": "a purple star", "unet-ddpm": "", "latent": "a red star",
}  # fmt: skip


def shrunk(name: str) -> Recipe:
    """A recipe with one block, without what only an earlier run has."""
    recipe = denoiser_recipes()[name]
    text = replace(recipe.text, pretrained="shipped") if recipe.text.pretrained else recipe.text
    network: Any = recipe.network
    if hasattr(network, "depth"):
        network = replace(network, depth=1)
    else:
        narrow = (32,) * len(network.block_out_channels)
        network = replace(network, block_out_channels=narrow, layers_per_block=1)
    return replace(recipe, network=network, text=text)


def class_folders(root: Path, names: tuple[str, ...]) -> str:
    """A folder with a picture of each class."""
    for name in names:
        (root / name).mkdir()
        Image.new("RGB", (8, 8)).save(root / name / "0.png")
    return str(root)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a `limner generate` that must exit with 2."""
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_every_recipe_of_a_denoiser_is_painted_here() -> None:
    assert PAINTED.keys() == denoiser_recipes().keys()


@pytest.mark.parametrize("name", PAINTED)
def test_a_recipe_paints_pictures_of_its_size(name: str) -> None:
    recipe = shrunk(name)
    [picture] = Pipeline(make_untrained(recipe, [""]))(PAINTED[name], steps=1)
    assert picture.size == (recipe.size, recipe.size)
    assert picture.mode == {1: "L", 3: "RGB"}[recipe.channels]
    assert "Steps: 1, " in picture.info["parameters"]


@pytest.mark.parametrize(
    ("name", "data", "classes"),
    [
        ("mnist-text", "mnist", CLASS_NAMES["mnist"]),
        ("mnist-class", "mnist", CLASS_NAMES["mnist"]),
        ("mnist-dit", "mnist", CLASS_NAMES["mnist"]),
        ("cifar10-text", "cifar10", CLASS_NAMES["cifar10"]),
        ("world", "world:one=0.9,mnist=0.1", CLASS_NAMES["mnist"]),
    ],
)
def test_the_model_is_training_s_before_its_first_step(
    tmp_path: Path, name: str, data: str, classes: tuple[str, ...]
) -> None:
    """Training sees a folder of the same classes; the tokenizers are equal, and every tensor to the bit."""
    folder = class_folders(tmp_path, classes)
    recipe = replace(shrunk(name), data=Source(data))
    local = Source(data.replace("mnist", folder)) if "=" in data else Source(path=folder)
    trained = make_model(recipe, open_source(local, recipe.captions))
    model = make_untrained(recipe, ["another text"])
    assert model.conditioner.names == trained.conditioner.names
    assert model.defaults == trained.defaults and model.scheduler == trained.scheduler
    vocabularies = [
        [each.pieces(text) for each in m.tokenizers().values() for text in ("a drawing of a 5", "kittens")]
        for m in (model, trained)
    ]
    assert vocabularies[0] == vocabularies[1]
    ours, theirs = ({name: part.state_dict() for name, part in m.parts().items()} for m in (model, trained))
    assert ours.keys() == theirs.keys()
    for part in ours:
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(tensor, theirs[part][key]) for key, tensor in ours[part].items()), part


def test_captions_use_the_recipe_s_templates() -> None:
    described = describe(Source("mnist", templates=("draw {a}",)), ["x"])
    assert described.all_captions()[:4] == ["draw a zero", "draw a 0", "draw a one", "draw a 1"]


def test_a_model_on_data_that_is_not_known_takes_its_words_from_the_prompts() -> None:
    small = {"size": 8, "network": DiTConfig(patch_size=4, hidden_size=32, depth=1, num_heads=2)}
    files = Recipe(data=Source(path="nowhere"), output="run", text=TextRecipe(length=8), **small)
    with pytest.warns(LimnerWarning, match="data of the recipe, nowhere, is not opened: the prompts stand in"):
        [tokenizer] = make_untrained(files, ["antelope"]).tokenizers().values()
    assert [piece for piece, _ in tokenizer.pieces("antelope")][1:-1] == ["antelope</w>"]
    classes = Recipe(data=Source("owner/name"), output="run", condition="class", **small)
    with pytest.warns(LimnerWarning, match="owner/name"):
        assert make_untrained(classes, ["elk", "gnu", "elk"]).conditioner.names == ("elk", "gnu")


def test_known_data_is_described_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    for name in ("mnist", "cifar10", "world:one=0.5,cifar10=0.5"):
        assert describe(Source(name), []).all_captions()
    make_untrained(replace(shrunk("mnist-dit"), data=Source(path="nowhere")), [""])  # data's words have no part in it
    assert not recwarn.list


def test_another_prompt_gives_other_text_states() -> None:
    model = open_untrained("mnist-text")
    one, other = (model.conditioner([text])["text"] for text in ("a two", "a Ω"))
    assert one.shape == other.shape and not torch.allclose(one, other)


def test_device_and_dtype_reach_every_part() -> None:
    model = open_untrained("mnist-text", device="meta", dtype="bfloat16,text_encoder=float32")
    found = {name: {(p.device.type, p.dtype) for p in part.parameters()} for name, part in model.parts().items()}
    assert found == {"denoiser": {("meta", torch.bfloat16)}, "text_encoder": {("meta", torch.float32)}}
    assert not any(p.requires_grad for part in model.parts().values() for p in part.parameters())
    with pytest.raises(LimnerError, match="unknown dtype 'float31'; did you mean"):
        open_untrained("mnist-text", dtype="float31")
    with pytest.raises(LimnerError, match="device 'gpu' cannot be used here"):
        open_untrained("mnist-text", device="gpu")


def test_the_command_paints_the_same_file_twice(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for file, seed in zip(files, ("4", "4", "5"), strict=True):
        torch.manual_seed(int(file.stem, 16))  # torch's own generator has no say
        main(["generate", "a two", "-m", "mnist-text", "--random", "--seed", seed, "--steps", "2", "-o", str(file)])
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    with Image.open(files[0]) as picture:
        assert "Seed: 4, Size: 28x28, Model: mnist-text (random weights), " in picture.info["parameters"]


def test_the_command_hands_on_prompts_device_and_dtype(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*arguments: object) -> None:
        raise LimnerError(repr(arguments))

    monkeypatch.setattr("limner.train.untrained.open_untrained", opened)
    options = ["--model", "world", "--random", "--device", "meta", "--dtype", "bfloat16"]
    assert "('world', ['a', 'b'], 'meta', 'bfloat16')" in refused(capsys, "a", "b", *options)


def test_the_training_extra_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limner, "train", limner.train)  # set back afterwards, as is what follows
    for name in [name for name in sys.modules if name.startswith("limner.train")]:
        monkeypatch.delitem(sys.modules, name)
    for absent in ("accelerate", "datasets", "tensorboard"):
        monkeypatch.setitem(sys.modules, absent, None)
    main(["generate", "a two", "--model", "mnist-text", "--random", "--steps", "1", "-o", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a", "--random"],
            "--random paints with the untrained model of a recipe: --model cifar10-text | latent |",
        ),
        (["a", "--random", "--model", "wrld"], "unknown recipe 'wrld'; did you mean 'world'? Known: cifar10-text, "),
        (["a", "--random", "--model", "world-vae"], "the recipe world-vae trains no denoiser; those that do: cifar10-"),
        (["a", "--random", "--model", "world-text"], "the recipe world-text trains no denoiser"),
        (["seven", "--random", "--model", "mnist-class"], "unknown class 'seven'. Known: 0, 1, 2"),
        (["a", "--random", "--model", "mnist-dit"], "this model reads no text"),
        (
            ["a", "--model", "world"],
            "no model at world: it is a recipe; train it (limner train world), or paint with its random weights (--ran",
        ),
        (["a", "--model", "world-vae"], "no model at world-vae: it is a recipe; train it (limner train world-vae)\n"),
        (["a", "--model", "worl"], "no model at worl: give a model folder"),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # no runs here
    assert message in refused(capsys, *arguments)


def test_a_model_folder_with_the_name_of_a_recipe_is_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("world").mkdir()
    assert "world is not a model: it holds neither" in refused(capsys, "a", "--model", "world")


def test_a_recipe_whose_text_encoder_is_not_trained_yet_takes_an_untrained_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # no runs here
    main(["generate", "a red star", "--model", "world-quick", "--random", "--steps", "1", "-o", "a.png"])
    assert Image.open("a.png").size == (64, 64)
    text = load_recipe("world-text")[0].text
    (encoder,) = open_untrained("world-quick").conditioner.encoders
    assert encoder.tokenizer.length == text.length and encoder.width == text.hidden_size
