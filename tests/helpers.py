"""What the tests of training share: tiny runs, their tensors and logs, and their steps worked out by hand."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from limner.data.batches import Batches
from limner.data.sources import Source, open_source
from limner.model import Model
from limner.nets.dit import DiT, DiTConfig
from limner.pipeline import Pipeline
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.conditioner import Text, masked_text
from limner.text.encoder import TextEncoder
from limner.text.tokenizer import Tokenizer
from limner.train.loop import Trainer, lr_multiplier, step_generator
from limner.train.recipe import Recipe, Run, TextRecipe
from limner.weights.file import read_tensors

TINY = DiTConfig(patch_size=4, hidden_size=32, depth=2, num_heads=2)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


def paint_colour(file: Path, name: str, darker: int) -> None:
    """An 8 x 8 picture of one colour, a little darker to the left."""
    left, right = (tuple(max(0, c - darker - less) for c in COLOURS[name]) for less in (20, 0))
    picture = Image.new("RGB", (8, 8), right)
    picture.paste(left, (0, 0, 3, 8))
    picture.save(file)


def tiny_recipe(root: Path) -> Recipe:
    """A tiny run on 24 pictures whose caption is their colour."""
    folder = root / "pictures"
    folder.mkdir()
    for i in range(24):
        name = list(COLOURS)[i % 3]
        paint_colour(folder / f"{i:02d}.png", name, 3 * i)
        (folder / f"{i:02d}.txt").write_text(f"a {name} picture")
    return Recipe(
        data=Source(path=str(folder)), output=str(root / "run"), size=8, network=TINY,
        text=TextRecipe(hidden_size=32, layers=1, num_heads=2, length=8, vocab_size=600), steps=6, batch_size=8,
        lr=1e-3, warmup=2, schedule="cosine", log_every=2, save_every=3, sample_every=100, keep=0,
        sample_prompts=("a red picture", "a blue picture"), sample_steps=2,
    )  # fmt: skip


def tiny_pipeline(captions: list[str], steps: int) -> Pipeline:
    """A small text-to-image model in pixels with random weights everywhere, none of its gates shut."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(captions, vocab_size=560, length=8)
    text = CLIPTextModel(CLIPTextConfig(tokenizer.vocab_size, 32, 64, 2, 2, 8, eos_token_id=tokenizer.end))
    network = DiT(DiTConfig(8, 1, 2, 32, 2, 2, text_dim=32))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.15)
    conditioner = Text([TextEncoder(tokenizer, text)], masked_text)
    for module in (network, conditioner):
        module.eval().requires_grad_(False)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    return Pipeline(Model(network, conditioner, scheduler, defaults={"steps": steps, "guidance_scale": 2.0}))


def trainer(recipe: Run, resume: str | None = None, console: Console | None = None) -> Trainer:
    """The run before its next step; silent unless it is given a console."""
    return Trainer(recipe, resume, console or Console(quiet=True)).prepare()


def tensors(run: str, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: averages, raw weights, moments."""
    folder = Path(run) / f"checkpoint-{step}"
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) >= 3 and {"weights.safetensors", "optimizer.safetensors"} <= {file.name for file in files}
    return {f"{f.relative_to(folder)}:{n}": t for f in files for n, t in read_tensors(f).items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """The same names, bit-equal tensors."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def logged(run: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: (step, value) by name."""
    events = EventAccumulator(f"{run}/logs").Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def worked_out(recipe: Recipe, steps: int, world: int = 1) -> SimpleNamespace:
    """`steps` steps of a fresh run, apart from the loop and in float64 past the gradients: averaged over the processes,
    clipped, AdamW (Loshchilov & Hutter 2019, algorithm 2), averaged weights. By name: weights, average, first, second
    (the moments); by step: losses, norms (before clipping)."""
    run = trainer(replace(recipe, output=recipe.output + "-by-hand"))
    task = copy.deepcopy(run.task)
    module = task.parts
    shares = [
        Batches(open_source(recipe.data), recipe.batch_size, recipe.size, recipe.channels, recipe.seed, recipe.flip,
                rank, world) for rank in range(world)
    ]  # fmt: skip
    parameters = dict(module.named_parameters())
    weights = {name: p.detach().double() for name, p in parameters.items()}
    average, first, second = dict(weights), dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    losses, norms, counts = [], [], dict.fromkeys(weights, 0)  # counts: of the steps that had a gradient
    for step in range(steps):
        module.zero_grad()
        each = [
            task.loss(*task.inputs(share.batch(step), step_generator(recipe.seed, step, rank), torch.device("cpu")))
            for rank, share in enumerate(shares)
        ]
        loss = torch.cat(each).mean()
        loss.backward()
        losses.append(loss.item())
        gradients = {name: p.grad.double() for name, p in parameters.items() if p.grad is not None}
        norms.append(torch.cat([g.flatten() for g in gradients.values()]).norm().item())
        kept = min(1.0, recipe.clip / norms[-1])
        decay = min(recipe.ema, (1 + step) / (10 + step))
        for name, gradient in gradients.items():
            scale = recipe.text.scale if name.startswith("text_encoder") else 1
            rate = recipe.lr * lr_multiplier(step, recipe) * scale
            first[name] = 0.9 * first[name] + 0.1 * kept * gradient
            second[name] = recipe.beta2 * second[name] + (1 - recipe.beta2) * (kept * gradient) ** 2
            counts[name] += 1
            slope = first[name] / (1 - 0.9 ** counts[name])
            spread = (second[name] / (1 - recipe.beta2 ** counts[name])) ** 0.5
            weights[name] = weights[name] * (1 - rate * recipe.weight_decay) - rate * slope / (spread + 1e-8)
            parameters[name].data.copy_(weights[name])
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
    return SimpleNamespace(weights=weights, average=average, first=first, second=second, losses=losses, norms=norms)


# `limner ARGUMENTS` after a folder, which gets the recipe and the weights of each process as RANK.pt.
KEPT = """
import sys, torch
from limner.cli import main
from limner.train import loop

class Kept(loop.Trainer):
    def run(self):
        done = super().run()
        kept = {"recipe": self.recipe, "weights": self.trained.state_dict(), "average": self.average.state_dict()}
        torch.save(kept, f"{sys.argv[1]}/{self.accelerator.process_index}.pt")
        return done

loop.Trainer = Kept
main(sys.argv[2:])
"""
