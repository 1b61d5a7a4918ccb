"""Work that would be lost: caches that are stale, weights that lie beside others, errors after training."""

import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from helpers import COLOURS, TINY, paint_colour, trainer
from PIL import Image
from rich.console import Console
from safetensors.torch import save, save_file

from limner.data.batches import resumed_epoch
from limner.data.collection import epoch_order
from limner.data.mixture import Mixture
from limner.data.pictures import Pictures
from limner.data.sources import Source, open_source
from limner.data.world import World
from limner.errors import LimnerError, LimnerWarning
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.pipeline import Pipeline
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.tokenizer import Tokenizer
from limner.train import checkpoint
from limner.train.latents import Latents, encode
from limner.train.recipe import ContrastiveRecipe, Recipe, TextRecipe, load_recipe
from limner.train.setup import make_text_encoder
from limner.weights.file import read_tensors
from limner.weights.parts import open_part, save_part

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def said(run: Callable[[Console], object]) -> str:
    """What a run prints."""
    console = Console(record=True, width=400, file=io.StringIO())
    run(console)
    return console.export_text()


# ---- the cache of latents


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 16), latent_channels=2, norm_num_groups=4)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 pictures of one colour each."""
    root = tmp_path / "forty"
    root.mkdir()
    for k in range(40):
        paint_colour(root / f"{k:02d}.png", list(COLOURS)[k % 3], k)
    return root


def cache(
    vae: AutoencoderKL, root: Path, log: Callable[[str], None] = lambda _: None, size: int = 8,
    max_broken: float = 0.01, count: int = 40,
) -> Latents:  # fmt: skip
    pictures = open_source(Source(path=str(root)), captions=False)
    return Latents.cached(
        pictures, vae, size, 3, count, 0, root.parent / "latents.safetensors", CPU, log, max_broken=max_broken
    )


@pytest.mark.parametrize("row", [0, 20, 39])
def test_any_picture_that_is_repainted_is_encoded_again(vae: AutoencoderKL, folder: Path, row: int) -> None:
    """Of the same number of bytes and at the same place in the order."""
    before = cache(vae, folder)
    index = before.indices[row]
    file = folder / f"{index:02d}.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file.with_suffix(".bmp"))
    for times in range(2):
        if times:  # of the same size, a moment later
            Image.new("RGB", (8, 8), (200, 200, 0)).save(folder / "x.bmp")
            os.replace(folder / "x.bmp", file)
        else:
            os.replace(file.with_suffix(".bmp"), file)
        after = cache(vae, folder)
        wanted = encode(vae, open_source(Source(path=str(folder)), captions=False).load([index], 8, 3).images)
        torch.testing.assert_close(after.latents[row].float(), wanted[0], atol=2e-3, rtol=0)
        assert not torch.equal(after.latents[row], before.latents[row])
        others = [k for k in range(40) if k != row]
        assert torch.equal(after.latents[others], before.latents[others])


def test_a_cache_is_kept_while_nothing_changes_and_anew_for_other_weights_or_size(
    vae: AutoencoderKL, folder: Path
) -> None:
    lines: list[str] = []
    first = cache(vae, folder, lines.append)
    assert torch.equal(cache(vae, folder, lines.append).latents, first.latents) and len(lines) == 1
    (folder / "notes.md").write_text("not a picture")
    cache(vae, folder, lines.append)
    assert len(lines) == 1
    other = AutoencoderKL(vae.config).eval()
    cache(other, folder, lines.append)
    cache(vae, folder, lines.append, size=16)
    assert [("which held others" in line) for line in lines] == [False, True, True]


def test_bytes_within_a_table_have_a_fingerprint() -> None:
    pictures = Pictures([{"bytes": b"one", "path": "a.png"}, {"bytes": b"two", "path": "a.png"}, None], "table")
    prints = [pictures.fingerprint(k) for k in range(3)]
    assert len(set(prints)) == 3 and prints[0] == Pictures([{"bytes": b"one", "path": None}], "t").fingerprint(0)
    mixed = Mixture([World(10, seed=3), pictures], (0.5, 0.5))
    assert mixed.fingerprint(11) == prints[1] and mixed.fingerprint(4) == World(10, seed=3).fingerprint(4)
    assert World(10, seed=3).fingerprint(4) != World(10, seed=4).fingerprint(4)


@pytest.fixture
def latent_recipe(folder: Path, vae: AutoencoderKL, tmp_path: Path) -> Recipe:
    """A run in the latents of the 40 pictures."""
    for k in range(40):
        (folder / f"{k:02d}.txt").write_text(f"a {list(COLOURS)[k % 3]} picture")
    save_part(vae, tmp_path / "vae/vae")
    return Recipe(
        data=Source(path=str(folder)), output=str(tmp_path / "run"), size=8, autoencoder=str(tmp_path / "vae"),
        cache=40, network=replace(TINY, patch_size=2), text=TextRecipe(32, 1, 2, 8, 600), steps=2, batch_size=4,
        sample_prompts=("a red picture",), sample_steps=1, log_every=2,
    )  # fmt: skip


def cut_short(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{k:02d}.png" for k in range(count)]
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    return files


def test_broken_pictures_stop_a_run_with_a_cache_as_without_one(latent_recipe: Recipe, folder: Path) -> None:
    cut_short(folder, 10)
    messages = []
    for count in (40, 0):
        with pytest.raises(LimnerError, match="more than the share 0.01 that --data.max-broken allows") as error:
            trainer(replace(latent_recipe, cache=count, steps=20)).run()
        messages.append(str(error.value))
    assert messages[0].startswith("10 pictures cannot be read")
    allowed = replace(latent_recipe, data=replace(latent_recipe.data, max_broken=0.25))
    trainer(allowed)
    with pytest.raises(LimnerError, match="10 pictures cannot be read"):  # though the cache is there
        trainer(latent_recipe)


def test_few_broken_pictures_are_left_out_of_the_cache_and_said(latent_recipe: Recipe, folder: Path) -> None:
    [broken] = cut_short(folder, 1)
    allowed = replace(latent_recipe, data=replace(latent_recipe.data, max_broken=0.03))
    for output in ("first", "again"):  # encoded, then taken from the cache
        text = said(lambda console: trainer(allowed, console=console))
        assert f"1 unreadable pictures were skipped: {broken}\n" in text, output
    run = trainer(allowed)
    assert len(run.pictures) == 39 and 0 not in run.pictures.indices
    assert len(set(run.pictures.indices)) == 39
    run.run()


# ---- saved over another folder


def test_only_what_is_saved_is_left_to_be_opened(tmp_path: Path) -> None:
    """Other variants, shards and pickles of a part go, what is none of its weights stays."""
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig(600, 32, 64, 1, 2, 8, eos_token_id=3))
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    stale = [
        "model.fp16.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "pytorch_model.fp16.bin", "model.bf16.safetensors",
    ]  # fmt: skip
    for name in stale:
        save_file({"x": torch.zeros(1)}, folder / name) if "json" not in name else None
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    kept = {"notes.txt", "generation_config.json", "my_adapter.safetensors", "model.safetensors.txt"}
    for name in kept:
        (folder / name).write_text("mine")
    save_part(model, folder)
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", *kept}
    opened = open_part(folder, "CLIPTextModel", CLIPTextModel)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in opened.state_dict().items())


def test_a_model_opened_from_a_variant_can_be_saved_over_it(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    trainer(recipe).result.save(folder, torch.float16)
    for part, stem in (("denoiser", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
    pipe = Pipeline.from_pretrained(folder)
    before = {name: t.clone() for name, t in pipe.model.network.state_dict().items()}
    pipe.save(folder)
    assert sorted(file.name for file in folder.glob("*/*.safetensors")) == [
        "diffusion_pytorch_model.safetensors", "model.safetensors",
    ]  # fmt: skip
    for name, tensor in Pipeline.from_pretrained(folder).model.network.state_dict().items():
        assert torch.equal(tensor, before[name])


# ---- told before the first step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grade": 2}, r"--grade: the prompt '.*' has \d+ tokens.*length of 8, as are \d+ more. Leave --grade out, or"),
        ({"grade": 2, "text": TextRecipe(32, 1, 2, 99, 600)}, "--grade: expected a square picture of at least 32 x 32"),
        ({"grade": 2, "condition": "none", "sample_prompts": ()}, "--grade 2: a model without text cannot be graded"),
        ({"path": "cosine", "predicts": "eps", "sample_steps": 2000}, "--sample-steps: .*1000, not 2000"),
        ({"sample_prompts": ("a red picture", "red " * 20)}, r"--sample-prompts: 'red .*has \d+ tokens.*length of 8"),
        ({"sample_prompts": ("a red picture",), "condition": "none"}, "--sample-prompts: this model reads no text"),
    ],
)
def test_what_would_fail_after_training_is_told_before(recipe: Recipe, change: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        replace(recipe, **change).task(open_source(recipe.data), None)


def test_a_class_that_the_data_has_not_is_told_before(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / "data" / name).mkdir(parents=True)
        paint_colour(tmp_path / "data" / name / "0.png", name, 0)
    source = Source(path=str(tmp_path / "data"))
    by_class = replace(recipe, condition="class", data=source, sample_prompts=("red", "blu"))
    with pytest.raises(LimnerError, match="--sample-prompts: unknown class 'blu'; did you mean 'blue'"):
        by_class.task(open_source(source), None)


@pytest.mark.parametrize("kind", [Recipe, ContrastiveRecipe])
def test_a_caption_over_the_context_length_is_named_with_its_picture(recipe: Recipe, kind: type) -> None:
    root = Path(recipe.data.path or "")
    (root / "07.txt").write_text("a red picture\na picture of a red and green and blue and red thing")
    (root / "09.txt").write_text("red green blue red green blue red green blue")
    chosen = recipe if kind is Recipe else ContrastiveRecipe(recipe.data, recipe.output, size=8, text=recipe.text)
    with pytest.raises(LimnerError) as error:
        chosen.task(open_source(recipe.data), None)
    text = str(error.value)
    assert text.startswith(f"{root / '07.png'}: the caption 'a picture of a red and green and blue and red thing' has ")
    assert ", as are 1 more. Shorten it, or train with --text.length " in text and "truncate" not in text
    longer = replace(chosen, text=replace(recipe.text, length=int(text.rsplit(" ", 1)[1])))
    longer.task(open_source(recipe.data), None)
    with pytest.raises(LimnerError, match="--text.length"):
        replace(chosen, text=replace(longer.text, length=longer.text.length - 1)).task(open_source(recipe.data), None)


def test_a_caption_in_a_table_is_named_by_its_row() -> None:
    pictures = Pictures([{"bytes": b"x", "path": None}] * 3, "t.parquet", [["a"], ["b"], ["c", "d"]])
    assert pictures.captioned("d") == "t.parquet, row 2"
    assert Mixture([World(5), pictures], (0.5, 0.5)).captioned("b") == "t.parquet, row 1"


def test_a_pretrained_text_encoder_is_not_advised_to_be_longer(recipe: Recipe, tmp_path: Path) -> None:
    trainer(recipe).result.save(tmp_path / "clip")
    (Path(recipe.data.path or "") / "07.txt").write_text("red green blue red green blue red green blue")
    own = replace(recipe, text=TextRecipe(pretrained=str(tmp_path / "clip")))
    with pytest.raises(LimnerError, match=r"07\.png: the caption .* length of 8\. Shorten it$"):
        own.task(open_source(recipe.data), None)


def test_captions_of_the_world_that_no_one_has_seen_are_cut(recipe: Recipe) -> None:
    """Its captions are endless: those that are longer than all that are checked do not stop a run."""
    world = World(300)
    captions = world.all_captions()
    tokenizer = Tokenizer.train(captions, 700, 64)
    longest = max(len(tokenizer.pieces(caption)) for caption in captions)
    text = TextRecipe(32, 1, 2, longest, 700)
    late = "an image of a pair of red boxes of small size on top of 2 small stars coloured cobalt on a chocolate ground"
    late += " and more"
    assert len(tokenizer.pieces(late)) > longest
    denoiser = replace(recipe, data=Source("world"), text=text, size=16, sample_prompts=(), dropout=0.0)
    for chosen in (denoiser, ContrastiveRecipe(denoiser.data, recipe.output, size=16, text=text)):
        task = chosen.task(world, None)
        batch = {
            "images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "captions": [late, "a red star"], "labels": None,
            "indices": torch.tensor([0, 1]),
        }  # fmt: skip
        with pytest.warns(LimnerWarning, match=f"captions over {longest} tokens are cut"):
            inputs = task.inputs(batch, torch.Generator(), CPU)
        given = next(each for each in inputs if isinstance(each, list))
        assert late.startswith(given[0]) and len(given[0]) > 60 and given[1] == "a red star"
        task.loss(*inputs)


# ---- sample prompts


def test_a_recipes_own_sample_prompts_give_way_to_captions_of_other_data(recipe: Recipe) -> None:
    """Of those who brought their own pictures none knows of the digits; what they ask for themselves is painted."""
    digits = load_recipe("mnist-text")[0].sample_prompts
    long = replace(recipe, text=replace(recipe.text, length=40))
    for chosen in (replace(recipe, sample_prompts=digits), replace(long, sample_prompts=digits)):
        task = chosen.task(open_source(recipe.data), None)
        assert task.prompts == [f"a {name} picture" for name in COLOURS]
    text = said(lambda console: trainer(replace(recipe, sample_prompts=digits), console=console))
    assert "the recipe's sample prompts do not suit" in text
    assert said(lambda console: trainer(long, console=console)) == ""
    own = replace(long, sample_prompts=("a handwritten zero",))
    assert own.task(open_source(recipe.data), None).prompts == ["a handwritten zero"]


def test_a_recipes_sample_prompts_are_painted_where_the_data_has_their_words(recipe: Recipe, tmp_path: Path) -> None:
    digits = load_recipe("mnist-text")[0].sample_prompts
    for k in range(10):
        (tmp_path / "digits" / str(k)).mkdir(parents=True)
        paint_colour(tmp_path / "digits" / str(k) / "0.png", "red", k)
    source = Source(path=str(tmp_path / "digits"))
    text = replace(recipe.text, length=16, vocab_size=1000)
    chosen = replace(recipe, data=source, text=text, sample_prompts=digits)
    assert chosen.task(open_source(source), None).prompts == list(digits)
    bare = replace(recipe, condition="none", sample_prompts=digits)
    assert bare.task(open_source(recipe.data), None).prompts == [""] * 16


# ---- checkpoints


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_and_says_how_to_go_on(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(recipe)
    real = checkpoint.write_tensors

    def full(path: Path, tensors: dict) -> None:
        if run.step > 3:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr("limner.train.checkpoint.write_tensors", full)
    where = Path(recipe.output)
    with pytest.raises(LimnerError, match="checkpoint-6 could not be saved .*No space left") as error:
        run.run()
    assert str(error.value).endswith(f"; checkpoint-3 is whole: go on with --resume latest --output {where}")
    assert [p.name for p in where.iterdir() if "checkpoint" in p.name] == ["checkpoint-3"]
    monkeypatch.undo()
    again = trainer(recipe, "latest")
    assert again.step == 3
    again.run()
    assert (where / "checkpoint-6").is_dir()


def epochs(n: int = 1000) -> Pictures:
    return Pictures([None] * n, "n")


@pytest.mark.parametrize(
    ("step", "before", "now", "steps", "wanted"),
    [
        (50, (10, 0), (100, 0), None, (500, 0)),  # of an epoch half is shown, and then the sixth begins
        (5, (10, 0), (100, 0), None, (450, 0)),  # positions 50 to 500
        (5, (100, 0), (10, 0), None, (0, 450)),  # positions 50 to 500 again
        (15, (10, 0), (100, 0), None, (850, 0)),  # from the first epoch into the second
        (15, (100, 0), (10, 0), None, (0, 500)),  # from the second back into the first
        (100, (10, 0), (15, 0), None, (500, 0)),
        (10, (100, 0), (10, 0), None, (0, 900)),
        (50, (10, 0), (10, 0), None, (0, 0)),
        (100, (10, 0), (20, 0), None, (0, 0)),  # from one epoch's end to another's beginning
        (50, (10, 0), (10, 0), 70, (300, 0)),  # 700 of 1000
        (50, (10, 0), (10, 0), 700, (0, 0)),
        (30, None, (10, 0), None, (300, 0)),  # other pictures
        (200, None, (10, 0), None, (0, 0)),
    ],
)
def test_what_a_resumed_run_shows_of_its_epoch(
    step: int, before: tuple | None, now: tuple, steps: int | None, wanted: tuple
) -> None:
    assert resumed_epoch(epochs(), step, before, now, steps) == wanted


def test_another_seed_shows_some_pictures_twice_and_others_not() -> None:
    shown, coming = set(epoch_order(1000, 0, 2)[:300].tolist()), set(epoch_order(1000, 7, 2)[300:].tolist())
    wanted = 1000 - len(shown | coming), len(shown & coming)
    assert resumed_epoch(epochs(), 230, (10, 0), (10, 7)) == wanted and wanted[0] == wanted[1] > 150
    assert resumed_epoch(World(), 230, (10, 0), (100, 7)) == (0, 0)
    assert resumed_epoch(Mixture([epochs()], (1.0,)), 230, (10, 0), (100, 7)) == (0, 0)


def test_what_is_counted_is_what_the_batches_show() -> None:
    """By the batches themselves, of a run that goes on with another size and seed."""
    pictures, n = epochs(60), 60
    shown = [pictures.index_at(p, 1) for p in range(120, 7 * 22)]
    coming = [pictures.index_at(p, 2) for p in range(6 * 22, 180)]
    wanted = n - len({*shown, *coming}), len({*shown} & {*coming})
    assert resumed_epoch(pictures, 22, (7, 1), (6, 2)) == wanted and min(wanted) > 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_size": 12}, ", changed: batch_size 8 -> 12: 4 of 24 pictures of this epoch are not shown"),
        ({"batch_size": 4, "lr": 0.1}, ", changed: lr 0.001 -> 0.1; batch_size 8 -> 4: 8 of 24 pictures of "
                                       "this epoch are shown twice"),
        ({"steps": 9}, ", changed: steps 6 -> 9"),
        ({"lr": 0.1}, ", changed: lr 0.001 -> 0.1"),
        ({}, ""),
    ],
)  # fmt: skip
def test_a_resumed_run_says_what_becomes_of_its_epoch(recipe: Recipe, tmp_path: Path, change: dict, text: str) -> None:
    folder = tmp_path / "checkpoint-4"
    (folder / "training").mkdir(parents=True)
    state = {"step": 4 if change.get("batch_size") != 12 else 1, "recipe": json.loads(json.dumps(as_dict(recipe)))}
    (folder / "training/state.json").write_text(json.dumps(state))
    assert checkpoint.changes(folder, replace(recipe, **change), epochs(24)) == text


def test_the_run_itself_says_what_becomes_of_its_epoch(recipe: Recipe) -> None:
    trainer(replace(recipe, steps=4)).run()
    again = replace(recipe, steps=40, batch_size=12)
    text = said(lambda console: trainer(again, "latest", console))
    assert "changed: steps 4 -> 40; batch_size 8 -> 12: 16 of 24 pictures of this epoch are not shown" in text


def test_a_resumed_run_on_other_data_says_how_much_of_it_is_passed_over(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    (folder / "training").mkdir(parents=True)
    (folder / "training/state.json").write_text(json.dumps({"step": 4, "recipe": as_dict(recipe)}))
    other = replace(recipe, data=replace(recipe.data, path="there"))
    text = checkpoint.changes(folder, other, epochs(30))
    assert text.endswith("-> there: 2 of 30 pictures of this epoch are not shown")
    fewer = replace(recipe, steps=5)
    assert checkpoint.changes(folder, fewer, epochs(100)).endswith(
        "steps 6 -> 5: 60 of 100 pictures of this epoch are not shown"
    )


def as_dict(recipe: Recipe) -> dict:
    from dataclasses import asdict

    return asdict(recipe)


# ---- text encoders of transformers


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A CLIPModel and a CLIPTextModelWithProjection, with the text tensors of each."""
    root = tmp_path_factory.mktemp("clip")
    tokenizer = Tokenizer.train(["a red cat", "a blue dog"], 600, 16)
    text = {
        "vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "projection_dim": 24, "eos_token_id": tokenizer.end,
        "bos_token_id": tokenizer.start, "pad_token_id": tokenizer.end,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16, "projection_dim": 24}  # fmt: skip
    torch.manual_seed(0)
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    alone = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text))
    for name, model in (("whole", whole), ("projection", alone)):
        model.save_pretrained(root / name)
        tokenizer.save(root / name)
    shutil.copytree(root / "projection", root / "plain")
    config = json.loads((root / "plain/config.json").read_text())
    (root / "plain/config.json").write_text(json.dumps(config | {"architectures": ["CLIPTextModel"]}))
    return root, {"whole": whole, "projection": alone, "plain": alone}


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("whole", {"vision_model", "visual_projection", "logit_scale", "text_projection"}),
        ("projection", {"text_projection"}),
        ("plain", {"text_projection"}),
    ],
)
def test_the_text_part_of_a_clip_model_is_loaded_and_the_rest_is_named(
    clip: tuple, name: str, left_out: set[str]
) -> None:
    root, models = clip
    with pytest.warns(LimnerWarning, match="the text encoder is used; left out: ") as warned:
        encoder = make_text_encoder(TextRecipe(pretrained=str(root / name)), [])
    [message] = [str(each.message) for each in warned]
    assert set(message.split("left out: ")[1].split(" (")[0].split(", ")) == left_out
    ids, _ = encoder.tokenizer.encode(["a red cat", "dog"])
    with torch.no_grad():
        theirs = models[name].eval().text_model(ids).last_hidden_state
        torch.testing.assert_close(encoder.transformer(ids).hidden, theirs, atol=1e-5, rtol=1e-4)
    assert not any("projection" in key for key in encoder.transformer.state_dict())


def test_a_model_trained_on_such_a_text_encoder_opens_again(recipe: Recipe, clip: tuple) -> None:
    root, _ = clip
    text = TextRecipe(pretrained=str(root / "whole"), lr_scale=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimnerWarning)
        pipe = trainer(replace(recipe, text=text, steps=1, sample_prompts=("red",))).run()
        opened = Pipeline.from_pretrained(recipe.output)
    assert opened("red", seed=1)[0].tobytes() == pipe("red", seed=1)[0].tobytes()


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "latents", "indices", "fewer", "nan", "kind"])
def test_a_damaged_cache_is_encoded_again(vae: AutoencoderKL, folder: Path, damage: str) -> None:
    file = folder.parent / "latents.safetensors"
    wanted = cache(vae, folder).latents.clone()
    stored = {name: tensor.clone() for name, tensor in read_tensors(file).items()}
    content = {
        "cut": file.read_bytes()[:200], "text": b"hello", "empty": b"",
        "latents": save({k: t for k, t in stored.items() if k != "latents"}),
        "indices": save({k: t for k, t in stored.items() if k != "indices"}),
        "fewer": save(stored | {"latents": stored["latents"][:2].clone()}),
        "nan": save(stored | {"latents": stored["latents"] * float("nan")}),
        "kind": save(stored | {"fingerprint": torch.tensor([0.5])}),
    }[damage]  # fmt: skip
    file.write_bytes(content)
    said: list[str] = []
    assert torch.equal(cache(vae, folder, said.append).latents, wanted)
    assert torch.equal(cache(vae, folder, said.append).latents, wanted)
    assert len(said) == 1 and said[0].startswith("encoding 40 pictures")


@pytest.mark.parametrize("state", ["{}", '{"step": "x", "recipe": {}}', '{"step": -1, "recipe": {}}', '{"step": 3}'])
def test_a_damaged_state_of_a_checkpoint_is_told_with_its_file(recipe: Recipe, state: str) -> None:
    trainer(replace(recipe, steps=2)).run()
    file = Path(recipe.output) / "checkpoint-2/training/state.json"
    file.write_text(state)
    with pytest.raises(LimnerError, match="state.json is damaged: expected a whole number as step, and a recipe"):
        trainer(recipe, "latest")


def test_a_checkpoint_without_a_part_is_called_incomplete(recipe: Recipe) -> None:
    trainer(replace(recipe, steps=2)).run()
    shutil.rmtree(Path(recipe.output) / "checkpoint-2/denoiser")
    with pytest.raises(LimnerError, match="checkpoint-2 holds no denoiser: it is incomplete"):
        trainer(recipe, "latest")


def test_pictures_that_came_under_the_same_path_are_told_to_a_run_that_goes_on(recipe: Recipe) -> None:
    trainer(replace(recipe, steps=2)).run()
    assert recipe.data.path
    paint_colour(Path(recipe.data.path) / "zz.png", "red", 0)
    (Path(recipe.data.path) / "zz.txt").write_text("a red picture")
    text = " ".join(said(lambda console: trainer(recipe, "latest", console)).split())
    assert "pictures 24 -> 25" in text and "of 25 pictures of this epoch are not shown" in text


@pytest.mark.parametrize("name", ["samples", "logs", "loss.png"])
def test_an_output_that_cannot_be_written_is_told_before_training(recipe: Recipe, name: str) -> None:
    output = Path(recipe.output)
    output.mkdir()
    (output / name).mkdir() if "." in name else (output / name).touch()
    with pytest.raises(LimnerError, match=f"cannot write .*{name}"):
        trainer(recipe)
