"""Evaluation of a model: shares of obeyed prompts and right claims by kind of scene, with confidence intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from limner.data.metadata import read_text
from limner.errors import LimnerError, unknown
from limner.files import expand
from limner.world import KINDS, NotUnderstood, Scene, Verdict, grade, held_out, parse, prompts

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.pipeline import Pipeline

CLAIMS = ("shape", "colour", "size", "count", "place", "relation", "background")
SETS = ("seen", "held-out", "all")


class EvalPrompt(NamedTuple):
    """A prompt, its scene (None where it cannot be graded), and the row of the table that it counts in."""

    prompt: str
    scene: Scene | None
    row: str


@dataclass
class Report:
    """The pictures of an evaluation and their verdicts."""

    prompts: list[EvalPrompt]
    pictures: "list[Image]"
    verdicts: list[Verdict | None]
    settings: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> dict[str, list[Verdict]]:
        """The verdicts of each row of the table."""
        rows: dict[str, list[Verdict]] = {}
        for each, verdict in zip(self.prompts, self.verdicts, strict=True):
            if verdict is not None:
                rows.setdefault(each.row, []).append(verdict)
        return rows

    def obeyed(self) -> dict[str, float]:
        """The share of obeyed prompts in each row."""
        return {row: sum(v.obeyed for v in verdicts) / len(verdicts) for row, verdicts in self.rows().items()}

    def table(self) -> list[list[str]]:
        """Header and rows: number of prompts, share obeyed (95% interval), and share of right claims of each kind."""
        lines = [["prompts", "n", "obeyed", *CLAIMS]]
        for row, verdicts in self.rows().items():
            obeyed = sum(verdict.obeyed for verdict in verdicts)
            lines.append([row, str(len(verdicts)), percent(obeyed, len(verdicts), interval=True)])
            for kind in CLAIMS:
                claims = [claim.right for verdict in verdicts for claim in verdict.claims if claim.kind == kind]
                lines[-1].append(percent(sum(claims), len(claims)))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        obeyed = self.obeyed()
        rows = {
            row: {
                "n": len(verdicts),
                "obeyed": obeyed[row],
                "interval": wilson(sum(verdict.obeyed for verdict in verdicts), len(verdicts)),
            }
            for row, verdicts in self.rows().items()
        }
        prompts = [
            {"prompt": each.prompt, "row": each.row, **_to_dict(verdict)}
            for each, verdict in zip(self.prompts, self.verdicts, strict=True)
        ]
        return {"settings": self.settings, "rows": rows, "prompts": prompts}

    def sheet(self, most: int = 60) -> "Image":
        """Up to `most` pictures, evenly from all, each with its prompt and verdict, framed in green or red."""
        from limner.picture import sheet

        count = min(most, len(self.prompts))
        chosen = [round(k * (len(self.prompts) - 1) / max(1, count - 1)) for k in range(count)]
        captions = [f"{self.prompts[k].prompt}\n{describe(self.verdicts[k])}" for k in chosen]
        frames = [_colour(self.verdicts[k]) for k in chosen]
        scale = max(1, 160 // self.pictures[0].width)
        return sheet([self.pictures[k] for k in chosen], captions, scale=scale, gap=8, frames=frames)


def describe(verdict: Verdict | None) -> str:
    """A verdict as one line of text."""
    return "cannot be judged" if verdict is None else verdict.describe()


def _colour(verdict: Verdict | None) -> str:
    return "grey" if verdict is None else "green" if verdict.obeyed else "red"


def _to_dict(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"obeyed": None}
    wrong = [claim._asdict() for claim in verdict.wrong]
    return {"obeyed": verdict.obeyed, "description": verdict.describe(), "wrong": wrong}


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% confidence interval of a share (Wilson 1927), valid near 0 and 1 too."""
    from scipy.stats import binomtest  # here, since it takes a second

    interval = binomtest(right, n).proportion_ci(method="wilson")
    return interval.low, interval.high


def percent(right: int, n: int, interval: bool = False) -> str:
    """The share as text, e.g. 93.2% (90.7-95.1); a dash for n = 0."""
    if not n:
        return "–"
    if not interval:
        return f"{right / n:.1%}"
    low, high = wilson(right, n)
    return f"{right / n:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def load_prompts(name: str, n: int, seed: int = 0) -> list[EvalPrompt]:
    """The set `name`: seen, held-out, all (n prompts of each kind of scene), or a file with one prompt a line.

    Prompts of a file outside the grammar are painted and not graded.
    """
    if n < 1:
        raise LimnerError(f"--n must be at least 1, not {n}")
    if name in SETS:
        which = [False, True] if name == "all" else [name == "held-out"]
        return [
            EvalPrompt(prompt, scene, f"{kind}, {'held-out' if out else 'seen'}")
            for kind in KINDS
            for out in which
            if not (out and kind == "places")  # two places hold nothing out that one object does not
            for prompt, scene in prompts(kind, n, out, seed)
        ]
    path = expand(name)
    if not path.is_file():
        raise LimnerError(f"{unknown('prompt set', name, SETS)}; or a file with a prompt on each line")
    # Not splitlines, which ends a line at separators inside of a prompt too.
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not lines:
        raise LimnerError(f"{path} holds no prompt")
    return [classify(line) for line in lines[:n]]


def classify(prompt: str) -> EvalPrompt:
    """A prompt with its scene, in the row "seen" or "held-out" by its composition, or "not judged" without a scene."""
    try:
        scene = parse(prompt)
    except NotUnderstood:
        return EvalPrompt(prompt, None, "not judged")
    return EvalPrompt(prompt, scene, "held-out" if held_out(scene) else "seen")


def evaluate(
    pipe: "Pipeline",
    prompts: Sequence[EvalPrompt],
    batch_size: int = 50,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    **settings: Any,
) -> Report:
    """Paint each prompt once, prompt k with seed + k, and grade the pictures. `settings` go to the pipeline."""
    pictures: list[Image] = []
    for start in range(0, len(prompts), batch_size):
        batch = [each.prompt for each in prompts[start : start + batch_size]]
        pictures += pipe(batch, seed=seed + start, **settings)
        if progress is not None:
            progress(len(pictures))
    verdicts = [
        None if each.scene is None else grade(picture, each.scene)
        for each, picture in zip(prompts, pictures, strict=True)
    ]
    given = {name: value for name, value in settings.items() if value is not None}
    return Report(list(prompts), pictures, verdicts, {"model": pipe.model.name, "seed": seed} | given)
