"""The captioned world: its scenes, their pictures, captions and prompts, and the world as training data."""

import json
import math
from collections import Counter
from itertools import combinations, islice, product
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data.batches import Batches
from limner.data.sources import Source, open_source
from limner.data.world import World, write_folder
from limner.errors import LimnerError
from limner.world import (
    COLOURS,
    KINDS,
    PLACE_JITTER,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Group,
    Layout,
    NotUnderstood,
    Object,
    Scene,
    caption,
    complete,
    draw,
    held_out,
    layout,
    parse,
    partial,
    pictures_at,
    prompts,
    random_held_out,
    random_scene,
    render,
    shapes,
)
from limner.world import lexicon as words
from limner.world.lexicon import lexicon
from limner.world.render import MIN_GAP, SHADE_RANGE
from limner.world.scene import HELD_OUT_COUNTS, HELD_OUT_PAIRS, HELD_OUT_RELATIONS, OPPOSITE, is_complete

RED, BLUE = Group("star", "red"), Group("circle", "blue")


def complete_scenes(n: int, seed: int = 0) -> list[Scene]:
    """`n` complete scenes: three that training may see for each one that it may not."""
    random = Random(seed)
    makers = [random_scene] * 3 + [lambda random: random_held_out(random, random.choice(tuple(KINDS)))]
    return [random.choice(makers)(random) for _ in range(n)]


def open_scenes(n: int, seed: int = 0):
    """`n` scenes of every form that is allowed, each attribute specified or left open by chance."""
    random = Random(seed)

    def some(values, share=0.5):
        return random.choice(tuple(values)) if random.random() < share else None

    def group() -> Group:
        count = random.choice((1, 1, 1, 2, 3, 4))
        return Group(some(SHAPES, 0.8), some(COLOURS, 0.8), some(SIZES), count, some(PLACES, 0.3))

    def forever():
        while True:
            try:
                groups = tuple(group() for _ in range(random.choice((1, 2))))
                yield Scene(groups, some(RELATIONS), some(COLOURS))
            except LimnerError:
                continue

    return islice(forever(), n)


def facts(scene: Scene) -> set[tuple]:
    """What the scene shows of all that is held out, each relation as above or left of."""
    shown = {(g.shape, g.colour) for g in scene.groups} & HELD_OUT_PAIRS
    shown |= {(g.shape, g.count) for g in scene.groups} & HELD_OUT_COUNTS
    if scene.relation:
        first, second = (g.shape for g in scene.groups)
        canonical = {
            "above": (first, "above", second), "below": (second, "above", first),
            "left of": (first, "left of", second), "right of": (second, "left of", first),
        }  # fmt: skip
        shown |= {canonical[scene.relation]} & HELD_OUT_RELATIONS
    return shown


def keeps(complete_scene: Scene, claimed: Scene) -> bool:
    """Whether `complete_scene` has all attributes of `claimed`, and the same structure."""
    pairs = [(complete_scene.background, claimed.background), (complete_scene.relation, claimed.relation)]
    for a, b in zip(complete_scene.groups, claimed.groups, strict=True):
        pairs += [(a.shape, b.shape), (a.colour, b.colour), (a.size, b.size), (a.place, b.place), (b.count, a.count)]
    return complete_scene.relation == claimed.relation and all(b is None or a == b for a, b in pairs)


def members(scene: Scene) -> list[Group]:
    """One group for each object."""
    return [group for group in scene.groups for _ in range(group.count)]


# --- scenes ---


@pytest.mark.parametrize(
    "refused, allowed, message",
    [
        ([()], [(RED,)], "one or two kinds of objects, not 0"),
        ([(RED, BLUE, Group("ring"))], [(RED, BLUE)], "one or two kinds of objects, not 3"),
        ([(Group("star", count=5),)], [(Group("star", count=4),)], "one to four objects, not 5"),
        ([(Group("star", count=0),)], [(Group("star", count=1),)], "one to four objects, not 0"),
        ([(Group("star", count=-1), BLUE)], [(Group("star", count=3), BLUE)], "one to four objects, not 0"),
        ([(Group("star", count=3), Group("circle", count=2))], [(Group("star", count=2),) * 1], "not 5"),
        ([(RED,), "above"], [(RED, BLUE), "above"], "'above' needs two kinds of objects"),
        ([(Group("star", count=2, place="top"),)], [(Group("star", count=1, place="top"),)], "one object at a time"),
        ([(RED, Group("ring", place="left")), "below"], [(RED, Group("ring", place="left"))], "not beside a relation"),
        ([(Group("star", place="left"), Group("ring", place="left"))],
         [(Group("star", place="left"), Group("ring", place="right"))], "cannot both be at left"),
        ([(Group("star", size="medium", place="left"), Group("ring", size="medium", place="centre"))],
         [(Group("star", size="medium", place="left"), Group("ring", size="small", place="centre"))],
         "so large do not fit at left and centre"),
        ([(Group("star", size="large", place="top"), Group("ring", size="large", place="left"))],
         [(Group("star", size="large", place="top"), Group("ring", size="large", place="bottom"))],
         "so large do not fit at top and left"),
        ([(Group("star", size="large", place="centre"), Group("ring", place="left"))],
         [(Group("star", size="large", place="centre"), Group("ring", place="top left"))], "so large do not fit"),
        ([(RED, Group("star", "red", count=2))], [(RED, Group("star", "red", "small", 2))], "are equal"),
        ([(RED, Group("circle", size="medium", count=3))], [(RED, Group("circle", size="small", count=3))],
         "must be small"),
        ([(Group("circle", size="large", count=3), RED)], [(Group("circle", size="large", count=3),)],
         "must be small"),
        ([(BLUE, RED), None, "red"], [(BLUE, RED), None, "green"], "a red object cannot be seen on a red background"),
    ],
)  # fmt: skip
def test_what_cannot_be_painted_is_refused_and_its_neighbour_is_not(refused, allowed, message):
    """Each rule refuses a scene, saying why, and lets a scene pass that differs in that alone."""
    with pytest.raises(LimnerError, match=message):
        Scene(*refused)
    Scene(*allowed)


@pytest.mark.parametrize("first, relation, second", sorted(HELD_OUT_RELATIONS))
def test_a_relation_is_held_out_both_ways_round(first, relation, second):
    """star above circle = circle below star; circle above star and star left of circle are other relations."""
    fact = [f"{first} {relation} {second}"]
    assert held_out(Scene((Group(first), Group(second)), relation)) == fact
    assert held_out(Scene((Group(second), Group(first)), OPPOSITE[relation])) == fact
    for other in set(RELATIONS) - {relation}:
        scene = Scene((Group(first), Group(second)), other)
        assert bool(held_out(scene)) == bool(facts(scene)) and fact[0] not in held_out(scene)


def test_held_out_names_each_fact():
    """The list in words agrees with the tables on scenes of every form."""
    assert held_out(Scene((Group("heart", "green", count=3),))) == ["green heart", "3 of heart"]
    assert held_out(Scene((Group("heart", "red", count=2),))) == []
    for scene in open_scenes(3000):
        assert {f"{a} {b} {c}" for a, b, c in facts(scene) & HELD_OUT_RELATIONS} | {
            f"{b} {a}" if isinstance(b, str) else f"{b} of {a}" for a, b, *c in facts(scene) if not c
        } == set(held_out(scene))


def test_complete_keeps_every_claim_and_adds_nothing_held_out():
    """Every attribute is kept once the rest is drawn, and nothing held out is added."""
    random, added = Random(1), Counter()
    for scene in open_scenes(3000):
        try:
            drawn = complete(scene, random)
        except LimnerError:  # a large one in the middle leaves no room for another, nor do three leave it a size
            sizes, counts = ({getattr(g, name) for g in scene.groups} for name in ("size", "count"))
            assert len(scene.groups) == 2 and (sizes == {"large"} or 3 in counts)
            continue
        assert is_complete(drawn) and keeps(drawn, scene) and facts(drawn) == facts(scene)
        if scene.relation is None and all(g.count == 1 for g in scene.groups):
            assert all(g.place for g in drawn.groups)
        else:
            assert [g.place for g in drawn.groups] == [g.place for g in scene.groups]
        assert complete(drawn, random) == drawn
        added.update(g.colour for g, old in zip(drawn.groups, scene.groups, strict=True) if old.colour is None)
    assert set(added) == set(COLOURS)


def test_complete_says_when_nothing_fits(monkeypatch):
    """Where every choice is held out the search ends with an error, not never."""
    monkeypatch.setattr("limner.world.scene.HELD_OUT_PAIRS", {("star", colour) for colour in COLOURS})
    with pytest.raises(LimnerError, match="nothing that fits this scene was found"):
        complete(Scene((Group("star"),)), Random(0))


def test_random_scenes_are_of_every_kind_and_never_held_out():
    """6000 scenes show no held-out fact, and every other shape, pair, size, place, relation, count and background."""
    random, kinds, found = Random(2), Counter(), Counter()
    for _ in range(6000):
        scene = random_scene(random)
        assert is_complete(scene) and not facts(scene) and not held_out(scene)
        counts = [g.count for g in scene.groups]
        kinds["relation" if scene.relation else {1: "one" if counts == [1] else "count", 2: "places"}[len(counts)]] += 1
        found.update((g.shape, g.colour) for g in scene.groups)
        found.update((g.shape, g.count) for g in scene.groups)
        found.update([scene.background, scene.relation, (scene.relation, *counts)])
        found.update(value for g in scene.groups for value in (g.size, g.place))
    for kind, share in KINDS.items():
        assert abs(kinds[kind] - 6000 * share) < 4 * math.sqrt(6000 * share * (1 - share))
    assert set(product(SHAPES, COLOURS)) - set(found) == HELD_OUT_PAIRS
    assert set(product(SHAPES, range(1, 5))) - set(found) == HELD_OUT_COUNTS
    numbers = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
    expected = {*SIZES, *PLACES, *RELATIONS, *COLOURS, *((r, *n) for r in RELATIONS for n in numbers)}
    assert expected <= set(found)


def test_relations_that_training_may_see_are_all_seen():
    """Every ordered pair of shapes stands in every relation, but for those held out."""
    random, found = Random(3), set()
    for _ in range(8000):
        scene = random_scene(random, "relation")
        found.add((scene.groups[0].shape, scene.relation, scene.groups[1].shape))
    hidden = HELD_OUT_RELATIONS | {(b, OPPOSITE[r], a) for a, r, b in HELD_OUT_RELATIONS}
    assert set(product(SHAPES, RELATIONS, SHAPES)) - found == hidden


def test_random_held_out_scenes_always_are_and_cover_all_that_is():
    """Each kind keeps its form; pairs come in all, counts among counts, relations among relations, both ways round."""
    random = Random(4)
    forms = {"one": [1], "places": [1, 1]}
    for kind in KINDS:
        found, ways = set(), []
        for _ in range(1200):
            scene = random_held_out(random, kind)
            assert is_complete(scene) and facts(scene) and held_out(scene)
            counts = [g.count for g in scene.groups]
            assert counts == forms.get(kind, counts) and len(counts) == (2 if kind in ("relation", "places") else 1)
            assert bool(scene.relation) == (kind == "relation") and (kind != "count" or counts[0] > 1)
            found |= facts(scene)
            ways.append((scene.groups[0].shape, scene.relation, scene.groups[-1].shape))
        assert found >= HELD_OUT_PAIRS and (kind != "count" or found >= HELD_OUT_COUNTS)
        if kind == "relation":
            turned = {(b, OPPOSITE[r], a) for a, r, b in HELD_OUT_RELATIONS}
            assert set(ways) >= HELD_OUT_RELATIONS | turned
            assert (
                0.4 < sum(way in turned for way in ways) / sum(way in turned | HELD_OUT_RELATIONS for way in ways) < 0.6
            )


def test_partial_leaves_unsaid_what_chance_says_and_nothing_else():
    """share 1 says all, share 0 neither size, place nor background, save where the two differ in size alone."""
    random, kept, total = Random(5), 0, 0
    for scene in complete_scenes(1500):
        assert partial(scene, random, 1.0) == scene
        bare = partial(scene, random, 0.0)
        assert keeps(scene, bare) and (
            bare == Scene(tuple(Group(g.shape, g.colour, count=g.count) for g in scene.groups), scene.relation)
        )
        some = partial(scene, random, 0.6)
        assert keeps(scene, some)
        kept += sum(g.size is not None for g in some.groups)
        total += len(scene.groups)
    assert abs(kept - 0.6 * total) < 4 * math.sqrt(total * 0.24)
    alike = Scene((Group("star", "red", "small"), Group("star", "red", "large")), "above", "white")
    assert partial(alike, random, 0.0) == alike


# --- shapes ---


def grid() -> tuple[np.ndarray, np.ndarray]:
    axis = np.linspace(-shapes.REACH, shapes.REACH, shapes.CELLS)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def test_signed_distances_are_their_closed_forms():
    """Circle, ring and square to rounding; of the others inside and outside, wherever no outline is within 1e-3."""
    x, y = grid()
    tables = dict(zip(SHAPES, shapes.tables(), strict=True))
    r = np.sqrt(x * x + y * y)
    assert np.abs(tables["circle"] - (r - 0.95)).max() < 1e-6
    assert np.abs(tables["ring"] - np.maximum(r - 1.01, 0.53 - r)).max() < 1e-6
    qx, qy = np.abs(x) - 0.83, np.abs(y) - 0.83
    box = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0)
    assert np.abs(tables["square"] - box).max() < 1e-6
    s = math.sqrt(3)
    inside = {
        "diamond": np.abs(x) / 0.78 + np.abs(y) / 1.15 < 1,
        "cross": np.minimum(np.abs(x), np.abs(y)) < np.where(np.maximum(np.abs(x), np.abs(y)) < 1.05, 0.36, -1),
        "crescent": (r < 1.05) & (np.hypot(x - 0.48, y) > 0.82),
        "triangle": (y < 0.79) & (s * x - (y - 0.2) < 1.18) & (-s * x - (y - 0.2) < 1.18),
    }
    for shape, expected in inside.items():
        sure = np.abs(tables[shape]) > 1e-3
        assert np.array_equal((tables[shape] < 0)[sure], expected[sure]) and 0.1 < expected.mean() < 0.6


def test_polygon_distance_equals_brute_force():
    """A random star-shaped polygon: the distance to 4000 points on each edge, and the winding number."""
    random = np.random.default_rng(0)
    angles, radii = np.sort(random.uniform(0, 2 * np.pi, 9)), random.uniform(0.4, 1.2, 9)
    corners = np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1)
    x, y = random.uniform(-1.3, 1.3, (2, 400))
    ahead = np.roll(corners, -1, 0)
    edges = corners[:, None] + np.linspace(0, 1, 4000)[:, None] * (ahead - corners)[:, None]  # (9, 4000, 2)
    near = np.array([np.hypot(edges[..., 0] - px, edges[..., 1] - py).min() for px, py in zip(x, y, strict=True)])
    a, b = ((p[None, :, 0] - x[:, None]) + 1j * (p[None, :, 1] - y[:, None]) for p in (corners, ahead))
    inside = np.abs(np.angle(b / a).sum(1)) > np.pi
    distance = shapes.polygon(corners, x, y)
    assert np.abs(np.abs(distance) - near).max() < 3e-4 and np.array_equal(distance < 0, inside)
    assert 50 < inside.sum() < 350


def area(shape: str) -> float:
    """The area of a shape of radius 1, in closed form."""
    big, small, apart = 1.05, 0.82, 0.48  # the crescent: a disc less the lens it shares with another
    a = math.acos((apart**2 + small**2 - big**2) / (2 * apart * small))
    b = math.acos((apart**2 + big**2 - small**2) / (2 * apart * big))
    lens = small**2 * (a - math.sin(2 * a) / 2) + big**2 * (b - math.sin(2 * b) / 2)
    return {
        "circle": math.pi * 0.95**2,
        "square": 1.66**2,
        "triangle": 3 * math.sqrt(3) / 4 * 1.18**2,
        "star": 10 * 0.5 * 1.2 * 0.5 * math.sin(math.pi / 5),
        "heart": 180 * math.pi / 15.5**2,  # of x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t
        "diamond": 2 * 0.78 * 1.15,
        "cross": 2 * 0.72 * 2.1 - 0.72**2,
        "ring": math.pi * (1.01**2 - 0.53**2),
        "crescent": math.pi * big**2 - lens,
    }[shape]


@pytest.mark.parametrize("size, bound", [(64, 0.025), (128, 0.006), (256, 0.002)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_painted_area_is_the_shapes_own(shape, size, bound):
    """White on black, the pixels sum to area * radius^2, whatever the size, the place and the turn."""
    random = Random(f"{shape} {size}")
    for radius in SIZES.values():
        x, y, turn = random.uniform(0.4, 0.6), random.uniform(0.4, 0.6), math.radians(shapes.TURNS[shape])
        obj = Object(shape, x, y, radius, random.uniform(-turn, turn), (255, 255, 255))
        picture = draw([Layout([obj], (0, 0, 0))], size)[0, ..., 0]
        assert picture.sum(dtype=float) / 255 == pytest.approx(area(shape) * (radius * size) ** 2, rel=bound)


# --- pictures ---

CENTROIDS = {"triangle": (0, 0.2), "star": (0, 0.05), "circle": (0, 0), "square": (0, 0), "diamond": (0, 0),
             "cross": (0, 0), "ring": (0, 0)}  # fmt: skip


@pytest.mark.parametrize("shape", CENTROIDS)
def test_an_object_is_where_the_layout_says(shape):
    """The centre of mass lies at (x, y), moved by the shape's own centroid, which turns with it; to 0.1 pixels."""
    random = Random(shape)
    rows, columns = (np.indices((64, 64)) + 0.5) / 64
    for _ in range(8):
        x, y, radius, angle = (random.uniform(*ends) for ends in ((0.3, 0.7), (0.3, 0.7), (0.1, 0.19), (-0.3, 0.3)))
        weight = draw([Layout([Object(shape, x, y, radius, angle, (255, 255, 255))], (0, 0, 0))], 64)[0, ..., 0] / 255
        u, v = (radius * c for c in CENTROIDS[shape])
        expected = (x + u * math.cos(angle) - v * math.sin(angle), y + u * math.sin(angle) + v * math.cos(angle))
        found = ((weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum())
        assert math.dist(found, expected) < 0.1 / 64


def test_a_turn_goes_clockwise_to_the_eye():
    """The heart's point, below its middle, goes to the left as it is turned by a positive angle (y downwards)."""
    lowest = []
    for angle in (-0.5, 0.0, 0.5):
        picture = draw([Layout([Object("heart", 0.5, 0.5, 0.185, angle, (255, 255, 255))], (0, 0, 0))], 128)[0, ..., 0]
        row = np.flatnonzero(picture.max(1) > 128).max()
        lowest.append(np.flatnonzero(picture[row] > 128).mean())
    assert lowest[0] > lowest[1] + 5 and lowest[1] > lowest[2] + 5 and abs(lowest[1] - 63.5) < 1


def test_a_large_picture_reduced_is_the_small_picture():
    """Painted at 256 and averaged over boxes of 4 x 4, a scene is what is painted at 64, but for corners."""
    scenes = complete_scenes(60)
    small, large = (render(scenes, size, range(60)).astype(float) for size in (64, 256))
    error = np.abs(small - large.reshape(60, 64, 4, 64, 4, 3).mean((2, 4)))
    assert error.mean() < 0.15 and np.quantile(error, 0.999) < 20
    thick = [s for s in scenes if {g.shape for g in s.groups} <= {"circle", "ring"}]
    small, large = (render(thick, size, range(len(thick))).astype(float) for size in (64, 256))
    assert np.abs(small - large.reshape(-1, 64, 4, 64, 4, 3).mean((2, 4))).max() < 25 and len(thick) > 3


def test_edges_are_neither_hard_nor_soft():
    """Some pixels of an edge lie between the two colours, in a band one pixel wide."""
    circle = Layout([Object("circle", 0.503, 0.498, 0.185, 0.0, (255, 255, 255))], (0, 0, 0))
    picture = draw([circle], 64)[0, ..., 0]
    between = ((picture > 0) & (picture < 255)).sum()
    around = 2 * math.pi * 0.95 * 0.185 * 64
    assert 0.9 * around < between < 1.2 * around


def test_layouts_obey_their_scenes():
    """3000 scenes: place, size, turn and colour within their bounds, in the frame, apart, on the relation's sides."""
    for seed, scene in enumerate(complete_scenes(3000, seed=7)):
        objects, background = layout(scene, Random(seed))
        assert all(abs(a - b) <= SHADE_RANGE for a, b in zip(background, COLOURS[scene.background], strict=True))
        for group, obj in zip(members(scene), objects, strict=True):
            assert obj.shape == group.shape and 0.94 <= obj.radius / SIZES[group.size] <= 1.06
            assert abs(obj.angle) <= math.radians(shapes.TURNS[obj.shape])
            assert all(abs(a - b) <= SHADE_RANGE for a, b in zip(obj.rgb, COLOURS[group.colour], strict=True))
            assert obj.radius <= min(obj.x, obj.y) and max(obj.x, obj.y) <= 1 - obj.radius
            if group.place:
                x, y = PLACES[group.place]
                assert max(abs(obj.x - x), abs(obj.y - y)) <= PLACE_JITTER + 1e-9, (scene, objects)
        for a, b in combinations(objects, 2):
            assert math.dist(a[1:3], b[1:3]) >= 1.08 * (a.radius + b.radius) + MIN_GAP - 1e-9
        if scene.relation:
            n = scene.groups[0].count
            axis, sign = {"above": (2, 1), "below": (2, -1), "left of": (1, 1), "right of": (1, -1)}[scene.relation]
            for a, b in product(objects[:n], objects[n:]):
                assert sign * (b[axis] - a[axis]) > a.radius + b.radius
            along, across = (
                np.mean([o[k] for o in objects[n:]]) - np.mean([o[k] for o in objects[:n]]) for k in (axis, 3 - axis)
            )
            assert abs(across) < 0.55 * abs(along)


def test_objects_are_whole_and_do_not_overlap():
    """Painted alone on a wider canvas: no pixel is covered twice, and next to nothing lies beyond the frame."""
    for seed, scene in enumerate(complete_scenes(500, seed=8)):
        singles = [
            Layout([o._replace(x=(o.x + 1) / 3, y=(o.y + 1) / 3, radius=o.radius / 3, rgb=(255,) * 3)], (0, 0, 0))
            for o in layout(scene, Random(seed)).objects
        ]
        cover = draw(singles, 96)[..., 0] / 255
        assert cover.sum(0).max() <= 1 + 1e-6
        assert (cover[:, 32:64, 32:64].sum((1, 2)) / cover.sum((1, 2))).min() > 0.98


def test_all_that_is_allowed_finds_room():
    """Every two places with every two sizes, and every relation with every numbers and sizes, can be laid out."""
    scenes = []
    for (a, b), sizes in product(combinations(PLACES, 2), product(SIZES, repeat=2)):
        scenes.append((Group("star", "red", sizes[0], 1, a), Group("circle", "blue", sizes[1], 1, b), None))
    numbers = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
    for relation, counts, sizes in product((None, *RELATIONS), numbers, product(SIZES, repeat=2)):
        groups = (Group("star", "red", sizes[0], counts[0]), Group("circle", "blue", sizes[1], counts[1]))
        scenes.append((*groups, relation))
    for size, count in product(SIZES, (1, 2, 3, 4)):
        scenes.append((Group("star", "red", size, count), None))
    painted = 0
    for seed, (*groups, relation) in enumerate(scenes * 4):
        try:
            scene = Scene(tuple(groups), relation, "white")
        except LimnerError as error:
            assert "do not fit" in str(error)
            continue
        assert len(layout(scene, Random(seed)).objects) == sum(group.count for group in groups)
        painted += 1
    assert painted > 1500


def test_two_objects_that_fit_nowhere_are_an_error():
    """A place kept free of others is beyond the rules of a scene; the layout says so and never moves an object."""
    scene = Scene((Group("star", "red", "large", 1, "centre"), Group("ring", "blue", "large", 2)), None, "white")
    with pytest.raises(LimnerError, match="no room was found for the objects"):
        for seed in range(50):
            star = layout(scene, Random(seed)).objects[0]
            assert max(abs(star.x - 0.5), abs(star.y - 0.5)) <= PLACE_JITTER


def test_a_picture_of_a_batch_is_the_picture_alone():
    """Bit for bit, at several sizes, whatever it is drawn together with."""
    layouts = [layout(scene, Random(seed)) for seed, scene in enumerate(complete_scenes(100))]
    for size in (32, 48, 64):
        together = draw(layouts, size)
        assert all(np.array_equal(together[k], draw([layouts[k]], size)[0]) for k in range(0, 100, 3))
        assert np.array_equal(together[::-1], draw(layouts[::-1], size))


def test_the_seed_decides_the_picture():
    """The same seed paints the same; 200 seeds paint one scene in 200 ways."""
    scene = Scene((Group("ring", "green", "medium", 1, "centre"),), None, "white")
    pictures = render([scene] * 200, 64, range(200))
    assert np.array_equal(pictures[:20], render([scene] * 20, 64, range(20)))
    assert len({picture.tobytes() for picture in pictures}) == 200


@pytest.mark.parametrize("shape", SHAPES)
def test_the_middle_pixel_has_the_objects_colour(shape):
    """The palette within SHADE_RANGE, in the middle and in the corner; the hole of the ring shows what is behind it."""
    hollow = shape in ("ring", "crescent")
    for seed, (colour, ground) in enumerate(product(COLOURS, ("white", "green"))):
        if colour != ground:
            scene = Scene((Group(shape, colour, "large", 1, "centre"),), None, ground)
            drawn = layout(scene, Random(seed))
            picture = draw([drawn], 64)[0].astype(float)
            x, y = (int(c * 64) for c in drawn.objects[0][1:3])
            expected = COLOURS[ground if hollow else colour]
            assert np.abs(picture[y, x] - expected).max() <= SHADE_RANGE + 0.5
            assert np.abs(picture[y, x] - (drawn.background if hollow else drawn.objects[0].rgb)).max() <= 0.51
            assert np.abs(picture[0, 0] - COLOURS[ground]).max() <= SHADE_RANGE + 0.5


# --- words ---


def test_every_word_has_one_meaning():
    """No phrase of the tables is lost to another of the same words, in the singular and the plural."""
    tables = {"shape": words.SHAPE_WORDS, "colour": words.COLOUR_WORDS, "size": words.SIZE_WORDS,
              "number": words.NUMBER_WORDS, "relation": words.RELATION_WORDS, "place": words.PLACE_WORDS}  # fmt: skip
    for kind, table in tables.items():
        for value, phrases in table.items():
            for phrase in phrases:
                assert lexicon()[tuple(phrase.replace("-", " ").split())][:2] == (kind, value)
                if kind == "shape":
                    assert lexicon()[tuple(words.plural(phrase).split())][:2] == ("shapes", value)
    assert [words.plural(noun) for noun in ("star", "box", "cross", "plus sign")] == [
        "stars", "boxes", "crosses", "plus signs",
    ]  # fmt: skip


def test_captions_are_read_back_as_they_were_meant():
    """parse(caption(scene)) == scene for 10,000 scenes with varied shares of claims; every word is used."""
    random, sentences = Random(6), []
    for k, scene in enumerate(complete_scenes(10_000)):
        claimed = partial(scene, random, (0.0, 0.3, 0.6, 0.9, 1.0)[k % 5])
        sentences.append(caption(claimed, random))
        assert parse(sentences[-1]) == claimed, sentences[-1]
    text = " ".join(f" {sentence.replace(',', ' ,')} " for sentence in sentences)
    tables = (words.SHAPE_WORDS, words.COLOUR_WORDS, words.SIZE_WORDS, words.NUMBER_WORDS, words.RELATION_WORDS,
              words.PLACE_WORDS)  # fmt: skip
    for table in tables:
        assert all(f" {phrase} " in text for phrases in table.values() for phrase in phrases if phrase != "1")
    assert all(f" {opening} " in text for opening in words.OPENINGS)


def test_captions_of_open_scenes_are_read_back():
    """So are those of scenes that leave shape or colour open: "two objects above a red thing"."""
    random = Random(7)
    for scene in open_scenes(3000, seed=1):
        sentence = caption(scene, random)
        assert parse(sentence) == scene, sentence


def test_one_scene_is_said_in_many_ways():
    """A thousand captions of one full scene are mostly different; of the barest one there are many too."""
    random = Random(8)
    full = Scene((Group("star", "red", "small"), Group("circle", "blue", "large", 2)), "above", "grey")
    assert len({caption(full, random) for _ in range(1000)}) > 900
    bare = Scene((Group("star", "red"),))
    sentences = {caption(bare, random) for _ in range(1000)}
    assert 20 < len(sentences) < 200 and "a red star" in sentences and "an image of a star that is red" in sentences


STAR, RING = Group("star"), Group("ring")


@pytest.mark.parametrize(
    "prompt, groups, relation, background",
    [
        ("a red star", [RED], None, None),
        ("A Red Star.", [RED], None, None),
        ("  THE RED STAR ", [RED], None, None),
        ("red star", [RED], None, None),
        ("a painting of one crimson star", [RED], None, None),
        ("there is a red star", [RED], None, None),
        ("a small red star", [Group("star", "red", "small")], None, None),
        ("a red tiny star", [Group("star", "red", "small")], None, None),
        ("a star that is small and red", [Group("star", "red", "small")], None, None),
        ("a star which is red and small", [Group("star", "red", "small")], None, None),
        ("a red star of small size", [Group("star", "red", "small")], None, None),
        ("a red star of size small", [Group("star", "red", "small")], None, None),
        ("a huge star coloured red", [Group("star", "red", "large")], None, None),
        ("a big star colored red", [Group("star", "red", "large")], None, None),
        ("a star in red", [RED], None, None),
        ("a star in red on blue", [RED], None, "blue"),
        ("a medium-sized gray moon", [Group("crescent", "grey", "medium")], None, None),
        ("a middle sized grey crescent moon", [Group("crescent", "grey", "medium")], None, None),
        ("an emerald plus sign", [Group("cross", "green")], None, None),
        ("a violet donut", [Group("ring", "purple")], None, None),
        ("a jet black rhombus on snow white", [Group("diamond", "black")], None, "white"),
        ("a chocolate thing", [Group(None, "brown")], None, None),
        ("two red stars", [Group("star", "red", count=2)], None, None),
        ("2 crimson stars", [Group("star", "red", count=2)], None, None),
        ("a pair of red stars", [Group("star", "red", count=2)], None, None),
        ("there are four objects", [Group(count=4)], None, None),
        ("three boxes that are big", [Group("square", None, "large", 3)], None, None),
        ("a star above a ring", [STAR, RING], "above", None),
        ("a star is on top of a ring", [STAR, RING], "above", None),
        ("a star that is over a ring", [STAR, RING], "above", None),
        ("a star underneath a ring", [STAR, RING], "below", None),
        ("a star to the left of the ring", [STAR, RING], "left of", None),
        ("two stars are right of a ring", [Group("star", count=2), RING], "right of", None),
        ("a ring with a star above it", [STAR, RING], "above", None),
        ("two rings with a star on the left of them", [STAR, Group("ring", count=2)], "left of", None),
        ("a ring, with a star under it, on grey", [STAR, RING], "below", "grey"),
        ("above a ring there is a star", [STAR, RING], "above", None),
        ("Above the ring, there are two stars.", [Group("star", count=2), RING], "above", None),
        ("to the right of a ring there is a star on white", [STAR, RING], "right of", "white"),
        ("on a white background, below a ring there is a star", [STAR, RING], "below", "white"),
        ("a star on the left", [Group("star", place="left")], None, None),
        ("a star is in the upper left corner", [Group("star", place="top left")], None, None),
        ("in the middle, a star", [Group("star", place="centre")], None, None),
        ("in the center there is a star", [Group("star", place="centre")], None, None),
        ("a star at the bottom center", [Group("star", place="bottom")], None, None),
        ("at the lower right there is a star", [Group("star", place="bottom right")], None, None),
        ("a star and on the left, a ring", [STAR, Group("ring", place="left")], None, None),
        ("a star at the top and a ring", [Group("star", place="top"), RING], None, None),
        ("a star as well as a ring", [STAR, RING], None, None),
        ("a star that is red and small ring", [RED, Group("ring", None, "small")], None, None),
        ("a star that is red, a small ring", [RED, Group("ring", None, "small")], None, None),
        (
            "a star that is red and small, two rings",
            [Group("star", "red", "small"), Group("ring", count=2)],
            None,
            None,
        ),
        ("a star against a blue backdrop", [STAR], None, "blue"),
        ("a star in blue background", [STAR], None, "blue"),
        ("a star in front of blue", [STAR], None, "blue"),
        ("on the blue background there is a star", [STAR], None, "blue"),
        ("on blue, a star", [STAR], None, "blue"),
        ("a star on a blue background above a ring", [STAR, RING], "above", "blue"),
        ("a star on a blue background and a ring", [STAR, RING], None, "blue"),
        ("a star on a blue background with a ring below it", [RING, STAR], "below", "blue"),
        ("a star and a ring on a blue background", [STAR, RING], None, "blue"),
    ],
)
def test_sentences_are_understood(prompt, groups, relation, background):
    """Each form of sentence gives the scene that a reader would think of."""
    assert parse(prompt) == Scene(tuple(groups), relation, background)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("a red staar", "'staar' is not a word of this world, did you mean 'star'?"),
        ("a blue zebra", "'zebra' is not a word of this world. This world knows one or two kinds of objects"),
        ("a star in röt", "'röt' is not a word of this world"),
        ("a left star", "'left' is understood only as in 'to the left of'."),
        ("", "expected a shape at the end of ''"),
        ("a red", "expected a shape at the end of 'a red'"),
        ("a red blue star", "gives one object two colours: red, blue"),
        ("a small star that is big", "gives one object two sizes: small, large"),
        ("five stars", "'five' is too many: a scene has one to four objects"),
        ("a ring and 12 stars", "'12' is too many"),
        ("a ring above several stars", "'several' is too many"),
        ("three stars and two rings", "cannot be painted: a scene has one to four objects, not 5"),
        ("red stars", "how many stars? expected one to four"),
        ("a crosses", "how many crosses? expected one to four"),
        ("on blue, a star on a red background", "speaks of two backgrounds"),
        ("a blue star on blue", "a blue object cannot be seen on a blue background"),
        ("a star, a ring and a heart", "expected nothing more before 'and'"),
        ("a star above a ring above a heart", "expected nothing more before 'above'"),
        ("a star on the left above a ring", "a place is of one object at a time, and not beside a relation"),
        ("two stars on the left", "a place is of one object at a time"),
        ("on the left, a star on the right", "puts one object in two places"),
        ("a star on the left and a ring on the left", "two objects cannot both be at left"),
        ("a large star on the left and a large ring in the middle", "so large do not fit at left and centre"),
        ("a red star and a red star", "make them one group with a count"),
        ("a star a ring", "expected 'and', a relation or a place before 'a'"),
        ("a star above", "expected a shape at the end"),
        ("a star above it", "expected a shape before 'it'"),
        ("a star of small", "expected 'size' at the end"),
        ("a star of small large", "expected 'size' before 'large'"),
        ("a star of red", "expected a size before 'red'"),
        ("a size red star", "expected a shape before 'size'"),
        ("a star on red circle", "expected 'and', a relation or a place before 'on'"),
    ],
)
def test_sentences_that_are_refused_say_why(prompt, message):
    """NotUnderstood names the word or the rule."""
    with pytest.raises(NotUnderstood) as refused:
        parse(prompt)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_no_words_break_the_reader():
    """20,000 random sentences give a scene of known values, whose captions mean the same, or NotUnderstood."""
    random, phrases, understood = Random(9), [" ".join(phrase) for phrase in lexicon()], 0
    likely = ["a", "two", "red", "small", "star", "rings", "above", "on", "background", "and", "with", "it", "of",
              "size", "that is", "on the left", "in"]  # fmt: skip
    for _ in range(20_000):
        sentence = " ".join(
            random.choice(likely if random.random() < 0.8 else phrases) for _ in range(random.randint(1, 8))
        )
        try:
            scene = parse(sentence)
        except NotUnderstood:
            continue
        understood += 1
        for group in scene.groups:
            assert {group.shape, group.colour, group.size, group.place} <= {*SHAPES, *COLOURS, *SIZES, *PLACES, None}
        assert parse(caption(scene, random)) == scene, sentence
    assert understood > 200
    for noise in ("\0", "★", "a star\n\non blue", "'", "--", "," * 1000, "a " * 3000, "1e9 stars", "٣ stars", "²"):
        try:
            parse(noise)
        except NotUnderstood:
            continue
        assert noise == "a star\n\non blue"


# --- the data set ---


def test_a_world_is_drawn_from_its_seed_alone():
    """The same picture, scene and caption each time; other seeds and splits, and any two pictures, differ."""
    world, again = World(1000, seed=3), World(1000, seed=3)
    for k in (999, 0, 17):
        assert world.scene(k) == again.scene(k)
        assert world.draw_caption(k, Random(k)) == again.draw_caption(k, Random(k))
        assert torch.equal(world.load([k], 64, 3).images[0], again.load([0, k, 5], 64, 3).images[1])
    assert World(seed=3).scene(17) == world.scene(17)  # the count changes nothing
    assert len({world.scene(k) for k in range(1000)}) > 950
    some = [open_source(Source("world", split=split)) for split in ("train", "test", "validation")]
    pictures = [picture.tobytes() for each in (*some, world) for picture in pictures_at(each.seed, range(100), 32)]
    assert len(set(pictures)) == 400
    assert len({(each.scene(0), each.scene(1)) for each in some}) == 3


def test_a_world_without_pictures_or_of_a_negative_seed_is_refused():
    """The error names both numbers."""
    for bad in ({"count": 0}, {"seed": -1}):
        with pytest.raises(LimnerError, match="at least one picture and a seed from 0"):
            World(**bad)


def test_a_world_gives_batches():
    """At any size; in one channel what Pillow makes of it; captions and pictures are those of the indices."""
    world = World(40)
    colour, grey = Batches(world, 16, 48, 3).batch(1), Batches(world, 16, 48, 1).batch(1)
    assert colour["indices"].tolist() == list(range(16, 32)) and colour["labels"] is None and not colour["broken"]
    assert np.array_equal(colour["images"].permute(0, 2, 3, 1).numpy(), pictures_at(0, range(16, 32), 48))
    pillow = [np.array(Image.fromarray(p).convert("L")) for p in colour["images"].permute(0, 2, 3, 1).numpy()]
    assert np.abs(grey["images"][:, 0].numpy().astype(float) - np.stack(pillow)).max() <= 1
    assert grey["images"].shape == (16, 1, 48, 48)
    assert all(keeps(world.scene(k), parse(c)) for k, c in zip(range(16, 32), colour["captions"], strict=True))
    assert Batches(world, 16, 48, 3).batch(2)["indices"].tolist() == [*range(32, 40), *range(8)]


def test_captions_of_a_world_say_nothing_that_is_not_so():
    """3000 captions are parts of their scenes, say less or more of them, and never what is held out."""
    world, claims = World(), Counter()
    for k in range(1000):
        for draw_ in range(3):
            claimed, scene = parse(world.draw_caption(k, Random(3 * k + draw_))), world.scene(k)
            assert keeps(scene, claimed) and not held_out(claimed)
            claims[claimed.background is not None] += 1
    assert abs(claims[True] / 3000 - 0.969) < 0.02 and claims[False] > 30  # half of what may be left open, once in 16
    everything = " ".join(world.all_captions()).replace(",", " ,").split()
    known = {part for phrase in lexicon() for part in phrase}
    assert {word for phrases in words.COLOUR_WORDS.values() for phrase in phrases for word in phrase.split()} <= (
        set(everything)
    )
    assert set("-".join(everything).replace("-", " ").split()) <= known


@pytest.mark.parametrize("kind, out", [(kind, out) for kind in KINDS for out in (False, True)])
def test_prompts_are_of_their_kind_and_fresh(kind, out):
    """They parse to scenes of the kind, held out or not; hardly any is among the training captions."""
    pairs = prompts(kind, 150, out)
    fresh, scenes = zip(*pairs, strict=True)
    assert pairs == prompts(kind, 150, out) and len(set(pairs) & set(prompts(kind, 150, out, seed=1))) < 30
    assert [parse(prompt) for prompt in fresh] == list(scenes)
    assert all(bool(facts(scene)) == bool(held_out(scene)) == out for scene in scenes)
    for scene in scenes:
        total, kinds = sum(g.count for g in scene.groups), len(scene.groups)
        assert kinds == (1 if kind in ("one", "count") else 2) and bool(scene.relation) == (kind == "relation")
        assert {"one": total == 1, "count": 2 <= total <= 4, "relation": total >= 2, "places": total == 2}[kind]
        if kind == "one":
            assert scene.groups[0].size and scene.groups[0].place
    if kind == "one":
        assert 45 < sum(scene.background is None for scene in scenes) < 105
    else:  # a sixth
        assert 10 < sum(scene.background is None for scene in scenes) < 45
    trained = set(World().all_captions())
    assert len(trained & set(fresh)) <= (0 if out else 15)


def test_a_written_folder_is_read_back(tmp_path, monkeypatch):
    """By limner and by `datasets`, the same pictures and captions as the world's; what is there is not written over."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "new" / "world"
    write_folder(folder, 130, 32, seed=2)
    world = World(130, seed=2)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [f"{k:07d}.png" for k in range(130)]
    assert all(keeps(world.scene(k), parse(row["text"])) for k, row in enumerate(rows))
    assert [row["text"] for row in rows] == world.all_captions()
    pictures = open_source(Source(path=str(folder)))
    assert pictures.captions == [[row["text"]] for row in rows]
    expected = pictures_at(2, range(130), 32)
    assert np.array_equal(pictures.load(range(130), 32, 3).images.permute(0, 2, 3, 1).numpy(), expected)
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert table["text"][:] == [row["text"] for row in rows]
    assert all(np.array_equal(np.asarray(table[k]["image"]), expected[k]) for k in (0, 77, 129))
    with pytest.raises(LimnerError, match="is not empty; choose another --out"):
        write_folder(folder, 1, 32, seed=0)
    assert len(list(folder.iterdir())) == 131
    Path(tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", 1, 32, seed=0)
    with Image.open(tmp_path / "empty" / "0000000.png") as image:
        assert np.array_equal(np.asarray(image), pictures_at(0, [0], 32)[0])
