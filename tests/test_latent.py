"""Latent diffusion from nothing: an autoencoder trained, its latents kept, a denoiser trained and painting in them."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from helpers import assert_equal, logged, tensors, trainer

from limner.data.batches import Batches
from limner.data.collection import Collection
from limner.data.mixture import Mixture
from limner.data.sources import Source
from limner.data.world import World
from limner.errors import LimnerError
from limner.files import read_json
from limner.nets.dit import DiTConfig
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.pipeline import Pipeline
from limner.train.autoencoder import AutoencoderLoss
from limner.train.latents import Latents, encode
from limner.train.loop import Trainer, step_generator
from limner.train.recipe import AutoencoderRecipe, Recipe, TextRecipe
from limner.train.setup import open_autoencoder

SIZE = 16
NETWORK = AutoencoderKLConfig(block_out_channels=(8, 8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_autoencoder(root: Path) -> AutoencoderRecipe:
    """A tiny autoencoder of tiny worlds."""
    return AutoencoderRecipe(
        data=Source("world"), output=str(root / "vae"), size=SIZE, network=NETWORK, steps=8, batch_size=4,
        lr=3e-3, warmup=2, save_every=4, sample_every=100, log_every=4, keep=0,
    )  # fmt: skip


@pytest.fixture
def vae_recipe(tmp_path: Path) -> AutoencoderRecipe:
    """An autoencoder's run of its own."""
    return tiny_autoencoder(tmp_path)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> str:
    """The run of that autoencoder, once trained."""
    recipe = tiny_autoencoder(tmp_path_factory.mktemp("autoencoder"))
    run(recipe)
    return recipe.output


@pytest.fixture
def recipe(tmp_path: Path, autoencoder: str) -> Recipe:
    """A tiny denoiser in its latents."""
    return Recipe(
        data=Source("world"), output=str(tmp_path / "run"), size=SIZE, autoencoder=autoencoder, cache=40,
        network=DiTConfig(patch_size=2, hidden_size=32, depth=2, num_heads=2),
        text=TextRecipe(hidden_size=32, layers=1, num_heads=2, length=48, vocab_size=700), steps=6, batch_size=4,
        lr=1e-3, warmup=2, save_every=3, sample_every=100, log_every=3, keep=0, sample_steps=2,
        sample_prompts=("a red star", "two blue circles"),
    )  # fmt: skip


def run(recipe: AutoencoderRecipe | Recipe, resume: str | None = None) -> Trainer:
    done = trainer(recipe, resume)
    done.run()
    return done


def vae_of(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 16), latent_channels=2, norm_num_groups=4)).eval()


def test_the_autoencoders_loss_is_its_formula() -> None:
    """Absolute and squared error, absolute error of differences, and KL per latent number, with the noise given."""
    vae, x = vae_of(), torch.rand(3, 3, 8, 8) * 2 - 1
    loss = AutoencoderLoss(vae, kl=0.5, edges=2.0)(x, torch.Generator().manual_seed(4))
    mean, logvar = vae.encode(x)
    z = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
    y = vae.decode(z)
    for k in range(3):
        a, b = x[k], y[k]
        down = ((b[:, 1:] - b[:, :-1]) - (a[:, 1:] - a[:, :-1])).abs().mean()
        right = ((b[..., 1:] - b[..., :-1]) - (a[..., 1:] - a[..., :-1])).abs().mean()
        kl = 0.5 * (mean[k] ** 2 + logvar[k].exp() - 1 - logvar[k]).mean()
        wanted = (a - b).abs().mean() + ((a - b) ** 2).mean() + 2.0 * (down + right) + 0.5 * kl
        assert loss[k].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_an_autoencoder_learns_and_resumes_bit_for_bit(vae_recipe: AutoencoderRecipe, tmp_path: Path) -> None:
    whole = run(vae_recipe)
    start = whole.task.measure(trainer(replace(vae_recipe, output=str(tmp_path / "x"))).result)
    later = whole.task.measure(whole.result)
    assert later["psnr"] > start["psnr"] + 1
    half = replace(vae_recipe, output=str(tmp_path / "half"), steps=4)
    run(half)
    run(replace(half, steps=8), "latest")
    one = tensors(vae_recipe.output, 8)
    assert len(one) > 100
    assert_equal(one, tensors(half.output, 8))


def test_the_numbers_of_the_recipe_are_those_of_the_autoencoder(vae_recipe: AutoencoderRecipe) -> None:
    """Its configuration, its initial weights, and the loss of its first batch, which is by the seed."""
    network = AutoencoderKLConfig(
        block_out_channels=(6, 12), layers_per_block=2, latent_channels=3, norm_num_groups=3, use_quant_conv=False
    )
    recipe = replace(vae_recipe, kl=0.5, edges=3.0, seed=2, channels=1, network=network)
    begun = trainer(recipe)
    vae = begun.trained["vae"]
    assert vae.config == replace(network, in_channels=1, out_channels=1)
    assert vae.quant_conv is None and vae.post_quant_conv is not None
    x = Batches(World(), 4, SIZE, 1, seed=2).batch(0)["images"] / 127.5 - 1
    wanted = AutoencoderLoss(vae, 0.5, 3.0)(x, step_generator(2, 0, 0))
    torch.testing.assert_close(begun.loss(next(begun.batches())), wanted)
    assert not torch.equal(
        trainer(replace(recipe, seed=3)).trained["vae"].decoder.conv_in.weight, vae.decoder.conv_in.weight
    )


def test_the_log_tells_the_psnr_of_pictures_that_are_not_trained_on(vae_recipe: AutoencoderRecipe) -> None:
    """By hand: of pixels in [0, 1], encoded to the mean and decoded by the averaged weights."""
    done = run(replace(vae_recipe, steps=1))
    vae, held = open_autoencoder(vae_recipe.output), done.result.held
    assert vae is not None
    assert held.shape == (128, 3, SIZE, SIZE)
    trained_on = World().load(range(vae_recipe.steps * vae_recipe.batch_size), SIZE, 3).images
    assert not (held[:, None] == trained_on).flatten(2).all(2).any()
    again = vae.decode(vae.encode(held / 127.5 - 1).mean).clamp(-1, 1)
    error = ((again + 1) / 2 - held / 255).square().mean().item()
    assert logged(vae_recipe.output)["psnr"] == [(1, pytest.approx(10 * math.log10(1 / error), abs=1e-3))]


def test_saved_latents_have_mean_0_and_variance_1(vae_recipe: AutoencoderRecipe) -> None:
    held = run(vae_recipe).result.held
    vae = open_autoencoder(vae_recipe.output)
    assert vae is not None
    latents = encode(vae, held)
    assert latents.mean().item() == pytest.approx(0, abs=1e-3) and latents.std().item() == pytest.approx(1, abs=1e-3)
    assert vae.config.scaling_factor != 0.18215
    x = held.float() / 127.5 - 1
    assert torch.allclose(vae.from_latents(latents), vae.encode(x).mean, atol=1e-4)


def test_kept_latents_are_those_of_their_pictures(tmp_path: Path) -> None:
    """And are computed once: again only for another autoencoder, other pictures or another number of them."""
    world, vae, lines = World(50, seed=3), vae_of(), []

    def open_latents(net: AutoencoderKL = vae, count: int = 30, seed: int = 0, of: Collection = world) -> Latents:
        device = torch.device("cpu")
        return Latents.cached(of, net, SIZE, 3, count, seed, tmp_path / "latents.safetensors", device, lines.append)

    kept = open_latents()
    assert len(kept) == 30 and len(lines) == 1
    rows = [7, 0, 29]
    wanted = encode(vae, world.load([kept.indices[row] for row in rows], SIZE, 3).images)
    assert torch.allclose(kept.load(rows, SIZE, 3).images, wanted, atol=2e-3)
    assert kept.draw_caption(7, Random(5)) == world.draw_caption(kept.indices[7], Random(5))
    assert sorted(kept.index_at(p, 1) for p in range(30)) == list(range(30))
    again = open_latents()
    assert len(lines) == 1 and torch.equal(again.latents, kept.latents)
    parts = [World(50, 3, "one"), World(50, 3, "count")]
    others = [{"of": World(50, seed=4)}, {"net": vae_of(1)}, {"count": 20}]
    others += [{"of": Mixture(parts, (0.6, 0.4)), "seed": seed} for seed in (1, 0)] + [
        {"of": Mixture(parts, (0.5, 0.5))}
    ]
    for number, change in enumerate(others, 2):
        open_latents(**change)
        assert len(lines) == number, change


def test_a_denoiser_of_latents_trains_resumes_and_paints(recipe: Recipe, tmp_path: Path) -> None:
    """Resumed bit for bit; the model holds its autoencoder, and its pictures are decoded latents."""
    whole = run(recipe)
    assert len(whole.pictures) == recipe.cache
    half = replace(recipe, output=str(tmp_path / "half"), steps=3)
    run(half)
    run(replace(half, steps=6), "latest")
    assert_equal(tensors(recipe.output, 6), tensors(half.output, 6))

    pipe = Pipeline.from_pretrained(recipe.output)
    assert pipe.model.size == SIZE and pipe.model.network.config.sample_size == SIZE // 4
    assert read_json(Path(recipe.output) / "checkpoint-6/model_index.json")["vae"] == ["diffusers", "AutoencoderKL"]
    prompts = ["a red star", "two blue circles"]
    *_, last = pipe.paint(prompts, seed=5).steps
    assert last.x.shape == (2, 4, 4, 4)
    vae = pipe.model.autoencoder
    assert vae is not None
    pixels = vae.decode(vae.from_latents(last.x)).clamp(-1, 1)
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    painted = pipe(prompts, seed=5)
    for picture, wanted in zip(painted, expected, strict=True):
        assert picture.size == (SIZE, SIZE) and picture.tobytes() == wanted.contiguous().numpy().tobytes()
    alone = pipe(prompts[1], seed=6)[0]
    difference = torch.tensor(list(alone.tobytes())).float() - torch.tensor(list(painted[1].tobytes())).float()
    assert difference.abs().max() <= 1
    assert painted[0].tobytes() == whole.result(prompts[0], seed=5)[0].tobytes()


def test_a_resumed_run_has_its_autoencoder_in_its_checkpoint(recipe: Recipe) -> None:
    """Whatever became of the one it was given."""
    run(replace(recipe, steps=3))
    resumed = run(replace(recipe, autoencoder="nowhere"), "latest")
    assert resumed.step == 6 and resumed.result.model.autoencoder is not None


def test_wide_pictures_come_in_whole_patches_of_latents(recipe: Recipe) -> None:
    pipe = run(recipe).result
    assert pipe("a red star", width=24, height=8)[0].size == (24, 8)
    with pytest.raises(LimnerError, match="width 20 is not a multiple of 8, as this model needs; try 16"):
        pipe("a red star", width=20)


def test_latents_encoded_anew_are_those_kept(recipe: Recipe) -> None:
    """Without --cache each picture is encoded when its turn comes: the same numbers."""
    begun = trainer(replace(recipe, cache=0))
    batch = next(begun.batches())
    assert batch["images"].dtype == torch.uint8
    x0, *_ = begun.task.inputs(batch, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert torch.equal(x0, encode(begun.task.model.autoencoder, batch["images"])) and x0.shape == (4, 4, 4, 4)


def test_an_autoencoder_is_not_trained_with_the_denoiser(recipe: Recipe) -> None:
    vae = open_autoencoder(recipe.autoencoder)
    assert vae is not None
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    done = run(recipe)
    assert set(done.trained) == {"denoiser", "text_encoder"}
    assert_equal(before, done.result.model.autoencoder.state_dict())
    saved = open_autoencoder(recipe.output)
    assert saved is not None and saved.config == vae.config
    assert_equal(before, saved.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": None}, "--cache keeps latents: give an --autoencoder"),
        ({"flip": True}, "--flip mirrors pictures"),
        ({"autoencoder": "nowhere"}, "no autoencoder at nowhere"),
        ({"size": 18}, "multiples of 4, not 3 channels and a side of 18"),
        ({"channels": 1}, "takes pictures of 3 channels"),
    ],
)
def test_refusals(recipe: Recipe, change: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        trainer(replace(recipe, **change))


def test_an_autoencoder_of_a_size_that_does_not_divide_is_refused(vae_recipe: AutoencoderRecipe) -> None:
    with pytest.raises(LimnerError, match="size 18 must be a multiple of 4"):
        trainer(replace(vae_recipe, size=18))
    with pytest.raises(LimnerError, match="kl must be at least 0"):
        replace(vae_recipe, kl=-1)
