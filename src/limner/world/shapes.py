"""The shapes as signed distance functions, sampled once into tables for bilinear interpolation."""

from functools import lru_cache

import numpy as np

from limner.world.scene import SHAPES

REACH = 1.3  # tables cover [-REACH, REACH] in units of the object's radius
CELLS = 129  # samples along each side of a table
TURNS = {"circle": 0, "square": 8, "triangle": 10, "star": 18, "heart": 12, "diamond": 8, "cross": 12, "ring": 0,
         "crescent": 18}  # fmt: skip
"""Largest rotation of a shape to either side, in degrees; beyond it a square would be a diamond."""


def polygon(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of points (x, y) to the polygon with corners `points` (n, 2): negative inside."""
    nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        dx, dy = bx - ax, by - ay
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * dx, y - ay - along * dy))
        crosses = ((ay > y) != (by > y)) & (x < (y - ay) * dx / np.where(dy == 0, 1, dy) + ax)
        inside ^= crosses
    return np.where(inside, -nearest, nearest)


def _corners(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    """Corners at `angles` clockwise from the top, y downwards."""
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=-1)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    turn = 2 * np.pi
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.77) - 0.24
    if shape == "crescent":
        return np.maximum(np.hypot(x, y) - 1.05, 0.82 - np.hypot(x - 0.48, y))
    if shape == "cross":
        arm = 0.36
        limbs = [np.maximum(np.abs(x) - a, np.abs(y) - b) for a, b in ((arm, 1.05), (1.05, arm))]
        return np.minimum(*limbs)
    if shape == "square":
        return polygon(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.83, x, y)
    if shape == "diamond":
        return polygon(np.array([[0, -1.15], [0.78, 0], [0, 1.15], [-0.78, 0]]), x, y)
    if shape == "triangle":
        return polygon(_corners(np.arange(3) * turn / 3, 1.18) + np.array([0, 0.2]), x, y)
    if shape == "star":
        return polygon(
            _corners(np.arange(10) * turn / 10, np.where(np.arange(10) % 2, 0.5, 1.2)) + np.array([0, 0.05]), x, y
        )
    t = np.linspace(0, turn, 120, endpoint=False)  # the parametric heart curve, its tip downwards
    heart = np.stack(
        [16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2.5], axis=-1
    )
    return polygon(heart / 15.5, x, y)


@lru_cache(maxsize=1)
def tables() -> np.ndarray:
    """(len(SHAPES), CELLS, CELLS) float32: signed distances in units of the radius, rows along y."""
    axis = np.linspace(-REACH, REACH, CELLS)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([_distance(shape, x, y) for shape in SHAPES]).astype(np.float32)


def coverage(shape: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The share of a pixel that the shape covers, 0 to 1, anti-aliased over one pixel.

    `shape` indexes SHAPES; x and y are the pixel's centre in the object's frame (from its centre, rotated back, in
    units of the radius); `radius` in pixels. The arguments broadcast together to the shape of the result.
    """
    table = tables()
    scale = (CELLS - 1) / (2 * REACH)
    u = np.clip((x + REACH) * np.float32(scale), 0, CELLS - 1.001)
    v = np.clip((y + REACH) * np.float32(scale), 0, CELLS - 1.001)
    column, row = u.astype(np.int32), v.astype(np.int32)
    fu, fv = u - column, v - row
    flat = table.reshape(-1)
    at = (np.asarray(shape, np.int32) * CELLS + row) * CELLS + column
    upper = flat[at] * (1 - fu) + flat[at + 1] * fu
    lower = flat[at + CELLS] * (1 - fu) + flat[at + CELLS + 1] * fu
    distance = upper * (1 - fv) + lower * fv
    return np.clip(0.5 - distance * radius, 0, 1)
