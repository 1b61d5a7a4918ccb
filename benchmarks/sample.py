"""Seconds per picture of the shipped model, alone and in batches, with and without guidance.

python benchmarks/sample.py
"""

import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

import limner

PROMPT = "a handwritten seven"


def seconds(pipe: "limner.Pipeline", rounds: int = 5, **settings: object) -> float:
    """The median time of one call."""
    runs = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        pipe(PROMPT, **settings)  # type: ignore[arg-type]
        runs.append(time.perf_counter() - start)
    return statistics.median(runs[1:])


def main() -> None:
    """Measure and print the table."""
    pipe = limner.Pipeline.from_pretrained()
    table = Table("pictures", "steps", "guidance", "seconds", "seconds/picture")
    for number, steps, scale in ((1, 20, 3.0), (1, 20, 1.0), (1, 50, 3.0), (8, 20, 3.0), (64, 20, 3.0)):
        taken = seconds(pipe, num_images=number, steps=steps, guidance_scale=scale)
        table.add_row(str(number), str(steps), f"{scale:g}", f"{taken:.3f}", f"{taken / number:.4f}")
    Console(highlight=False).print(table)
    print(f"{torch.get_num_threads()} threads, float32, torch {torch.__version__}")


if __name__ == "__main__":
    main()
