"""Scenes: a background and one to four objects, in one group ("three blue circles") or two.

An attribute that is None is unspecified: "a red star" specifies no size, place or background. `complete` samples
unspecified attributes, as rendering needs; `random_scene` samples complete scenes. All draws are by `random.Random`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from random import Random

from limner.errors import LimnerError

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "crescent")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 135, 20),
    "yellow": (250, 215, 45),
    "green": (45, 160, 70),
    "blue": (40, 95, 210),
    "purple": (135, 55, 170),
    "pink": (250, 150, 195),
    "brown": (120, 72, 35),
    "black": (25, 25, 28),
    "white": (248, 248, 246),
    "grey": (140, 140, 145),
}
SIZES = {"small": 0.095, "medium": 0.135, "large": 0.185}  # radius as a share of the picture's side
PLACES = {  # the centres of objects, (x, y) as shares of the picture, y downwards
    f"{v} {h}".strip() or "centre": (x, y)
    for (v, y), (h, x) in product(
        (("top", 0.25), ("", 0.5), ("bottom", 0.75)), (("left", 0.25), ("", 0.5), ("right", 0.75))
    )
}
RELATIONS = {"above": (0, 1), "below": (0, -1), "left of": (1, 0), "right of": (-1, 0)}  # (x, y) from first to second
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
MAX_OBJECTS = 4  # in a picture

# Held out of training, to measure compositional generalisation. A relation is held out with its inverse too.
HELD_OUT_PAIRS = frozenset(
    {("star", "purple"), ("heart", "green"), ("circle", "brown"), ("square", "pink"), ("triangle", "white"),
     ("diamond", "red"), ("cross", "yellow"), ("ring", "blue"), ("crescent", "black")}
)  # fmt: skip
HELD_OUT_COUNTS = frozenset({("heart", 3), ("star", 4), ("cross", 2), ("square", 4), ("ring", 3)})
HELD_OUT_RELATIONS = frozenset(
    {("star", "above", "circle"), ("circle", "above", "heart"), ("triangle", "above", "cross"),
     ("square", "left of", "triangle"), ("heart", "left of", "diamond"), ("ring", "left of", "star")}
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """`count` objects with the same attributes. Only a single object has a `place`."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    count: int = 1
    place: str | None = None


@dataclass(frozen=True)
class Scene:
    """One or two groups, the first in `relation` to the second. LimnerError where the scene cannot be rendered."""

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise LimnerError(problem)


def _problems(scene: Scene) -> Iterator[str]:
    groups, total = scene.groups, sum(group.count for group in scene.groups)
    if not 1 <= len(groups) <= 2:
        yield f"a scene has one or two kinds of objects, not {len(groups)}"
    if total > MAX_OBJECTS or any(group.count < 1 for group in groups):
        yield f"a scene has one to four objects, not {total}"
    if scene.relation is not None and len(groups) != 2:
        yield f"{scene.relation!r} needs two kinds of objects"
    if any(group.place and (group.count > 1 or scene.relation) for group in groups):
        yield "a place is of one object at a time, and not beside a relation"
    if len(groups) == 2:
        first, second = groups
        if first.place and first.place == second.place:
            yield f"two objects cannot both be at {first.place}"
        if first.place and second.place:
            room = math.dist(PLACES[first.place], PLACES[second.place])
            if SIZES[first.size or "small"] + SIZES[second.size or "small"] > 0.93 * room:
                yield f"objects so large do not fit at {first.place} and {second.place}"
        if (first.shape, first.colour, first.size) == (second.shape, second.colour, second.size):
            yield "the two kinds of objects are equal; make them one group with a count"
        if any(group.count == 3 and group.size in ("medium", "large") for group in groups):
            yield "three objects beside another must be small: larger ones do not fit"
    if scene.background and any(group.colour == scene.background for group in groups):
        yield f"a {scene.background} object cannot be seen on a {scene.background} background"


def is_complete(scene: Scene) -> bool:
    """Whether shape, colour and size of every group and the background are specified, as rendering needs."""
    return scene.background is not None and all(g.shape and g.colour and g.size for g in scene.groups)


def held_out(scene: Scene) -> list[str]:
    """The held-out pairs, counts and relations in the scene, as text; empty for a training scene."""
    found = [f"{g.colour} {g.shape}" for g in scene.groups if (g.shape, g.colour) in HELD_OUT_PAIRS]
    found += [f"{g.count} of {g.shape}" for g in scene.groups if (g.shape, g.count) in HELD_OUT_COUNTS]
    if scene.relation is not None:
        first, second = (group.shape for group in scene.groups)
        ways = ((first, scene.relation, second), (second, OPPOSITE[scene.relation], first))
        found += [f"{a} {relation} {b}" for a, relation, b in ways if (a, relation, b) in HELD_OUT_RELATIONS]
    return found


def complete(scene: Scene, random: Random) -> Scene:
    """`scene` with every unspecified attribute sampled, so that no held-out composition is added."""
    if is_complete(scene) and (scene.relation or all(g.place or g.count > 1 for g in scene.groups)):
        return scene
    for _ in range(1000):
        try:
            drawn = _fill(scene, random)
        except LimnerError:
            continue
        if set(held_out(drawn)) <= set(held_out(scene)):
            return drawn
    raise LimnerError("nothing that fits this scene was found")


def _fill(scene: Scene, random: Random) -> Scene:
    places = [group.place for group in scene.groups]
    groups = []
    for group in scene.groups:
        place = group.place
        if place is None and group.count == 1 and not scene.relation and all(g.count == 1 for g in scene.groups):
            place = random.choice([name for name in PLACES if name not in places])
            places.append(place)
        size = group.size or random.choice(tuple(SIZES) if group.count < 3 or len(scene.groups) == 1 else ("small",))
        shape, colour = group.shape or random.choice(SHAPES), group.colour or random.choice(tuple(COLOURS))
        groups.append(Group(shape, colour, size, group.count, place))
    return Scene(tuple(groups), scene.relation, scene.background or _background(random))


def _background(random: Random) -> str:
    """White, grey or black with probability 1/2, else any colour."""
    return random.choice(("white", "white", "black", "grey") if random.random() < 0.5 else tuple(COLOURS))


KINDS = {"one": 0.3, "count": 0.15, "relation": 0.4, "places": 0.15}


def random_scene(random: Random, kind: str | None = None) -> Scene:
    """A complete training scene of a kind in KINDS: one object, several alike, a relation, or two places."""
    kind = kind or random.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    while held_out(scene := _sketch(kind, random)):
        pass
    return complete(scene, random)


def random_held_out(random: Random, kind: str) -> Scene:
    """A complete scene of this kind with a held-out pair, count or relation."""
    ways = ["pair"] + ["count"] * (kind == "count") + ["relation"] * (kind == "relation")
    while True:
        scene = _sketch(kind, random)
        (group, *others), relation, way = scene.groups, scene.relation, random.choice(ways)
        if way == "pair":
            shape, colour = random.choice(sorted(HELD_OUT_PAIRS))
            group = replace(group, shape=shape, colour=colour)
        elif way == "count":
            shape, count = random.choice(sorted(HELD_OUT_COUNTS))
            group = replace(group, shape=shape, count=count)
        else:
            shape, relation, second = random.choice(sorted(HELD_OUT_RELATIONS))
            group, others = replace(group, shape=shape), [replace(others[0], shape=second)]
        groups = (group, *others)
        if relation and random.random() < 0.5:
            groups, relation = groups[::-1], OPPOSITE[relation]
        try:
            return complete(Scene(groups, relation), random)
        except LimnerError:  # the two groups are equal
            continue


def _sketch(kind: str, random: Random) -> Scene:
    """A scene with counts and relation sampled, and for two groups shapes and colours; the rest unspecified."""
    shapes = random.sample(SHAPES, 2) if random.random() < 0.8 else [random.choice(SHAPES)] * 2
    colours = random.sample(tuple(COLOURS), 2)
    if kind in ("one", "count"):
        return Scene((Group(count=1 if kind == "one" else random.randint(2, MAX_OBJECTS)),))
    first, second = (Group(shape, colour) for shape, colour in zip(shapes, colours, strict=True))
    if kind == "places":
        return Scene((first, second))
    counts = random.choices(((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)), (8, 2, 2, 1, 1, 1))[0]
    groups = (replace(first, count=counts[0]), replace(second, count=counts[1]))
    return Scene(groups, random.choice(tuple(RELATIONS)))


def partial(scene: Scene, random: Random, share: float = 0.6) -> Scene:
    """The scene with attributes removed: each size, place and background is kept with probability `share`."""

    def keep(value: str | None) -> str | None:
        return value if random.random() < share else None

    groups = tuple(replace(group, size=keep(group.size), place=keep(group.place)) for group in scene.groups)
    try:
        return Scene(groups, scene.relation, keep(scene.background))
    except LimnerError:  # two groups that differ in size alone need it
        return scene
