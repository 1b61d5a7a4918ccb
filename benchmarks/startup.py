"""Start-up time of limner, relative to Python and to `import torch`.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

PAINT = [
    sys.executable, "-m", "limner", "generate", "a handwritten seven", "--output", "{folder}/seven.png",
]  # fmt: skip
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import limner": [sys.executable, "-c", "import limner"],
    "limner --help": [str(Path(sys.executable).with_name("limner")), "--help"],
    "limner generate --help": [str(Path(sys.executable).with_name("limner")), "generate", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "limner generate: one picture": PAINT,
}


def main(rounds: int = 7) -> None:
    """Print the median times of `rounds` interleaved runs of each command."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with TemporaryDirectory() as folder:
        for round_ in range(rounds + 1):
            for name, command in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run([part.format(folder=folder) for part in command], check=True, capture_output=True)
                if round_:  # the first round warms the disk cache
                    seconds[name].append(time.perf_counter() - start)
    base, torch_seconds = (statistics.median(seconds[name]) for name in ("python -c pass", "import torch"))
    table = Table("command", "seconds", "less python", "to import torch")
    for name, runs in seconds.items():
        median = statistics.median(runs)
        table.add_row(name, f"{median:.3f}", f"{median - base:.3f}", f"{median / torch_seconds:.2f}")
    Console(highlight=False).print(table)
    first = statistics.median(seconds["limner generate: one picture"])
    print(f"first picture {first:.2f} s; limit 1.5 x import torch + 3 s = {1.5 * torch_seconds + 3:.2f} s")


if __name__ == "__main__":
    main()
