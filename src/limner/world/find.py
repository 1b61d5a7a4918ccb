"""Object detection for pictures of this world, from the pixels alone.

The background is the border's most frequent colour; connected regions that differ from it are candidates. The matte of
a region (the opacity of the object at each pixel) is fitted with each shape in turn, see `fit`; where no shape fits
well, the region may be several touching objects and is split by colour or at its waist.

Units: positions and radii are shares of the picture's side, y downwards.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from limner.errors import LimnerError
from limner.world.fit import Fit, Patch, fit, unit
from limner.world.scene import COLOURS, PLACES, SHAPES, SIZES

MIN_SIDE = 32  # pixels; shapes are indistinguishable below
MAX_SIDE = 96  # larger pictures are reduced to REDUCED_SIDE pixels
REDUCED_SIDE = 64
BACKGROUND_TOL = 30.0  # distance in RGB (0 to 255) beyond which a pixel is not background
MIN_CONTRAST = 40.0  # least distance of an object's colour to the background's
GOOD_RESIDUAL = 0.01  # of a shape; below it the second metric is not tried
MIN_RESIDUAL = 0.003  # floor of the residuals that are multiplied
MIN_FIT = 0.85  # least share of the matte's energy that an identified shape explains
GOOD_FIT = 0.9  # a region with a better fit is not split
MAX_REGIONS = 12  # in a picture with more no region is split
EQUAL_WEIGHTS = np.eye(3, dtype=np.float32)  # metric on RGB with equal channel weights,
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
LUMA_WEIGHTS = 3 * np.outer(LUMA, LUMA) + 0.02 * EQUAL_WEIGHTS  # or luma before chroma, which JPEG subsamples


class DetectedObject(NamedTuple):
    """One object. `fit` is the share of its matte that `shape` explains; `shape` is None where no shape fits."""

    shape: str | None
    colour: str
    size: str
    x: float
    y: float
    radius: float
    place: str
    fit: float


class Detection(NamedTuple):
    """The colour of the background, and the objects from top to bottom."""

    background: str
    objects: list[DetectedObject]


def find(picture: Image.Image | np.ndarray) -> Detection:
    """The background and the objects of a square picture: PIL in any mode, or uint8 (H, W, 3).

    LimnerError where the picture is not square, or its side is below MIN_SIDE.
    """
    view = _view(_pixels(picture))
    regions = _regions(view)
    count = int(regions.max())
    depth = 2 if count <= MAX_REGIONS else 0
    objects = [obj for k in range(1, count + 1) for obj in _objects(view, regions, k, depth)]
    return Detection(_colour_name(view.background), sorted(objects, key=lambda obj: (obj.y, obj.x)))


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    """float32 (n, n, 3), 0 to 255, n at most MAX_SIDE. Transparent pictures are composed on white."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise LimnerError(f"expected a picture as uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
        picture = Image.fromarray(picture)
    width, height = picture.size
    if width != height or width < MIN_SIDE:
        limit = f"{MIN_SIDE} x {MIN_SIDE}"
        raise LimnerError(f"expected a square picture of at least {limit} pixels, got {width} x {height}")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if width > MAX_SIDE:
        picture = picture.resize((REDUCED_SIDE, REDUCED_SIDE), Image.Resampling.BOX)
    return np.asarray(picture, np.float32)


@lru_cache(maxsize=1)
def _palette() -> np.ndarray:
    return np.array(list(COLOURS.values()), np.float32)


def _nearest(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) -> (...): the index of the nearest named colour."""
    return np.square(rgb[..., None, :] - _palette()).sum(-1).argmin(-1)


def _colour_name(rgb: np.ndarray) -> str:
    return tuple(COLOURS)[int(_nearest(rgb))]


def _most_frequent(rgb: np.ndarray) -> np.ndarray:
    """(m, 3) -> (k, 3): the pixels of the most frequent named colour."""
    names = _nearest(rgb)
    return rgb[names == np.bincount(names).argmax()]


# ---- segmentation


class View(NamedTuple):
    """A picture (n, n, 3), its smoothed version (the same where noise is low), and its background.

    `contrast` (n, n) is the distance in RGB to the background, `noise` the deviation of a channel; regions below
    `min_area` pixels are discarded.
    """

    rgb: np.ndarray
    smooth: np.ndarray
    background: np.ndarray
    noise: float
    contrast: np.ndarray
    min_area: float


def _view(rgb: np.ndarray) -> View:
    from scipy import ndimage

    border = np.ones(rgb.shape[:2], bool)
    border[2:-2, 2:-2] = False
    mode = _most_frequent(rgb[border])
    background = np.median(mode, axis=0)
    noise = 1.4826 * float(np.median(np.abs(mode - background)))
    smooth = ndimage.gaussian_filter(rgb, (0.7, 0.7, 0)) if noise > 4 else rgb
    smallest = float(unit().area.min()) * (min(SIZES.values()) * len(rgb)) ** 2
    return View(rgb, smooth, background, noise, np.sqrt(np.square(smooth - background).sum(-1)), smallest / 4)


def _regions(view: View) -> np.ndarray:
    """(n, n) int: k where the opacity of candidate k = 1, 2 ... is above 1/2, 0 elsewhere."""
    regions = np.zeros(view.contrast.shape, int)
    foreground = view.contrast > max(BACKGROUND_TOL, 3 * view.noise)
    for k, part in enumerate(_parts(view, foreground, view.min_area), 1):
        regions[part] = k
    return regions


def _components(mask: np.ndarray, min_area: float) -> Iterator[np.ndarray]:
    """The connected components of a mask with at least `min_area` pixels, each as a mask."""
    from scipy import ndimage

    labels, found = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=found + 1)
    return (labels == k for k in range(1, found + 1) if areas[k] >= min_area)


def _parts(view: View, mask: np.ndarray, min_area: float) -> Iterator[np.ndarray]:
    """Masks of opacity above 1/2 within each component, then recursively within the rest of it."""
    from scipy import ndimage

    for component in _components(mask, min_area):
        colour = _full_colour(view, component)
        if np.linalg.norm(colour - view.background) < MIN_CONTRAST:
            continue
        covered = component & (_matte(view.smooth, view.background, colour)[0] > 0.5)
        parts = list(_components(covered, min_area))
        yield from parts
        rest = component & ~ndimage.binary_dilation(covered, iterations=2)
        if parts and rest.any():
            yield from _parts(view, rest, 2 * view.min_area)  # smaller ones are halos


def _full_colour(view: View, mask: np.ndarray) -> np.ndarray:
    """The colour (3,) of the region's high-contrast interior; at the edge it is mixed with the background."""
    contrast = view.contrast[mask]
    return np.median(_most_frequent(view.smooth[mask][contrast >= 0.75 * np.quantile(contrast, 0.85)]), axis=0)


def _matte(rgb: np.ndarray, background: np.ndarray, colour: np.ndarray, metric: np.ndarray = EQUAL_WEIGHTS):
    """The opacity of each pixel of rgb (..., 3): its projection on the line from background (0) to colour (1), clipped
    to [-0.25, 1.25]; and the standard deviation of the opacity for unit noise in each channel.
    """
    direction = metric @ (colour - background)
    length = float(direction @ (colour - background))
    matte = np.clip((rgb - background) @ (direction / length), -0.25, 1.25)
    return matte, float(np.sqrt(direction @ direction)) / length


# ---- recognition


def _objects(view: View, regions: np.ndarray, k: int, depth: int) -> list[DetectedObject]:
    """The objects of region k: one, or several where a split has the better worst fit."""
    single = _object(view, regions, k)
    if single is None or (single.shape is None and np.count_nonzero(regions == k) < 2 * view.min_area):
        return []
    if single.fit >= GOOD_FIT or depth == 0:
        return [single]
    best, best_fit = [single], max(MIN_FIT, single.fit + 0.05)
    for parts in (_split_by_colour(view, regions == k), _split_at_waist(view, regions == k)):
        if len(parts) < 2:
            continue
        split = np.where(regions == k, 0, regions)
        labels = range(int(regions.max()) + 1, int(regions.max()) + 1 + len(parts))
        for label, part in zip(labels, parts, strict=True):
            split[part] = label
        objects = [obj for label in labels for obj in _objects(view, split, label, depth - 1)]
        if len(objects) > 1 and (worst := min(obj.fit for obj in objects)) > best_fit:
            best, best_fit = objects, worst
    return best


def _split_by_colour(view: View, mask: np.ndarray) -> list[np.ndarray]:
    """The parts of the region by named colour."""
    from scipy import ndimage

    interior = mask & (view.contrast >= 0.8 * ndimage.maximum_filter(view.contrast, 3))
    names = _nearest(view.smooth)
    counts = np.bincount(names[interior], minlength=len(COLOURS))
    kept = np.flatnonzero(counts >= view.min_area / 2)
    if len(kept) < 2:
        return []
    medians = np.array([np.median(view.smooth[interior & (names == name)], axis=0) for name in kept])
    nearest = np.square(view.smooth[..., None, :] - medians).sum(-1).argmin(-1)
    return [part for own in range(len(kept)) for part in _components(mask & (nearest == own), view.min_area)]


def _split_at_waist(view: View, mask: np.ndarray) -> list[np.ndarray]:
    """The region divided among the components that erosion separates, each pixel to the nearest."""
    from scipy import ndimage

    core = mask
    for _ in range(3):
        core = ndimage.binary_erosion(core)
        kernels = list(_components(core, max(2.0, view.min_area / 4)))
        if len(kernels) > 1:
            distances = np.stack([ndimage.distance_transform_edt(~kernel) for kernel in kernels])
            nearest = distances.argmin(0)
            return [mask & (nearest == own) for own in range(len(kernels))]
    return []


def _object(view: View, regions: np.ndarray, k: int) -> DetectedObject | None:
    """Region k as one object; None where its contrast is too low or its colour has the background's name."""
    from scipy import ndimage

    side, own = len(regions), regions == k
    colour = _full_colour(view, own)
    if np.linalg.norm(colour - view.background) < MIN_CONTRAST:
        return None
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    box = tuple(slice(max(int(at[0]) - 3, 0), int(at[-1]) + 4) for at in (rows, columns))
    others = ndimage.binary_dilation((regions[box] > 0) & ~own[box], iterations=2) & ~own[box]
    weight = np.where(others, 0, 1).astype(np.float32)
    shape, best = _best_shape(view, box, weight, colour)
    known = best.residual <= 1 - MIN_FIT
    if known:  # the unmixed colour of edges and thin parts, by least squares
        cover = best.cover * weight
        mixture = np.einsum("yx,yxc", cover, view.rgb[box] - view.background)
        colour = view.background + mixture / (cover * best.cover).sum()
    if _colour_name(colour) == _colour_name(view.background):
        return None
    x, y, radius = best.x / side, best.y / side, best.radius / side
    name = shape if known else None
    return DetectedObject(name, _colour_name(colour), _size(radius), x, y, radius, _place(x, y), 1 - best.residual)


def _best_shape(view: View, box: tuple[slice, ...], weight: np.ndarray, colour: np.ndarray) -> tuple[str, Fit]:
    """The best shape in the window, and its fit with the residual less the part due to noise.

    Where no shape fits well, the matte of the second metric is fitted too, and residuals are multiplied.
    """
    y, x = (np.arange(len(view.rgb), dtype=np.float32)[cut] + 0.5 for cut in box)
    odds = np.ones(len(SHAPES))
    best: dict[str, Fit] = {}
    for metric in (EQUAL_WEIGHTS, LUMA_WEIGHTS):
        matte, gain = _matte(view.rgb[box], view.background, colour, metric)
        noise = (view.noise * gain) ** 2 * float(weight.sum() / (weight * matte**2).sum())
        fits, residuals = fit(Patch(matte, weight, x, y))
        odds = odds * np.maximum(residuals - noise, MIN_RESIDUAL)
        for name, each in fits.items():
            each = each._replace(residual=max(each.residual - noise, 0.0))
            best[name] = min(best.get(name, each), each, key=lambda one: one.residual)
        shape = min(best, key=lambda name: odds[SHAPES.index(name)] * _size_penalty(best[name].radius / len(view.rgb)))
        if best[shape].residual < GOOD_RESIDUAL:
            break
    return shape, best[shape]


def _size_penalty(radius: float) -> float:
    """1 for a radius within SIZES, more beyond: blurred, a tiny ring equals a small disc."""
    low, *_, high = SIZES.values()
    beyond = max(math.log(low / radius), math.log(radius / high)) - 0.06
    return 1 + (max(beyond, 0.0) / 0.1) ** 2


def _size(radius: float) -> str:
    return min(SIZES, key=lambda name: abs(math.log(radius / SIZES[name])))


def _place(x: float, y: float) -> str:
    return min(PLACES, key=lambda name: (x - PLACES[name][0]) ** 2 + (y - PLACES[name][1]) ** 2)
