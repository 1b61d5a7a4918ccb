"""Accuracy of the grader on renders whose content is known: matching and mismatched prompts, corruptions, sizes.

python benchmarks/grader.py [PICTURES]
"""

import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from limner import world
from limner.errors import LimnerError
from limner.world import (
    COLOURS,
    KINDS,
    PLACE_JITTER,
    PLACES,
    Layout,
    Scene,
    Verdict,
    draw,
    grade,
    layout,
    partial,
    random_scene,
)

FIRST_SEED = 20_000_000  # used nowhere else
SHARES = (0.0, 0.3, 0.6, 1.0)  # of sizes, places and backgrounds that the claims specify


class Case(NamedTuple):
    """Claims and a layout. `kind` of scene; `changed` is the (kind, group) of the claim that the layout breaks."""

    kind: str
    claimed: Scene
    layout: Layout
    changed: tuple[str, int | None] | None = None


def has_places(scene: Scene, painted: Layout) -> bool:
    """Whether the objects are at the places of the scene."""
    members = [group for group in scene.groups for _ in range(group.count)]
    for group, obj in zip(members, painted.objects, strict=True):
        x, y = PLACES[group.place] if group.place else (obj.x, obj.y)
        if max(abs(x - obj.x), abs(y - obj.y)) > PLACE_JITTER + 1e-6:
            return False
    return True


def true_cases(number: int, first: int = FIRST_SEED) -> tuple[list[Case], int]:
    """`number` cases whose claims all hold, and the number of layouts rejected by `has_places`."""
    cases, rejected = [], 0
    while len(cases) < number:
        random = Random(first + len(cases) + rejected)
        kind = random.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        scene = random_scene(random, kind)
        claimed, painted = partial(scene, random, random.choice(SHARES)), layout(scene, random)
        if not has_places(scene, painted):
            rejected += 1
            continue
        cases.append(Case(kind, claimed, painted))
    return cases, rejected


def wrong_cases(number: int, first: int = FIRST_SEED) -> list[Case]:
    """Cases that break exactly one claim."""
    cases: list[Case] = []
    seed = first
    while len(cases) < number:
        seed += 1
        random = Random(seed)
        kind = random.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        scene = random_scene(random, kind)
        claimed = partial(scene, random, random.choice(SHARES))
        try:
            changed, claim = change(scene, claimed, random)
            painted = layout(changed, random)
        except LimnerError:
            continue
        if has_places(changed, painted):
            cases.append(Case(kind, claimed, painted, claim))
    return cases


def change(scene: Scene, claimed: Scene, random: Random) -> tuple[Scene, tuple[str, int | None]]:
    """`scene` with one claim of `claimed` broken, and its (kind, group). LimnerError where it cannot be rendered."""
    index = random.randrange(len(claimed.groups))
    group = claimed.groups[index]
    kinds = ["shape", "colour", "count"]
    kinds += ["size"] * bool(group.size) + ["place"] * bool(group.place)
    kinds += ["relation"] * bool(claimed.relation) + ["background"] * bool(claimed.background)
    kind = random.choice(kinds)
    if kind == "relation":
        return replace(scene, relation=other(world.RELATIONS, scene.relation, random)), (kind, None)
    if kind == "background":
        return replace(scene, background=other(COLOURS, scene.background, random)), (kind, None)
    numbers = range(1, world.MAX_OBJECTS + 1)
    values = {"shape": world.SHAPES, "colour": COLOURS, "size": world.SIZES, "place": PLACES, "count": numbers}[kind]
    new = replace(scene.groups[index], **{kind: other(values, getattr(scene.groups[index], kind), random)})
    if kind == "count" and not group.place:
        new = replace(new, place=None)
    groups = tuple(new if k == index else group for k, group in enumerate(scene.groups))
    return replace(scene, groups=groups), (kind, index)


def other(values, value, random: Random):
    """A random value other than `value`."""
    return random.choice([each for each in values if each != value])


# ---- corruptions


def plain(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    return Image.fromarray(picture)


def jpeg(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    """Quality 60, 4:2:0 chroma subsampling (Pillow's default)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=60)
    return Image.open(file)


def blurred(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A Gaussian blur of one pixel."""
    return Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1))


def noisy(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    """Gaussian noise of 5% in each channel."""
    return Image.fromarray(np.clip(picture + random.normal(0, 0.05 * 255, picture.shape), 0, 255).astype(np.uint8))


def uneven(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    """Soft edges and smoothly varying shades, as networks produce."""
    drift = np.stack([
        Image.fromarray(each).resize(picture.shape[:2], Image.Resampling.BICUBIC)
        for each in random.normal(0, 10, (3, 8, 8)).astype(np.float32)
    ], axis=-1)  # fmt: skip
    soft = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.8))
    return Image.fromarray(np.clip(np.asarray(soft) + drift, 0, 255).astype(np.uint8))


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], Image.Image]] = {
    "none": plain, "JPEG 60": jpeg, "blur 1 px": blurred, "noise 5%": noisy, "soft, uneven": uneven,
}  # fmt: skip


class Measured(NamedTuple):
    """Correct verdicts and cases by kind of scene; processor time in seconds."""

    correct: Counter
    all: Counter
    seconds: float
    alone: int = 0  # verdicts with the broken claim and no other
    failures: tuple[tuple[Case, Verdict], ...] = ()


def measure(cases: Sequence[Case], size: int = 64, corruption: str = "none") -> Measured:
    """Render, corrupt and grade. A verdict is correct where it is "obeyed", or has the broken claim."""
    generator = np.random.default_rng(FIRST_SEED)
    correct, every, alone, seconds, failures = Counter(), Counter(), 0, 0.0, []
    for start in range(0, len(cases), 256):
        batch = cases[start : start + 256]
        for case, picture in zip(batch, draw([case.layout for case in batch], size), strict=True):
            corrupted = CORRUPTIONS[corruption](picture, generator)
            start_time = time.process_time()
            verdict = grade(corrupted, case.claimed)
            seconds += time.process_time() - start_time
            named = [(claim.kind, claim.group) for claim in verdict.wrong]
            right = case.changed in named if case.changed else not named
            if not right:
                failures.append((case, verdict))
            alone += named == [case.changed]
            every[case.kind] += 1
            correct[case.kind] += right
    return Measured(correct, every, seconds, alone, tuple(failures))


def show(name: str, result: Measured) -> None:
    """Print one row of the table."""
    total = result.all.total()
    shares = [f"{100 * result.correct[kind] / max(result.all[kind], 1):9.2f}" for kind in KINDS]
    print(
        f"{name:25}{total:7}{100 * result.correct.total() / total:8.2f}",
        *shares,
        f"{total / result.seconds:7.0f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    some = max(number // 2, 1)
    cases, rejected = true_cases(number)
    print("correct, %".rjust(40), "of each kind of scene".center(4 * 9), "pictures/s")
    print(f"{'pictures':25}{'number':>7}{'all':>8}", *(f"{kind:>9}" for kind in KINDS))
    for corruption in CORRUPTIONS:
        show(f"true, 64 px, {corruption}", measure(cases, 64, corruption))
    wrong = wrong_cases(number)
    result = measure(wrong)
    show("one claim broken, 64 px", result)
    for size in (32, 48, 128, 256, 512):
        show(f"true, {size} px", measure(cases[:some], size))
    for corruption in tuple(CORRUPTIONS)[1:]:
        show(f"true, 32 px, {corruption}", measure(cases[:some], 32, corruption))
    missed = Counter(case.changed[0] for case, _ in result.failures if case.changed)
    for kind, count in sorted(Counter(case.changed[0] for case in wrong if case.changed).items()):
        print(f"broken {kind:12} {count:5}, missed {missed[kind]}")
    print(f"the broken claim, and no other, is found in {100 * result.alone / len(wrong):.2f}%")
    print(f"{rejected} layouts rejected: objects not at their places")


if __name__ == "__main__":
    main()
