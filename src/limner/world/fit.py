"""Least-squares fits of shapes to a matte: each is rendered, and its pose and blur are optimised."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from limner.world.scene import SHAPES
from limner.world.shapes import CELLS, REACH, TURNS, coverage, tables

SHARP_RESIDUAL = 0.02  # above it blurred shapes are tried too
BLUR_TRIALS = ((0.6, 1.0), (1.5, 1.0), (1.2, 0.87), (1.2, 0.75))  # variances; radii relative to the estimate by area
MAX_VARIANCE = 3.0  # of the blur, in square pixels
SUBSAMPLE_AREA = 150.0  # pixels; of a larger matte every fourth pixel is used to rank shapes
FINITE_STEPS = np.array([0.25, 0.25, 0.04, 0.06, 0.2])  # of x, y, log radius, angle, variance
CONVERGED_RESIDUAL = 0.001
ANGLE_SLACK = math.radians(4)  # beyond the renderer's largest rotation


class Patch(NamedTuple):
    """A window of the picture: matte and weights (h, w), pixel centres x (w,) and y (h,)."""

    matte: np.ndarray
    weight: np.ndarray
    x: np.ndarray
    y: np.ndarray


class Fit(NamedTuple):
    """The best pose of a shape, in pixels. `residual` is the unexplained share of the matte's energy."""

    x: float
    y: float
    radius: float
    cover: np.ndarray  # (h, w)
    residual: float


class Unit(NamedTuple):
    """Each shape at radius 1: its area (shapes,), and its centroid relative to its centre (shapes, 2) as (x, y)."""

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
    """Shapes (K,) and angles (K,) of the initial poses, in steps of at most 7 degrees."""
    poses = []
    for shape, name in enumerate(SHAPES):
        steps = math.ceil(TURNS[name] / 7)
        poses += [(shape, math.radians(TURNS[name] * k / max(steps, 1))) for k in range(-steps, steps + 1)]
    shapes, angles = zip(*poses, strict=True)
    return np.array(shapes, np.int32), np.array(angles, np.float32)


def _draw(patch: Patch, shape: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Shapes (K,) in poses (K, 5: x, y, log radius, angle, blur variance; pixels) -> sharp covers (K, h, w)."""
    x, y, log_radius, angle = poses[:, :4].astype(np.float32).T[:, :, None, None]
    radius = np.exp(log_radius)
    dx, dy = (patch.x - x) / radius, (patch.y[:, None] - y) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    return coverage(shape[:, None, None], cos * dx + sin * dy, cos * dy - sin * dx, radius)


def _blur(covers: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Covers (K, h, w) blurred by variances (K,): four diffusion steps, near a Gaussian and smooth at 0."""
    down, across = (_diffusion(length, variance) for length in covers.shape[-2:])
    return down @ covers @ across


@lru_cache(maxsize=256)
def _second_difference(length: int) -> np.ndarray:
    matrix = np.eye(length, k=1) + np.eye(length, k=-1)
    return (matrix - np.diag(matrix.sum(1))).astype(np.float32)


def _diffusion(length: int, variance: np.ndarray) -> np.ndarray:
    """Matrices (K, length, length) of the blur along one axis by variances (K,)."""
    rate = np.asarray(variance / 8, np.float32)[:, None, None]
    once = np.eye(length, dtype=np.float32) + rate * _second_difference(length)
    twice = once @ once
    return twice @ twice


def _residuals(patch: Patch, covers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covers (K, h, w) -> weighted squared errors (K,) at the least-squares amplitudes (K,), and these."""
    weight, matte, flat = patch.weight.ravel(), patch.matte.ravel(), covers.reshape(len(covers), -1)
    cross, power = flat @ (weight * matte), np.square(flat) @ weight + 1e-6
    return weight @ matte**2 - cross**2 / power, cross / power


def fit(patch: Patch, refined: int = 4) -> tuple[dict[str, Fit], np.ndarray]:
    """The fits of the best shapes, at most `refined`; and the residual of each of SHAPES, (shapes,).

    All shapes are ranked at a few angles; pose and blur of the best are then optimised.
    """
    shapes, _ = _candidates()
    poses, residual = _initial(patch)
    firsts = [min(np.flatnonzero(shapes == shape), key=residual.__getitem__) for shape in range(len(SHAPES))]
    residuals = residual[firsts]
    likely = [shape for shape in residuals.argsort()[:refined] if residuals[shape] <= 2 * residuals.min() + 0.04]
    likely_poses = poses[[firsts[shape] for shape in likely]]
    residuals[likely], likely_poses, covers = _refine(patch, np.array(likely, np.int32), likely_poses)
    fits = {}
    for shape, (x, y, log_radius, *_), cover in zip(likely, likely_poses, covers, strict=True):
        fits[SHAPES[shape]] = Fit(float(x), float(y), math.exp(log_radius), cover, float(residuals[shape]))
    return fits, residuals


def _initial(patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Poses (K, 5) of all candidates by the matte's area and centroid, and their residuals (K,)."""
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
    cut = slice(None, None, stride)
    sampled = Patch(patch.matte[cut, cut], patch.weight[cut, cut], patch.x[cut], patch.y[cut])
    energy = float((sampled.weight * sampled.matte**2).sum())
    sharp = _draw(sampled, shapes, poses)
    error, _ = _residuals(sampled, sharp)
    for variance, shrink in BLUR_TRIALS if error.min() > SHARP_RESIDUAL * energy else ():
        tried = poses.copy()
        tried[:, 2] += math.log(shrink)
        tried[:, 4] = variance
        drawn = sharp if shrink == 1 else _draw(sampled, shapes, tried)
        new_error, _ = _residuals(sampled, _blur(drawn, np.array([variance / stride**2])))
        poses = np.where((new_error < error)[:, None], tried, poses)
        error = np.minimum(new_error, error)
    return poses, error / energy


def _refine(patch: Patch, shapes: np.ndarray, poses: np.ndarray, rounds: int = 3):
    """Gauss-Newton from each pose (K, 5) -> residuals (K,), poses (K, 5) and covers (K, h, w)."""
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
    """The damped Gauss-Newton step (K, 5) of each pose, with finite-difference derivatives."""
    count, weight = len(shapes), patch.weight.ravel()
    shifted = (poses[:, None] + np.diag(FINITE_STEPS)).reshape(-1, 5)
    slopes = _blur(_draw(patch, np.repeat(shapes, 5), shifted), shifted[:, 4]).reshape(count, 5, -1)
    flat = covers.reshape(count, 1, -1)
    slopes = np.concatenate([(slopes - flat) * amplitude[:, None, None], flat], axis=1)  # (K, 6, h * w)
    error = patch.matte.ravel() - amplitude[:, None] * flat[:, 0]
    normal = (slopes * weight) @ slopes.transpose(0, 2, 1)
    damping = 0.02 * np.trace(normal[:, :5, :5], axis1=1, axis2=2)[:, None, None] / 5 + 1e-6
    step = np.linalg.solve(normal + damping * np.eye(6), slopes @ (weight * error)[..., None])
    return np.clip(step[:, :5, 0], -3, 3) * FINITE_STEPS
