"""Grading: each claim of a scene is compared with the objects detected in a picture.

The claims are the count of each group, its specified shape, colour, size and place, the relation and the background.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image

from limner.world.find import DetectedObject, Detection, find
from limner.world.lexicon import ANY_SHAPE, PLACE_WORDS, RELATION_WORDS, article, plural
from limner.world.scene import MAX_OBJECTS, RELATIONS, Group, Scene

ATTRIBUTES = ("shape", "colour", "size", "place")  # the claims about each object of a group
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MAX_PERMUTED = 7  # with more objects the count is wrong in any case: each goes to the group that it matches best

Assignment = tuple[tuple[DetectedObject, ...], ...]  # the objects of each group


class Claim(NamedTuple):
    """One claim of a scene and whether it is right. `group` is None for the relation and the background.

    `kind` is count, shape, colour, size, place, relation or background. `found` is None where no object, no known
    shape or no relation corresponds.
    """

    kind: str
    expected: str | int
    found: str | int | None
    right: bool
    group: int | None = None


class Verdict(NamedTuple):
    """The claims of a scene, the detection, and the objects assigned to each group."""

    scene: Scene
    claims: tuple[Claim, ...]
    detection: Detection
    members: Assignment

    @property
    def obeyed(self) -> bool:
        """Whether all claims are right."""
        return all(claim.right for claim in self.claims)

    @property
    def wrong(self) -> tuple[Claim, ...]:
        """The claims that are not right."""
        return tuple(claim for claim in self.claims if not claim.right)

    def describe(self) -> str:
        """The verdict as text: "obeyed", or "wanted two blue circles, found one"."""
        return "; ".join(_complaints(self)) or "obeyed"


def grade(picture: Image.Image | np.ndarray, scene: Scene) -> Verdict:
    """Grade a square picture (PIL, or uint8 (H, W, 3)) by a scene; `parse` gives the scene of a prompt."""
    return judge(find(picture), scene)


def judge(detection: Detection, scene: Scene) -> Verdict:
    """Compare a detection with a scene, by the assignment of objects to groups with the fewest wrong claims."""

    def cost(verdict: Verdict) -> tuple[int, int]:
        members = zip(verdict.members, scene.groups, strict=True)
        return len(verdict.wrong), sum(_mismatches(obj, group) for objects, group in members for obj in objects)

    assignments = _assignments(detection.objects, scene.groups)
    verdicts = (Verdict(scene, tuple(_claims(detection, scene, each)), detection, each) for each in assignments)
    return min(verdicts, key=cost)


def _assignments(objects: Sequence[DetectedObject], groups: Sequence[Group]) -> Iterator[Assignment]:
    """The ways to assign each object to exactly one group."""
    if len(objects) > MAX_PERMUTED:
        ways = iter([tuple(min(range(len(groups)), key=lambda g: _mismatches(obj, groups[g])) for obj in objects)])
    else:
        ways = product(range(len(groups)), repeat=len(objects))
    for way in ways:
        yield tuple(tuple(o for o, k in zip(objects, way, strict=True) if k == group) for group in range(len(groups)))


def _mismatches(obj: DetectedObject, group: Group) -> int:
    """The number of the group's attributes that the object lacks."""
    return sum(getattr(group, kind) not in (None, getattr(obj, kind)) for kind in ATTRIBUTES)


def _judged(objects: Sequence[DetectedObject], group: Group) -> list[DetectedObject]:
    """The objects that the group's claims apply to: the best matches, as many as its count, and ties."""
    mismatches = sorted(_mismatches(obj, group) for obj in objects)
    return [obj for obj in objects if _mismatches(obj, group) <= mismatches[: group.count][-1]]


def _claims(detection: Detection, scene: Scene, members: Assignment) -> Iterator[Claim]:
    judged = [_judged(objects, group) for objects, group in zip(members, scene.groups, strict=True)]
    for index, (group, objects) in enumerate(zip(scene.groups, members, strict=True)):
        yield Claim("count", group.count, len(objects), len(objects) == group.count, index)
        for kind in ATTRIBUTES:
            expected = getattr(group, kind)
            if expected is not None:
                values = [getattr(obj, kind) for obj in judged[index]]
                others = [value for value in values if value != expected]
                yield Claim(kind, expected, (others or values or [None])[0], bool(values) and not others, index)
    if scene.relation is not None:
        found = _relation(*judged)
        yield Claim("relation", scene.relation, found, found == scene.relation)
    if scene.background is not None:
        found = detection.background
        yield Claim("background", scene.background, found, found == scene.background)


def _relation(first: Sequence[DetectedObject], second: Sequence[DetectedObject]) -> str | None:
    """The relation of the first objects to the second, or None: all centres are separated along its axis, and the mean
    centres are farther apart along it than across, so that at most one relation holds."""
    if not first or not second:
        return None
    a, b = (np.array([(obj.x, obj.y) for obj in objects]) for objects in (first, second))  # (n, 2)
    apart = b.mean(0) - a.mean(0)
    for name, axis in RELATIONS.items():
        along, across = apart @ axis, abs(apart @ axis[::-1])
        if along > across and (a @ axis).max() < (b @ axis).min():
            return name
    return None


# ---- descriptions


def _complaints(verdict: Verdict) -> Iterator[str]:
    groups = verdict.scene.groups
    wrong = {(claim.kind, claim.group): claim for claim in verdict.wrong}
    for index, (group, objects) in enumerate(zip(groups, verdict.members, strict=True)):
        kinds = {kind for kind, of in wrong if of == index}
        if kinds:
            yield f"wanted {_phrase(group, 'place' in kinds)}, found {_found(kinds, group, objects)}"
    if (claim := wrong.get(("relation", None))) and all(verdict.members):
        first, second = (_phrase(group) for group in groups)
        where = "elsewhere" if claim.found is None else _beside(str(claim.found)).removesuffix(" of")
        them = "it" if groups[0].count == 1 else "them"
        yield f"wanted {first} {_beside(str(claim.expected))} {second}, found {them} {where}"
    if claim := wrong.get(("background", None)):
        expected, found = str(claim.expected), str(claim.found)
        yield f"wanted {article(expected)} {expected} background, found {article(found)} {found} one"


def _beside(relation: str) -> str:
    return RELATION_WORDS[relation][0]


def _phrase(group: Group, place: bool = False) -> str:
    """E.g. "a small red star"; the noun of an unspecified shape is "shape"."""
    noun = group.shape or ANY_SHAPE[0]
    words = " ".join(filter(None, [group.size, group.colour, noun if group.count == 1 else plural(noun)]))
    words = f"{article(words)} {words}" if group.count == 1 else f"{_number(group.count)} {words}"
    return f"{words} {PLACE_WORDS[group.place][0]}" if place and group.place else words


def _found(kinds: set[str], group: Group, objects: Sequence[DetectedObject]) -> str:
    if kinds == {"count"} and not any(_mismatches(obj, group) for obj in objects):
        return _number(len(objects))
    if kinds == {"place"}:
        return f"it {PLACE_WORDS[objects[0].place][0]}"
    if len(objects) > MAX_OBJECTS:
        return f"{_number(len(objects))} objects"  # more than any scene has: not listed
    alike = Counter(
        Group(obj.shape or "blob", obj.colour, obj.size if group.size else None,
              place=obj.place if "place" in kinds else None)
        for obj in sorted(objects, key=lambda obj: _mismatches(obj, group))
    )  # fmt: skip
    phrases = [_phrase(replace(like, count=n), "place" in kinds) for like, n in alike.items()]
    return " and ".join(filter(None, [", ".join(phrases[:-1]), *phrases[-1:]])) or "none"


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)
