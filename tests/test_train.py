"""The trainer: what it computes, that a resumed run is the run it resumes, and what it says to bad input."""

import io
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import COLOURS, KEPT, TINY, assert_equal, logged, paint_colour, tensors, trainer, worked_out
from PIL import Image
from rich.console import Console

from limner.data.batches import Batches
from limner.data.sources import Source, open_source
from limner.data.world import write_folder
from limner.errors import LimnerError
from limner.nets.dit import DiT, DiTConfig
from limner.noise import paths
from limner.picture import sheet
from limner.pipeline import Pipeline
from limner.schedulers import read_schedule
from limner.settings import Settings
from limner.text.conditioner import Nothing
from limner.text.tokenizer import Tokenizer
from limner.train import checkpoint
from limner.train.loop import (
    Stopped,
    Trainer,
    can_compile,
    lr_multiplier,
    step_generator,
    stop_after_step,
    update_average,
)
from limner.train.loss import Cached, DiffusionLoss
from limner.train.recipe import Recipe, TextRecipe, load_recipe, recipe_names
from limner.train.setup import scheduler_config
from limner.weights.file import read_tensors
from limner.weights.parts import save_part
from limner.world import KINDS, complete, grade, parse, prompts, render

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_resumed_run_is_bit_equal(recipe: Recipe) -> None:
    whole = replace(recipe, output=recipe.output + "-whole")
    trainer(whole).run()
    parts = replace(recipe, output=recipe.output + "-parts")
    # The first part is stopped by the run's end at step 3 of the same schedule, as a kill would.
    first = trainer(parts)
    for batch in first.batches():
        first.train_step(batch)
        if first.step == 3:
            first.save()
            break
    assert_equal(tensors(whole.output, 3), tensors(parts.output, 3))
    trainer(parts, "latest").run()
    assert_equal(tensors(whole.output, 6), tensors(parts.output, 6))


def test_training_moves_every_weight(recipe: Recipe) -> None:
    trainer(recipe).run()
    early, late = tensors(recipe.output, 3), tensors(recipe.output, 6)
    weights = [name for name in early if name.startswith("training/weights")]
    still = [name for name in weights if torch.equal(early[name], late[name])]
    # The tokens that no caption has get no gradient, but their matrix has others that do.
    assert weights and still == []


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler with Python's headers")
def test_a_compiled_run_is_the_plain_one(recipe: Recipe) -> None:
    """Convolutions beside text whose length changes from step to step: the losses of both agree."""
    for i, file in enumerate(sorted(Path(recipe.data.path or "").glob("*.txt"))):
        file.write_text(file.read_text() + i % 4 * " x")
    ends = replace(recipe, network=replace(TINY, conv_channels=8, conv_layers=1), batch_size=3)

    def losses(compiled: bool) -> list[float]:
        run = trainer(replace(ends, compile=compiled))
        assert len(run.task.to_compile) == 2
        assert all((part._compiled_call_impl is not None) == compiled for part in run.task.to_compile)
        return [run.train_step(batch).item() for batch in run.batches()]

    assert losses(True) == pytest.approx(losses(False), rel=0.01)


def test_a_tiny_model_learns_to_obey(recipe: Recipe) -> None:
    long = replace(recipe, steps=500, batch_size=24, lr=4e-3, save_every=1000, ema=0.98, dropout=0.1)
    pipe = trainer(long).run()
    for i, (name, colour) in enumerate(COLOURS.items()):
        picture = pipe(f"a {name} picture", seed=i, steps=10)[0]
        mean = torch.tensor(list(picture.get_flattened_data())).float().mean(dim=0)
        nearest = min(COLOURS, key=lambda n: (mean - torch.tensor(COLOURS[n]).float()).norm().item())
        assert nearest == name, f"asked for {name} {colour}, got {mean.tolist()}"


def test_loss_at_initialisation_is_the_target_itself() -> None:
    """The network starts at F = 0, so the loss is the mean square of eps - x0, of eps, or of v."""
    x0 = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for path_name, predicts in (("flow", "flow"), ("cosine", "eps"), ("linear", "v"), ("linear", "sample")):
        path = paths.path(path_name)
        loss = DiffusionLoss(DiT(DiTConfig(8, 1, 4, 16, 1, 2)), Nothing(), path, predicts)
        generator = torch.Generator().manual_seed(3)
        t = path.times(torch.rand(5, generator=generator))
        eps = torch.randn(x0.shape, generator=generator)
        alpha, sigma = (c[:, None, None, None] for c in path.coefficients(t))
        target = {"flow": eps - x0, "eps": eps, "v": alpha * eps - sigma * x0, "sample": x0}[predicts]
        got = loss(x0, torch.Generator().manual_seed(3), [""] * 5)
        torch.testing.assert_close(got, target.square().mean(dim=(1, 2, 3)))


def test_loss_of_a_batch_is_the_loss_of_its_pictures(recipe: Recipe) -> None:
    """Words reach the picture they belong to: another prompt changes the loss of its own picture alone."""
    run = trainer(recipe)
    for p in run.trained.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x0 = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def losses(prompts: list[str]) -> torch.Tensor:
        return run.task.loss(x0, torch.Generator().manual_seed(3), prompts)

    first = losses(["a red picture", "", "a blue picture"])
    for row in range(3):
        prompts = ["a red picture", "", "a blue picture"]
        prompts[row] = "a green picture"
        others = [k for k in range(3) if k != row]
        torch.testing.assert_close(losses(prompts)[others], first[others])
        assert abs(losses(prompts)[row] - first[row]) > 1e-4


@pytest.mark.parametrize(
    "change",
    [{}, {"seed": 7}, {"shift": 3.0}, {"times": "logit_normal"}, {"times": "logit_normal", "shift": 3.0},
     {"path": "cosine", "predicts": "v"}, {"path": "linear", "predicts": "sample"},
     {"path": "scaled_linear", "predicts": "eps"}, {"times": "log_normal"}, {"times": "log_normal", "shift": 3.0},
     {"times": "log_normal", "path": "cosine", "predicts": "v"}],
    ids=lambda change: " ".join(map(str, change.values())) or "flow",
)  # fmt: skip
def test_times_noise_and_target_are_those_of_the_recipe(recipe: Recipe, change: dict) -> None:
    """What the network is given at step 5, and the loss of a network that gives 0."""
    recipe = replace(recipe, **change)
    run, seen = trainer(recipe), []
    run.step = 5
    run.trained.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    batch = next(run.batches())
    loss = run.loss(batch)
    draws = step_generator(recipe.seed, 5, 0)
    torch.rand(8, generator=draws)  # whose captions are dropped
    u, eps = torch.rand(8, generator=draws), torch.randn(8, 3, 8, 8, generator=draws)
    path, normal = paths.path(recipe.path), math.sqrt(2) * torch.erfinv(2 * u - 1)
    if recipe.times == "log_normal":
        rho = recipe.shift * torch.exp(1.2 * normal - 1.2)
        t = 1000 * rho / (1 + rho) if recipe.path == "flow" else nearest_times(path, rho)
    else:
        u = torch.sigmoid(normal) if recipe.times == "logit_normal" else u
        u = recipe.shift * u / (1 + (recipe.shift - 1) * u)
        t = 1000 * u if recipe.path == "flow" else (1000 * u).floor()
    alpha, sigma = (c[:, None, None, None] for c in path.coefficients(t))
    x0 = batch["images"] / 127.5 - 1
    torch.testing.assert_close(seen[0][1], t, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(seen[0][0], alpha * x0 + sigma * eps, rtol=1e-4, atol=1e-4)
    target = {"flow": eps - x0, "eps": eps, "v": alpha * eps - sigma * x0, "sample": x0}[recipe.predicts]
    torch.testing.assert_close(loss, target.square().mean(dim=(1, 2, 3)))


def nearest_times(path: paths.Path, rho: torch.Tensor) -> torch.Tensor:
    """The whole times whose sigma/alpha is nearest to rho, by its logarithm."""
    alpha, sigma = path.coefficients(torch.arange(1000))
    return ((sigma / alpha).log() - rho[:, None].log()).abs().argmin(dim=1).float()


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("condition", ["class", "text"])
def test_conditions_are_dropped_as_often_as_the_recipe_says(
    recipe: Recipe, tmp_path: Path, condition: str, dropout: float
) -> None:
    """A class becomes the row past the last class, a caption the empty text; the others stay as they are."""
    chosen = by_class(recipe, tmp_path) if condition == "class" else recipe
    run = trainer(replace(chosen, dropout=dropout, batch_size=400))
    batch = next(run.batches())
    _, _, prompts = run.task.inputs(batch, step_generator(0, 0, 0), CPU)
    dropped = torch.tensor([prompt == "" for prompt in prompts])
    wanted = [sorted(COLOURS)[k] for k in batch["labels"]] if condition == "class" else batch["captions"]
    assert [p for p in prompts if p] == [w for w, drop in zip(wanted, dropped, strict=True) if not drop]
    if condition == "class":
        labels = run.task.loss.conditioner(prompts)["labels"]
        assert torch.equal(labels, batch["labels"].masked_fill(dropped, 3))
    assert dropped.float().mean().item() == pytest.approx(dropout, abs=0.08 if 0 < dropout < 1 else 0)


@pytest.mark.parametrize(("dropout", "rows"), [(0.0, {0, 1, 2}), (1.0, {3})])
def test_no_class_is_learnt_in_the_row_past_the_last_class(
    recipe: Recipe, tmp_path: Path, dropout: float, rows: set[int]
) -> None:
    run = trainer(replace(by_class(recipe, tmp_path), dropout=dropout))
    for p in run.trained.parameters():
        torch.nn.init.normal_(p, std=0.2)
    run.loss(next(run.batches())).sum().backward()
    gradient = run.trained.denoiser.classes.weight.grad
    assert set(gradient.any(dim=1).nonzero().flatten().tolist()) == rows


@pytest.mark.parametrize(
    ("prompt", "settings", "rows"),
    [
        ("", {"guidance_scale": 1.0}, {3}),
        ("green", {"guidance_scale": 1.0}, {1}),
        ("green", {"guidance_scale": 3.0}, {1, 3}),
        ("green", {"guidance_scale": 3.0, "negative_prompt": "red"}, {1, 2}),
    ],
)
def test_guidance_leads_away_from_the_row_past_the_last_class(
    recipe: Recipe, tmp_path: Path, prompt: str, settings: dict, rows: set[int]
) -> None:
    """Which rows of the classes' embedding a picture depends on; blue, green and red are 0, 1 and 2."""
    pipe = trainer(by_class(recipe, tmp_path)).result
    network = pipe.model.network
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)

    def paint() -> torch.Tensor:
        return list(pipe.paint(prompt, **settings).steps)[-1].x

    plain, depends = paint(), set()
    for row in range(4):
        kept = network.classes.weight[row].clone()
        network.classes.weight[row] += 1
        if not torch.equal(paint(), plain):
            depends.add(row)
        network.classes.weight[row] = kept
    assert depends == rows


def test_learning_rate() -> None:
    recipe = Recipe(Source(), "x", lr=2.0, warmup=4, steps=12, schedule="cosine")
    rates = [lr_multiplier(step, recipe) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5) and rates[12] == pytest.approx(0.0)
    assert lr_multiplier(11, replace(recipe, schedule="constant")) == 1.0


def test_the_text_encoder_has_its_own_rate(recipe: Recipe) -> None:
    def run(scale: float) -> tuple[Trainer, dict[str, bool]]:
        """The trainer after its last step, and which weights moved."""
        shutil.rmtree(recipe.output, ignore_errors=True)
        run = trainer(replace(recipe, text=replace(recipe.text, lr_scale=scale), beta2=0.9))
        before = {name: p.detach().clone() for name, p in run.trained.named_parameters()}
        run.run()
        return run, {name: not torch.equal(p, before[name]) for name, p in run.trained.named_parameters()}

    for scale in (1.0, 0.25, 0.0):
        done, moved = run(scale)
        assert all(yes == (scale > 0 or name.startswith("denoiser")) for name, yes in moved.items())
        rates = {id(p): group["lr"] for group in done.optimizer.param_groups for p in group["params"]}
        assert all(group["betas"] == (0.9, 0.9) for group in done.optimizer.param_groups)
        learning = [(name, p) for name, p in done.trained.named_parameters() if p.requires_grad]
        assert {name.split(".")[0] for name, _ in learning} == {"denoiser"} | ({"text_encoder"} if scale else set())
        for name, p in learning:
            own = scale if name.startswith("text_encoder") else 1.0
            assert rates[id(p)] == pytest.approx(own * recipe.lr * lr_multiplier(recipe.steps - 1, recipe)), name


@pytest.mark.parametrize(
    "change",
    [{}, {"weight_decay": 20.0}, {"clip": 0.01}, {"beta2": 0.5}, {"ema": 0.05}, {"warmup": 0}, {"seed": 3},
     {"lr": 3e-3}, {"text": TextRecipe(32, 1, 2, 8, 600, lr_scale=0.25)}],
    ids=lambda change: " ".join(change) or "plain",
)  # fmt: skip
def test_steps_are_those_worked_out_by_hand(recipe: Recipe, change: dict) -> None:
    """Losses, weights, averages and both moments after three steps of AdamW."""
    recipe = replace(recipe, **change)
    run = trainer(recipe)
    losses = [run.train_step(batch).item() for batch, _ in zip(run.batches(), range(3), strict=False)]
    wanted = worked_out(recipe, 3)
    assert losses == pytest.approx(wanted.losses, rel=1e-5)
    averages = dict(run.average.named_parameters())
    for name, p in run.trained.named_parameters():
        state = run.optimizer.state[p]
        for got, by_hand, within in (
            (p, wanted.weights, 1e-5),
            (averages[name], wanted.average, 1e-5),
            (state["exp_avg"], wanted.first, 1e-5 * recipe.clip),
            (state["exp_avg_sq"], wanted.second, 1e-5 * recipe.clip**2),
        ):
            torch.testing.assert_close(got.detach().double(), by_hand[name], rtol=1e-3, atol=within, msg=name)


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_gradient_is_no_longer_than_the_recipe_allows(recipe: Recipe, clip: float) -> None:
    """All of it together: the first moment is a tenth of the first gradient."""
    run = trainer(replace(recipe, clip=clip))
    run.train_step(next(run.batches()))
    moments = [state["exp_avg"] for state in run.optimizer.state.values()]
    (norm,) = worked_out(recipe, 1).norms
    assert 0.1 < norm < 10
    assert torch.nn.utils.get_total_norm(moments).item() == pytest.approx(0.1 * min(clip, norm), rel=1e-3)


@pytest.mark.parametrize(("precision", "wanted"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_bf16_is_for_the_networks_products_alone(
    recipe: Recipe, any_precision: None, precision: str, wanted: torch.dtype
) -> None:
    """Every linear layer and convolution gives bfloat16; weights, moments and losses stay float32."""
    ends = replace(TINY, conv_channels=8, conv_layers=1)
    run = trainer(replace(recipe, network=ends, precision=precision))
    given: dict[str, torch.dtype] = {}
    for name, layer in run.trained.named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_hook(lambda module, args, out, name=name: given.update({name: out.dtype}))
    batch = next(run.batches())
    assert run.loss(batch).dtype == run.train_step(batch).dtype == torch.float32
    assert len(given) > 20 and {name.split(".")[0] for name in given} == {"denoiser", "text_encoder"}
    assert set(given.values()) == {wanted}
    moments = [tensor for state in run.optimizer.state.values() for tensor in state.values()]
    kept = [*run.trained.parameters(), *run.average.parameters(), *moments]
    assert len(moments) > 60 and {tensor.dtype for tensor in kept} == {torch.float32}


def test_the_log_tells_what_the_steps_gave(recipe: Recipe) -> None:
    """Mean losses and rates since the last entry; what a resumed run does again replaces what was there."""

    def run(steps: int, resume: str | None) -> tuple[Trainer, list[float], float, float]:
        """The trainer, its losses, the seconds within its steps and those of the whole."""
        run, losses, inside = trainer(replace(recipe, steps=steps, schedule="constant"), resume), [], []
        step = run.train_step

        def timed(batch: dict) -> torch.Tensor:
            since = time.perf_counter()
            losses.append(step(batch))
            inside.append(time.perf_counter() - since)
            return losses[-1]

        run.train_step = timed  # type: ignore[method-assign]
        since = time.perf_counter()
        run.run()
        return run, [loss.item() for loss in losses], min(inside), time.perf_counter() - since

    _, first, quickest, whole = run(5, None)
    log = logged(recipe.output)
    assert [step for step, _ in log["loss"]] == [2, 4, 5]
    means = [np.mean(first[a:b]) for a, b in ((0, 2), (2, 4), (4, 5))]
    assert [value for _, value in log["loss"]] == pytest.approx(means, rel=1e-5)
    assert log["learning_rate"] == [(2, pytest.approx(1e-3)), (4, pytest.approx(1e-3)), (5, pytest.approx(1e-3))]
    assert [step for step, _ in log["images_per_second"]] == [2, 4, 5]
    assert all(8 / whole < value < 8 / quickest for _, value in log["images_per_second"])

    shutil.rmtree(Path(recipe.output) / "checkpoint-5")
    _, again, *_ = run(6, "latest")
    log = logged(recipe.output)
    assert [step for step, _ in log["loss"]] == [2, 4, 6] and again[:2] == first[3:]
    means[1:] = [again[0], np.mean(again[1:])]
    assert [value for _, value in log["loss"]] == pytest.approx(means, rel=1e-5)


def test_a_warm_up_and_a_half_cosine_are_in_the_log(recipe: Recipe) -> None:
    trainer(replace(recipe, log_every=1, warmup=3)).run()
    wanted = [1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 0.75e-3, 0.25e-3]
    assert [value for _, value in logged(recipe.output)["learning_rate"]] == pytest.approx(wanted)


@pytest.mark.parametrize(("name", "kinds", "count"), [("mnist", set(KINDS), 6), ("world:one", {"one"}, 53)])
def test_the_log_tells_the_share_of_prompts_that_the_model_obeys(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, name: str, kinds: set[str], count: int
) -> None:
    """Two of three pictures show what their prompt says. The share is that of the same pictures, judged one by one."""
    painted: dict[str, tuple[Image.Image, int, Pipeline]] = {}

    def paint(pipe: Pipeline, texts: list[str], *, seed: int = 0, **settings: object) -> list[Image.Image]:
        pictures = []
        for k, prompt in enumerate(texts, seed):
            picture = Image.new("RGB", (64, 64), "white")
            if k % 3 and prompt not in recipe.sample_prompts:
                draws = random.Random(k)
                picture = Image.fromarray(render([complete(parse(prompt), draws)], 64, [k])[0])
            pictures.append(picture)
            painted[prompt] = picture, k, pipe
        return pictures

    monkeypatch.setattr(Pipeline, "__call__", paint)
    data = replace(recipe.data, name=name)
    text = replace(recipe.text, length=99)  # of captions of other words
    run = trainer(replace(recipe, data=data, grade=count, steps=2, sample_every=1, size=32, text=text))
    run.run()
    log = {name: values for name, values in logged(recipe.output).items() if name.startswith("obeyed")}
    assert set(log) == {f"obeyed_{kind}" for kind in kinds}
    for kind in kinds:
        fresh = prompts(kind, count, held_out=False)
        pictures, seeds, pipes = zip(*(painted[prompt] for prompt, _ in fresh), strict=True)
        share = np.mean([grade(picture, scene).obeyed for picture, (_, scene) in zip(pictures, fresh, strict=True)])
        assert share == pytest.approx(2 / 3, abs=0.02) and all(pipe is run.result for pipe in pipes)
        assert log[f"obeyed_{kind}"] == [(1, pytest.approx(share)), (2, pytest.approx(share))]
        assert list(seeds) == list(range(count))


def test_the_numbers_of_the_recipe_are_those_of_the_networks(recipe: Recipe) -> None:
    network = DiTConfig(
        patch_size=2, hidden_size=24, depth=3, num_heads=6, conv_channels=16, conv_layers=1, position_scale=2.5,
        pooled_text=True,
    )  # fmt: skip
    text = TextRecipe(hidden_size=20, layers=3, num_heads=5, length=9, vocab_size=520)
    model = trainer(replace(recipe, channels=1, network=network, text=text)).result.model
    assert model.network.config == replace(network, sample_size=8, in_channels=1, text_dim=20)
    config, tokenizer = model.parts()["text_encoder"].config, model.tokenizers()["tokenizer"]
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (20, 3, 5)
    assert (config.max_position_embeddings, config.vocab_size, tokenizer.vocab_size) == (9, 520, 520)


def test_the_batches_are_those_of_the_recipe(recipe: Recipe) -> None:
    """Order, captions and mirrored pictures, by the seed."""
    for change in ({}, {"seed": 5}, {"flip": True}):
        run = trainer(replace(recipe, **change))
        wanted = Batches(open_source(recipe.data), 8, 8, 3, **({"seed": 0, "flip": False} | change))
        for step, batch in enumerate(run.batches()):
            assert torch.equal(batch["images"], wanted.batch(step)["images"])
            assert batch["captions"] == wanted.batch(step)["captions"]
        assert step == 5


def test_labels_become_captions_by_the_templates_of_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    labelled = by_class(recipe, tmp_path)
    data = replace(labelled.data, templates=("my {}",))
    run = trainer(replace(labelled, data=data, condition="text"))
    assert set(next(run.batches())["captions"]) == {f"my {name}" for name in COLOURS}


def test_a_seed_gives_its_own_weights(recipe: Recipe) -> None:
    one, again, other = (trainer(replace(recipe, seed=seed)).trained.state_dict() for seed in (1, 1, 2))
    assert_equal(one, again)
    assert not torch.equal(one["denoiser.patch_in.weight"], other["denoiser.patch_in.weight"])
    embedding = "text_encoder.text_model.embeddings.token_embedding.weight"
    assert not torch.equal(one[embedding], other[embedding])


@pytest.mark.parametrize("workers", [0, 2])
def test_as_many_processes_decode_pictures_as_the_recipe_says(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(Batches, "batch", lambda self, step: {"process": os.getpid()})
    processes = {batch["process"] for batch in trainer(replace(recipe, workers=workers)).batches()}
    assert len(processes - {os.getpid()}) == workers and (os.getpid() in processes) == (workers == 0)


def test_average() -> None:
    average, trained = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.constant_(average.weight, 0.0)
    torch.nn.init.constant_(trained.weight, 1.0)
    update_average(average, trained, 0, 0.9)  # early decay: 1/10
    assert average.weight.item() == pytest.approx(0.9)
    update_average(average, trained, 10_000, 0.9)
    assert average.weight.item() == pytest.approx(0.91)


def test_draws_are_keyed_by_seed_step_and_rank() -> None:
    draws = {
        torch.rand(1, generator=step_generator(seed, step, rank)).item()
        for seed in (0, 1) for step in (0, 1, 2) for rank in (0, 1)
    }  # fmt: skip
    assert len(draws) == 12
    assert torch.rand(1, generator=step_generator(1, 2, 1)).item() in draws


def test_dropout_one_hides_every_caption(recipe: Recipe) -> None:
    run = trainer(replace(recipe, dropout=1.0))
    for p in run.trained.parameters():
        torch.nn.init.normal_(p, std=0.2)
    batch = next(run.batches())
    losses = run.loss(batch)
    torch.testing.assert_close(run.loss(batch | {"captions": ["a blue picture"] * 8}), losses)
    seeing = trainer(replace(recipe, dropout=0.0, output=recipe.output + "2"))
    for p in seeing.trained.parameters():
        torch.nn.init.normal_(p, std=0.2)
    losses = seeing.loss(batch)
    assert not torch.equal(seeing.loss(batch | {"captions": ["a blue picture"] * 8}), losses)


def test_frozen_text_encoder_runs_once_per_distinct_prompt(recipe: Recipe) -> None:
    """However often prompts come, and `batch_size` of them together; the states are the conditioner's own."""
    conditioner, seen = trainer(recipe).task.model.conditioner, []
    texts = ["a red picture", "", "a blue picture", "a red picture", "red"]
    wanted = conditioner.encode(texts)
    conditioner.parts()["text_encoder"].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    cached = Cached(conditioner, batch_size=3)
    for _ in range(3):
        for got, states in zip(cached(texts), wanted, strict=True):
            torch.testing.assert_close(got[0].tokens, states[0].tokens)
            assert not got[0].tokens.requires_grad
    assert seen == [3, 1]


def test_no_more_prompts_are_kept_than_the_size_of_the_cache(recipe: Recipe) -> None:
    """Those that came first go first, and come back with the same states."""
    conditioner = trainer(recipe).task.model.conditioner
    cached, texts = Cached(conditioner, size=2), ["red", "green", "blue", "a red picture"]
    for some, kept in (
        (texts[:2], ["red", "green"]),
        (texts[2:3], ["green", "blue"]),
        (texts, ["red", "a red picture"]),
        (["red"], ["red", "a red picture"]),
    ):
        for got, states in zip(cached(some), conditioner.encode(some), strict=True):
            torch.testing.assert_close(got[0].tokens, states[0].tokens)
        assert list(cached.cache) == kept


@pytest.mark.parametrize(("lr_scale", "trains"), [(None, False), (0.0, False), (0.5, True)])
def test_pretrained_text_encoder_is_trained_where_the_recipe_gives_it_a_rate(
    recipe: Recipe, tmp_path: Path, lr_scale: float | None, trains: bool
) -> None:
    source = trainer(replace(recipe, output=recipe.output + "-source")).run()
    source.save(tmp_path / "clip")
    text = TextRecipe(pretrained=str(tmp_path / "clip"), lr_scale=lr_scale)
    own = replace(recipe, text=text, output=recipe.output + "-own")
    run = trainer(own)
    before = source.model.parts()["text_encoder"].state_dict()
    assert_equal(dict(run.task.model.parts()["text_encoder"].state_dict()), before)
    assert set(run.trained) == {"denoiser"} | ({"text_encoder"} if trains else set())
    assert isinstance(run.task.loss.encode, Cached) == (not trains)
    pipe = run.run()
    for encoder in (run.task.model.parts()["text_encoder"], pipe.model.parts()["text_encoder"]):
        moved = [name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])]
        assert set(moved) == (set(before) if trains else set())
    assert sorted({group["scale"] for group in run.optimizer.param_groups}) == ([0.5, 1.0] if trains else [1.0])
    opened = Pipeline.from_pretrained(own.output)
    assert opened("a red picture", seed=1, steps=2)[0].tobytes() == pipe("a red picture", seed=1, steps=2)[0].tobytes()


@pytest.mark.parametrize("pretrained", [False, True], ids=["from nothing", "pretrained"])
def test_learned_null_text_is_trained_saved_and_resumed(recipe: Recipe, tmp_path: Path, pretrained: bool) -> None:
    """Also beside a text encoder that stays as it is."""
    text = recipe.text
    if pretrained:
        trainer(replace(recipe, output=recipe.output + "-source")).run().save(tmp_path / "clip")
        text = TextRecipe(pretrained=str(tmp_path / "clip"))
    null = replace(recipe, text=replace(text, learned_null=True), dropout=0.5)
    run = trainer(null)
    before = {name: tensor.clone() for name, tensor in run.trained.state_dict().items()}
    pipe = run.run()
    assert set(run.trained) == {"denoiser", "null_text"} | (set() if pretrained else {"text_encoder"})
    for name in ("null_text.tokens", "denoiser.patch_out.weight"):
        for module in (run.trained, run.average):
            assert not torch.equal(module.state_dict()[name], before[name]), (name, module is run.average)
    assert pipe.model.parts()["null_text"] is run.average["null_text"]

    opened = Pipeline.from_pretrained(null.output)
    assert (Path(null.output) / "checkpoint-6/null_text/model.safetensors").is_file()
    settings = {"seed": 1, "steps": 2, "guidance_scale": 4.0}
    assert opened("a red picture", **settings)[0].tobytes() == pipe("a red picture", **settings)[0].tobytes()

    shutil.rmtree(Path(null.output) / "checkpoint-6")
    whole = {name: tensor.clone() for name, tensor in run.trained.state_dict().items()}
    averages = {name: tensor.clone() for name, tensor in run.average.state_dict().items()}
    again = trainer(null, "latest")
    assert again.step == 3
    again.run()
    assert_equal(dict(again.trained.state_dict()), whole)
    assert_equal(dict(again.average.state_dict()), averages)


@pytest.mark.parametrize(
    ("prompt", "settings", "depends"),
    [
        ("", {"guidance_scale": 1.0}, True),
        ("a red picture", {"guidance_scale": 1.0}, False),
        ("a red picture", {"guidance_scale": 3.0}, True),
        ("a red picture", {"guidance_scale": 3.0, "negative_prompt": "a blue picture"}, False),
    ],
)
def test_guidance_leads_away_from_the_learned_null_text(
    recipe: Recipe, prompt: str, settings: dict, depends: bool
) -> None:
    pipe = trainer(replace(recipe, text=replace(recipe.text, learned_null=True))).result
    for part in pipe.model.parts().values():
        for p in part.parameters():
            torch.nn.init.normal_(p, std=0.2)

    def paint() -> torch.Tensor:
        return list(pipe.paint(prompt, **settings).steps)[-1].x

    plain = paint()
    pipe.model.parts()["null_text"].tokens += 1
    assert torch.equal(paint(), plain) != depends


def test_learned_null_text_gets_its_gradient_from_dropped_captions_alone(recipe: Recipe, tmp_path: Path) -> None:
    trainer(replace(recipe, output=recipe.output + "-source")).run().save(tmp_path / "clip")
    for k, text in enumerate((recipe.text, TextRecipe(pretrained=str(tmp_path / "clip")))):
        for dropout in (0.0, 1.0):
            run = trainer(replace(recipe, text=replace(text, learned_null=True), dropout=dropout))
            for p in run.trained.denoiser.parameters():
                torch.nn.init.normal_(p, std=0.2)
            run.loss(next(run.batches())).sum().backward()
            encoder = run.task.model.parts()["text_encoder"]
            assert (run.trained.null_text.tokens.grad is not None) == (dropout == 1.0)
            assert any(p.grad is not None for p in encoder.parameters()) == (dropout == 0.0 and k == 0)


def test_finished_run_opens_as_a_model(recipe: Recipe) -> None:
    recipe = replace(recipe, guidance_scale=4.5)
    pipe = trainer(recipe).run()
    again = Pipeline.from_pretrained(recipe.output)
    assert again("a red picture", seed=5, steps=3)[0].tobytes() == pipe("a red picture", seed=5, steps=3)[0].tobytes()
    assert again.model.defaults == {"steps": 2, "guidance_scale": 4.5}
    painted = sheet(again(recipe.sample_prompts, seed=0), recipe.sample_prompts, scale=12)
    with Image.open(Path(recipe.output) / "samples" / "step-0000006.png") as sample:
        assert sample.size == painted.size and sample.tobytes() == painted.convert(sample.mode).tobytes()


def by_class(recipe: Recipe, root: Path) -> Recipe:
    """The same run on three classes of four pictures."""
    for name in COLOURS:
        folder = root / "classes" / name
        folder.mkdir(parents=True)
        for k in range(4):
            paint_colour(folder / f"{k}.png", name, 10 * k)
    return replace(recipe, data=Source(path=str(root / "classes")), condition="class", sample_prompts=())


def test_classes_and_none(recipe: Recipe, tmp_path: Path) -> None:
    recipe = by_class(recipe, tmp_path)
    classes = trainer(replace(recipe, output=recipe.output + "-class")).run()
    assert list(classes.model.conditioner.names) == sorted(COLOURS)
    for p in classes.model.network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert classes("red")[0].tobytes() != classes("blue")[0].tobytes()
    with pytest.raises(LimnerError, match="did you mean 'blue'"):
        classes("blu")
    for file in (tmp_path / "pictures").glob("*.txt"):
        file.unlink()  # without a condition nothing need be said of the pictures
    bare = Source(path=str(tmp_path / "pictures"))
    plain = trainer(replace(recipe, data=bare, condition="none", output=recipe.output + "-none")).run()
    plain("", steps=2)
    with pytest.raises(LimnerError, match="reads no text"):
        plain("a red picture", steps=2)
    with pytest.raises(LimnerError, match="guidance has nothing to act on"):
        plain("", steps=2, guidance_scale=4.0)


def test_training_starts_from_another_model(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights and its tokenizer, whatever the new captions are; its optimiser and its step count stay behind."""
    first = trainer(replace(recipe, steps=3)).run()
    again = replace(recipe, init=recipe.output, output=str(tmp_path / "again"), seed=5)
    monkeypatch.setattr(Tokenizer, "train", None)  # the first model's is taken
    begun = trainer(again)
    assert begun.step == 0
    theirs = first.model.parts()
    for parts in (begun.result.model.parts(), begun.trained):
        assert set(parts) == set(theirs) == {"denoiser", "text_encoder"}
        for name, part in parts.items():
            assert_equal(part.state_dict(), theirs[name].state_dict())
    wider = replace(again, network=replace(recipe.network, depth=recipe.network.depth + 1))
    with pytest.raises(LimnerError, match=r"--init .*: its denoiser is DiTConfig.*the recipe's is DiTConfig"):
        trainer(wider)
    with pytest.raises(LimnerError, match="no model at"):
        trainer(replace(again, init=str(tmp_path / "nowhere")))


def test_only_the_newest_checkpoints_are_kept(recipe: Recipe) -> None:
    trainer(replace(recipe, keep=2, save_every=2)).run()
    assert sorted(p.name for p in Path(recipe.output).glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_a_step_and_the_run_resumes_bit_equal(recipe: Recipe, sent: signal.Signals) -> None:
    before = signal.getsignal(sent)
    whole = replace(recipe, output=recipe.output + "-whole")
    trainer(whole).run()
    run = trainer(recipe)
    step = run.train_step

    def interrupted(batch: dict) -> torch.Tensor:
        if run.step == 1:
            os.kill(os.getpid(), sent)
        return step(batch)

    run.train_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="stopped after step 2; go on with --resume latest"):
        run.run()
    assert signal.getsignal(sent) == before
    trainer(recipe, "latest").run()
    assert_equal(tensors(whole.output, 6), tensors(recipe.output, 6))


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_after_step() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop == [False]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_full_disk_leaves_the_last_checkpoint_whole(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(recipe)
    where = Path(recipe.output)
    checkpoint.save(where, 1, run.result, run.trained, run.average, run.optimizer, recipe)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("limner.train.checkpoint.write_json", full)
    with pytest.raises(LimnerError, match="No space left.*; checkpoint-1 is whole: go on with --resume latest"):
        checkpoint.save(where, 2, run.result, run.trained, run.average, run.optimizer, recipe)
    assert [p.name for p in where.iterdir()] == ["checkpoint-1"]
    tensors(recipe.output, 1)


def test_nan_is_named(recipe: Recipe) -> None:
    run = trainer(recipe)
    run.trained.denoiser.blocks[1].mlp_in.weight.data[0, 0] = math.nan  # type: ignore[union-attr, index]
    with pytest.raises(LimnerError, match=r"loss is nan .* at step 0; .* of denoiser\.blocks\.1\.mlp_in\.weight"):
        run.run()


def test_a_gradient_that_is_not_a_number_moves_nothing(recipe: Recipe) -> None:
    """A finite loss with a NaN gradient: clipping would spread it to every weight and every average."""
    run = trainer(recipe)
    before = {name: tensor.clone() for name, tensor in run.trained.state_dict().items()}
    run.trained.denoiser.patch_out.bias.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(LimnerError, match=r"loss is \d.* the gradients of denoiser\.patch_out\.bias"):
        run.run()
    for module in (run.trained, run.average):
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not list(Path(recipe.output).glob("checkpoint-*"))


def test_resume_errors(recipe: Recipe) -> None:
    with pytest.raises(LimnerError, match="nothing to resume"):
        trainer(recipe, "latest")
    trainer(recipe).run()
    with pytest.raises(LimnerError, match="already holds a run"):
        trainer(recipe)
    with pytest.raises(LimnerError, match=r"holds checkpoint-6, newer than .*checkpoint-3"):
        trainer(recipe, f"{recipe.output}/checkpoint-3")
    wider = replace(recipe, network=replace(TINY, hidden_size=64))
    with pytest.raises(LimnerError, match=r"another recipe:\n  denoiser\.patch_in\.weight is \(32, 48\) in the file"):
        trainer(wider, "latest")
    weights = Path(recipe.output) / "checkpoint-6/training/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(LimnerError, match="not a valid safetensors file"):
        trainer(recipe, "latest")


def test_resume_keeps_the_tokenizer_and_says_what_changed(recipe: Recipe, tmp_path: Path) -> None:
    first = trainer(recipe)
    first.run()
    for text in (tmp_path / "pictures").glob("*.txt"):
        text.write_text(text.read_text().replace("a ", "one "))
    console = Console(record=True, width=300, file=io.StringIO())
    again = trainer(replace(recipe, steps=8, lr=5e-4), "latest", console)
    assert "at step 6, changed: steps 6 -> 8; lr 0.001 -> 0.0005" in console.export_text()
    before, after = (run.result.model.tokenizers()["tokenizer"] for run in (first, again))
    assert after.pieces("a red picture") == before.pieces("a red picture")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"dropout": 2.0}, "dropout must be from 0 to 1, not 2"),
        ({"ema": -0.1}, "ema must be from 0 to 1"),
        ({"lr": -1.0}, "lr must be more than 0"),
        ({"lr": math.nan}, "lr must be more than 0"),
        ({"clip": 0.0}, "clip must be more than 0"),
        ({"beta2": 1.0}, "beta2 must be from 0 to below 1, not 1"),
    ],
)
def test_recipe_numbers(recipe: Recipe, change: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        replace(recipe, **change)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (DiTConfig, {"num_heads": 0}, "num_heads must be at least 1"),
        (TextRecipe, {"layers": 0}, "layers must be at least 1"),
        (TextRecipe, {"length": 1}, "length must be at least 2"),
        (TextRecipe, {"vocab_size": 513}, "vocab_size must be at least 514"),
        (TextRecipe, {"lr_scale": -1.0}, "lr_scale must be at least 0, not -1"),
        (TextRecipe, {"lr_scale": math.nan}, "lr_scale must be at least 0, not nan"),
    ],
)
def test_numbers_of_networks_in_a_recipe(kind: Callable, change: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        kind(**change)


def test_zero_means_only_at_the_end(recipe: Recipe) -> None:
    trainer(replace(recipe, save_every=0, sample_every=0)).run()
    assert [p.name for p in Path(recipe.output).glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_name_that_only_looks_like_a_checkpoint_is_left_alone(recipe: Recipe) -> None:
    kept = Path(recipe.output) / "checkpoint-1-best"
    kept.mkdir(parents=True)
    trainer(replace(recipe, keep=1)).run()
    assert kept.is_dir()


def test_data_workers_give_the_same_run_and_the_same_errors(recipe: Recipe, tmp_path: Path) -> None:
    trainer(recipe).run()
    trainer(replace(recipe, workers=1, output=recipe.output + "-workers")).run()
    assert_equal(tensors(recipe.output, 6), tensors(recipe.output + "-workers", 6))
    for picture in (tmp_path / "pictures").glob("*.png"):
        picture.write_bytes(b"not a picture")
    with pytest.raises(LimnerError, match=r"^24 pictures in a row cannot be read"):
        trainer(replace(recipe, workers=1, output=recipe.output + "-broken")).run()


def run_by_two(recipe: Recipe, root: Path, *flags: str, **options: object) -> list[dict]:
    """What both processes of three steps of a tiny run have in the end: recipe, weights, average."""
    (root / "kept.py").write_text(KEPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(root / "kept.py"), str(root), "train", "mnist-text", "--no-compile", *flags]
    options = {
        "data.path": recipe.data.path, "output": recipe.output, "size": 8, "channels": 3, "steps": 3, "batch-size": 8,
        "warmup": 1, "log-every": 1, "network.hidden-size": 32, "network.num-heads": 2, "network.depth": 2, "seed": 4,
        "clip": 100, "sample-prompts": "a red picture",
    } | options  # fmt: skip
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("use it: limner generate") == 1 and done.stderr.count("step 3 ") == 1
    assert [p.name for p in Path(recipe.output).glob("checkpoint-*")] == ["checkpoint-3"]
    return [torch.load(root / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_two_processes_make_one_run(recipe: Recipe, tmp_path: Path) -> None:
    """The weights of both are those of one process that follows the mean gradient of both shares of each batch."""
    one, other = run_by_two(recipe, tmp_path)
    assert_equal(one["weights"], other["weights"])
    assert_equal(one["average"], other["average"])
    wanted = worked_out(one["recipe"], 3, world=2)
    for name, weight in wanted.weights.items():
        torch.testing.assert_close(one["weights"][name].double(), weight, rtol=0, atol=1e-5, msg=name)
    moments = read_tensors(Path(recipe.output) / "checkpoint-3/training/optimizer.safetensors")
    for name, moment in wanted.first.items():
        torch.testing.assert_close(moments[f"{name}/exp_avg"].double(), moment, rtol=1e-3, atol=1e-5, msg=name)
    losses = [value for _, value in logged(recipe.output)["loss"]]
    assert losses == pytest.approx(wanted.losses, rel=1e-5)


def test_two_processes_train_a_null_text_that_not_each_of_them_needs(recipe: Recipe, tmp_path: Path) -> None:
    """One picture each a step, whose captions are dropped by one process, by none and by both."""
    options = {"batch-size": 2, "dropout": 0.5, "seed": 16}
    one, other = run_by_two(recipe, tmp_path, "--text.learned-null", **options)
    dropped = [[torch.rand(1, generator=step_generator(16, step, rank)) < 0.5 for rank in (0, 1)] for step in range(3)]
    assert dropped == [[True, False], [False, False], [True, True]]
    assert_equal(one["weights"], other["weights"])
    assert_equal(one["average"], other["average"])
    for name, weight in worked_out(one["recipe"], 3, world=2).weights.items():
        torch.testing.assert_close(one["weights"][name].double(), weight, rtol=0, atol=1e-5, msg=name)


def test_data_errors_before_the_first_step(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimnerError, match="holds no picture"):
        trainer(replace(recipe, data=Source(path=str(tmp_path / "empty"))))
    pictures = open_source(recipe.data)
    for change, message in (
        ({"text": replace(recipe.text, length=3)}, "over the text encoder's context length of 3"),
        ({"size": 10}, "not divisible by patch_size"),
        ({"predicts": "eps"}, "set --predicts flow"),
    ):
        with pytest.raises(LimnerError, match=message):
            replace(recipe, **change).task(pictures, None)
    with pytest.raises(LimnerError, match="--sample-prompts: .* over the text encoder's context length of 8"):
        replace(recipe, sample_prompts=("a red picture", "red " * 20)).task(pictures, None)


def test_broken_pictures(recipe: Recipe, tmp_path: Path) -> None:
    broken = tmp_path / "pictures" / "05.png"
    broken.write_bytes(broken.read_bytes()[:40])
    run = trainer(replace(recipe, data=replace(recipe.data, max_broken=0.1)))
    run.run()
    assert list(run.broken.names) == [str(broken)]
    with pytest.raises(LimnerError, match="1 pictures cannot be read"):
        trainer(replace(recipe, data=replace(recipe.data, max_broken=0.0), output=recipe.output + "2")).run()


def test_shipped_recipes(shared_data: Path, tmp_path: Path) -> None:
    """Every recipe describes a model that can be made for its data."""
    known = {"mnist-unconditional", "mnist-dit", "mnist-class", "mnist-text", "cifar10-text", "unet-ddpm"}
    assert known | {"world", "world-quick", "world-text", "world-vae"} <= set(recipe_names())
    sizes = {}
    vae = load_recipe("world-vae")[0].task(open_source(Source("world")), None)
    save_part(vae.parts["vae"], tmp_path / "vae")
    write_folder(tmp_path / "pictures", 20, 64, seed=0)
    for name in sorted(recipe_names(), key=lambda name: name != "world-text"):  # others start from its encoder
        recipe, _ = load_recipe(name)
        data = replace(recipe.data, name=recipe.data.name.replace("mnist=", f"{shared_data / 'mnist'}="))
        if data.name in ("mnist", "cifar10"):
            data = replace(data, path=str(tmp_path / "pictures" if data.path else shared_data / data.name))
        recipe = replace(recipe, **({"autoencoder": str(tmp_path)} if getattr(recipe, "autoencoder", None) else {}))
        if getattr(recipe, "text", TextRecipe()).pretrained:
            assert recipe.text.pretrained == load_recipe("world-text")[0].output
            recipe = replace(recipe, text=replace(recipe.text, pretrained=str(tmp_path / "text")))
        task = recipe.task(open_source(data, captions=recipe.captions), None)
        if name == "world-text":
            task.build_result(task.parts, CPU).save(tmp_path / "text")
        sizes[name] = sum(p.numel() for p in getattr(task.parts, "denoiser", task.parts).parameters())
    assert sizes["cifar10-text"] == pytest.approx(9.75e6, rel=0.01)


def test_shift_moves_the_levels_of_the_model_towards_noise(recipe: Recipe) -> None:
    """The model samples along a grid that is shifted as its training times were."""
    schedule, _ = trainer(replace(recipe, shift=3.0)).result.resolve(Settings(steps=4))
    least = 3 * 0.001 / (1 + 2 * 0.001)  # diffusers' scheduler shifts its lowest level too, before it spaces them
    wanted = [3 * s / (1 + 2 * s) for s in torch.linspace(1, least, 4).tolist()]
    assert [level.sigma for level in schedule.grid[:-1]] == pytest.approx(wanted, abs=1e-5)
    for bad in ({"shift": 0.0}, {"shift": 2.0, "path": "cosine", "predicts": "eps"}):
        with pytest.raises(LimnerError, match="shift must be more than 0, and 1 but for the flow path"):
            replace(recipe, **bad)


def test_the_world_trains_without_conditions(recipe: Recipe) -> None:
    """Its pictures have captions whether or not they are wanted."""
    world = replace(recipe, data=Source("world:one"), size=16, condition="none", sample_prompts=(), steps=1)
    run = trainer(world)
    assert run.task.inputs(next(run.batches()), step_generator(0, 0, 0), CPU)[2] == [""] * 8
    assert run.run().model.conditioner.parts() == {}


def test_a_pretrained_text_encoder_may_be_in_half_precision(recipe: Recipe, tmp_path: Path) -> None:
    """It is trained in float32 all the same."""
    trainer(replace(recipe, output=recipe.output + "-source")).run().save(tmp_path / "half", dtype=torch.float16)
    text = TextRecipe(pretrained=str(tmp_path / "half"), lr_scale=1.0)
    trainer(replace(recipe, text=text)).run()
    assert {tensor.dtype for tensor in tensors(recipe.output, 6).values()} == {torch.float32}


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_resumed_run_may_freeze_a_pretrained_text(recipe: Recipe, tmp_path: Path, scale: float) -> None:
    trainer(replace(recipe, output=recipe.output + "-source")).run().save(tmp_path / "clip")
    free = replace(recipe, text=TextRecipe(pretrained=str(tmp_path / "clip"), lr_scale=scale))
    trainer(free).run()
    frozen = replace(free, steps=8, text=replace(free.text, lr_scale=None))
    run = trainer(frozen, "latest")
    before = read_tensors(Path(recipe.output) / "checkpoint-6/text_encoder/model.safetensors")
    assert set(run.trained) == {"denoiser"} and run.step == 6
    assert_equal(run.run().model.parts()["text_encoder"].state_dict(), before)


def test_only_what_changed_is_named_on_resuming(recipe: Recipe) -> None:
    trainer(recipe).run()
    console = Console(record=True, width=400, file=io.StringIO())
    changed = replace(recipe, steps=7, text=replace(recipe.text, lr_scale=0.5))
    trainer(changed, "latest", console)
    assert "at step 6, changed: steps 6 -> 7; text.lr_scale None -> 0.5\n" in console.export_text()


def test_init_with_other_classes_or_a_learned_null(recipe: Recipe, tmp_path: Path) -> None:
    trainer(replace(recipe, output=recipe.output + "-first")).run().save(tmp_path / "first")
    null = replace(recipe, init=str(tmp_path / "first"), text=replace(recipe.text, learned_null=True))
    trainer(null).run().save(tmp_path / "null")
    with pytest.raises(LimnerError, match=r"its null_text is NullTextConfig\(width=32\), the recipe's is absent"):
        trainer(replace(recipe, init=str(tmp_path / "null"), output=recipe.output + "-2"))
    for names in (("red", "blue"), ("red", "green")):
        for name in names:
            (tmp_path / names[1] / name).mkdir(parents=True)
            paint_colour(tmp_path / names[1] / name / "0.png", name, 0)
    by_class = replace(recipe, condition="class", sample_prompts=(), data=Source(path=str(tmp_path / "blue")))
    trainer(replace(by_class, output=recipe.output + "-3")).run().save(tmp_path / "classes")
    other = replace(by_class, init=str(tmp_path / "classes"), data=Source(path=str(tmp_path / "green")))
    with pytest.raises(LimnerError, match="its classes and the data's differ: blue, red and green, red"):
        trainer(replace(other, output=recipe.output + "-4"))


def test_sample_prompts_are_taken_evenly_from_the_captions(recipe: Recipe) -> None:
    for k, file in enumerate(sorted(Path(recipe.data.path or "").glob("*.txt"))):
        file.write_text(f"picture {k}\nnumber {k}")
    run = trainer(replace(recipe, sample_prompts=()))
    captions = run.pictures.all_captions()
    assert len(captions) == 48 and run.task.prompts == captions[::3]


def test_recipes_are_listed_without_torch() -> None:
    code = "import sys; from limner.train.recipe import *; [load_recipe(n) for n in recipe_names()]"
    code += "; print({'torch', 'datasets', 'accelerate'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("name", ["flow", "linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("predicts", ["flow", "eps", "v", "sample"])
def test_the_model_samples_along_the_path_it_was_trained_on(recipe: Recipe, name: str, predicts: str) -> None:
    """Its scheduler has the levels of training, the same prediction, and clips x0 on the paths of pixel models."""
    if (name == "flow") != (predicts == "flow"):
        return
    config = scheduler_config(replace(recipe, path=name, predicts=predicts))
    schedule, trained = read_schedule(config, 10), paths.path(name)
    assert schedule.predicts == predicts and schedule.clip == (None if name == "flow" else 1.0)
    for level in schedule.grid[:-1]:
        alpha, sigma = trained.coefficients(torch.tensor([level.t]))
        assert (alpha.item(), sigma.item()) == pytest.approx((level.alpha, level.sigma), abs=1e-5)
    assert schedule.grid[0].t == (1000.0 if name == "flow" else 900.0)


def test_a_resumed_run_knows_its_classes_in_their_order(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / "data" / name).mkdir(parents=True)
        paint_colour(tmp_path / "data" / name / "0.png", name, 0)
    by_class = replace(recipe, condition="class", sample_prompts=(), data=Source(path=str(tmp_path / "data")))
    trainer(by_class).run()
    trainer(replace(by_class, steps=7), "latest").run()
    (tmp_path / "data/red").rename(tmp_path / "data/a red")
    with pytest.raises(
        LimnerError, match=r"was trained on the classes \['blue', 'red'\], the data has \['a red', 'blue"
    ):
        trainer(replace(by_class, steps=8), "latest")


def test_a_run_in_the_precision_it_asked_for_says_nothing_of_it(recipe: Recipe) -> None:
    console = Console(record=True, width=300, file=io.StringIO())
    trainer(recipe, console=console)
    assert "this device" not in console.export_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: replace(r, network=replace(r.network, sample_size=8)),
            "leave --network.sample-size out: it follows",
        ),
        (lambda r: replace(r, network=replace(r.network, num_classes=7)), "leave --network.num-classes out"),
        (
            lambda r: replace(r, text=TextRecipe(pretrained="x", length=9)),
            "leave --text.length out: the text encoder of x",
        ),
    ],
)
def test_options_that_would_be_overwritten_are_refused(recipe: Recipe, change: Callable, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        change(recipe)


def test_a_picture_without_a_class_is_named(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = open_source(recipe.data, captions=False)
    pictures.labels, pictures.label_names = [*[0, 1] * 11, 1, -1], ["a", "b"]
    with pytest.raises(LimnerError, match=r"23\.png has no class; expected one of a, b"):
        replace(recipe, condition="class", sample_prompts=()).task(pictures, None)


def test_the_text_encoder_knows_its_tokenizer(recipe: Recipe) -> None:
    model = trainer(recipe).result.model
    tokenizer, config = model.tokenizers()["tokenizer"], model.parts()["text_encoder"].config
    assert (config.eos_token_id, config.vocab_size) == (tokenizer.end, tokenizer.vocab_size)
