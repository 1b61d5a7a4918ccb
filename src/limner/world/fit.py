"""Fitting shapes to a matte: each is drawn as the renderer draws it, and its pose and blur are optimised."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from limner.world.scene import SHAPES
from limner.world.shapes import CELLS, REACH, TURNS, coverage, tables

SHARP_RESIDUAL = 0.02  # where a sharp drawing has no more than this, no blurred one is tried
BLUR_TRIALS = ((0.6, 1.0), (1.5, 1.0), (1.2, 0.87), (1.2, 0.75))  # variances; radii as multiples of the area's estimate
MAX_VARIANCE = 3.0  # of the blur, in square pixels
SUBSAMPLE_AREA = 150.0  # of a matte with more pixels than this, every fourth ranks the shapes well enough
FINITE_STEPS = np.array([0.25, 0.25, 0.04, 0.06, 0.2])  # for derivatives by x, y, log radius, angle, variance
CONVERGED_RESIDUAL = 0.001
ANGLE_SLACK = math.radians(4)  # beyond the renderer's largest rotation


class Patch(NamedTuple):
    """A window of the picture: the matte and the weights (h, w), and the centres of its pixels x (w,), y (h,)."""

    matte: np.ndarray
    weight: np.ndarray
    x: np.ndarray
    y: np.ndarray


class Fit(NamedTuple):
    """The best pose of a shape, in pixels. `residual` is the share of the matte's energy that it does not explain."""

    x: float
    y: float
    radius: float
    cover: np.ndarray  # (h, w)
    residual: float


class Unit(NamedTuple):
    """Each shape at radius 1: its area (shapes,), and its centroid from its centre (shapes, 2) as (x, y)."""

    area: np.ndarray
    centroid: np.ndarray


@lru_cache(maxsize=1)
def unit() -> Unit:
    """Area and centroid of each shape, by quadrature on the tables."""
    axis = np.linspace(-REACH, REACH, CELLS)
    inside = np.clip(0.5 - tables() / (axis[1] - axis[0]), 0, 1)  # (shapes, y, x)
    area = inside.sum((1, 2))
    centroid = np.stack([(inside * axis).sum((1, 2)) / area, (inside * axis[:, None]).sum((1, 2)) / area], axis=-1)
    return Unit(area * (axis[1] - axis[0]) ** 2, centroid)


@lru_cache(maxsize=1)
def _candidates() -> tuple[np.ndarray, np.ndarray]:
    """Shapes (K,) and angles (K,) of the first trials, in steps of at most 7 degrees."""
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
    """Matrices (K, length, length) that blur along one axis by variances (K,)."""
    share = np.asarray(variance / 8, np.float32)[:, None, None]
    once = np.eye(length, dtype=np.float32) + share * _second_difference(length)
    twice = once @ once
    return twice @ twice


def _residuals(patch: Patch, covers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covers (K, h, w) -> the weighted squared error of each (K,), at its least-squares amplitude (K,)."""
    weight, matte, flat = patch.weight.ravel(), patch.matte.ravel(), covers.reshape(len(covers), -1)
    both, own = flat @ (weight * matte), np.square(flat) @ weight + 1e-6
    return weight @ matte**2 - both**2 / own, both / own


def fit(patch: Patch, refined: int = 4) -> tuple[dict[str, Fit], np.ndarray]:
    """The likeliest shapes, at most `refined`, each in its best pose; and the residual of every one of SHAPES.

    All shapes are tried at a few angles; pose and blur of the likeliest are then optimised.
    """
    shapes, _ = _candidates()
    poses, residual = _first(patch)
    firsts = [min(np.flatnonzero(shapes == shape), key=residual.__getitem__) for shape in range(len(SHAPES))]
    residuals = residual[firsts]
    likely = [shape for shape in residuals.argsort()[:refined] if residuals[shape] <= 2 * residuals.min() + 0.04]
    likely_poses = poses[[firsts[shape] for shape in likely]]
    residuals[likely], likely_poses, covers = _refine(patch, np.array(likely, np.int32), likely_poses)
    fits = {}
    for shape, (x, y, log_radius, *_), cover in zip(likely, likely_poses, covers, strict=True):
        fits[SHAPES[shape]] = Fit(float(x), float(y), math.exp(log_radius), cover, float(residuals[shape]))
    return fits, residuals


def _first(patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Poses (K, 5) of all candidates, from the area and the centroid of the matte; the residual of each (K,)."""
    shapes, angles = _candidates()
    soft = np.clip(patch.matte * patch.weight, 0, None)
    area = float(soft.sum())
    x, y = (soft.sum(0) @ patch.x) / area, (soft.sum(1) @ patch.y) / area
    radius = np.sqrt(area / unit().area)[shapes]
    off_x, off_y = unit().centroid[shapes].T * radius
    cos, sin = np.cos(angles), np.sin(angles)
    centres = x - (cos * off_x - sin * off_y), y - (sin * off_x + cos * off_y)
    poses = np.stack([*centres, np.log(radius), angles, np.zeros(len(shapes))], axis=-1)
    stride = 1 + (area > SUBSAMPLE_AREA)
    some = Patch(
        patch.matte[::stride, ::stride], patch.weight[::stride, ::stride], patch.x[::stride], patch.y[::stride]
    )
    energy = float((some.weight * some.matte**2).sum())
    sharp = _draw(some, shapes, poses)
    error, _ = _residuals(some, sharp)
    for variance, shrink in BLUR_TRIALS if error.min() > SHARP_RESIDUAL * energy else ():
        tried = poses.copy()
        tried[:, 2] += math.log(shrink)
        tried[:, 4] = variance
        drawn = sharp if shrink == 1 else _draw(some, shapes, tried)
        new_error, _ = _residuals(some, _blur(drawn, np.array([variance / stride**2])))
        poses = np.where((new_error < error)[:, None], tried, poses)
        error = np.minimum(new_error, error)
    return poses, error / energy


def _refine(patch: Patch, shapes: np.ndarray, poses: np.ndarray, rounds: int = 3):
    """Gauss-Newton from each pose (K, 5): the residuals (K,), poses (K, 5) and covers (K, h, w) after it."""
    max_angle = np.radians([TURNS[SHAPES[shape]] for shape in shapes]) + ANGLE_SLACK
    energy = float((patch.weight * patch.matte**2).sum())
    covers = _blur(_draw(patch, shapes, poses), poses[:, 4])
    error, amplitude = _residuals(patch, covers)
    for _ in range(rounds):
        tried = poses + _step(patch, shapes, poses, covers, amplitude)
        tried[:, 3] = np.clip(tried[:, 3], -max_angle, max_angle)
        tried[:, 4] = np.clip(tried[:, 4], 0, MAX_VARIANCE)
        new_covers = _blur(_draw(patch, shapes, tried), tried[:, 4])
        new_error, new_amplitude = _residuals(patch, new_covers)
        better = new_error < error
        poses = np.where(better[:, None], tried, poses)
        covers = np.where(better[:, None, None], new_covers, covers)
        error, amplitude = np.where(better, new_error, error), np.where(better, new_amplitude, amplitude)
        if error.min() < CONVERGED_RESIDUAL * energy:
            break
    return error / energy, poses, covers


def _step(patch: Patch, shapes: np.ndarray, poses: np.ndarray, covers: np.ndarray, amplitude: np.ndarray) -> np.ndarray:
    """The step (K, 5) of each pose by damped least squares on the difference between cover and matte."""
    count, weight = len(shapes), patch.weight.ravel()
    moved = (poses[:, None] + np.diag(FINITE_STEPS)).reshape(-1, 5)
    slopes = _blur(_draw(patch, np.repeat(shapes, 5), moved), moved[:, 4]).reshape(count, 5, -1)
    flat = covers.reshape(count, 1, -1)
    slopes = np.concatenate([(slopes - flat) * amplitude[:, None, None], flat], axis=1)  # (K, 6, h * w)
    error = patch.matte.ravel() - amplitude[:, None] * flat[:, 0]
    normal = (slopes * weight) @ slopes.transpose(0, 2, 1)
    damping = 0.02 * np.trace(normal[:, :5, :5], axis1=1, axis2=2)[:, None, None] / 5 + 1e-6
    step = np.linalg.solve(normal + damping * np.eye(6), slopes @ (weight * error)[..., None])
    return np.clip(step[:, :5, 0], -3, 3) * FINITE_STEPS
