"""A recipe's network may be any: each is trained, resumed bit-equally, saved, opened and painted with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, tensors, tiny_recipe, trainer
from PIL import Image
from rich.console import Console
from sd3 import TINY_T5

from limner.data.sources import Source, open_source
from limner.errors import LimnerError
from limner.nets.dit import DiT
from limner.nets.mmdit import MMDiT
from limner.nets.mmdit_config import MMDiTConfig
from limner.nets.unet import UNet2DConditionModel, UNet2DModel
from limner.nets.unet_config import UNet2DConfig, UNetConfig
from limner.pipeline import Pipeline
from limner.text.encoder import TextEncoder
from limner.text.t5 import T5Config, T5EncoderModel
from limner.text.unigram import UnigramTokenizer
from limner.train.recipe import Recipe, TextRecipe, load_recipe, recipe_names
from limner.train.verify import verify_resume
from limner.weights.parts import save_part

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
UNCONDITIONAL = UNet2DConfig(
    **SMALL, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
)
BY_TEXT = UNetConfig(
    **SMALL, attention_head_dim=2,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
JOINT = MMDiTConfig(patch_size=4, hidden_size=32, depth=2, num_heads=2)
NETWORKS: dict[str, tuple[str, Any, type[torch.nn.Module]]] = {
    "dit": ("text", TINY, DiT),
    "mmdit": ("text", JOINT, MMDiT),
    "unet by text": ("text", BY_TEXT, UNet2DConditionModel),
    "unet by class": ("class", UNCONDITIONAL, UNet2DModel),
    "unet": ("none", replace(UNCONDITIONAL, dropout=0.3), UNet2DModel),
}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


def with_network(recipe: Recipe, name: str) -> Recipe:
    condition, network, _ = NETWORKS[name]
    data = recipe.data if condition != "class" else Source(path=str(class_folders(Path(recipe.output).parent)))
    prompts = {"text": recipe.sample_prompts, "class": ("red", "blue"), "none": ()}[condition]
    return replace(recipe, data=data, condition=condition, network=network, sample_prompts=prompts)


def class_folders(root: Path) -> Path:
    """The pictures of the tiny recipe in a folder for each colour."""
    for text in (root / "pictures").glob("*.txt"):
        folder = root / "classes" / text.read_text().split()[1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{text.stem}.png").write_bytes(text.with_suffix(".png").read_bytes())
    return root / "classes"


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_trained_and_painted_with(recipe: Recipe, name: str) -> None:
    recipe, kind = with_network(recipe, name), NETWORKS[name][2]
    run = trainer(recipe)
    network = run.task.parts["denoiser"]
    before = {key: weight.clone() for key, weight in network.state_dict().items()}
    run.run()
    changed = [key for key, weight in network.state_dict().items() if not torch.equal(weight, before[key])]
    assert changed and all(torch.isfinite(tensor).all() for tensor in tensors(recipe.output, 6).values())
    pipe = Pipeline.from_pretrained(recipe.output)
    assert type(pipe.model.network) is kind and pipe.model.network.config == network.config
    for weight in pipe.model.network.parameters():  # no gate shut
        torch.nn.init.normal_(weight, std=0.15)
    one = pipe("red" if recipe.condition == "class" else "" if recipe.condition == "none" else "a red picture")[0]
    assert one.size == (8, 8) and one.mode == "RGB"
    if recipe.condition != "none":
        other = pipe("blue" if recipe.condition == "class" else "a blue picture")[0]
        assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "dit"])
def test_resuming_any_network_changes_nothing(recipe: Recipe, name: str) -> None:
    done = verify_resume(with_network(recipe, name), 3, Console(quiet=True))
    assert done.passed and sum(each.tensors for each in done.agreements) > 50


@pytest.mark.parametrize(
    ("condition", "network", "message"),
    [
        ("none", JOINT, "an MMDiT is conditioned on text alone"),
        ("none", BY_TEXT, "this UNet is conditioned on text alone"),
        ("text", UNCONDITIONAL, "this UNet takes no text"),
    ],
)
def test_a_network_that_does_not_take_the_condition_is_refused(
    recipe: Recipe, condition: Any, network: Any, message: str
) -> None:
    changed = replace(recipe, condition=condition, network=network, sample_prompts=())
    with pytest.raises(LimnerError, match=message):
        changed.task(open_source(changed.data), None)


@pytest.mark.parametrize(
    ("network", "field", "value"),
    [(JOINT, "text_dim", 7), (BY_TEXT, "cross_attention_dim", 7), (UNCONDITIONAL, "num_class_embeds", 7)],
)
def test_what_follows_from_the_data_is_not_given(recipe: Recipe, network: Any, field: str, value: int) -> None:
    with pytest.raises(LimnerError, match=f"leave --network.{field.replace('_', '-')} out: it follows"):
        replace(recipe, condition="text", network=replace(network, **{field: value}))


def test_the_guidance_of_a_recipe_is_one_that_its_model_opens_with(recipe: Recipe) -> None:
    with pytest.raises(LimnerError, match="guidance_scale must be at least 0, not -5"):
        replace(recipe, guidance_scale=-5.0)


def test_a_frozen_t5_is_read_by_an_mmdit(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = UnigramTokenizer.train([f"a {name} picture" for name in ("red", "green", "blue")], vocab_size=120)
    t5 = T5EncoderModel(T5Config(**TINY_T5, vocab_size=tokenizer.vocab_size))
    save_part(t5, tmp_path / "t5/text_encoder")
    tokenizer.save(tmp_path / "t5/tokenizer")
    text = TextRecipe(pretrained=str(tmp_path / "t5"))
    recipe = replace(recipe, network=JOINT, text=text)
    run = trainer(recipe)
    run.run()
    model = Pipeline.from_pretrained(recipe.output).model
    [encoder] = model.conditioner.encoders
    assert isinstance(encoder, TextEncoder) and isinstance(encoder.tokenizer, UnigramTokenizer)
    assert model.network.config.text_dim == 48
    for name, weight in t5.state_dict().items():
        assert torch.equal(encoder.transformer.state_dict()[name], weight)
    # Padding changes nothing: alone, and beside a longer prompt.
    with torch.inference_mode():
        [short] = encoder.encode(["a red picture"])
        both = encoder.encode(["a red picture", "a blue picture of a green picture"])
    assert torch.allclose(short.tokens, both[0].tokens, atol=1e-5) and len(both[1].tokens) > len(short.tokens)
    assert trainer(replace(recipe, steps=8), resume="latest").result is not None


def test_pictures_are_padded_within_their_size(tmp_path: Path) -> None:
    Image.new("L", (28, 28), 200).save(tmp_path / "a.png")
    padded = open_source(Source(path=str(tmp_path), pad=2), captions=False).load([0], 32, 1).images[0, 0]
    assert padded.shape == (32, 32) and (padded[2:30, 2:30] == 200).all()
    assert padded.sum() == 200 * 28 * 28
    with pytest.raises(LimnerError, match="--data.pad 16 leaves nothing"):
        open_source(Source(path=str(tmp_path), pad=16), captions=False).load([0], 32, 1)
    with pytest.raises(LimnerError, match="pad must be at least 0"):
        Source(path=str(tmp_path), pad=-1)
    with pytest.raises(LimnerError, match="--data.pad is for pictures in files"):
        open_source(Source("world", pad=2))


@pytest.mark.parametrize("name", [name for name in recipe_names() if isinstance(load_recipe(name)[0], Recipe)])
def test_every_recipe_s_network_fits_its_condition(name: str) -> None:
    recipe = load_recipe(name)[0]
    assert isinstance(recipe, Recipe)
    width, classes = (64 if recipe.condition == "text" else 0), (10 if recipe.condition == "class" else 0)
    fitted = recipe.network.fit(32, recipe.channels, classes, width)
    assert fitted.in_channels == recipe.channels and fitted.sample_size == 32
