"""A resumed run is the run it resumes: --verify-resume, and runs that are killed at any moment.

LIMNER_KILLS=30 kills that many times.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, assert_equal, tensors, trainer
from rich.console import Console

from limner.cli import main
from limner.data.sources import Source
from limner.errors import LimnerError
from limner.folders import checkpoints
from limner.nets.configs import AutoencoderKLConfig
from limner.nets.dit import DiT
from limner.train import checkpoint
from limner.train.loop import Trainer, train
from limner.train.recipe import AutoencoderRecipe, ContrastiveRecipe, Recipe
from limner.train.verify import Verified, compare, verify_resume

KILLS = int(os.environ.get("LIMNER_KILLS", "3"))
VAE = AutoencoderKLConfig(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
pytestmark = pytest.mark.usefixtures("one_thread")


def verified(recipe: Recipe | AutoencoderRecipe | ContrastiveRecipe) -> Verified:
    return verify_resume(recipe, 2, Console(quiet=True))


def autoencoder_of(recipe: Recipe) -> AutoencoderRecipe:
    return AutoencoderRecipe(recipe.data, recipe.output + "-vae", size=8, network=VAE, batch_size=4, steps=1)


def in_latents(recipe: Recipe) -> Recipe:
    """The same run in the latents of a tiny autoencoder."""
    vae = autoencoder_of(recipe)
    trainer(vae).run()
    return replace(recipe, autoencoder=vae.output, cache=20, network=replace(TINY, patch_size=2))


@pytest.mark.parametrize(
    "chosen",
    [
        lambda r: r,
        in_latents,
        lambda r: replace(in_latents(r), cache=0, optimizer="muon"),
        autoencoder_of,
        lambda r: ContrastiveRecipe(r.data, r.output, size=8, text=r.text, batch_size=4),
        lambda r: replace(r, epochs=0.1, held_out=4, flip=True, text=replace(r.text, learned_null=True)),
    ],
    ids=["pixels", "cached latents", "latents by muon", "autoencoder", "contrastive", "options"],
)  # fmt: skip
def test_resuming_changes_nothing(recipe: Recipe, chosen: Callable[[Recipe], Recipe]) -> None:
    done = verified(chosen(recipe))
    assert done.passed and [each.kind for each in done.agreements] == ["weights", "averages", "moments"]
    assert all(each.tensors == each.equal > 10 and each.largest == 0 and not each.where for each in done.agreements)


def test_dropout_is_that_of_the_step(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that draw from torch's global generator resume too, and drop other values at each step."""
    forward, kept = DiT.forward, []

    def dropping(self: DiT, x: torch.Tensor, *args: object, **rest: object) -> torch.Tensor:
        mask = F.dropout(torch.ones_like(x), 0.5, self.training)
        if self.training:
            kept.append(mask)
        return forward(self, x, *args, **rest) * mask

    monkeypatch.setattr(DiT, "forward", dropping)
    assert verified(recipe).passed
    whole, parts = kept[:4], kept[4:]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert not torch.equal(whole[0], whole[1]) and whole[0].unique().tolist() == [0, 2]


@pytest.mark.parametrize(
    ("kind", "of"), [("weights", "trained"), ("averages", "average"), ("moments", "optimizer")]
)  # fmt: skip
def test_what_is_not_restored_is_named(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, kind: str, of: str) -> None:
    restore = checkpoint.restore

    def forgetful(
        folder: Path, trained: torch.nn.Module, optimizer: torch.optim.Optimizer, average: torch.nn.Module
    ) -> int:
        step = restore(folder, trained, optimizer, average)
        weight = trained.denoiser.patch_out.bias
        with torch.no_grad():
            {"trained": weight, "average": average.denoiser.patch_out.bias,
             "optimizer": optimizer.state[weight]["exp_avg"]}[of][0] += 1e-3  # fmt: skip
        return step

    monkeypatch.setattr(checkpoint, "restore", forgetful)
    done = verified(recipe)
    (found,) = [each for each in done.agreements if each.kind == kind]
    assert not done.passed and found.equal < found.tensors
    assert found.largest > 0
    if of == "average":  # nothing else follows from it
        assert found.where == "denoiser.patch_out.bias" and 0 < found.largest < 1e-3  # it fades
        assert [each.equal == each.tensors for each in done.agreements] == [True, False, True]


def test_tensors_are_compared_bit_by_bit() -> None:
    one = {"weights": {"a": torch.zeros(3), "b": torch.ones(2)}}
    for other, equal, largest, where in (
        ({"a": torch.zeros(3), "b": torch.ones(2)}, 2, 0, ""),
        ({"a": torch.tensor([0, 1e-30, 0]), "b": torch.ones(2)}, 1, 1e-30, "a"),
        ({"a": torch.zeros(3), "b": torch.tensor([1, 3.0])}, 1, 2, "b"),
        ({"a": torch.zeros(3)}, 1, float("inf"), "b"),
        ({"a": torch.zeros(3), "b": torch.ones(3)}, 1, float("inf"), "b"),
        ({"a": torch.zeros(3), "b": torch.tensor([1, float("nan")])}, 1, float("inf"), "b"),
    ):
        (found,) = compare(one, {"weights": other})
        assert (found.kind, found.tensors, found.equal, found.where) == ("weights", 2, equal, where)
        assert found.largest == pytest.approx(largest)


def test_a_gpu_is_told_how_far_it_is_apart_and_not_refused() -> None:
    agreements = list(compare({"weights": {"a": torch.zeros(1)}}, {"weights": {"a": torch.ones(1)}}))
    assert not Verified(agreements, "cpu").passed and Verified(agreements, "cuda").passed


def test_the_command_prints_a_table_and_exits_with_1_where_a_run_is_another(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "mnist-text", "--data.path", str(recipe.data.path), "--output", recipe.output, "--size", "8",
             "--channels", "3", "--batch-size", "4", "--network.depth", "1", "--network.hidden-size", "32",
             "--network.num-heads", "2", "--no-compile", "--sample-prompts", "red"]  # fmt: skip
    main([*words, "--verify-resume", "1"])
    said = capsys.readouterr().out
    assert "averages" in said and "the resumed run is the same" in said and not Path(recipe.output).exists()
    step = Trainer.train_step

    def drifting(self: Trainer, batch: dict) -> torch.Tensor:
        with torch.no_grad():
            self.trained.denoiser.patch_in.bias += self.start is not None
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", drifting)
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--verify-resume", "1"])
    printed = capsys.readouterr()
    assert stopped.value.code == 1 and "the resumed run is another one" in printed.err
    assert "denoiser.patch_in.bias" in printed.out
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--verify-resume", "1", "--resume", "latest"])
    assert stopped.value.code == 2 and "leave --resume out" in capsys.readouterr().err


def test_verifying_takes_one_process_and_at_least_a_step(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LimnerError, match="--verify-resume must be at least 1 step, not 0"):
        verify_resume(recipe, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LimnerError, match="--verify-resume runs in one process"):
        verify_resume(recipe, 1)


def trained_quietly(recipe: Recipe, resume: str | None) -> None:
    """Train in a process of its own that says nothing."""
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    train(recipe, resume)


def newest(folder: Path) -> int:
    """The step of a run's last checkpoint, 0 without one."""
    return max((step for step, _ in checkpoints(folder)), default=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes by fork")
def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_is_not(recipe: Recipe) -> None:
    """SIGKILL while it starts, between steps and while it saves: the last checkpoint is whole, and no step is lost."""
    recipe = replace(recipe, condition="none", sample_prompts=(), steps=6 + 3 * KILLS, save_every=1, keep=2)
    whole, folder, draws = replace(recipe, output=recipe.output + "-whole"), Path(recipe.output), random.Random(0)
    processes = multiprocessing.get_context("forkserver")
    tensorboard = "tensorboard.backend.event_processing.event_accumulator"
    processes.set_forkserver_preload(["limner.train.loop", "limner.train.diffusion", "matplotlib.figure", tensorboard])
    server = processes.Process(target=int)  # imports once what every run needs
    server.start()
    server.join()

    def start(chosen: Recipe) -> multiprocessing.process.BaseProcess:
        resume = "latest" if newest(Path(chosen.output)) else None
        process = processes.Process(target=trained_quietly, args=(chosen, resume))
        process.start()
        return process

    since = time.perf_counter()
    unbroken = start(whole)
    while not newest(Path(whole.output)) and unbroken.is_alive():
        time.sleep(0.005)
    begun = time.perf_counter() - since
    unbroken.join()
    each = (time.perf_counter() - since - begun) / recipe.steps
    killed, last = 0, 0
    while killed < KILLS:
        process = start(recipe)
        if draws.random() < 0.3:  # while it starts, or soon after
            time.sleep(draws.uniform(0, 1.2 * begun))
        else:
            while newest(folder) <= last and process.is_alive():
                time.sleep(0.002)
            time.sleep(draws.uniform(0, 2 * each))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert newest(folder) >= last
        last = newest(folder)
        if last:
            assert len(tensors(recipe.output, last)) > 100
        if last == recipe.steps:
            break
    final = start(recipe)
    final.join()
    assert unbroken.exitcode == final.exitcode == 0 and killed > 0
    assert_equal(tensors(whole.output, recipe.steps), tensors(recipe.output, recipe.steps))
    assert last == recipe.steps or not list(folder.glob(".checkpoint-*"))  # each checkpoint clears up


def test_a_run_on_the_world_resumes_too(recipe: Recipe) -> None:
    world = replace(recipe, data=Source("world:one"), size=16, condition="none", sample_prompts=())
    assert verified(world).passed
