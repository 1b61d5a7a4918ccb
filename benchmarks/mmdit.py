"""Stable Diffusion 3's transformer and T5 at their widths with random weights: limner against diffusers, transformers.

    python benchmarks/mmdit.py [--dtype float32,bfloat16] [--only step,t5] [--rounds 5] [--profile] [--processor-time]

The transformer is that of Stable Diffusion 3 medium with 4 of its 24 blocks, on both halves of a picture of 512x512 and
333 tokens of text; T5 is the encoder of t5-base on two texts of 256 tokens. The libraries write the weights once; both
sides read that folder and get the same inputs. They take turns, and every measurement has a process of its own. Numbers
are medians over the rounds, ratios medians of the ratios within each round; the relative error of an output is
max |ours - theirs| / max |theirs|. What does not depend on the step (`Network.prepare`) is not timed, since
limner computes it once a picture.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4  # relative error of outputs in float32
SIDES = ("limner", "peer")
TRANSFORMER = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 4,
    "attention_head_dim": 64, "num_attention_heads": 24, "caption_projection_dim": 1536, "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
T5 = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
TINY = {
    "step": {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128, "joint_attention_dim": 64},
    "t5": {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 1},
}  # fmt: skip
ROWS = {"step": "transformer step of both halves at 512x512, s", "t5": "T5 of two texts, s"}


class Job(NamedTuple):
    """What a child process is told; `output` is the file for its tensor."""

    measure: str
    side: str
    dtype: str
    folder: str
    output: str
    tiny: bool
    profile: bool = False
    clock: str = "perf_counter"


def noise(*shape: int, seed: int = 0) -> Tensor:
    """The same unit noise on both sides."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step_inputs(job: Job) -> tuple[Tensor, ...]:
    """x, t, text and pooled text of two rows."""
    side, length = (16, 40) if job.tiny else (64, 333)
    width = (TRANSFORMER | TINY["step"] if job.tiny else TRANSFORMER)["joint_attention_dim"]
    text, pooled = noise(2, length, width, seed=1), noise(2, TRANSFORMER["pooled_projection_dim"], seed=2)
    return noise(2, 16, side, side), torch.tensor([981.0, 981.0]), text, pooled


def ids() -> Tensor:
    return torch.randint(T5["vocab_size"], (2, 256), generator=torch.Generator().manual_seed(0))


def limner_step(job: Job) -> Callable[[], Tensor]:
    from limner.nets.mmdit import SD3Transformer2DModel
    from limner.weights.parts import open_part

    dtype = getattr(torch, job.dtype)
    net = open_part(Path(job.folder), "SD3Transformer2DModel", SD3Transformer2DModel, dtype)
    x, t, text, pooled = step_inputs(job)
    prepared = net.prepare({"text": text, "pooled": pooled})
    return lambda: net(x.to(dtype), t, **prepared)


def peer_step(job: Job) -> Callable[[], Tensor]:
    from diffusers import SD3Transformer2DModel

    dtype = getattr(torch, job.dtype)
    net = SD3Transformer2DModel.from_pretrained(job.folder, torch_dtype=dtype).eval()
    x, t, text, pooled = step_inputs(job)
    text, pooled = text.to(dtype), pooled.to(dtype)
    return lambda: net(x.to(dtype), text, pooled, t, return_dict=False)[0]


def limner_t5(job: Job) -> Callable[[], Tensor]:
    from limner.text.t5 import T5EncoderModel
    from limner.weights.parts import open_part

    net, tokens = open_part(Path(job.folder), "T5EncoderModel", T5EncoderModel, getattr(torch, job.dtype)), ids()
    return lambda: net(tokens).hidden


def peer_t5(job: Job) -> Callable[[], Tensor]:
    from transformers import T5EncoderModel

    net, tokens = T5EncoderModel.from_pretrained(job.folder, dtype=getattr(torch, job.dtype)).eval(), ids()
    return lambda: net(tokens).last_hidden_state


MEASURES: dict[tuple[str, str], Callable[[Job], Callable[[], Tensor]]] = {
    ("step", "limner"): limner_step, ("step", "peer"): peer_step, ("t5", "limner"): limner_t5, ("t5", "peer"): peer_t5,
}  # fmt: skip


def save(job: Job) -> None:
    """Write the weights of a measurement."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    changes = TINY[job.measure] if job.tiny else {}
    if job.measure == "step":
        part: Any = diffusers.SD3Transformer2DModel(**TRANSFORMER | changes)
    else:
        part = transformers.T5EncoderModel(transformers.T5Config(**T5 | changes))
    part.save_pretrained(job.folder)


def child(job: Job, budget: float = 6.0, least: int = 3, most: int = 15) -> None:
    """Print the median seconds of some calls after a first one, whose output is saved for the comparison."""
    clock = getattr(time, job.clock)
    from limner.devices import keep_freed_memory

    if job.side == "limner":  # as Model.open has it
        keep_freed_memory()
    seconds: list[float] = []
    with torch.inference_mode() if job.side == "limner" else torch.no_grad():  # as in each one's pipeline
        run = MEASURES[job.measure, job.side](job)
        np.save(job.output, run().float().numpy())
        while len(seconds) < least or (sum(seconds) < budget and len(seconds) < most):
            start = clock()
            run()
            seconds.append(clock() - start)
        if job.profile:
            with torch.profiler.profile() as profiled:
                run()
            table = profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=12)
            print(f"{job.measure} of {job.side} in {job.dtype}\n{table}", file=sys.stderr)
    print(json.dumps(statistics.median(seconds)))


def run_child(job: Job) -> float:
    """The seconds of a job in a process of its own; its errors end the benchmark."""
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=None if job.profile else subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{job.measure} of {job.side} failed with status {done.returncode}:\n{done.stderr or ''}")
    return json.loads(done.stdout.splitlines()[-1])


def relative_error(ours: str, theirs: str) -> float:
    """max |a - b| / max |b| of two files, infinite where that is not a number."""
    a, b = np.load(ours), np.load(theirs)
    error = float(np.abs(a - b).max() / np.abs(b).max()) if a.shape == b.shape else math.inf
    return math.inf if math.isnan(error) else error


def measure(job: Job, rounds: int) -> tuple[list[str], float]:
    """The cells of a row, and the largest relative error; the sides take turns."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    errors: list[float] = []
    for i in range(rounds):
        jobs = [job._replace(side=side, output=f"{job.output}-{side}.npy", profile=job.profile and not i)
                for side in SIDES]  # fmt: skip
        for each in jobs:
            seconds[each.side].append(run_child(each))
        errors.append(relative_error(*(each.output for each in jobs)))
    ratio = statistics.median(peer / ours for ours, peer in zip(*seconds.values(), strict=True))
    cells = [f"{statistics.median(seconds[side]):.3g}" for side in SIDES]
    return [ROWS[job.measure], job.dtype, *cells, f"{ratio:.2f}", f"{max(errors):.1e}"], max(errors)


def main() -> None:
    """Write the folders, measure, print the table; exit status 1 if outputs in float32 differ."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--only", default=",".join(ROWS), help="some of %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the time of each goes, too")
    parser.add_argument("--processor-time", action="store_true", help="of all threads, for a machine that is busy")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the benchmark")
    args = parser.parse_args()
    if args.rounds < 1 or set(args.only.split(",")) - ROWS.keys():
        parser.error(f"--rounds is at least 1, --only takes {', '.join(ROWS)}")
    table, worst = Table("measured", "dtype", "limner", "diffusers", "ratio", "relative error"), 0.0
    with TemporaryDirectory() as temporary:
        for name in args.only.split(","):
            clock = "process_time" if args.processor_time else "perf_counter"
            job = Job(name, "", "", f"{temporary}/{name}", f"{temporary}/output", args.tiny, args.profile, clock)
            save(job)
            for dtype in args.dtype.split(","):
                cells, error = measure(job._replace(dtype=dtype), args.rounds)
                table.add_row(*cells)
                worst = max(worst, error if dtype == "float32" else 0.0)
    Console(highlight=False, width=120).print(table)
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ": ?"
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    load = os.getloadavg()[0]
    print(
        f"ratio: diffusers / limner;{cpu.split(':')[1]}, {torch.get_num_threads()} threads, load {load:.1f}, {versions}"
    )
    if worst > TOLERANCE:
        sys.exit(f"outputs differ by more than {TOLERANCE:g}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Job(*json.loads(sys.argv[2])))
    else:
        main()
