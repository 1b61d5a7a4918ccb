"""Stable Diffusion 1.5 at full size with random weights: seconds, memory and outputs of limner and of diffusers.

    python benchmarks/sd.py [--dtype bfloat16] [--only step,decode] [--rounds 3] [--folder FOLDER] [--tiny]

diffusers writes the weights once; both read that folder and get the same prompts and noise. They take turns, and every
measurement has a process of its own, so that its memory is its own. Numbers are medians over the rounds, ratios medians
of the ratios within each round; the relative error of an output is max |limner - diffusers| / max |diffusers|. Files
are mapped, so loading is measured to where every weight has been touched. Memory in GB is 10^9 bytes, from Linux's
/proc/self: VmHWM (peak resident memory, mapped files included) and RssAnon (memory without a file).
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

# torch and the two libraries are imported where they are used, since processes are timed from their start.
if TYPE_CHECKING:
    from torch import Tensor, nn

PROMPT, NEGATIVE, STEPS = "a cat on a beach", "blurry, ugly", 50
TOLERANCE = 1e-4  # relative error of outputs in float32
FULL = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "vocab_size": 49408, "projection_dim": 768,
    },
}  # fmt: skip


class Sizes(NamedTuple):
    """Sides of pictures in pixels: of most measurements, of the first step, and of the large decode."""

    picture: int = 512
    first: int = 128
    large: int = 1024


class Job(NamedTuple):
    """What a child process is told: `start` is when it was started, `output` the file for its tensor."""

    measure: str
    side: str
    folder: str
    dtype: str
    tiny: bool
    output: str
    start: float

    @property
    def sizes(self) -> Sizes:
        return Sizes(64, 64, 128) if self.tiny else Sizes()


# ---- the two sides, each called as its pipeline calls it


class Limner:
    """The folder, opened by limner."""

    def __init__(self, job: Job) -> None:
        from limner.pipeline import Pipeline

        self.pipe = Pipeline.from_pretrained(job.folder, dtype=job.dtype)

    def parts(self) -> Iterable["nn.Module"]:
        return self.pipe.model.parts().values()

    def step(self, noise: "Tensor") -> Callable[[], "Tensor"]:
        """The output F (2, C, H, W) at the first level, rows [uncond; cond]."""
        from limner.denoise import Denoiser
        from limner.schedulers import read_schedule

        model = self.pipe.model
        schedule = read_schedule(model.scheduler, STEPS)
        condition = model.network.prepare(model.conditioner([NEGATIVE, PROMPT]))
        denoise = Denoiser(model.network, schedule.predicts, condition, dtype=model.dtype, copies=2)
        level = schedule.grid[0]
        a, b = denoise.pair(level)
        return lambda: (denoise(noise, level) - a * noise) / b

    def text(self) -> "Tensor":
        return self.pipe.model.conditioner([NEGATIVE, PROMPT])["text"]

    def decode(self, latents: "Tensor") -> "Tensor":
        return self.pipe.model.decode(latents)

    def encode(self, picture: "Tensor") -> "Tensor":
        """The mean of the posterior."""
        import torch

        vae = self.pipe.model.autoencoder
        assert vae is not None
        x = picture.to(next(vae.parameters()).dtype).contiguous(memory_format=torch.channels_last)
        return vae.encode(x).mean

    def first(self, size: int) -> None:
        settings = {"steps": 1, "sampler": "ddim", "width": size, "height": size}
        next(self.pipe.paint(PROMPT, negative_prompt=NEGATIVE, **settings).steps)

    def picture(self, size: int) -> None:
        self.pipe(PROMPT, negative_prompt=NEGATIVE, steps=2, width=size, height=size)


class Diffusers:
    """The folder, opened by diffusers."""

    def __init__(self, job: Job) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        self.dtype = getattr(torch, job.dtype)
        self.pipe = StableDiffusionPipeline.from_pretrained(
            job.folder, dtype=self.dtype, safety_checker=None, requires_safety_checker=False
        )

    def parts(self) -> Iterable["nn.Module"]:
        return (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder)

    def step(self, noise: "Tensor") -> Callable[[], "Tensor"]:
        """The noise that the UNet predicts, (2, C, H, W), rows [uncond; cond]."""
        import torch

        pipe, latents = self.pipe, noise.to(self.dtype)
        pipe.scheduler.set_timesteps(STEPS)
        t = pipe.scheduler.timesteps[0]
        states = torch.cat(pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)[::-1])

        def run() -> "Tensor":
            x = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            return pipe.unet(x, t, encoder_hidden_states=states, return_dict=False)[0]

        return run

    def text(self) -> "Tensor":
        return self.pipe.encode_prompt([NEGATIVE, PROMPT], "cpu", 1, False)[0]

    def decode(self, latents: "Tensor") -> "Tensor":
        z = latents.to(self.dtype) / self.pipe.vae.config.scaling_factor
        return self.pipe.vae.decode(z, return_dict=False)[0]

    def encode(self, picture: "Tensor") -> "Tensor":
        """The mean of the posterior."""
        return self.pipe.vae.encode(picture.to(self.dtype)).latent_dist.mean

    def first(self, size: int) -> None:
        from diffusers import DDIMScheduler

        self.pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        size_and_steps = {"width": size, "height": size, "num_inference_steps": 1}
        self.pipe(PROMPT, negative_prompt=NEGATIVE, output_type="latent", **size_and_steps)


SIDES: dict[str, Callable[[Job], Any]] = {"limner": Limner, "diffusers": Diffusers}


# ---- measurements, in a child process: (job, the opened side) -> {row of the table: number}


def noise(*shape: int) -> "Tensor":
    """The same unit noise on both sides."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def latents(size: int) -> "Tensor":
    """Unit noise as the latents of a picture."""
    return noise(1, 4, size // 8, size // 8)


# By the measurement's name: its row, and what is timed of a side and a size.
TIMED: dict[str, tuple[str, Callable[[Any, int], Callable[[], "Tensor"]]]] = {
    "step": ("UNet step of both halves at {0}x{0}, s", lambda side, size: side.step(latents(size))),
    "text": ("text encoder on two prompts, s", lambda side, size: side.text),
    "decode": ("VAE decode to {0}x{0}, s", lambda side, size: partial(side.decode, latents(size))),
    "encode": ("VAE encode of {0}x{0}, s", lambda side, size: partial(side.encode, noise(1, 3, size, size))),
}


def measure_seconds(job: Job, side: Any, budget: float = 5.0, most: int = 9) -> dict[str, float]:
    """The median of some calls after a first one, whose output is saved for the comparison."""
    import numpy as np
    import torch

    row, make = TIMED[job.measure]
    seconds: list[float] = []
    with torch.inference_mode() if job.side == "limner" else torch.no_grad():  # as in each one's pipeline
        run = make(side, job.sizes.picture)
        np.save(job.output, run().float().numpy())
        while not seconds or (sum(seconds) < budget and len(seconds) < most):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return {row.format(job.sizes.picture): statistics.median(seconds)}


def memory(name: str) -> float:
    """An entry of /proc/self/status in GB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024 / 1e9


def touch(parts: Iterable["nn.Module"]) -> None:
    """Read a number of every page (4 KiB) of the weights."""
    for part in parts:
        for weight in part.parameters():
            step = 4096 // weight.element_size()
            weight.as_strided((-(-weight.numel() // step),), (step,)).sum()


def measure_load(job: Job, side: Any) -> dict[str, float]:
    opened = time.monotonic() - job.start
    touch(side.parts())
    return {
        "process start to opened, s": opened,
        "process start to every weight touched, s": time.monotonic() - job.start,
        "anonymous memory with every weight touched, GB": memory("RssAnon"),
        "peak memory with every weight touched, GB": memory("VmHWM"),
    }


def measure_first(job: Job, side: Any) -> dict[str, float]:
    size = job.sizes.first
    side.first(size)
    return {f"process start to first step done at {size}x{size}, s": time.monotonic() - job.start}


def measure_picture(job: Job, side: Any) -> dict[str, float]:
    size = job.sizes.picture
    side.picture(size)
    return {f"peak memory of a {size}x{size} picture, GB": memory("VmHWM")}


def measure_large(job: Job, side: Any) -> dict[str, float]:
    """The first decode of a process, and its peak over what is resident with every weight touched."""
    size = job.sizes.large
    touch(side.parts())
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, which loading may have raised
    before, start = memory("VmRSS"), time.perf_counter()
    side.decode(latents(size))
    row, seconds = f"VAE decode to {size}x{size}", time.perf_counter() - start
    return {f"{row}, s": seconds, f"{row}, peak memory over the weights, GB": memory("VmHWM") - before}


MEASURES: dict[str, Callable[[Job, Any], dict[str, float]]] = {
    **dict.fromkeys(TIMED, measure_seconds),
    "load": measure_load, "first": measure_first, "picture": measure_picture, "large": measure_large,
}  # fmt: skip
LIMNER_ALONE = ("picture", "large")


def save(job: Job) -> dict[str, float]:
    """Write the folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from sd import save_with_diffusers

    save_with_diffusers(Path(job.folder), **({} if job.tiny else FULL))
    return {}


# ---- the parent


def run_child(job: Job) -> dict[str, float]:
    """The result of a job in a process of its own; its errors end the benchmark."""
    command = [sys.executable, __file__, "--child"]
    done = subprocess.run([*command, json.dumps(job._replace(start=time.monotonic()))], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{job.measure} of {job.side} failed with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Row(NamedTuple):
    """A row of the table: the numbers of each round by side, and the largest relative error of the output."""

    numbers: dict[str, list[float]]
    error: float | None

    def cells(self) -> list[str]:
        sides = [self.numbers.get(side) for side in SIDES]
        cells = [f"{statistics.median(each):.3g}" if each else "-" for each in sides]
        ours, theirs = sides
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)] if ours and theirs else []
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
        return [*cells, "-" if self.error is None else f"{self.error:.1e}"]


def measure(name: str, job: Job, rounds: int) -> dict[str, Row]:
    """The rows of a measurement, its sides in turn."""
    numbers: dict[str, dict[str, list[float]]] = {}
    errors: list[float] = []
    outputs = {side: f"{job.output}-{name}-{side}.npy" for side in SIDES}
    for _ in range(rounds):
        for side in ("limner",) if name in LIMNER_ALONE else SIDES:
            result = run_child(job._replace(measure=name, side=side, output=outputs[side]))
            for row, number in result.items():
                numbers.setdefault(row, {}).setdefault(side, []).append(number)
        if name in TIMED:
            errors.append(relative_error(outputs["limner"], outputs["diffusers"]))
    return {row: Row(each, max(errors, default=None)) for row, each in numbers.items()}


def relative_error(ours: str, theirs: str) -> float:
    """max |a - b| / max |b| of two files, infinite where that is not a number."""
    import numpy as np

    a, b = np.load(ours), np.load(theirs)
    error = float(np.abs(a - b).max() / np.abs(b).max()) if a.shape == b.shape else math.inf
    return math.inf if math.isnan(error) else error


def machine(dtype: str) -> str:
    """What the numbers are of."""
    from importlib.metadata import version

    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    return f"{cpu}, {torch.get_num_threads()} threads, {dtype}, {versions}"


def parse() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", default=",".join(MEASURES), help="some of %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="of the model, written if there is none; default: a temporary one (4.3 GB)")
    parser.add_argument("--tiny", action="store_true", help="small networks and pictures, to try the benchmark")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - MEASURES.keys():
        parser.error(f"--only takes {', '.join(MEASURES)}, not {', '.join(unknown)}")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def main() -> None:
    """Write the folder, measure, print the table."""
    args, rows = parse(), {}
    with TemporaryDirectory() as temporary:
        folder = args.folder or f"{temporary}/sd"
        job = Job("save", "diffusers", folder, args.dtype, args.tiny, f"{temporary}/output", 0.0)
        if not (Path(folder) / "model_index.json").is_file():
            run_child(job)
        for name in args.only:
            rows |= measure(name, job, args.rounds)
    report(rows, args.dtype)


def report(rows: dict[str, Row], dtype: str) -> None:
    """Print the table; exit status 1 if outputs in float32 differ."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measured", *SIDES, "ratio", "relative error")
    for name, row in rows.items():
        table.add_row(name, *row.cells())
    Console(highlight=False, width=120).print(table)
    print(f"ratio: diffusers / limner; {machine(dtype)}")
    if dtype == "float32" and not all(row.error is None or row.error < TOLERANCE for row in rows.values()):
        sys.exit(f"outputs differ by more than {TOLERANCE:g}")


def child(job: Job) -> None:
    """Do a job and print its result as JSON."""
    result = save(job) if job.measure == "save" else MEASURES[job.measure](job, SIDES[job.side](job))
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Job(*json.loads(sys.argv[2])))
    else:
        main()
