"""The trainer: what it computes, that a resumed run is the run it resumes, and what it says to bad input."""

import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from limner.data.sources import Source, open_source
from limner.errors import LimnerError
from limner.nets.dit import DiT, DiTConfig
from limner.noise import paths
from limner.pipeline import Pipeline, save_autoencoder
from limner.settings import Settings
from limner.text.tokenizer import Tokenizer
from limner.train import checkpoint
from limner.train.loop import (
    Stopped,
    Trainer,
    can_compile,
    generator_of,
    learning_rate,
    make_task,
    update_average,
)
from limner.train.loss import DiffusionLoss, Words
from limner.train.recipe import Recipe, TextEncoder, Transformer, load_recipe, recipe_names
from limner.train.setup import Reader
from limner.weights.file import read_tensors

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A tiny run on plain pictures whose caption is their colour."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        name = list(COLOURS)[i % 3]
        shade = tuple(max(0, c - 3 * i) for c in COLOURS[name])
        Image.new("RGB", (8, 8), shade).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {name} picture")
    return Recipe(
        data=Source(path=str(folder)), output=str(tmp_path / "run"), size=8, model=Transformer(4, 32, 2, 2),
        text=TextEncoder(hidden_size=32, layers=1, num_heads=2, length=8, vocab_size=600), steps=6, batch_size=8,
        lr=1e-3, warmup=2, schedule="cosine", log_every=2, save_every=3, sample_every=100, keep=0,
        sample_prompts=("a red picture", "a blue picture"), sample_steps=2,
    )  # fmt: skip


def trainer(recipe: Recipe, resume: str | None = None) -> Trainer:
    return Trainer(recipe, resume, Console(quiet=True))


def tensors(run: str, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: averages, raw weights, moments."""
    folder = Path(run) / f"checkpoint-{step}"
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 4
    return {f"{f.relative_to(folder)}:{n}": t for f in files for n, t in read_tensors(f).items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_resumed_run_is_bit_equal(recipe: Recipe) -> None:
    whole = replace(recipe, output=recipe.output + "-whole")
    trainer(whole).run()
    parts = replace(recipe, output=recipe.output + "-parts")
    # The first part is stopped by the run's end at step 3 of the same schedule, as a kill would.
    first = trainer(parts)
    for batch in first.batches():
        first.train_step(batch)
        if first.step == 3:
            checkpoint.save(Path(parts.output), 3, first.result, first.trained, first.optimizer, parts)
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


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler with Python's headers")
def test_a_compiled_run_is_the_plain_one(recipe: Recipe) -> None:
    """Convolutions beside text whose length changes from step to step: the losses of both agree."""
    for i, file in enumerate(sorted(Path(recipe.data.path or "").glob("*.txt"))):
        file.write_text(file.read_text() + i % 4 * " x")
    ends = replace(recipe, model=Transformer(4, 32, 2, 2, conv_channels=8, conv_layers=1), batch_size=3)

    def losses(compiled: bool) -> list[float]:
        run = trainer(replace(ends, compile=compiled))
        assert len(run.task.compiled) == 2
        assert all((part._compiled_call_impl is not None) == compiled for part in run.task.compiled)
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
        loss = DiffusionLoss(DiT(DiTConfig(8, 1, 4, 16, 1, 2)), None, path, predicts)
        generator = torch.Generator().manual_seed(3)
        t = path.times(torch.rand(5, generator=generator))
        eps = torch.randn(x0.shape, generator=generator)
        alpha, sigma = (c[:, None, None, None] for c in path.coefficients(t))
        target = {"flow": eps - x0, "eps": eps, "v": alpha * eps - sigma * x0, "sample": x0}[predicts]
        got = loss(x0, torch.Generator().manual_seed(3))
        torch.testing.assert_close(got, target.square().mean(dim=(1, 2, 3)))


def test_loss_of_a_batch_is_the_loss_of_its_pictures() -> None:
    """Words reach the picture they belong to: permuting captions among pictures changes which loss is whose."""
    torch.manual_seed(0)
    net = DiT(DiTConfig(8, 1, 4, 16, 1, 2, text_dim=16))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    loss = DiffusionLoss(net, None, paths.Flow(), "flow")
    x0, states, mask = torch.randn(3, 1, 8, 8), torch.randn(2, 4, 16), torch.ones(2, 4, dtype=torch.bool)

    def losses(which: list[int]) -> torch.Tensor:
        return loss(x0, torch.Generator().manual_seed(3), words=Words(states, mask, torch.tensor(which)))

    first, second = losses([0, 0, 0]), losses([0, 1, 0])
    torch.testing.assert_close(first[[0, 2]], second[[0, 2]])
    assert abs(first[1] - second[1]) > 1e-4


def test_learning_rate() -> None:
    recipe = Recipe(Source(), "x", lr=2.0, warmup=4, steps=12, schedule="cosine")
    rates = [learning_rate(step, recipe) for step in range(13)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0) and rates[12] == pytest.approx(0.0)
    assert learning_rate(11, replace(recipe, schedule="constant")) == 2.0


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
            assert rates[id(p)] == pytest.approx(own * learning_rate(recipe.steps - 1, recipe)), name


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
        torch.rand(1, generator=generator_of(seed, step, rank)).item()
        for seed in (0, 1) for step in (0, 1, 2) for rank in (0, 1)
    }  # fmt: skip
    assert len(draws) == 12
    assert torch.rand(1, generator=generator_of(1, 2, 1)).item() in draws


def test_dropout_one_hides_every_caption(recipe: Recipe) -> None:
    run = trainer(replace(recipe, dropout=1.0))
    for p in run.trained.parameters():
        torch.nn.init.normal_(p, std=0.2)
    batch = next(run.batches())
    told = run.loss(batch)
    torch.testing.assert_close(run.loss(batch | {"captions": ["a blue picture"] * 8}), told)
    seeing = trainer(replace(recipe, dropout=0.0, output=recipe.output + "2"))
    for p in seeing.trained.parameters():
        torch.nn.init.normal_(p, std=0.2)
    told = seeing.loss(batch)
    assert not torch.equal(seeing.loss(batch | {"captions": ["a blue picture"] * 8}), told)


def test_frozen_text_encoder_runs_once_per_distinct_caption(recipe: Recipe, tmp_path: Path) -> None:
    run = trainer(recipe)
    assert run.result.tokenizer is not None and run.result.text_encoder is not None
    encoder, seen = run.result.text_encoder, []
    encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    reader = Reader(run.result.tokenizer, encoder, frozen=True)
    for _ in range(3):
        words = reader(["a red picture", "", "a blue picture", "a red picture"], torch.device("cpu"))
    assert seen == [3]
    # The padded states are those that the encoder gives, where the mask is true.
    ids, mask = run.result.tokenizer.encode(["a red picture", "", "a blue picture"])
    hidden = encoder(ids).hidden
    for row in range(3):
        torch.testing.assert_close(words.ids[row][words.mask[row]], hidden[row][mask[row]])
    assert words.which.tolist() == [0, 1, 2, 0]


def test_pretrained_text_encoder_stays_as_it_is(recipe: Recipe, tmp_path: Path) -> None:
    source = trainer(replace(recipe, output=recipe.output + "-source")).run()
    source.save(tmp_path / "clip")
    frozen = replace(recipe, text=TextEncoder(pretrained=str(tmp_path / "clip")), output=recipe.output + "-frozen")
    pipe = trainer(frozen).run()
    assert pipe.text_encoder is not None and source.text_encoder is not None
    for name, tensor in pipe.text_encoder.state_dict().items():
        assert torch.equal(tensor, source.text_encoder.state_dict()[name])
    opened = Pipeline.from_pretrained(frozen.output)
    assert opened("a red picture", seed=1, steps=2)[0].tobytes() == pipe("a red picture", seed=1, steps=2)[0].tobytes()


def test_finished_run_opens_as_a_model(recipe: Recipe) -> None:
    pipe = trainer(recipe).run()
    again = Pipeline.from_pretrained(recipe.output)
    assert again("a red picture", seed=5, steps=3)[0].tobytes() == pipe("a red picture", seed=5, steps=3)[0].tobytes()
    assert again.defaults == {"steps": 2, "guidance_scale": 3.0}
    assert (Path(recipe.output) / "samples" / "step-0000006.png").is_file()


def test_classes_and_none(recipe: Recipe, tmp_path: Path) -> None:
    for i, name in enumerate(COLOURS):
        folder = tmp_path / "classes" / name
        folder.mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8), (80 * i, 10 * k, 0)).save(folder / f"{k}.png")
    recipe = replace(recipe, data=Source(path=str(tmp_path / "classes")), sample_prompts=())
    classes = trainer(replace(recipe, condition="class", output=recipe.output + "-class")).run()
    assert list(classes.class_names) == sorted(COLOURS)
    for p in classes.denoiser.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert classes("red")[0].tobytes() != classes("blue")[0].tobytes()
    with pytest.raises(LimnerError, match="did you mean 'blue'"):
        classes("blu")
    plain = trainer(replace(recipe, condition="none", output=recipe.output + "-none")).run()
    plain("", steps=2)
    with pytest.raises(LimnerError, match="reads no text"):
        plain("a red picture", steps=2)
    with pytest.raises(LimnerError, match="guidance has nothing to act on"):
        plain("", steps=2, guidance_scale=4.0)


def test_training_starts_from_another_model(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights and its tokenizer, whatever the new captions are; its optimiser and its step count stay behind."""
    first = trainer(replace(recipe, steps=3)).run()
    again = replace(recipe, init=recipe.output, output=str(tmp_path / "again"), seed=5)
    monkeypatch.setattr(Tokenizer, "train", None)  # the first model's is taken, not another made
    begun = trainer(again)
    assert begun.step == 0
    assert_equal(begun.result.denoiser.state_dict(), first.denoiser.state_dict())
    assert_equal(begun.result.text_encoder.state_dict(), first.text_encoder.state_dict())
    wider = replace(again, model=replace(recipe.model, depth=recipe.model.depth + 1))
    with pytest.raises(LimnerError, match=r"--init .*: its denoiser is DiTConfig.*the recipe's is DiTConfig"):
        trainer(wider)
    with pytest.raises(LimnerError, match="no model at"):
        trainer(replace(again, init=str(tmp_path / "nowhere")))


def test_only_the_newest_checkpoints_are_kept(recipe: Recipe) -> None:
    trainer(replace(recipe, keep=2, save_every=2)).run()
    assert sorted(p.name for p in Path(recipe.output).glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_ctrl_c_stops_after_a_step_and_resumes_bit_equal(recipe: Recipe) -> None:
    whole = replace(recipe, output=recipe.output + "-whole")
    trainer(whole).run()
    run = trainer(recipe)
    step = run.train_step

    def interrupted(batch: dict) -> torch.Tensor:
        if run.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(batch)

    run.train_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="stopped after step 2; go on with --resume latest"):
        run.run()
    trainer(recipe, "latest").run()
    assert_equal(tensors(whole.output, 6), tensors(recipe.output, 6))


def test_full_disk_leaves_the_last_checkpoint_whole(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(recipe)
    where = Path(recipe.output)
    checkpoint.save(where, 1, run.result, run.trained, run.optimizer, recipe)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("limner.train.checkpoint.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(where, 2, run.result, run.trained, run.optimizer, recipe)
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
    wider = replace(recipe, model=Transformer(4, 64, 2, 2))
    with pytest.raises(LimnerError, match=r"another recipe:\n  denoiser\.patch_in\.weight is \(32, 48\) in the file"):
        trainer(wider, "latest")
    weights = Path(recipe.output) / "checkpoint-6/training/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(LimnerError, match="not a whole safetensors file"):
        trainer(recipe, "latest")


def test_resume_keeps_the_tokenizer_and_says_what_changed(recipe: Recipe, tmp_path: Path) -> None:
    first = trainer(recipe)
    first.run()
    for text in (tmp_path / "pictures").glob("*.txt"):
        text.write_text(text.read_text().replace("a ", "one "))
    console = Console(record=True, width=300, file=io.StringIO())
    again = Trainer(replace(recipe, steps=8, lr=5e-4), "latest", console)
    assert "at step 6, changed: steps 6 -> 8; lr 0.001 -> 0.0005" in console.export_text()
    assert first.result.tokenizer is not None and again.result.tokenizer is not None
    assert again.result.tokenizer.pieces("a red picture") == first.result.tokenizer.pieces("a red picture")


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
        ({"model": Transformer(num_heads=0)}, "num_heads must be at least 1"),
        ({"text": TextEncoder(layers=0)}, "layers must be at least 1"),
        ({"text": TextEncoder(lr_scale=-1.0)}, "lr_scale must be at least 0, not -1"),
        ({"beta2": 1.0}, "beta2 must be from 0 to below 1, not 1"),
    ],
)
def test_recipe_numbers(recipe: Recipe, change: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        replace(recipe, **change)


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


def test_two_processes_make_one_run(recipe: Recipe) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    command += ["-m", "limner", "train", "mnist-text", "--data.path", str(recipe.data.path), "--output", recipe.output]
    command += [
        "--size",
        "8",
        "--channels",
        "3",
        "--steps",
        "3",
        "--batch-size",
        "8",
        "--no-compile",
        "--log-every",
        "1",
    ]
    command += ["--model.hidden-size", "32", "--model.num-heads", "2", "--sample-prompts", "a red picture"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("use it: limner generate") == 1 and done.stderr.count("step 3 ") == 1
    assert [p.name for p in Path(recipe.output).glob("checkpoint-*")] == ["checkpoint-3"]


def test_data_errors_before_the_first_step(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimnerError, match="holds no picture"):
        trainer(replace(recipe, data=Source(path=str(tmp_path / "empty"))))
    with pytest.raises(LimnerError, match="over the text encoder's budget of 3"):
        trainer(replace(recipe, text=replace(recipe.text, length=3)))
    with pytest.raises(LimnerError, match="over the text encoder's budget of 8"):
        trainer(replace(recipe, sample_prompts=("a red picture", "red " * 20)))
    with pytest.raises(LimnerError, match="not divisible by patch_size"):
        trainer(replace(recipe, size=10))
    with pytest.raises(LimnerError, match="set --predicts flow"):
        trainer(replace(recipe, predicts="eps"))


def test_broken_pictures(recipe: Recipe, tmp_path: Path) -> None:
    broken = tmp_path / "pictures" / "05.png"
    broken.write_bytes(broken.read_bytes()[:40])
    run = trainer(replace(recipe, data=replace(recipe.data, max_broken=0.1)))
    run.run()
    assert list(run.broken.names) == [str(broken)]
    with pytest.raises(LimnerError, match="1 pictures cannot be read"):
        trainer(replace(recipe, data=replace(recipe.data, max_broken=0.0), output=recipe.output + "2")).run()


def test_shipped_recipes(shared_data: Path, tmp_path: Path) -> None:
    """Every recipe names its result, and describes a model that can be made for its data."""
    known = {"mnist-unconditional", "mnist-dit", "mnist-class", "mnist-text", "cifar10-text"}
    assert known | {"world", "world-quick", "world-vae"} <= set(recipe_names())
    sizes = {}
    vae = make_task(load_recipe("world-vae")[0], open_source(Source("world")), None)
    save_autoencoder(vae.trained.vae, tmp_path)
    for name in recipe_names():
        recipe, told = load_recipe(name)
        gave = re.search(r"[\d,]+ (?:of [\d,]+ )?steps of \d+|[\d,]+ of [\d,]+ steps", told) and "images/s" in told
        assert gave and re.search(r"\d\.\d{4} at", told), f"{name} does not say what it gave"
        data = replace(recipe.data, name=recipe.data.name.replace("mnist=", f"{shared_data / 'mnist'}="))
        if "world" not in name:
            data = replace(recipe.data, path=str(shared_data / name.split("-")[0]))
        recipe = replace(recipe, **({"autoencoder": str(tmp_path)} if getattr(recipe, "autoencoder", None) else {}))
        task = make_task(recipe, open_source(data, captions=getattr(recipe, "condition", "none") == "text"), None)
        sizes[name] = sum(p.numel() for p in getattr(task.trained, "denoiser", task.trained).parameters())
    assert sizes["cifar10-text"] == pytest.approx(9.75e6, rel=0.01)


def test_shift_moves_times_and_levels_towards_noise(recipe: Recipe) -> None:
    """Training times are the shifted uniform draws, and the model samples along the grid shifted alike."""
    seen = []

    class Spy(DiT):
        def forward(self, x, t, labels=None, text=None):
            seen.append(t)
            return torch.zeros_like(x)

    loss = DiffusionLoss(Spy(DiTConfig(8, 3, 4, 32, 1, 2)), None, paths.path("flow"), "flow", shift=3.0)
    loss(torch.zeros(500, 3, 8, 8), torch.Generator().manual_seed(3))
    u = torch.rand(500, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(seen[0], 1000 * 3 * u / (1 + 2 * u)) and seen[0].mean() > 600
    made, _ = trainer(replace(recipe, shift=3.0)).result.resolve(Settings(steps=4))
    least = 3 * 0.001 / (1 + 2 * 0.001)  # diffusers' scheduler shifts its lowest level too, before it spaces them
    wanted = [3 * s / (1 + 2 * s) for s in torch.linspace(1, least, 4).tolist()]
    assert [level.sigma for level in made.grid[:-1]] == pytest.approx(wanted, abs=1e-5)
    for bad in ({"shift": 0.0}, {"shift": 2.0, "path": "cosine", "predicts": "eps"}):
        with pytest.raises(LimnerError, match="shift must be more than 0, and 1 but for the flow path"):
            replace(recipe, **bad)
