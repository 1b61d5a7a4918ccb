"""The share of obeyed prompts by sampler, number of steps and guidance scale: the basis of the default settings.

python benchmarks/samplers.py [--model MODEL] [--n 100] [--kinds one relation]
"""

import argparse
import time

from rich.console import Console
from rich.table import Table

from limner.evaluate import report
from limner.pipeline import Pipeline

STEPS = (4, 8, 12, 20, 50)
SAMPLERS = ("ddim", "euler", "heun", "dpmpp_2m", "unipc")
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)


def obeyed(pipe: Pipeline, prompts: list[report.EvalPrompt], **settings: object) -> str:
    """The share obeyed, and the seconds, as text."""
    start = time.perf_counter()
    done = report.evaluate(pipe, prompts, **settings)
    right = sum(verdict.obeyed for verdict in done.verdicts if verdict is not None)
    return f"{right / len(prompts):.1%} ({time.perf_counter() - start:.0f} s)"


def main() -> None:
    """Print the shares by guidance scale, then by sampler and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--n", type=int, default=100, help="prompts of each kind")
    parser.add_argument("--kinds", nargs="+", default=["one", "count", "relation"])
    parser.add_argument("--guidance-scale", type=float, help="for the table of samplers; the model's own by default")
    args = parser.parse_args()
    pipe, console = Pipeline.from_pretrained(args.model), Console(highlight=False, width=110)
    prompts = [each for each in report.load_prompts("seen", args.n, seed=7) if each.row.split(",")[0] in args.kinds]
    table = Table("guidance", *(f"{scale:g}" for scale in SCALES))
    table.add_row("obeyed", *(obeyed(pipe, prompts, guidance_scale=scale) for scale in SCALES))
    console.print(table)
    table = Table("sampler", *(f"{steps} steps" for steps in STEPS))
    for sampler in SAMPLERS:
        cells = (obeyed(pipe, prompts, sampler=sampler, steps=n, guidance_scale=args.guidance_scale) for n in STEPS)
        table.add_row(sampler, *cells)
    console.print(table)
    console.print(f"{len(prompts)} prompts: {args.n} of each of {', '.join(args.kinds)}")


if __name__ == "__main__":
    main()
