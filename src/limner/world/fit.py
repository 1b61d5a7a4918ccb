"""Which shape explains a matte: each is drawn as the renderer draws it, moved, turned and blurred until it fits."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from limner.world.scene import SHAPES
from limner.world.shapes import CELLS, REACH, TURNS, coverage, tables

SHARP = 0.02  # where a sharp drawing leaves no more than this over, no blurred one is tried
BLURRED = ((0.6, 1.0), (1.5, 1.0), (1.2, 0.87), (1.2, 0.75))  # variances; and radii, as shares of what the area says
MOST_BLUR = 3.0
DENSE = 150.0  # of a matte with more pixels than this, every fourth is enough to find the likeliest shapes
NUDGE = np.array([0.25, 0.25, 0.04, 0.06, 0.2])  # steps to take slopes by: x, y, log radius, angle, variance
EXACT = 0.001  # what leaves less than this over is not moved any more
SLACK = math.radians(4)  # beyond what the renderer turns a shape


class Patch(NamedTuple):
    """A window of the picture: the matte and the weights (h, w), and the middles of its pixels x (w,), y (h,)."""

    matte: np.ndarray
    weight: np.ndarray
    x: np.ndarray
    y: np.ndarray


class Fit(NamedTuple):
    """The pose in which a shape fits best, in pixels. `over` is the share of the matte's energy that it leaves over."""

    x: float
    y: float
    radius: float
    cover: np.ndarray  # (h, w)
    over: float


class Unit(NamedTuple):
    """Each shape with radius 1: its area, and where its centroid lies from its middle, (shapes, 2) as (x, y)."""

    area: np.ndarray
    centroid: np.ndarray


@lru_cache(maxsize=1)
def unit() -> Unit:
    """Measured on the tables."""
    axis = np.linspace(-REACH, REACH, CELLS)
    inside = np.clip(0.5 - tables() / (axis[1] - axis[0]), 0, 1)  # (shapes, y, x)
    area = inside.sum((1, 2))
    centroid = np.stack([(inside * axis).sum((1, 2)) / area, (inside * axis[:, None]).sum((1, 2)) / area], axis=-1)
    return Unit(area * (axis[1] - axis[0]) ** 2, centroid)


@lru_cache(maxsize=1)
def _candidates() -> tuple[np.ndarray, np.ndarray]:
    """Shapes (K,) and the angles (K,) at which each is tried, in steps of at most 7 degrees."""
    tries = []
    for shape, name in enumerate(SHAPES):
        steps = math.ceil(TURNS[name] / 7)
        tries += [(shape, math.radians(TURNS[name] * k / max(steps, 1))) for k in range(-steps, steps + 1)]
    shapes, angles = zip(*tries, strict=True)
    return np.array(shapes, np.int32), np.array(angles, np.float32)


def _draw(patch: Patch, shape: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Shapes (K,) in poses (K, 5: x, y, log radius, angle, variance of the blur; pixels) -> sharp covers (K, h, w)."""
    x, y, log_radius, angle = poses[:, :4].astype(np.float32).T[:, :, None, None]
    radius = np.exp(log_radius)
    dx, dy = (patch.x - x) / radius, (patch.y[:, None] - y) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    return coverage(shape[:, None, None], cos * dx + sin * dy, cos * dy - sin * dx, radius)


def _blur(covers: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Covers (K, h, w) blurred by variances (K,): four steps of diffusion, near to a Gaussian and smooth at 0."""
    down, across = (_diffusion(length, variance) for length in covers.shape[-2:])
    return down @ covers @ across


@lru_cache(maxsize=256)
def _second_difference(length: int) -> np.ndarray:
    matrix = np.eye(length, k=1) + np.eye(length, k=-1)
    return (matrix - np.diag(matrix.sum(1))).astype(np.float32)


def _diffusion(length: int, variance: np.ndarray) -> np.ndarray:
    """Matrices (K, length, length) that spread what they are multiplied with by variances (K,)."""
    share = np.asarray(variance / 8, np.float32)[:, None, None]
    once = np.eye(length, dtype=np.float32) + share * _second_difference(length)
    twice = once @ once
    return twice @ twice


def _left_over(patch: Patch, covers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covers (K, h, w) -> what each leaves over of the matte's energy (K,), at the strength (K,) that leaves least."""
    weight, matte, flat = patch.weight.ravel(), patch.matte.ravel(), covers.reshape(len(covers), -1)
    both, own = flat @ (weight * matte), np.square(flat) @ weight + 1e-6
    return weight @ matte**2 - both**2 / own, both / own


def fit(patch: Patch, thorough: int = 4) -> tuple[dict[str, Fit], np.ndarray]:
    """The likeliest shapes, at most `thorough`, each in its best pose; and what every one of SHAPES leaves over.

    All are tried in a few turns, and the likeliest then moved, turned and blurred until they fit.
    """
    shapes, _ = _candidates()
    poses, over = _first(patch)
    firsts = [min(np.flatnonzero(shapes == shape), key=over.__getitem__) for shape in range(len(SHAPES))]
    overs = over[firsts]
    likely = [shape for shape in overs.argsort()[:thorough] if overs[shape] <= 2 * overs.min() + 0.04]
    likely_poses = poses[[firsts[shape] for shape in likely]]
    overs[likely], likely_poses, covers = _refine(patch, np.array(likely, np.int32), likely_poses)
    fits = {}
    for shape, (x, y, log_radius, *_), cover in zip(likely, likely_poses, covers, strict=True):
        fits[SHAPES[shape]] = Fit(float(x), float(y), math.exp(log_radius), cover, float(overs[shape]))
    return fits, overs


def _first(patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Poses (K, 5) for all candidates, from the area and the centroid of the matte; the share that each leaves over."""
    shapes, angles = _candidates()
    soft = np.clip(patch.matte * patch.weight, 0, None)
    area = float(soft.sum())
    x, y = (soft.sum(0) @ patch.x) / area, (soft.sum(1) @ patch.y) / area
    radius = np.sqrt(area / unit().area)[shapes]
    off_x, off_y = unit().centroid[shapes].T * radius
    cos, sin = np.cos(angles), np.sin(angles)
    middles = x - (cos * off_x - sin * off_y), y - (sin * off_x + cos * off_y)
    poses = np.stack([*middles, np.log(radius), angles, np.zeros(len(shapes))], axis=-1)
    thin = 1 + (area > DENSE)
    some = Patch(patch.matte[::thin, ::thin], patch.weight[::thin, ::thin], patch.x[::thin], patch.y[::thin])
    energy = float((some.weight * some.matte**2).sum())
    sharp = _draw(some, shapes, poses)
    over, _ = _left_over(some, sharp)
    for variance, shrink in BLURRED if over.min() > SHARP * energy else ():
        tried = poses.copy()
        tried[:, 2] += math.log(shrink)
        tried[:, 4] = variance
        drawn = sharp if shrink == 1 else _draw(some, shapes, tried)
        left, _ = _left_over(some, _blur(drawn, np.array([variance / thin**2])))
        poses = np.where((left < over)[:, None], tried, poses)
        over = np.minimum(left, over)
    return poses, over / energy


def _refine(patch: Patch, shapes: np.ndarray, poses: np.ndarray, rounds: int = 3):
    """Gauss-Newton from each pose (K, 5): the shares left over (K,), the poses and the covers (K, h, w)."""
    turns = np.radians([TURNS[SHAPES[shape]] for shape in shapes]) + SLACK
    energy = float((patch.weight * patch.matte**2).sum())
    covers = _blur(_draw(patch, shapes, poses), poses[:, 4])
    over, strength = _left_over(patch, covers)
    for _ in range(rounds):
        tried = poses + _step(patch, shapes, poses, covers, strength)
        tried[:, 3] = np.clip(tried[:, 3], -turns, turns)
        tried[:, 4] = np.clip(tried[:, 4], 0, MOST_BLUR)
        new_covers = _blur(_draw(patch, shapes, tried), tried[:, 4])
        new_over, new_strength = _left_over(patch, new_covers)
        better = new_over < over
        poses = np.where(better[:, None], tried, poses)
        covers = np.where(better[:, None, None], new_covers, covers)
        over, strength = np.where(better, new_over, over), np.where(better, new_strength, strength)
        if over.min() < EXACT * energy:
            break
    return over / energy, poses, covers


def _step(patch: Patch, shapes: np.ndarray, poses: np.ndarray, covers: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """(K, 5): how to change each pose so that its cover comes nearer to the matte, by least squares with damping."""
    count, weight = len(shapes), patch.weight.ravel()
    nudged = (poses[:, None] + np.diag(NUDGE)).reshape(-1, 5)
    slopes = _blur(_draw(patch, np.repeat(shapes, 5), nudged), nudged[:, 4]).reshape(count, 5, -1)
    flat = covers.reshape(count, 1, -1)
    slopes = np.concatenate([(slopes - flat) * strength[:, None, None], flat], axis=1)  # (K, 6, h * w)
    wrong = patch.matte.ravel() - strength[:, None] * flat[:, 0]
    normal = (slopes * weight) @ slopes.transpose(0, 2, 1)
    damping = 0.02 * np.trace(normal[:, :5, :5], axis1=1, axis2=2)[:, None, None] / 5 + 1e-6
    step = np.linalg.solve(normal + damping * np.eye(6), slopes @ (weight * wrong)[..., None])
    return np.clip(step[:, :5, 0], -3, 3) * NUDGE
