"""Latent diffusion from nothing: an autoencoder trained, its latents kept, a denoiser trained and painting in them."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from rich.console import Console

from limner.data.collection import Collection
from limner.data.mixture import Mixture
from limner.data.sources import Source
from limner.data.world import World
from limner.errors import LimnerError
from limner.files import read_json
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.pipeline import Pipeline, find_autoencoder
from limner.train.autoencoder import AutoencoderLoss
from limner.train.latents import Latents, encode
from limner.train.loop import Trainer
from limner.train.recipe import Autoencoder, AutoencoderRecipe, Recipe, TextEncoder, Transformer
from limner.weights.file import read_tensors

SIZE = 16


@pytest.fixture
def vae_recipe(tmp_path: Path) -> AutoencoderRecipe:
    """A tiny autoencoder of tiny worlds."""
    return AutoencoderRecipe(
        data=Source("world"), output=str(tmp_path / "vae"), size=SIZE, model=Autoencoder((8, 8, 16), 1, 4, 4),
        steps=8, batch_size=4, lr=3e-3, warmup=2, save_every=4, sample_every=100, log_every=4, keep=0,
    )  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path, vae_recipe: AutoencoderRecipe) -> Recipe:
    """A tiny denoiser in the latents of that autoencoder, once trained."""
    run(vae_recipe)
    return Recipe(
        data=Source("world"), output=str(tmp_path / "run"), size=SIZE, autoencoder=vae_recipe.output, cache=40,
        model=Transformer(2, 32, 2, 2), text=TextEncoder(32, 1, 2, 48, 700), steps=6, batch_size=4, lr=1e-3,
        warmup=2, save_every=3, sample_every=100, log_every=3, keep=0, sample_steps=2,
        sample_prompts=("a red star", "two blue circles"),
    )  # fmt: skip


def run(recipe: AutoencoderRecipe | Recipe, resume: str | None = None) -> Trainer:
    trainer = Trainer(recipe, resume, Console(quiet=True))
    trainer.run()
    return trainer


def tensors(output: str, step: int) -> dict[str, torch.Tensor]:
    folder = Path(output) / f"checkpoint-{step}"
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}:{n}": t for f in files for n, t in read_tensors(f).items()}


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
    start = whole.task.measure(Trainer(replace(vae_recipe, output=str(tmp_path / "x"))).result)
    later = whole.task.measure(whole.result)
    assert later["psnr"] > start["psnr"] + 1
    half = replace(vae_recipe, output=str(tmp_path / "half"), steps=4)
    run(half)
    run(replace(half, steps=8), "latest")
    one, other = tensors(vae_recipe.output, 8), tensors(half.output, 8)
    assert one.keys() == other.keys() and len(one) > 100
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_saved_latents_have_mean_0_and_variance_1(vae_recipe: AutoencoderRecipe) -> None:
    trainer = run(vae_recipe)
    vae = find_autoencoder(vae_recipe.output)
    latents = encode(vae, trainer.task.held)
    assert latents.mean().item() == pytest.approx(0, abs=1e-3) and latents.std().item() == pytest.approx(1, abs=1e-3)
    assert vae.config.scaling_factor != 0.18215
    x = trainer.task.held.float() / 127.5 - 1
    assert torch.allclose(vae.from_latents(latents), vae.encode(x).mean, atol=1e-4)


def test_kept_latents_are_those_of_their_pictures(tmp_path: Path) -> None:
    """And are computed once: again only for another autoencoder, other pictures or another number of them."""
    world, vae, told = World(50, seed=3), vae_of(), []

    def open_latents(net: AutoencoderKL = vae, count: int = 30, seed: int = 0, of: Collection = world) -> Latents:
        device = torch.device("cpu")
        return Latents(of, net, SIZE, 3, count, seed, tmp_path / "latents.safetensors", device, told.append)

    kept = open_latents()
    assert len(kept) == 30 and len(told) == 1
    rows = [7, 0, 29]
    wanted = encode(vae, world.load([kept.indices[row] for row in rows], SIZE, 3).images)
    assert torch.allclose(kept.load(rows, SIZE, 3).images, wanted, atol=2e-3)
    assert kept.draw_caption(7, Random(5)) == world.draw_caption(kept.indices[7], Random(5))
    assert sorted(kept.index_at(p, 1) for p in range(30)) == list(range(30))
    again = open_latents()
    assert len(told) == 1 and torch.equal(again.latents, kept.latents)
    parts = [World(50, 3, "one"), World(50, 3, "count")]
    others = [{"of": World(50, seed=4)}, {"net": vae_of(1)}, {"count": 20}]
    others += [{"of": Mixture(parts, (0.6, 0.4)), "seed": seed} for seed in (1, 0)] + [
        {"of": Mixture(parts, (0.5, 0.5))}
    ]
    for number, change in enumerate(others, 2):
        open_latents(**change)
        assert len(told) == number, change


def test_a_denoiser_of_latents_trains_resumes_and_paints(recipe: Recipe, tmp_path: Path) -> None:
    """Resumed bit for bit; the model holds its autoencoder, and its pictures are decoded latents."""
    whole = run(recipe)
    half = replace(recipe, output=str(tmp_path / "half"), steps=3)
    run(half)
    run(replace(half, steps=6), "latest")
    one, other = tensors(recipe.output, 6), tensors(half.output, 6)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    pipe = Pipeline.from_pretrained(recipe.output)
    assert pipe.size == SIZE and pipe.denoiser.config.sample_size == SIZE // 4
    assert read_json(Path(recipe.output) / "checkpoint-6/model_index.json")["vae"] == ["diffusers", "AutoencoderKL"]
    prompts = ["a red star", "two blue circles"]
    *_, last = pipe.stream(prompts, seed=5)
    assert last.x.shape == (2, 4, 4, 4)
    pixels = pipe.vae.decode(pipe.vae.from_latents(last.x)).clamp(-1, 1)
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    painted = pipe(prompts, seed=5)
    for picture, wanted in zip(painted, expected, strict=True):
        assert picture.size == (SIZE, SIZE) and picture.tobytes() == wanted.contiguous().numpy().tobytes()
    alone = pipe(prompts[1], seed=6)[0]
    difference = torch.tensor(list(alone.tobytes())).float() - torch.tensor(list(painted[1].tobytes())).float()
    assert difference.abs().max() <= 1
    assert painted[0].tobytes() == whole.result(prompts[0], seed=5)[0].tobytes()


def test_wide_pictures_come_in_whole_patches_of_latents(recipe: Recipe) -> None:
    pipe = run(recipe).result
    assert pipe("a red star", width=24, height=8)[0].size == (24, 8)
    with pytest.raises(LimnerError, match="width 20 is not a multiple of the model's patch of 8; try"):
        pipe("a red star", width=20)


def test_latents_encoded_anew_are_those_kept(recipe: Recipe) -> None:
    """Without --cache each picture is encoded when its turn comes: the same numbers."""
    trainer = Trainer(replace(recipe, cache=0, output=recipe.output + "-anew"), None, Console(quiet=True))
    batch = next(trainer.batches())
    assert batch["images"].dtype == torch.uint8
    x0, *_ = trainer.task.inputs(batch, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert torch.equal(x0, encode(trainer.task.pipeline.vae, batch["images"])) and x0.shape == (4, 4, 4, 4)


def test_an_autoencoder_is_not_trained_with_the_denoiser(recipe: Recipe) -> None:
    before = {name: t.clone() for name, t in find_autoencoder(recipe.autoencoder).state_dict().items()}
    after = run(recipe).result.vae.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"autoencoder": None}, "--cache keeps latents: give an --autoencoder"),
        ({"flip": True}, "--flip mirrors pictures"),
        ({"autoencoder": "nowhere"}, "no autoencoder at nowhere"),
        ({"size": 18}, "multiples of 4, not 3 channels and a side of 18"),
        ({"channels": 1}, "takes pictures of 3 channels"),
    ],
)
def test_refusals(recipe: Recipe, change: dict, told: str) -> None:
    with pytest.raises(LimnerError, match=told):
        Trainer(replace(recipe, **change), None, Console(quiet=True))


def test_an_autoencoder_of_a_size_that_does_not_divide_is_refused(vae_recipe: AutoencoderRecipe) -> None:
    with pytest.raises(LimnerError, match="size 18 must be a multiple of 4"):
        Trainer(replace(vae_recipe, size=18), None, Console(quiet=True))
    with pytest.raises(LimnerError, match="kl must be at least 0"):
        replace(vae_recipe, kl=-1)
