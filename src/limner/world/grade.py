"""Did the picture obey the prompt? Each claim the prompt makes is held against what is seen in the picture alone.

The claims: of each group its number, and its shape, colour, size and place if said; the relation; the background.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image

from limner.data.captions import article
from limner.world.find import Seen, Thing, find
from limner.world.grammar import parse
from limner.world.lexicon import ANY_SHAPE, PLACE_WORDS, RELATION_WORDS, plural
from limner.world.scene import MOST, RELATIONS, Group, Scene

LOOKS = ("shape", "colour", "size", "place")  # the claims that each object of a group meets or not
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MANY = 7  # with more objects than this the number is wrong anyhow: each goes to the group that it is most like


class Claim(NamedTuple):
    """One thing that the prompt says. `group` is None for the relation and the background.

    `kind` is count, shape, colour, size, place, relation or background. `found` is None where there is nothing to name:
    no object to look at, a shape that is none of this world's, no relation that holds.
    """

    kind: str
    wanted: str | int
    found: str | int | None
    right: bool
    group: int | None = None


class Verdict(NamedTuple):
    """Every claim of the scene that was asked for; what was seen, and which objects were taken for each group."""

    scene: Scene
    claims: tuple[Claim, ...]
    seen: Seen
    members: tuple[tuple[Thing, ...], ...]

    @property
    def obeyed(self) -> bool:
        """Whether all that the prompt says is so."""
        return all(claim.right for claim in self.claims)

    @property
    def wrong(self) -> tuple[Claim, ...]:
        """The claims that do not hold."""
        return tuple(claim for claim in self.claims if not claim.right)

    def say(self) -> str:
        """In words: "obeyed", or "wanted two blue circles, found one"."""
        return "; ".join(_complaints(self)) or "obeyed"


def grade(picture: Image.Image | np.ndarray, wanted: str | Scene) -> Verdict:
    """Judge a square picture (PIL, or uint8 (H, W, 3)) by a prompt or a scene.

    NotUnderstood where the prompt is not a sentence of this world, so that nothing can be said of it.
    """
    scene = parse(wanted) if isinstance(wanted, str) else wanted
    return judge(find(picture), scene)


def judge(seen: Seen, scene: Scene) -> Verdict:
    """Hold what was seen against a scene. Of all ways to deal the objects to its groups, the one most right counts."""

    def badness(verdict: Verdict) -> tuple[int, int]:
        dealt = zip(verdict.members, scene.groups, strict=True)
        return len(verdict.wrong), sum(_unlike(thing, group) for things, group in dealt for thing in things)

    deals = _deals(seen.objects, scene.groups)
    return min((Verdict(scene, tuple(_claims(seen, scene, deal)), seen, deal) for deal in deals), key=badness)


def _deals(things: Sequence[Thing], groups: Sequence[Group]) -> Iterator[tuple[tuple[Thing, ...], ...]]:
    """The ways to deal the objects to the groups, each object to exactly one."""
    if len(things) > MANY:
        ways = iter([tuple(min(range(len(groups)), key=lambda g: _unlike(thing, groups[g])) for thing in things)])
    else:
        ways = product(range(len(groups)), repeat=len(things))
    for way in ways:
        yield tuple(tuple(t for t, k in zip(things, way, strict=True) if k == group) for group in range(len(groups)))


def _unlike(thing: Thing, group: Group) -> int:
    """How many of the group's claims the object does not meet."""
    return sum(getattr(group, kind) not in (None, getattr(thing, kind)) for kind in LOOKS)


def _judged(things: Sequence[Thing], group: Group) -> list[Thing]:
    """The objects that the group's claims are held against: not those beyond the wanted number and less like it."""
    marks = sorted(_unlike(thing, group) for thing in things)
    return [thing for thing in things if _unlike(thing, group) <= marks[: group.count][-1]]


def _claims(seen: Seen, scene: Scene, members: Sequence[Sequence[Thing]]) -> Iterator[Claim]:
    judged = [_judged(things, group) for things, group in zip(members, scene.groups, strict=True)]
    for index, (group, things) in enumerate(zip(scene.groups, members, strict=True)):
        yield Claim("count", group.count, len(things), len(things) == group.count, index)
        for kind in LOOKS:
            wanted = getattr(group, kind)
            if wanted is not None:
                there = [getattr(thing, kind) for thing in judged[index]]
                others = [value for value in there if value != wanted]
                yield Claim(kind, wanted, (others or there or [None])[0], bool(there) and not others, index)
    if scene.relation is not None:
        found = _relation(*judged)
        yield Claim("relation", scene.relation, found, found == scene.relation)
    if scene.background is not None:
        yield Claim("background", scene.background, seen.background, seen.background == scene.background)


def _relation(first: Sequence[Thing], second: Sequence[Thing]) -> str | None:
    """The relation in which the first objects stand to the second: every middle beyond every other, and the middles of
    both farther apart along it than across it, so that no two relations hold at once. None where none does."""
    if not first or not second:
        return None
    near, far = (np.array([(thing.x, thing.y) for thing in things]) for things in (first, second))  # (n, 2)
    apart = far.mean(0) - near.mean(0)
    for name, way in RELATIONS.items():
        along, across = apart @ way, abs(apart @ way[::-1])
        if along > across and (near @ way).max() < (far @ way).min():
            return name
    return None


# ---- in words


def _complaints(verdict: Verdict) -> Iterator[str]:
    groups = verdict.scene.groups
    wrong = {(claim.kind, claim.group): claim for claim in verdict.wrong}
    for index, (group, things) in enumerate(zip(groups, verdict.members, strict=True)):
        kinds = {kind for kind, of in wrong if of == index}
        if kinds:
            yield f"wanted {_phrase(group, 'place' in kinds)}, found {_found(kinds, group, things)}"
    if (claim := wrong.get(("relation", None))) and all(verdict.members):
        first, second = (_phrase(group) for group in groups)
        there = "elsewhere" if claim.found is None else _beside(str(claim.found)).removesuffix(" of")
        them = "it" if groups[0].count == 1 else "them"
        yield f"wanted {first} {_beside(str(claim.wanted))} {second}, found {them} {there}"
    if claim := wrong.get(("background", None)):
        wanted, found = str(claim.wanted), str(claim.found)
        yield f"wanted {article(wanted)} {wanted} background, found {article(found)} {found} one"


def _beside(relation: str) -> str:
    return RELATION_WORDS[relation][0]


def _phrase(group: Group, place: bool = False) -> str:
    """A small red star; two blue circles; what has no known shape is a blob."""
    noun = group.shape or ANY_SHAPE[0]
    words = " ".join(filter(None, [group.size, group.colour, noun if group.count == 1 else plural(noun)]))
    words = f"{article(words)} {words}" if group.count == 1 else f"{_number(group.count)} {words}"
    return f"{words} {PLACE_WORDS[group.place][0]}" if place and group.place else words


def _found(kinds: set[str], group: Group, things: Sequence[Thing]) -> str:
    if kinds == {"count"} and not any(_unlike(thing, group) for thing in things):
        return _number(len(things))
    if kinds == {"place"}:
        return f"it {PLACE_WORDS[things[0].place][0]}"
    if len(things) > MOST:
        return f"{_number(len(things))} objects"  # a picture gone wrong: what each is helps nobody
    alike = Counter(
        Group(thing.shape or "blob", thing.colour, thing.size if group.size else None,
              place=thing.place if "place" in kinds else None)
        for thing in sorted(things, key=lambda thing: _unlike(thing, group))
    )  # fmt: skip
    phrases = [_phrase(replace(like, count=n), "place" in kinds) for like, n in alike.items()]
    return " and ".join(filter(None, [", ".join(phrases[:-1]), *phrases[-1:]])) or "none"


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)
