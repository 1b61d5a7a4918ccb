"""A model graded: prompts painted, judged and counted, by kind of scene and by claim, with confidence intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limner.data.world import prompts
from limner.errors import LimnerError, unknown
from limner.world.grade import Verdict, grade
from limner.world.grammar import NotUnderstood, parse
from limner.world.scene import KINDS, Scene, held_out

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.pipeline import Pipeline

CLAIMS = ("shape", "colour", "size", "count", "place", "relation", "background")
SETS = ("seen", "held-out", "all")


class Asked(NamedTuple):
    """A prompt, what it means (None where it cannot be judged), and the row of the table it counts in."""

    prompt: str
    scene: Scene | None
    row: str


@dataclass
class Report:
    """What was painted and how it was judged."""

    asked: list[Asked]
    pictures: "list[Image]"
    verdicts: list[Verdict | None]
    settings: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> dict[str, list[Verdict]]:
        """The verdicts of each row of the table."""
        rows: dict[str, list[Verdict]] = {}
        for asked, verdict in zip(self.asked, self.verdicts, strict=True):
            if verdict is not None:
                rows.setdefault(asked.row, []).append(verdict)
        return rows

    def table(self) -> list[list[str]]:
        """Header and rows: how many prompts, how many obeyed (95% interval), and each claim's share."""
        lines = [["prompts", "n", "obeyed", *CLAIMS]]
        for row, verdicts in self.rows().items():
            obeyed = sum(verdict.obeyed for verdict in verdicts)
            lines.append([row, str(len(verdicts)), percent(obeyed, len(verdicts), interval=True)])
            for kind in CLAIMS:
                claims = [claim.right for verdict in verdicts for claim in verdict.claims if claim.kind == kind]
                lines[-1].append(percent(sum(claims), len(claims)))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        rows = {
            row: {
                "n": len(verdicts),
                "obeyed": sum(verdict.obeyed for verdict in verdicts) / len(verdicts),
                "interval": wilson(sum(verdict.obeyed for verdict in verdicts), len(verdicts)),
            }
            for row, verdicts in self.rows().items()
        }
        each = [
            {"prompt": asked.prompt, "row": asked.row, **_verdict(verdict)}
            for asked, verdict in zip(self.asked, self.verdicts, strict=True)
        ]
        return {"settings": self.settings, "rows": rows, "prompts": each}

    def sheet(self, most: int = 60) -> "Image":
        """Up to `most` pictures, evenly from all, each with its prompt and verdict, framed in green or red."""
        from limner.picture import sheet

        count = min(most, len(self.asked))
        chosen = [round(k * (len(self.asked) - 1) / max(1, count - 1)) for k in range(count)]
        captions = [f"{self.asked[k].prompt}\n{say(self.verdicts[k])}" for k in chosen]
        frames = [_colour(self.verdicts[k]) for k in chosen]
        scale = max(1, 160 // self.pictures[0].width)
        return sheet([self.pictures[k] for k in chosen], captions, scale=scale, gap=8, frames=frames)


def say(verdict: Verdict | None) -> str:
    """A verdict in a line."""
    return "cannot be judged" if verdict is None else verdict.say()


def _colour(verdict: Verdict | None) -> str:
    return "grey" if verdict is None else "green" if verdict.obeyed else "red"


def _verdict(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"obeyed": None}
    wrong = [claim._asdict() for claim in verdict.claims if not claim.right]
    return {"obeyed": verdict.obeyed, "said": verdict.say(), "wrong": wrong}


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% confidence interval of a share (Wilson 1927): of use near 0 and 1, where the normal one is not."""
    if not n:
        return 0.0, 1.0
    share, square = right / n, z * z / n
    middle = share + square / 2
    reach = z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, (middle - reach) / (1 + square)), min(1.0, (middle + reach) / (1 + square))


def percent(right: int, n: int, interval: bool = False) -> str:
    """93.2% (90.7-95.1), or a dash for nothing."""
    if not n:
        return "–"
    low, high = wilson(right, n)
    return f"{right / n:.1%}" + (f" ({100 * low:.1f}-{100 * high:.1f})" if interval else "")


def asked_of(name: str, n: int, seed: int = 0) -> list[Asked]:
    """The prompts called `name`: seen, held-out, all (n of each kind of scene), or a file with one a line.

    Prompts of a file that are no sentence of the world are painted and not judged.
    """
    if n < 1:
        raise LimnerError(f"--n must be at least 1, not {n}")
    if name in SETS:
        which = [False, True] if name == "all" else [name == "held-out"]
        return [
            Asked(prompt, parse(prompt), f"{kind}, {'held-out' if out else 'seen'}")
            for kind in KINDS
            for out in which
            if not (out and kind == "places")  # two places hold nothing out that one object does not
            for prompt in prompts(kind, n, out, seed)
        ]
    path = Path(name)
    if not path.is_file():
        raise LimnerError(f"{unknown('prompt set', name, SETS)}; or a file with a prompt on each line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise LimnerError(f"{path} is not UTF-8 text: {error}") from error
    if not lines:
        raise LimnerError(f"{path} holds no prompt")
    return [read(line) for line in lines[:n]]


def read(prompt: str) -> Asked:
    """A prompt with its meaning; its row says whether training has seen the like, or that it cannot be judged."""
    try:
        scene = parse(prompt)
    except NotUnderstood:
        return Asked(prompt, None, "not judged")
    return Asked(prompt, scene, "held-out" if held_out(scene) else "seen")


def run(
    pipe: "Pipeline",
    asked: Sequence[Asked],
    at_once: int = 50,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    **settings: Any,
) -> Report:
    """Paint each prompt once, `at_once` together, with seeds from `seed` on, and judge what can be judged."""
    pictures: list[Image] = []
    for start in range(0, len(asked), at_once):
        some = [each.prompt for each in asked[start : start + at_once]]
        pictures += pipe(some, seed=seed + start, **settings)
        if progress is not None:
            progress(len(pictures))
    verdicts = [
        None if each.scene is None else grade(picture, each.scene)
        for each, picture in zip(asked, pictures, strict=True)
    ]
    made = {name: value for name, value in settings.items() if value is not None}
    return Report(list(asked), pictures, verdicts, {"model": pipe.name, "seed": seed} | made)
