"""Rendering: `layout` samples each object's position, radius, angle and shade; `draw` rasterises in batches.

Units: positions and radii are shares of the picture's side, y downwards.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np

from limner.errors import LimnerError
from limner.world import shapes
from limner.world.scene import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Group, Scene

MIN_GAP = 0.05  # between two objects
MIN_SEPARATION = 0.03  # of the two sides of a relation, along its axis
SHADE_RANGE = 12  # largest deviation of a channel from its named colour, of 255
PLACE_JITTER = 0.045  # largest deviation of an object from the centre of its place, in x and in y


class Object(NamedTuple):
    """One object with its geometry and colour. `angle` in radians, clockwise."""

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]


class Layout(NamedTuple):
    """Objects and background colour, which determine a picture."""

    objects: list[Object]
    background: tuple[float, float, float]


def layout(scene: Scene, random: Random) -> Layout:
    """The objects of a complete scene, group by group, with random geometry and shades."""
    members = [group for group in scene.groups for _ in range(group.count)]
    radii = [SIZES[group.size or "medium"] * random.uniform(0.94, 1.06) for group in members]
    centres = _centres(scene, members, radii, random)
    objects = []
    for group, radius, (x, y) in zip(members, radii, centres, strict=True):
        assert group.shape is not None and group.colour is not None
        turn = math.radians(shapes.TURNS[group.shape])
        objects.append(Object(group.shape, x, y, radius, random.uniform(-turn, turn), _shade(group.colour, random)))
    assert scene.background is not None
    return Layout(objects, _shade(scene.background, random))


def _shade(colour: str, random: Random) -> tuple[float, float, float]:
    red, green, blue = (min(255, max(0, c + random.uniform(-SHADE_RANGE, SHADE_RANGE))) for c in COLOURS[colour])
    return red, green, blue


def _centres(scene: Scene, members: list[Group], radii: list[float], random: Random) -> list[tuple[float, float]]:
    """The centres of the objects, by rejection sampling; every third proposal is on a grid, for crowded scenes."""
    placed = any(group.place for group in members)
    for attempt in range(300):
        if attempt % 3 < 2 or placed or len(members) == 1:
            centres = _scattered(scene, members, radii, random)
        else:
            centres = _on_grid(scene, members, random)
        if _clear(centres, radii) and (scene.relation is None or _related(scene, centres, radii)):
            return centres
    raise LimnerError(f"no room was found for the objects of {scene}")


def _scattered(scene: Scene, members: list[Group], radii: list[float], random: Random) -> list[tuple[float, float]]:
    """Centres near their places, or uniform; the groups of a relation on either side of a random line."""
    dx, dy = RELATIONS.get(scene.relation or "", (0, 0))
    line = random.uniform(0.3, 0.7)
    centres = []
    for k, (group, radius) in enumerate(zip(members, radii, strict=True)):
        if group.place is not None:
            x, y = PLACES[group.place]
            dx_jitter, dy_jitter = (random.uniform(-PLACE_JITTER, PLACE_JITTER) for _ in "xy")
            centres.append((x + dx_jitter, y + dy_jitter))
            continue
        low, high = radius * 1.1 + 0.01, 0.99 - radius * 1.1
        side = 1 if k < scene.groups[0].count else -1  # -1: beyond the line, along the relation's axis
        ends = {0: (low, high), 1: (low, max(low, line - radius)), -1: (min(high, line + radius), high)}
        centres.append((random.uniform(*ends[side * dx]), random.uniform(*ends[side * dy])))
    return centres


def _on_grid(scene: Scene, members: list[Group], random: Random) -> list[tuple[float, float]]:
    corners = random.sample([(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], len(members))
    dx, dy = RELATIONS.get(scene.relation or "", (0, 0))
    centres = []
    for group, (x, y) in zip(members, corners, strict=True):
        if group.count == 1 and len(members) > 2:  # a single object is centred opposite the others
            x, y = (0.5 if dy else x), (0.5 if dx else y)
        centres.append((x + random.uniform(-0.01, 0.01), y + random.uniform(-0.01, 0.01)))
    return centres


def _clear(centres: Sequence[tuple[float, float]], radii: Sequence[float]) -> bool:
    for i in range(len(centres)):
        for j in range(i):
            apart = 1.08 * (radii[i] + radii[j]) + MIN_GAP
            if (centres[i][0] - centres[j][0]) ** 2 + (centres[i][1] - centres[j][1]) ** 2 < apart * apart:
                return False
    return True


def _related(scene: Scene, centres: Sequence[tuple[float, float]], radii: Sequence[float]) -> bool:
    """Whether the relation holds with a margin: groups separated along its axis, hardly displaced across it."""
    assert scene.relation is not None
    dx, dy = RELATIONS[scene.relation]
    n = scene.groups[0].count
    along = [x * dx + y * dy for x, y in centres]
    across = [x * abs(dy) + y * abs(dx) for x, y in centres]
    space = min(a - r for a, r in zip(along[n:], radii[n:], strict=True))
    space -= max(a + r for a, r in zip(along[:n], radii[:n], strict=True))
    far = sum(along[n:]) / len(along[n:]) - sum(along[:n]) / n
    aside = abs(sum(across[n:]) / len(across[n:]) - sum(across[:n]) / n)
    return space > MIN_SEPARATION and aside < 0.55 * far


def draw(layouts: Sequence[Layout], size: int) -> np.ndarray:
    """The pictures of layouts, anti-aliased: uint8 (B, size, size, 3)."""
    margin = _window(max(SIZES.values()) * 1.06, size)
    side = size + 2 * margin  # padded, so that no window is clipped
    pictures = np.empty((len(layouts), side, side, 3), np.float32)
    pictures[:] = np.array([each.background for each in layouts], np.float32)[:, None, None]
    # A batch has objects with windows of one size, at most one per picture.
    batches: dict[tuple[int, int], list[tuple[int, Object]]] = {}
    for row, each in enumerate(layouts):
        for slot, obj in enumerate(each.objects):
            batches.setdefault((slot, _window(obj.radius, size)), []).append((row, obj))
    for (_, window), members in sorted(batches.items()):
        _blend(pictures, margin, size, window, members)
    inner = pictures[:, margin : margin + size, margin : margin + size]
    return (inner + 0.5).astype(np.uint8)


def _window(radius: float, size: int) -> int:
    """Side in pixels of a square that contains an object, rounded up to a multiple, for larger batches."""
    step = max(4, size // 16)
    return math.ceil((2 * shapes.REACH * radius * size + 2) / step) * step


def _blend(pictures: np.ndarray, margin: int, size: int, window: int, members: list[tuple[int, Object]]) -> None:
    rows = np.array([row for row, _ in members])
    shape = np.array([SHAPES.index(obj.shape) for _, obj in members], np.int32)[:, None, None]
    x, y, radius, angle = np.array([obj[1:5] for _, obj in members], np.float32).T
    left, top = (np.floor(c * size - window / 2).astype(np.int32) for c in (x, y))
    pixels = radius * size
    grid = np.arange(window)
    dx = (grid + np.float32(0.5) + (left - x * size)[:, None]) / pixels[:, None]  # (b, window)
    dy = (grid + np.float32(0.5) + (top - y * size)[:, None]) / pixels[:, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u = cos * dx[:, None, :] + sin * dy[:, :, None]  # rotated back by the object's angle
    v = cos * dy[:, :, None] - sin * dx[:, None, :]
    cover = shapes.coverage(shape, u, v, pixels[:, None, None])[..., None]  # (b, window, window, 1)
    where = (rows[:, None, None], (top[:, None] + margin + grid)[:, :, None], (left[:, None] + margin + grid)[:, None])
    under = pictures[where]
    rgb = np.array([obj.rgb for _, obj in members], np.float32)[:, None, None]
    pictures[where] = under + cover * (rgb - under)


def render(scenes: Sequence[Scene], size: int, seeds: Sequence[int]) -> np.ndarray:
    """Complete scenes -> pictures, uint8 (B, size, size, 3); `seeds` determine the layouts."""
    return draw([layout(scene, Random(seed)) for scene, seed in zip(scenes, seeds, strict=True)], size)
