"""How well the grader judges pictures whose content is known: true ones, wrong ones, spoiled ones, other sizes.

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

FIRST = 20_000_000  # seeds from here on are no other's
SHARES = (0.0, 0.3, 0.6, 1.0)  # of the sizes, places and backgrounds that are claimed


class Case(NamedTuple):
    """Claims, and a picture whose content is known. `kind` of scene; `changed` names the claim that it breaks."""

    kind: str
    claimed: Scene
    layout: Layout
    changed: tuple[str, int | None] | None = None


def true_to(scene: Scene, painted: Layout) -> bool:
    """Whether the objects stand at the places of the scene."""
    members = [group for group in scene.groups for _ in range(group.count)]
    for group, obj in zip(members, painted.objects, strict=True):
        x, y = PLACES[group.place] if group.place else (obj.x, obj.y)
        if max(abs(x - obj.x), abs(y - obj.y)) > PLACE_JITTER + 1e-6:
            return False
    return True


def true_cases(number: int, first: int = FIRST) -> tuple[list[Case], int]:
    """Pictures of which all claims hold, and how many more the renderer painted otherwise."""
    cases, untrue = [], 0
    while len(cases) < number:
        random = Random(first + len(cases) + untrue)
        kind = random.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        scene = random_scene(random, kind)
        claimed, painted = partial(scene, random, random.choice(SHARES)), layout(scene, random)
        if not true_to(scene, painted):
            untrue += 1
            continue
        cases.append(Case(kind, claimed, painted))
    return cases, untrue


def wrong_cases(number: int, first: int = FIRST) -> list[Case]:
    """Pictures that break exactly one claim."""
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
        if true_to(changed, painted):
            cases.append(Case(kind, claimed, painted, claim))
    return cases


def change(scene: Scene, claimed: Scene, random: Random) -> tuple[Scene, tuple[str, int | None]]:
    """`scene` with one claim of `claimed` broken, and which. LimnerError where that cannot be painted."""
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
    groups = list(scene.groups)
    groups[index] = new
    return replace(scene, groups=tuple(groups)), (kind, index)


def other(values, value, random: Random):
    """One of the values that is not this one."""
    return random.choice([each for each in values if each != value])


# ---- ways to spoil a picture


def plain(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    return Image.fromarray(picture)


def jpeg(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    """Quality 60, colour at half the resolution (4:2:0, what Pillow does unless told otherwise)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=60)
    return Image.open(file)


def blurred(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A Gaussian of one pixel, as Pillow makes it of three box blurs."""
    return Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1))


def noisy(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    """Noise of 5% in each channel."""
    return Image.fromarray(np.clip(picture + random.normal(0, 0.05 * 255, picture.shape), 0, 255).astype(np.uint8))


def uneven(picture: np.ndarray, random: np.random.Generator) -> Image.Image:
    """Soft edges and shades that wander across the picture, much as a network paints them."""
    wander = np.stack([
        Image.fromarray(each).resize(picture.shape[:2], Image.Resampling.BICUBIC)
        for each in random.normal(0, 10, (3, 8, 8)).astype(np.float32)
    ], axis=-1)  # fmt: skip
    soft = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.8))
    return Image.fromarray(np.clip(np.asarray(soft) + wander, 0, 255).astype(np.uint8))


SPOILERS: dict[str, Callable[[np.ndarray, np.random.Generator], Image.Image]] = {
    "as painted": plain, "JPEG 60": jpeg, "blur 1 px": blurred, "noise 5%": noisy, "soft, uneven": uneven,
}  # fmt: skip


class Measured(NamedTuple):
    """Cases of each kind judged well, and all cases of each kind; processor time for all pictures, in seconds."""

    well: Counter
    all: Counter
    seconds: float
    alone: int = 0  # verdicts that name the broken claim and nothing else
    failures: tuple[tuple[Case, Verdict], ...] = ()


def measure(cases: Sequence[Case], size: int = 64, spoil: str = "as painted") -> Measured:
    """Paint, spoil and judge. A case is judged well where its verdict is right: obeyed, or the broken claim named."""
    generator = np.random.default_rng(FIRST)
    well, every, alone, seconds, failures = Counter(), Counter(), 0, 0.0, []
    for start in range(0, len(cases), 256):
        batch = cases[start : start + 256]
        for case, picture in zip(batch, draw([case.layout for case in batch], size), strict=True):
            spoiled = SPOILERS[spoil](picture, generator)
            begun = time.process_time()
            verdict = grade(spoiled, case.claimed)
            seconds += time.process_time() - begun
            named = [(claim.kind, claim.group) for claim in verdict.wrong]
            right = case.changed in named if case.changed else not named
            if not right:
                failures.append((case, verdict))
            alone += named == [case.changed]
            every[case.kind] += 1
            well[case.kind] += right
    return Measured(well, every, seconds, alone, tuple(failures))


def show(name: str, got: Measured) -> None:
    """One row of the table: at once, since the whole takes minutes."""
    total = got.all.total()
    shares = [f"{100 * got.well[kind] / max(got.all[kind], 1):9.2f}" for kind in KINDS]
    print(
        f"{name:25}{total:7}{100 * got.well.total() / total:8.2f}", *shares, f"{total / got.seconds:7.0f}", flush=True
    )


def main() -> None:
    """Measure and print the table."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    some = max(number // 2, 1)
    cases, untrue = true_cases(number)
    print("judged well, %".rjust(40), "of each kind of scene".center(4 * 9), "pictures/s")
    print(f"{'pictures':25}{'number':>7}{'all':>8}", *(f"{kind:>9}" for kind in KINDS))
    for spoil in SPOILERS:
        show(f"true, 64 px, {spoil}", measure(cases, 64, spoil))
    wrong = wrong_cases(number)
    got = measure(wrong)
    show("one claim broken, 64 px", got)
    for size in (32, 48, 128, 256, 512):
        show(f"true, {size} px", measure(cases[:some], size))
    for spoil in tuple(SPOILERS)[1:]:
        show(f"true, 32 px, {spoil}", measure(cases[:some], 32, spoil))
    missed = Counter(case.changed[0] for case, _ in got.failures if case.changed)
    for kind, count in sorted(Counter(case.changed[0] for case in wrong if case.changed).items()):
        print(f"broken {kind:12} {count:5}, missed {missed[kind]}")
    print(f"the broken claim, and no other, was named in {100 * got.alone / len(wrong):.2f}%")
    print(f"left out: {untrue} pictures that the renderer painted otherwise than their scene says")


if __name__ == "__main__":
    main()
