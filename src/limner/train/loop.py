"""The training loop, on accelerate: one process or many, CPU or GPU."""

import copy
import math
import os
import shutil
import signal
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from limner.data.batches import VALIDATION_STEP, Batches, BrokenCount
from limner.data.captions import few
from limner.data.collection import Collection
from limner.data.sources import open_source
from limner.errors import LimnerError
from limner.files import check_writable, expand
from limner.look.plots import check_matplotlib
from limner.picture import save as save_picture
from limner.train import checkpoint
from limner.train.curves import HELD_OUT, Log
from limner.train.held_out import Subset, averaged, held_out_batches, split
from limner.train.loss import check_finite
from limner.train.optimizer import OPTIMIZERS, check_resumed, lr_multiplier
from limner.train.recipe import Run


class Stopped(Exception):
    """Ctrl-C: the run stopped between steps and wrote a checkpoint."""


@torch.no_grad()
def update_average(average: nn.Module, trained: nn.Module, step: int, decay: float) -> None:
    """average <- decay*average + (1-decay)*trained, decay at most (1+step)/(10+step): initial weights fade early."""
    update = torch.optim.swa_utils.get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
    update(list(average.parameters()), list(trained.parameters()), step)


def step_seeds(seed: int, step: int, rank: int) -> tuple[int, int]:
    """Two seeds of one step on one process, of `step_generator` and of torch's global generator (for dropout)."""
    # torch's CPU generator uses only 32 bits of its seed, so the key is hashed to 32.
    own, shared = np.random.SeedSequence([seed, step, rank]).generate_state(2)
    return int(own), int(shared)


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """The CPU generator of one step on one process. Keyed, so that a resumed run equals an uninterrupted one."""
    return torch.Generator().manual_seed(step_seeds(seed, step, rank)[0])


STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stop_after_step() -> Iterator[list[bool]]:
    """The first Ctrl-C, SIGTERM or SIGHUP sets the yielded flag, the second interrupts at once."""
    stop = [False]

    def handle(signum: int, frame: Any) -> None:
        if stop[0]:
            raise KeyboardInterrupt
        stop[0] = True

    if threading.current_thread() is not threading.main_thread():  # signals can be set in that one only
        yield stop
        return
    # Under nohup SIGHUP is ignored, and stays so; a shell's background jobs ignore SIGINT, but may be sent it.
    heeded = [each for each in STOPPING if each == signal.SIGINT or signal.getsignal(each) != signal.SIG_IGN]
    previous = {each: signal.signal(each, handle) for each in heeded}
    try:
        yield stop
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler or signal.SIG_DFL)


def ignore_sigint(worker: int) -> None:
    """Initialise a data worker: the training process heeds Ctrl-C and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def can_compile() -> bool:
    """Whether torch.compile can work here: it calls a C++ compiler and needs Python's headers."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return headers.is_file() and any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def make_accelerator(precision: str, unused: bool) -> Accelerator:
    """The Accelerator of this launch; `precision` falls back to "no" where the device lacks bf16. `unused` parameters
    may get no gradient in a step."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    has_bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported()
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if unused else None
    # Under torchrun without a GPU, Accelerate forms a process group only with cpu=True.
    cpu = several and not torch.cuda.is_available()
    return Accelerator(mixed_precision=precision if has_bf16 else "no", cpu=cpu, kwargs_handlers=handlers)


def with_steps(recipe: Run, pictures: Collection) -> Run:
    """The recipe with the steps of its epochs. LimnerError for a world or a mixture, which have none."""
    if recipe.epochs is None:
        return recipe
    if pictures.order(recipe.seed, 0) is None:
        raise LimnerError(f"--epochs {recipe.epochs:g}: {pictures.name} never ends; give --steps instead")
    return replace(recipe, steps=math.ceil(recipe.epochs * len(pictures) / recipe.batch_size))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class Trainer:
    """One run of a recipe. `Trainer(recipe).prepare().run()` trains to the end and returns the finished model."""

    def __init__(self, recipe: Run, resume: str | None = None, console: Console | None = None) -> None:
        self.output = expand(recipe.output)
        self.recipe = recipe if self.output == Path(recipe.output) else replace(recipe, output=str(self.output))
        self.console = console or Console(stderr=True, highlight=False)
        self.start = checkpoint.find(self.output, resume)
        self.accelerator = make_accelerator(recipe.precision, recipe.unused_parameters)
        self.device = self.accelerator.device
        self.step = 0

    def prepare(self) -> "Trainer":
        """Open the data, build the task and its optimiser, and restore the checkpoint to resume."""
        recipe = self.recipe
        check_matplotlib("training")
        for name in ("checkpoint", "samples/step.png", "logs/events", "loss.png"):  # before the data is opened
            check_writable(self.output / name)
        if recipe.precision != self.accelerator.mixed_precision:
            self.log(f"this device has no {recipe.precision}: training in float32")
        pictures = open_source(recipe.data, captions=recipe.captions)
        self.task = recipe.task(pictures, self.start)
        with self.accelerator.autocast():
            pictures = self.task.dataset(pictures, self.device, self.log)
        self.pictures, self.held_out = split(pictures, recipe.held_out, recipe.seed)
        self.recipe = recipe = with_steps(recipe, self.pictures)
        self.broken = BrokenCount(len(self.pictures), recipe.data.max_broken)
        self.trained = self.task.parts
        self.average = copy.deepcopy(self.trained).to(self.device).requires_grad_(False).eval()
        self.result: Any = self.task.build_result(self.average, self.device)
        self.task.loss.to(self.device)
        optimizer = OPTIMIZERS[recipe.optimizer](self.task.groups(), self.trained, recipe)
        if self.start is not None:
            check_resumed(self.start, recipe)
            self.step = checkpoint.restore(self.start, self.trained, optimizer, self.average)
            self.log(f"resumed {self.start} at step {self.step}{checkpoint.changes(self.start, recipe, self.pictures)}")
        if recipe.compile and can_compile():
            for part in self.task.to_compile:
                part.compile()
        elif recipe.compile:
            self.log("no C++ compiler with Python's headers was found: the network is not compiled, and slower")
        self.model, self.optimizer = self.accelerator.prepare(self.task.loss, optimizer)
        self.model.train()
        return self

    def log(self, text: str) -> None:
        if self.accelerator.is_main_process:
            self.console.print(text)

    def batches(self) -> Iterator[dict[str, Any]]:
        """The batches from the current step to the last."""
        recipe, accelerator = self.recipe, self.accelerator
        batches: Any = Batches(
            self.pictures, recipe.batch_size, recipe.size, recipe.channels, recipe.seed, recipe.flip,
            accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        steps = range(self.step, recipe.steps)
        try:
            yield from DataLoader(
                batches, batch_size=None, sampler=steps, num_workers=recipe.workers, worker_init_fn=ignore_sigint
            )
        except LimnerError as error:  # a worker's error arrives wrapped in its traceback
            raise LimnerError(str(error).rsplit("LimnerError: ", 1)[-1].strip()) from None

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The loss of each picture of a batch (B,)."""
        key = self.recipe.seed, self.step, self.accelerator.process_index
        generator = step_generator(*key)
        torch.manual_seed(step_seeds(*key)[1])
        with self.accelerator.autocast():  # `inputs` may encode with the autoencoder
            return self.model(*self.task.inputs(batch, generator, self.device))

    def train_step(self, batch: dict[str, Any]) -> Tensor:
        """One optimiser step; returns the mean loss, detached."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * lr_multiplier(self.step, recipe) * group["scale"]
        loss = self.loss(batch).mean()
        self.accelerator.backward(loss)
        weights = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        check_finite(loss, norm, self.trained, self.step)
        torch.nn.utils.clip_grads_with_norm_(weights, recipe.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_average(self.average, self.trained, self.step, recipe.ema)
        self.step += 1
        return loss.detach()

    def run(self) -> Any:
        """Train to the last step. Raises Stopped after a signal to stop, LimnerError where a gradient is not finite."""
        recipe, main = self.recipe, self.accelerator.is_main_process
        self.log(self._summary())
        if self.step >= recipe.steps:
            self.log(f"already at step {self.step} of {recipe.steps}: nothing to do")
            return self.result
        losses: list[Tensor] = []
        with stop_after_step() as stop, self._logs() as log, self._progress() as bar:
            task = bar.add_task("train", total=recipe.steps, completed=self.step, summary="")
            seconds, since = 0.0, time.perf_counter()
            for batch in self.batches():
                self.broken.add(batch)
                losses.append(self.train_step(batch))
                seconds += time.perf_counter() - since
                last = self._any(stop[0]) or self.step == recipe.steps
                if main and (last or _due(self.step, recipe.save_every)):  # first: the terminal may be gone
                    self.save()
                if last or self.step % recipe.log_every == 0:
                    summary = self._log(log, losses, seconds)
                    bar.update(task, summary=summary)
                    losses, seconds = [], 0.0
                if main and (last or _due(self.step, recipe.sample_every)):
                    self.picture(log)
                bar.update(task, completed=self.step)
                if last:
                    break
                since = time.perf_counter()
        if self.broken.names:
            self.log(f"{len(self.broken.names)} unreadable pictures were skipped: {few(self.broken.names)}")
        if self.step < recipe.steps:
            raise Stopped(f"stopped after step {self.step}; go on with --resume latest --output {self.output}")
        return self.result

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set on any process, so that all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device)).item())

    def save(self) -> Path:
        """Write a checkpoint of this step."""
        return checkpoint.save(
            self.output, self.step, self.result, self.trained, self.average, self.optimizer, self.recipe,
            len(self.pictures),
        )  # fmt: skip

    def picture(self, log: Log | None) -> None:
        """The task's sample sheet by the averaged weights in output/samples, its metrics, and the curves so far."""
        sheet, measured = self.task.sheet(self.result), self.task.measure(self.result)
        if self.held_out is not None:
            measured = measured | {HELD_OUT: self.held_out_loss(self.held_out)}
        if sheet is not None:
            save_picture(sheet, self.output / "samples" / f"step-{self.step:07d}.png")
        if measured:
            self.log(f"step {self.step}  " + "  ".join(f"{name} {value:.4g}" for name, value in measured.items()))
        if log is not None:
            for name, value in measured.items():
                log.add(name, value, self.step)
            if sheet is not None:
                log.add_picture("samples", sheet, self.step)
            log.draw(self.step)

    @torch.no_grad()
    def held_out_loss(self, pictures: Subset) -> float:
        """The mean loss of held-out pictures by the averaged weights, with the same draws at every step."""
        losses = []
        self.model.eval()
        with averaged(self.trained, self.average), self.accelerator.autocast():
            for step, batch in enumerate(held_out_batches(pictures, self.recipe)):
                generator = step_generator(self.recipe.seed, VALIDATION_STEP + step, 0)
                losses.append(self.task.loss(*self.task.inputs(batch, generator, self.device)))
        self.model.train()
        return float(torch.cat(losses)[: len(pictures)].mean())

    @contextmanager
    def _logs(self) -> Iterator[Log | None]:
        """The log on the main process, else None; events after the resumed step are purged."""
        if not self.accelerator.is_main_process:
            yield None
            return
        with Log(self.output, self.step) as log:
            yield log

    def _log(self, log: Log | None, losses: list[Tensor], seconds: float) -> str:
        """Log the mean loss over all processes and the pictures per second; returns both as text."""
        loss = float(self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
        rate = self.recipe.batch_size * len(losses) / seconds
        summary = f"loss {loss:.4f}  {rate:.0f} images/s"
        if log is not None:
            log.add("loss", loss, self.step)
            log.add("images_per_second", rate, self.step)
            log.add("learning_rate", self.recipe.lr * lr_multiplier(self.step - 1, self.recipe), self.step)
            if not self.console.is_terminal:
                self.console.print(f"step {self.step}  {summary}")
        return summary

    def _progress(self) -> Progress:
        enabled = self.console.is_terminal and self.accelerator.is_main_process
        text, summary = TextColumn("{task.description}"), TextColumn("{task.fields[summary]}")
        columns = (text, BarColumn(), MofNCompleteColumn(), summary, TimeRemainingColumn())
        return Progress(*columns, console=self.console, disable=not enabled)

    def _summary(self) -> str:
        recipe, size = self.recipe, sum(p.numel() for p in self.trained.parameters())
        epochs = recipe.steps * recipe.batch_size / len(self.pictures)
        return (
            f"{size / 1e6:.1f} M parameters, {len(self.pictures)} pictures of {self.pictures.name}, "
            f"{recipe.steps} steps of {recipe.batch_size} ({epochs:.1f} epochs) on {self.device}, output {self.output}"
        )


def train(recipe: Run, resume: str | None = None) -> Any:
    """Run a recipe to its end; `resume` is "latest" or a checkpoint folder. Returns the finished model."""
    return Trainer(recipe, resume).prepare().run()
