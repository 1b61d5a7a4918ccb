"""What training minimises and by what steps: weights of the loss, laws of time, optimisers, epochs, held-out pictures,
and the ranges of every option."""

import io
import math
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from helpers import TINY, assert_equal, logged, tensors, trainer
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from limner.cli import main
from limner.data.batches import VALIDATION_STEP
from limner.data.sources import Source, open_source
from limner.errors import LimnerError
from limner.nets.dit import DiT, DiTConfig
from limner.noise import paths
from limner.pipeline import Pipeline
from limner.schedulers import read_schedule
from limner.text.conditioner import Nothing
from limner.train.curves import HELD_OUT, read_curves, smooth
from limner.train.fields import MAX_FLOAT, check_fields
from limner.train.held_out import split
from limner.train.loop import step_generator, with_steps
from limner.train.loss import TIME_DISTRIBUTIONS, DiffusionLoss, loss_weight
from limner.train.optimizer import OPTIMIZERS, Joined
from limner.train.recipe import AutoencoderRecipe, ContrastiveRecipe, Recipe, TextRecipe
from limner.train.setup import scheduler_config

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = {"predicts": "sample"}


def given_and_lost(loss: str, gamma: float | None, path: str, predicts: str) -> tuple[torch.Tensor, ...]:
    """x0, x, t, the output of an untrained network of random weights, and its losses."""
    network, seen = DiT(DiTConfig(8, 1, 4, 16, 1, 2)), []
    torch.manual_seed(0)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    network.register_forward_hook(lambda module, args, out: seen.append((*args[:2], out)))
    x0 = torch.rand(64, 1, 8, 8) * 2 - 1
    weight = loss_weight(loss, gamma)
    criterion = DiffusionLoss(network, Nothing(), paths.path(path), predicts, weight=weight)
    losses = criterion(x0, torch.Generator().manual_seed(3), [""] * 64)
    return x0, *seen[0], losses


def test_the_loss_of_the_velocity_is_the_error_of_the_velocity_of_the_predicted_sample() -> None:
    """Both velocities (x - x0) / sigma, sigma at least 0.05 in the denominators (Li & He 2025)."""
    x0, x, t, output, losses = given_and_lost("velocity", None, "flow", "sample")
    sigma = (t / 1000)[:, None, None, None].clamp(min=0.05)
    assert (t < 50).any() and (t > 50).any()
    wanted = ((x - output) / sigma - (x - x0) / sigma).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("predicts", ["eps", "v", "sample"])
def test_min_snr_weights_are_those_of_the_paper(path: str, gamma: float, predicts: str) -> None:
    """Hang et al. 2023: min(SNR, gamma) of x0, over SNR of eps, over SNR + 1 of v."""
    *_, t, _, plain = given_and_lost("prediction", None, path, predicts)
    *_, losses = given_and_lost("prediction", gamma, path, predicts)
    alpha, sigma = paths.path(path).coefficients(t)
    snr = (alpha / sigma).double() ** 2
    assert (snr < gamma).any() and (snr > gamma).any()
    wanted = snr.clamp(max=gamma) / {"eps": snr, "v": snr + 1, "sample": torch.ones(64)}[predicts]
    torch.testing.assert_close(losses.double() / plain.double(), wanted, rtol=1e-4, atol=0)


def test_times_of_mode_are_those_of_equation_20() -> None:
    """Esser et al. 2024: t = 1 - u - s (cos^2(pi u / 2) - 1 + u), 1 at u = 0 and 0 at u = 1, and then shifted."""
    u = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    wanted = [1 - x - 1.29 * (math.cos(math.pi * x / 2) ** 2 - 1 + x) for x in u.tolist()]
    assert (wanted[0], wanted[2], wanted[4]) == pytest.approx((1, 0.5, 0))
    times = TIME_DISTRIBUTIONS["mode"]
    assert times(paths.path("flow"), u, 1.0).tolist() == pytest.approx([1000 * t for t in wanted], abs=1e-3)
    shifted = [1000 * 3 * t / (1 + 2 * t) for t in wanted]
    assert times(paths.path("flow"), u, 3.0).tolist() == pytest.approx(shifted, abs=1e-3)
    assert times(paths.path("linear"), u, 1.0).tolist() == pytest.approx(
        [999, *(int(1000 * t) for t in wanted[1:])], abs=1
    )
    spread = times(paths.path("flow"), torch.rand(10_000, generator=torch.Generator().manual_seed(0)), 1.0)
    assert spread.min() >= 0 and spread.max() <= 1000
    assert ((spread > 400) & (spread < 600)).float().mean() > 0.3  # 0.2 of uniform times


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"predicts": "sample"}),
        (SAMPLE, {"loss": "velocity"}),
        ({"path": "cosine", "predicts": "eps"}, {"snr_gamma": 1.0}),
        ({"path": "cosine", "predicts": "v"}, {"predicts": "sample"}),
        ({"path": "cosine", "predicts": "v"}, {"snr_gamma": 1.0}),
        ({}, {"times": "logit_normal"}),
        ({}, {"times": "log_normal"}),
        ({}, {"times": "mode"}),
        ({}, {"beta1": 0.5}),
        ({}, {"optimizer": "muon"}),
    ],
    ids=str,
)  # fmt: skip
def test_each_option_changes_what_is_trained(recipe: Recipe, base: dict, change: dict) -> None:
    """Weights after three steps."""

    def weights(fields: dict) -> torch.Tensor:
        run = trainer(replace(recipe, **fields))
        for batch, _ in zip(run.batches(), range(3), strict=False):
            run.train_step(batch)
        return torch.cat([p.detach().flatten() for p in run.trained.parameters()])

    plain = weights(base)
    assert torch.equal(plain, weights(base)) and not torch.allclose(plain, weights(base | change), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "velocity"}, "--loss velocity is for --path flow --predicts sample"),
        ({"loss": "velocity", "path": "cosine", "predicts": "sample"}, "--loss velocity is for --path flow"),
        ({"snr_gamma": 5.0}, "--snr-gamma weights eps, v and sample on a path of noise levels, not flow"),
        ({"snr_gamma": 5.0, "path": "cosine", "predicts": "flow"}, "--snr-gamma weights eps, v and sample"),
    ],
)
def test_a_weight_where_it_has_no_meaning_is_refused(recipe: Recipe, change: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        replace(recipe, **change)


def test_a_model_that_predicts_samples_along_the_flow_path_paints_as_it_was_trained(recipe: Recipe) -> None:
    """Saved and opened, its output is x0."""
    recipe = replace(recipe, **SAMPLE, loss="velocity")
    assert read_schedule(scheduler_config(recipe), 5).predicts == "sample"
    assert read_schedule(scheduler_config(replace(recipe, predicts="flow", loss="prediction")), 5).predicts == "flow"
    trainer(recipe).run()
    opened, given = Pipeline.from_pretrained(recipe.output), []
    opened.model.network.register_forward_hook(lambda module, args, output: given.append(output))
    painted = list(opened.paint("a red picture", seed=1, steps=1, guidance_scale=1.0).steps)[-1]
    torch.testing.assert_close(painted.x, given[-1])  # one step from pure noise ends at x0


def muon_names(run: Any) -> set[str]:
    """The parameters that Muon moves."""
    names = {id(p): name for name, p in run.trained.named_parameters()}
    groups = run.optimizer.param_groups
    return {names[id(p)] for group in groups if group.get("kind") == "muon" for p in group["params"]}


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(recipe: Recipe) -> None:
    """An update of Muon is lr * 0.2 * sqrt(longer side) times a nearly orthogonal matrix (Jordan et al. 2024)."""
    recipe = replace(recipe, optimizer="muon", warmup=0, schedule="constant", weight_decay=0.1)
    run, plain = trainer(recipe), trainer(replace(recipe, optimizer="adamw"))
    for each in (run, plain):
        for p in each.trained.parameters():
            torch.manual_seed(p.numel())
            torch.nn.init.normal_(p, std=0.1)
    before = {name: p.detach().clone() for name, p in run.trained.named_parameters()}
    assert isinstance(run.optimizer.optimizer, Joined)
    chosen = muon_names(run)
    layers = {"modulation", "to_qkv", "to_out", "mlp_in", "mlp_out", "to_q", "to_kv", "q_proj", "fc1"}
    assert all(run.trained.get_parameter(name).ndim == 2 for name in chosen)
    assert {name.split(".")[-2] for name in chosen} >= layers
    assert all("blocks." in name or ".layers." in name for name in chosen)
    batch = next(run.batches())
    run.train_step(batch)
    plain.train_step(batch)
    theirs = dict(plain.trained.named_parameters())
    for name, p in run.trained.named_parameters():
        if name not in chosen:
            assert torch.equal(p, theirs[name]), name
            continue
        update = (before[name] * (1 - 0.1 * recipe.lr) - p.detach()).double() / recipe.lr
        sizes = torch.linalg.svdvals(update) / (0.2 * math.sqrt(max(p.shape)))
        assert sizes.max() < 1.5, name
        gradient = torch.linalg.svdvals(run.optimizer.state[p]["momentum_buffer"].double())
        assert sizes[gradient > 0.05 * gradient.max()].min() > 0.4, name


def test_a_run_by_muon_resumes_bit_equal_and_not_by_another_optimiser(recipe: Recipe) -> None:
    whole = replace(recipe, optimizer="muon", output=recipe.output + "-whole")
    trainer(whole).run()
    recipe = replace(recipe, optimizer="muon")
    first = trainer(recipe)
    for batch in first.batches():
        first.train_step(batch)
        if first.step == 3:
            first.save()
            break
    trainer(recipe, "latest").run()
    assert_equal(tensors(whole.output, 6), tensors(recipe.output, 6))
    with pytest.raises(LimnerError, match="has the state of muon, not of adamw: set --optimizer muon"):
        trainer(replace(recipe, optimizer="adamw", steps=8), "latest")


def test_muon_without_matrices_of_blocks_is_refused(recipe: Recipe) -> None:
    parts = nn.ModuleDict({"vae": nn.Conv2d(3, 3, 3)})
    groups = [{"params": list(parts.parameters()), "scale": 1.0}]
    with pytest.raises(LimnerError, match="there are none: use adamw"):
        OPTIMIZERS["muon"](groups, parts, recipe)


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_beta1_is_the_decay_of_the_first_moment(recipe: Recipe, beta1: float) -> None:
    run = trainer(replace(recipe, beta1=beta1, clip=1e6))
    batch = next(run.batches())
    run.loss(batch).mean().backward()
    gradients = {name: p.grad.clone() for name, p in run.trained.named_parameters()}
    run.optimizer.zero_grad()
    run.train_step(batch)
    for name, p in run.trained.named_parameters():
        torch.testing.assert_close(run.optimizer.state[p]["exp_avg"], (1 - beta1) * gradients[name])


@pytest.mark.parametrize(("epochs", "held_out", "steps"), [(3.0, 0, 9), (0.5, 0, 2), (3.0, 4, 8)])
def test_epochs_are_passes_over_the_pictures(recipe: Recipe, epochs: float, held_out: int, steps: int) -> None:
    """Of 24 pictures, 8 a step."""
    run = trainer(replace(recipe, epochs=epochs, held_out=held_out))
    assert run.recipe.steps == steps == len(list(run.batches()))
    run.run()
    assert run.step == steps and (Path(recipe.output) / f"checkpoint-{steps}").is_dir()


def test_the_world_has_no_epochs_and_nothing_to_hold_out(recipe: Recipe) -> None:
    world, mixture = open_source(Source("world")), open_source(Source("world=0.5,world:one=0.5"))
    for pictures in (world, mixture):
        with pytest.raises(LimnerError, match=r"--epochs 3: the captioned world.* never ends; give --steps"):
            with_steps(replace(recipe, epochs=3.0), pictures)
        with pytest.raises(LimnerError, match="--held-out 5: the captioned world.* draws each picture anew"):
            split(pictures, 5, 0)


@pytest.mark.parametrize("words", [("--steps", "3", "--epochs", "2"), ("--epochs=2", "--steps=3")])
def test_steps_and_epochs_together_are_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "mnist-text", *words])
    assert "--steps and --epochs both say how long to train: give one of them" in capsys.readouterr().err


def test_steps_take_the_place_of_a_recipe_s_epochs(recipe: Recipe) -> None:
    from limner.cli.train import _steps_or_epochs

    by_epochs = replace(recipe, epochs=30.0)
    assert _steps_or_epochs(by_epochs, ["train", "--steps", "6"]).epochs is None
    assert _steps_or_epochs(by_epochs, ["train", "--sample-steps", "6"]).epochs == 30.0


def test_held_out_pictures_are_never_trained_on(recipe: Recipe) -> None:
    run = trainer(replace(recipe, held_out=7, epochs=3.0))
    trained = [index for batch in run.batches() for index in batch["indices"].tolist()]
    held = set(run.held_out.indices.tolist())
    assert len(held) == 7 and len(run.pictures) == 17
    assert set(trained) == set(range(24)) - held
    assert np.bincount(trained[:51], minlength=24).max() == 3  # each once an epoch
    other = trainer(replace(recipe, held_out=7, seed=1, output=recipe.output + "2"))
    assert set(other.held_out.indices.tolist()) != held
    with pytest.raises(LimnerError, match="--held-out 24 leaves nothing to train on: .* has 24 pictures"):
        trainer(replace(recipe, held_out=24))


def test_the_held_out_loss_is_that_of_the_averaged_weights(recipe: Recipe) -> None:
    """7 pictures in batches of 4 and 4, of which the last is one again; the draws are the same at each step."""
    recipe = replace(recipe, held_out=7, batch_size=5, dropout=0.5)
    run = trainer(recipe)
    for module, std in ((run.trained, 0.1), (run.average, 0.2)):
        for p in module.parameters():
            torch.nn.init.normal_(p, std=std)
    before = {name: p.clone() for name, p in run.trained.state_dict().items()}
    got = run.held_out_loss(run.held_out)
    assert got == run.held_out_loss(run.held_out) and run.model.training
    assert_equal(dict(run.trained.state_dict()), before)
    run.trained.load_state_dict(run.average.state_dict())
    losses, pictures = [], run.held_out
    for step in range(2):
        rows = [pictures.index_at(position, 0) for position in range(4 * step, 4 * step + 4)]
        images, _, _ = open_source(recipe.data).load(rows, 8, 3)
        captions = [pictures.all_captions()[row % 3] for row in rows]
        generator = step_generator(0, VALIDATION_STEP + step, 0)
        inputs = run.task.inputs({"images": images, "captions": captions}, generator, torch.device("cpu"))
        losses.append(run.task.loss(*inputs).detach())
    assert got == pytest.approx(torch.cat(losses)[:7].mean().item(), rel=1e-5)


def test_holding_out_and_drawing_leave_the_training_as_it_is(recipe: Recipe) -> None:
    """The weights of a run that logs its held-out loss at every step are those of one that does at the end."""
    recipe = replace(recipe, held_out=4)
    trainer(replace(recipe, output=recipe.output + "2")).run()
    trainer(replace(recipe, sample_every=1)).run()
    assert_equal(tensors(recipe.output + "2", 6), tensors(recipe.output, 6))


def test_a_run_has_its_curves_and_sheets_as_pictures(recipe: Recipe) -> None:
    """loss.png and the sheet of the last step, in the folder and in TensorBoard; a resumed run draws all its steps."""
    recipe = replace(recipe, held_out=4, log_every=1, sample_every=3, steps=3)
    trainer(recipe).run()
    folder = Path(recipe.output)
    first = (folder / "loss.png").read_bytes()
    trainer(replace(recipe, steps=6), "latest").run()
    events = EventAccumulator(f"{folder}/logs").Reload()
    for name, file in (("loss_curve", folder / "loss.png"), ("samples", folder / "samples/step-0000006.png")):
        shown = events.Images(name)
        assert [each.step for each in shown] == [3, 6]
        with Image.open(io.BytesIO(shown[-1].encoded_image_string)) as a, Image.open(file) as b:
            assert a.convert("RGB").tobytes() == b.convert("RGB").tobytes()
    assert (folder / "loss.png").read_bytes() != first
    log = logged(recipe.output)
    assert [step for step, _ in log["loss"]] == [1, 2, 3, 4, 5, 6] and [step for step, _ in log[HELD_OUT]] == [3, 6]
    assert read_curves(folder / "logs")[HELD_OUT] == log[HELD_OUT]


def test_a_run_that_could_not_draw_its_curves_does_not_begin(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.look.plots.find_spec", lambda name: None)
    with pytest.raises(LimnerError, match="training needs matplotlib; install it with: pip install"):
        trainer(recipe)


def test_a_smoothed_curve_is_the_mean_of_what_came_before() -> None:
    assert smooth([3.0] * 80) == pytest.approx([3.0] * 80)
    assert smooth([1.0, 2.0]) == [1.0, 2.0]  # too short to be smoothed
    values = [float(k % 2) for k in range(500)]
    assert smooth(values)[-1] == pytest.approx(0.5, abs=0.03)


CONFIGS: dict[type, Callable[..., Any]] = {
    Recipe: lambda **change: Recipe(Source(), "x", **change),
    AutoencoderRecipe: lambda **change: AutoencoderRecipe(Source(), "x", **change),
    ContrastiveRecipe: lambda **change: ContrastiveRecipe(Source(), "x", **change),
    TextRecipe: TextRecipe,
}


def numbers_of(kind: type) -> list[tuple[type, str, type]]:
    """(configuration, field, int or float) of every number in it."""
    hints = get_type_hints(kind)
    return [
        (kind, each.name, number)
        for each in fields(kind)
        for number in (int, float)
        if hints[each.name] in (number, number | None) and each.default is not MISSING
    ]


@pytest.mark.parametrize(("kind", "name", "number"), [row for kind in CONFIGS for row in numbers_of(kind)])
def test_every_number_has_a_range_and_is_named(kind: type, name: str, number: type) -> None:
    """NaN, infinity, what is huge, negative or no number is a LimnerError with the option's name."""
    signed = name in ("guidance_scale",)
    bad: list[Any] = [10**30, "3", True, [1]] + ([-1] if not signed else [])
    bad += [math.nan, math.inf, -math.inf, 1e300, 10**400] if number is float else [1.5, math.nan]
    for value in bad:
        if number is float and isinstance(value, int) and value == 10**30:
            continue
        with pytest.raises(LimnerError, match=rf"^{name} must be "):
            CONFIGS[kind](**{name: value})


def test_every_choice_is_checked_and_the_nearest_is_named(recipe: Recipe) -> None:
    for kind in CONFIGS:
        for each in fields(kind):
            if get_origin(get_type_hints(kind)[each.name]).__class__.__name__ == "_LiteralSpecialForm":
                with pytest.raises(LimnerError, match=f"unknown {each.name} "):
                    CONFIGS[kind](**{each.name: "nonsense"})
    with pytest.raises(LimnerError, match="unknown predicts 'epss'; did you mean 'eps'"):
        replace(recipe, predicts="epss")
    check_fields(replace(recipe, lr=np.float32(1e-3), steps=np.int64(3)))


@pytest.mark.parametrize(
    "words",
    [
        ("--warmup", "99999999999999"), ("--batch-size", "99999999999"), ("--log-every", "99999999999999"),
        ("--steps", "99999999999999999999999"), ("--workers", "99999999"), ("--lr", "nan"), ("--lr", "1e39"),
        ("--weight-decay", "inf"), ("--clip", "-inf"), ("--epochs", "0"), ("--epochs", "nan"), ("--shift", "nan"),
        ("--sample-steps", "999999999"), ("--grade", "99999999999"), ("--text.length", "99999999999"),
        ("--held-out", "-1"), ("--snr-gamma", "0"), ("--verify-resume", "0"), ("--keep", "-1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_numbers_out_of_range_end_in_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "mnist-text", *words])
    said = capsys.readouterr().err
    name = words[0].removeprefix("--").removeprefix("text.")
    assert stopped.value.code == 2 and "Traceback" not in said
    assert (name in said or name.replace("-", "_") in said) and "must be" in said


def test_objectives_survive_the_command_line(recipe: Recipe, tmp_path: Path) -> None:
    """Each option reaches the recipe that a checkpoint keeps."""
    import json

    words = {"data.path": recipe.data.path, "output": recipe.output, "size": 8, "channels": 3, "epochs": 1,
             "held-out": 8, "batch-size": 8, "optimizer": "muon", "beta1": 0.8, "path": "cosine", "predicts": "v",
             "snr-gamma": 4, "times": "mode", "network.hidden-size": 32, "network.num-heads": 2, "network.depth": 1,
             "sample-prompts": "a red picture"}  # fmt: skip
    main(
        [
            "train",
            "mnist-text",
            "--no-compile",
            *(str(w) for name, value in words.items() for w in (f"--{name}", value)),
        ]
    )
    kept = json.loads((Path(recipe.output) / "checkpoint-2/training/state.json").read_text())["recipe"]
    wanted = {
        "epochs": 1,
        "steps": 2,
        "held_out": 8,
        "optimizer": "muon",
        "beta1": 0.8,
        "snr_gamma": 4,
        "times": "mode",
    }
    assert {name: kept[name] for name in wanted} == wanted
    assert TINY.hidden_size == kept["network"]["hidden_size"] and kept["snr_gamma"] < MAX_FLOAT


def test_a_console_hears_of_the_held_out_loss(recipe: Recipe) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    trainer(replace(recipe, held_out=4), console=console).run()
    assert "step 6  loss/held_out " in console.export_text()
