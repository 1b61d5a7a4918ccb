"""Seconds per picture of the shipped model, alone and in batches: steps per second and the fraction of GEMM peak.

python benchmarks/sample.py [--dtype bfloat16]

A guided step is two forward passes of the denoiser; the time of a picture includes text encoding and decoding.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from train_step import gemm_peak

import limner

PROMPT = "a small red star above two blue circles on a white background"


def seconds(pipe: "limner.Pipeline", rounds: int = 5, **settings: object) -> float:
    """The median time of a call in seconds."""
    runs = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        pipe(PROMPT, **settings)  # type: ignore[arg-type]
        runs.append(time.perf_counter() - start)
    return statistics.median(runs[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    pipe, peaks = limner.Pipeline.from_pretrained(dtype=args.dtype), []
    table = Table("pictures", "steps", "guidance", "seconds", "seconds/picture", "steps/s", "of GEMM peak")
    for number, steps, scale in ((1, 20, 3.0), (1, 20, 1.0), (1, 50, 3.0), (8, 20, 3.0), (64, 20, 3.0)):
        settings = {"num_images": number, "steps": steps, "guidance_scale": scale}
        with FlopCounterMode(display=False) as counter:
            pipe(PROMPT, **settings)
        taken = seconds(pipe, **settings)
        peaks.append(gemm_peak())  # in float32, whatever the dtype
        rate = counter.get_total_flops() / 1e9 / taken
        numbers = (f"{taken:.3f}", f"{taken / number:.4f}", f"{number * steps / taken:.0f}", f"{rate / peaks[-1]:.2f}")
        table.add_row(str(number), str(steps), f"{scale:g}", *numbers)
    Console(highlight=False).print(table)
    peak = statistics.median(peaks)
    print(
        f"{torch.get_num_threads()} threads, {args.dtype}, GEMM peak in float32 {peak:.0f} GFLOP/s, {torch.__version__}"
    )


if __name__ == "__main__":
    main()
