"""Pictures judged against their prompts: true ones, wrong ones, spoiled ones; and how a verdict is worded."""

import importlib
import math
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from limner.errors import LimnerError
from limner.world import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    DetectedObject,
    Detection,
    Group,
    Layout,
    Object,
    Scene,
    draw,
    find,
    grade,
    judge,
    parse,
)
from limner.world.shapes import TURNS

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
grader = importlib.import_module("grader")

SEEDS = 40_000_000  # not those of the benchmark


def paint(*objects: tuple, background: str = "white", size: int = 64) -> np.ndarray:
    """(shape, colour, size, place, turn in degrees) each -> a picture; place and turn may be left out."""
    drawn = []
    for shape, colour, big, *rest in objects:
        x, y = PLACES[rest[0] if rest else "centre"]
        turn = math.radians(rest[1]) if len(rest) > 1 else 0.0
        drawn.append(Object(shape, x, y, SIZES[big] if isinstance(big, str) else big, turn, COLOURS[colour]))
    return draw([Layout(drawn, COLOURS[background])], size)[0]


def detected(shape: str | None, colour: str, size: str = "medium", place: str = "centre") -> DetectedObject:
    return DetectedObject(shape, colour, size, *PLACES[place], SIZES[size], place, 1.0)


def share(cases: list, *how) -> float:
    got = grader.measure(cases, *how)
    assert got.all.total() == len(cases)
    return got.correct.total() / len(cases)


# ---- how often it is right


@pytest.fixture(scope="module")
def true_cases() -> list:
    return grader.true_cases(200, SEEDS)[0]


def test_true_pictures_obey(true_cases):
    assert share(true_cases) == 1
    assert {case.kind for case in true_cases} == set(grader.KINDS)


@pytest.mark.parametrize(
    ("spoil", "least"), [("JPEG 60", 0.97), ("blur 1 px", 0.98), ("noise 5%", 0.98), ("soft, uneven", 0.97)]
)
def test_spoiled_true_pictures_obey(true_cases, spoil, least):
    assert share(true_cases[:150], 64, spoil) >= least


@pytest.mark.parametrize(("size", "least"), [(32, 0.98), (48, 0.98), (128, 0.98), (512, 0.98)])
def test_true_pictures_of_other_sizes_obey(true_cases, size, least):
    assert share(true_cases[:60], size) >= least


def test_the_broken_claim_is_named():
    cases = grader.wrong_cases(250, SEEDS)
    got = grader.measure(cases)
    assert got.correct.total() >= 0.99 * len(cases), [verdict.describe() for _, verdict in got.failures]
    assert got.alone >= 0.98 * len(cases)
    kinds = Counter(case.changed[0] for case in cases)
    assert set(kinds) == {"shape", "colour", "size", "count", "place", "relation", "background"}


# ---- what is detected


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_known_in_every_size_and_turn(shape):
    for size, radius in SIZES.items():
        for turn in (-TURNS[shape], TURNS[shape]):
            for stretch in (0.94, 1.06):  # as far as the renderer goes
                (found,) = find(paint((shape, "blue", radius * stretch, "top", turn))).objects
                assert (found.shape, found.size, found.place, found.colour) == (shape, size, "top", "blue")
                assert math.dist((found.x, found.y), PLACES["top"]) < 0.004
                assert abs(found.radius / (radius * stretch) - 1) < 0.02


def test_every_colour_is_known_on_every_background():
    for name in COLOURS:
        for ground in set(COLOURS) - {name}:
            picture = paint(("star", name, "small"), background=ground)
            detection = find(picture)
            assert (detection.background, [each.colour for each in detection.objects]) == (ground, [name])


def test_shades_keep_their_colours():
    random = Random(0)
    for name, rgb in COLOURS.items():
        shade = tuple(min(255, max(0, c + random.choice((-12, 12)))) for c in rgb)
        ground = (0, 0, 0) if name != "black" else (255, 255, 255)
        drawn = Layout([Object("heart", 0.5, 0.5, 0.1, 0.1, shade)], ground)
        assert find(draw([drawn], 64)[0]).objects[0].colour == name


def test_places_part_halfway():
    for x, place in ((0.37, "left"), (0.38, "centre"), (0.62, "centre"), (0.63, "right")):
        drawn = Layout([Object("circle", x, 0.5, 0.1, 0.0, COLOURS["red"])], COLOURS["white"])
        assert find(draw([drawn], 64)[0]).objects[0].place == place


def test_sizes_part_at_the_geometric_mean():
    for radius, size in ((0.110, "small"), (0.116, "medium"), (0.155, "medium"), (0.161, "large")):
        assert find(paint(("square", "red", radius))).objects[0].size == size


def test_an_empty_picture_has_no_objects():
    assert find(paint(background="green")) == Detection("green", [])


def test_specks_and_ghosts_are_no_objects():
    picture = paint(("heart", "red", "large", "left"))
    picture[10:12, 50:52] = 0
    picture[40:52, 44:56] -= 12
    assert [each.shape for each in find(picture).objects] == ["heart"]


def test_a_patch_of_the_background_colour_is_no_object():
    picture = paint(("heart", "red", "large", "left"), background="green")
    picture[54:, 54:] = (20, 130, 60)  # a darker green
    assert [each.shape for each in find(picture).objects] == ["heart"]


def test_pictures_of_anything_are_answered():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    tiles = random.integers(0, 256, (8, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[:, None, None].repeat(64, 1).repeat(3, 2)
    halves = np.concatenate([np.zeros((64, 32, 3), np.uint8), np.full((64, 32, 3), 255, np.uint8)], axis=1)
    for picture in (noise, tiles, ramp, halves):
        assert not grade(picture, parse("a red star on a blue background")).obeyed


def test_what_is_no_shape_of_this_world_is_seen_as_none():
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).line([(18, 16), (46, 16), (26, 50)], fill="black", width=5)  # a seven
    (found,) = find(picture).objects
    assert (found.shape, found.colour) == (None, "black")
    assert grade(picture, parse("a black circle")).describe() == "wanted a black circle, found a black blob"


def test_objects_that_touch_are_told_apart():
    for second in ("blue", "red"):
        circle = Object("circle", 0.35, 0.5, 0.135, 0, COLOURS["red"])
        square = Object("square", 0.6, 0.5, 0.135, 0, COLOURS[second])
        detection = find(draw([Layout([circle, square], COLOURS["white"])], 64)[0])
        assert sorted((each.shape, each.colour) for each in detection.objects) == [
            ("circle", "red"),
            ("square", second),
        ]


def test_an_object_cut_by_the_frame_is_known():
    drawn = Layout([Object("triangle", 0.21, 0.79, 0.196, 0.17, COLOURS["green"])], COLOURS["white"])
    (found,) = find(draw([drawn], 64)[0]).objects
    assert (found.shape, found.size, found.place) == ("triangle", "large", "bottom left")


# ---- pictures of any kind


def test_a_doubled_picture_gets_the_same_verdict(true_cases):
    for size in (32, 48, 64):
        pictures = draw([case.layout for case in true_cases[:12]], size)
        for case, picture in zip(true_cases, pictures, strict=False):
            doubled = picture.repeat(2, 0).repeat(2, 1)
            other = parse("a large red star to the left of two small blue hearts on a white background")
            for scene in (case.claimed, other):
                assert grade(doubled, scene).describe() == grade(picture, scene).describe()


def test_pictures_of_every_mode():
    picture = Image.fromarray(paint(("star", "black", "medium", "top left"), ("ring", "grey", "large", "bottom right")))
    scene = parse("a black star in the top left and a grey ring in the bottom right on a white background")
    for mode in ("RGB", "RGBA", "L", "LA", "P", "CMYK", "YCbCr", "HSV"):
        assert grade(picture.convert(mode), scene).obeyed, mode
    dithered = picture.convert("1", dither=Image.Dither.NONE)
    assert grade(dithered, parse("a black star in the top left")).claims[1].right
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    assert deep.mode == "I;16" and grade(deep, scene).obeyed


def test_transparent_pictures_are_seen_on_white():
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[20:40, 20:40] = (*COLOURS["red"], 255)
    assert grade(Image.fromarray(picture), parse("a red square on a white background")).obeyed


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((64, 48, 3), np.uint8), "48 x 64"),
        (np.zeros((31, 31, 3), np.uint8), "at least 32 x 32"),
        (np.zeros((64, 64, 3), np.float32), "float32"),
        (np.zeros((64, 64), np.uint8), r"\(64, 64\)"),
    ],
)
def test_pictures_that_cannot_be_judged(picture, message):
    with pytest.raises(LimnerError, match=message):
        find(picture)


# ---- which claims, and in which words

STAR_OVER_HEART = [("star", "red", "medium", "top"), ("heart", "blue", "medium", "bottom")]


@pytest.mark.parametrize(
    ("prompt", "objects", "description"),
    [
        ("a red star", [("star", "red", "small")], "obeyed"),
        ("a red star", [("heart", "red", "small")], "wanted a red star, found a red heart"),
        ("an orange star", [("star", "yellow", "small")], "wanted an orange star, found a yellow star"),
        ("a red star", [], "wanted a red star, found none"),
        ("two blue circles", [("circle", "blue", "small")], "wanted two blue circles, found one"),
        ("a small red star", [("star", "red", "large")], "wanted a small red star, found a large red star"),
        (
            "a red star at the top",
            [("star", "red", "large", "bottom left")],
            "wanted a red star at the top, found it in the bottom left",
        ),
        (
            "a red star",
            [("star", "red", "small", "left"), ("ring", "green", "small", "right")],
            "wanted a red star, found a red star and a green ring",
        ),
        ("a red star above a blue heart", STAR_OVER_HEART, "obeyed"),
        (
            "a red star below a blue heart",
            STAR_OVER_HEART,
            "wanted a red star below a blue heart, found it above",
        ),
        (
            "a red star left of a blue heart",
            STAR_OVER_HEART,
            "wanted a red star to the left of a blue heart, found it above",
        ),
        ("a red star on blue", [("star", "red", "small")], "wanted a blue background, found a white one"),
        (
            "a red star above two blue hearts",
            [("star", "red", "small"), ("heart", "blue", "small", "top"), ("heart", "blue", "small", "bottom")],
            "wanted a red star above two blue hearts, found it elsewhere",
        ),
        (
            "two red stars",
            [("ring", "red", "small", "top"), ("heart", "green", "small", "right"), ("star", "red", "small", "left")],
            "wanted two red stars, found a red star, a red ring and a green heart",
        ),
        (
            "two red stars and a blue heart",
            [("ring", "red", "small", "left"), ("heart", "green", "small", "right")],
            "wanted two red stars, found a red ring; wanted a blue heart, found a green heart",
        ),
    ],
)  # fmt: skip
def test_verdicts_in_words(prompt, objects, description):
    verdict = grade(paint(*objects), parse(prompt))
    assert verdict.describe() == description
    assert verdict.obeyed == (description == "obeyed")


@pytest.mark.parametrize(
    ("relation", "first", "second"),
    [
        ("above", "top", "bottom"),
        ("below", "bottom", "top"),
        ("left of", "left", "right"),
        ("right of", "right", "left"),
    ],
)
def test_one_relation_holds_and_no_other(relation, first, second):
    picture = paint(("star", "red", "small", first), ("star", "red", "large", second))
    groups = Group("star", "red", "small"), Group("star", "red", "large")
    for claimed in ("above", "below", "left of", "right of"):
        verdict = grade(picture, Scene(groups, claimed))
        (claim,) = [claim for claim in verdict.claims if claim.kind == "relation"]
        assert (claim.right, claim.found) == (claimed == relation, relation)
        assert [each.kind for each in verdict.wrong] == ([] if claimed == relation else ["relation"])


def test_a_relation_is_of_every_object():
    scene = Scene((Group("star", "red", count=2), Group("ring", "red", count=2)), "above")
    stars = [detected("star", "red", place="top left"), detected("star", "red", place="bottom right")]
    rings = [detected("ring", "red", place="bottom left"), detected("ring", "red", place="bottom")]
    assert [claim.kind for claim in judge(Detection("white", stars + rings), scene).wrong] == ["relation"]


def test_what_is_not_said_is_not_judged():
    detection = Detection("pink", [detected("star", "red", "small", "left")])
    assert judge(detection, Scene((Group("star", "red"),))).obeyed
    assert judge(detection, Scene((Group(),))).obeyed
    assert {claim.kind for claim in judge(detection, Scene((Group(),))).claims} == {"count"}


def test_a_turned_relation_is_named_and_nothing_else():
    scene = Scene((Group("star", "red", "small"), Group("heart", "blue", "large")), "left of", "white")
    detection = Detection(
        "white", [detected("heart", "blue", "large", "left"), detected("star", "red", "small", "right")]
    )
    (wrong,) = judge(detection, scene).wrong
    assert (wrong.kind, wrong.expected, wrong.found) == ("relation", "left of", "right of")


def test_a_stray_object_spoils_the_number_alone():
    scene = Scene((Group("star", "red"),))
    (wrong,) = judge(Detection("white", [detected("ring", "green"), detected("star", "red")]), scene).wrong
    assert (wrong.kind, wrong.expected, wrong.found) == ("count", 1, 2)


def test_each_object_counts_for_one_group():
    scene = Scene((Group("star", "red"), Group("star", "blue")))
    verdict = judge(Detection("white", [detected("star", "red")]), scene)
    assert not verdict.obeyed
    assert [len(own) for own in verdict.members] == [1, 0]


def test_an_object_of_no_known_shape_is_wrong():
    (wrong,) = judge(Detection("white", [detected(None, "red")]), Scene((Group("star", "red"),))).wrong
    assert (wrong.kind, wrong.found) == ("shape", None)


def test_a_crowd_is_judged():
    crowd = Detection("white", [detected("star", "red", place=place) for place in PLACES] * 4)
    verdict = judge(crowd, Scene((Group("star", "red", count=3), Group("ring", "blue"))))
    assert verdict.describe().startswith("wanted three red stars, found 36")
    assert not verdict.obeyed


def test_another_prompt_gets_another_verdict(true_cases):
    pictures = draw([case.layout for case in true_cases[:40]], 64)
    for k, picture in enumerate(pictures):
        others = [case.claimed for case in true_cases[:40] if case.claimed != true_cases[k].claimed]
        detection = find(picture)
        obeyed = [scene for scene in others if judge(detection, scene).obeyed]
        assert len(obeyed) <= 2, obeyed
