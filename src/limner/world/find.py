"""What is in a picture of this world, seen from its pixels alone.

The background is the commonest colour of the border; whatever hangs together and differs from it may be an object. Its
matte (how much of each pixel it covers) is explained by each shape in turn, see `fit`; where none explains it well, it
is taken apart, by colours or at its waist, in case it is several objects that touch.

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

LEAST = 32  # pixels to a side, below which shapes cannot be told apart
MOST = 96  # larger pictures are reduced to REDUCED pixels, which hold all that is to be seen
REDUCED = 64
FAINT = 30.0  # a pixel differs from the background by more than this (of 255, over three channels together)
PALE = 40.0  # and an object's full colour by more than this
CLEAN = 0.01  # a shape that leaves less than this share over needs no second look
LITTLE = 0.003  # no shape's share is taken for less
KNOWN = 0.85  # a shape that explains less than this is none that the world knows
WHOLE = 0.9  # what a shape explains so well is not taken apart
CROWD = 12  # nor is anything in a picture with more regions than this: it is none of this world
ALIKE = np.eye(3, dtype=np.float32)  # the channels weighed alike,
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
BRIGHTNESS = 3 * np.outer(LUMA, LUMA) + 0.02 * ALIKE  # or brightness before hue, which JPEG smears


class Thing(NamedTuple):
    """One object. `fit` is the share of its matte that `shape` explains; `shape` is None where none explains enough."""

    shape: str | None
    colour: str
    size: str
    x: float
    y: float
    radius: float
    place: str
    fit: float


class Seen(NamedTuple):
    """The colour of the background, and the objects from top to bottom."""

    background: str
    objects: list[Thing]


def find(picture: Image.Image | np.ndarray) -> Seen:
    """The background and the objects of a square picture: PIL of any mode, or uint8 (H, W, 3).

    LimnerError where the picture is not square, or smaller than 32 pixels.
    """
    view = _look(_pixels(picture))
    regions = _regions(view)
    count = int(regions.max())
    depth = 2 if count <= CROWD else 0
    things = [thing for k in range(1, count + 1) for thing in _things(view, regions, k, depth)]
    return Seen(_name(view.ground), sorted(things, key=lambda thing: (thing.y, thing.x)))


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    """float32 (n, n, 3), 0 to 255, n at most MOST. Transparent pictures are seen on white."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise LimnerError(f"expected a picture as uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
        picture = Image.fromarray(picture)
    width, height = picture.size
    if width != height or width < LEAST:
        raise LimnerError(f"expected a square picture of at least {LEAST} x {LEAST} pixels, got {width} x {height}")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if width > MOST:
        picture = picture.resize((REDUCED, REDUCED), Image.Resampling.BOX)
    return np.asarray(picture, np.float32)


@lru_cache(maxsize=1)
def _palette() -> np.ndarray:
    return np.array(list(COLOURS.values()), np.float32)


def _nearest(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) -> (...): the index of the nearest colour that has a name."""
    return np.square(rgb[..., None, :] - _palette()).sum(-1).argmin(-1)


def _name(rgb: np.ndarray) -> str:
    return tuple(COLOURS)[int(_nearest(rgb))]


def _commonest(rgb: np.ndarray) -> np.ndarray:
    """(m, 3) -> (k, 3): those pixels whose colour has the commonest name."""
    names = _nearest(rgb)
    return rgb[names == np.bincount(names).argmax()]


# ---- where objects are


class View(NamedTuple):
    """A picture (n, n, 3), the same with its noise smoothed, and how far each pixel of that is `apart` from the ground.

    `noise` is a standard deviation in one channel; less than `speck` pixels are no object.
    """

    rgb: np.ndarray
    smooth: np.ndarray
    ground: np.ndarray
    noise: float
    apart: np.ndarray
    speck: float


def _look(rgb: np.ndarray) -> View:
    from scipy import ndimage

    edge = np.ones(rgb.shape[:2], bool)
    edge[2:-2, 2:-2] = False
    own = _commonest(rgb[edge])
    ground = np.median(own, axis=0)
    noise = 1.4826 * float(np.median(np.abs(own - ground)))
    smooth = ndimage.gaussian_filter(rgb, (0.7, 0.7, 0)) if noise > 4 else rgb
    least = float(unit().area.min()) * (min(SIZES.values()) * len(rgb)) ** 2  # the smallest object's area
    return View(rgb, smooth, ground, noise, np.sqrt(np.square(smooth - ground).sum(-1)), least / 4)


def _regions(view: View) -> np.ndarray:
    """(n, n) int: 1, 2 ... for the pixels that each object mostly covers, 0 for the others."""
    regions = np.zeros(view.apart.shape, int)
    for k, part in enumerate(_parts(view, view.apart > max(FAINT, 3 * view.noise), view.speck), 1):
        regions[part] = k
    return regions


def _pieces(where: np.ndarray, speck: float) -> Iterator[np.ndarray]:
    """The connected pieces of a mask, each as a mask, without the specks."""
    from scipy import ndimage

    labels, found = ndimage.label(where)
    areas = np.bincount(labels.ravel(), minlength=found + 1)
    return (labels == k for k in range(1, found + 1) if areas[k] >= speck)


def _parts(view: View, where: np.ndarray, speck: float) -> Iterator[np.ndarray]:
    """Masks of what is covered by half or more, each by its own colour; then of what else is left of it."""
    from scipy import ndimage

    for piece in _pieces(where, speck):
        full = _full(view, piece)
        if np.linalg.norm(full - view.ground) < PALE:
            continue
        covered = piece & (_matte(view.smooth, view.ground, full)[0] > 0.5)
        parts = list(_pieces(covered, speck))
        yield from parts
        left = piece & ~ndimage.binary_dilation(covered, iterations=2)
        if parts and left.any():
            yield from _parts(view, left, 2 * view.speck)  # smaller ones are halos


def _full(view: View, where: np.ndarray) -> np.ndarray:
    """The colour (3,) of what the mask shows, away from the mixtures at its edge."""
    apart = view.apart[where]
    return np.median(_commonest(view.smooth[where][apart >= 0.75 * np.quantile(apart, 0.85)]), axis=0)


def _matte(rgb: np.ndarray, ground: np.ndarray, full: np.ndarray, metric: np.ndarray = ALIKE):
    """How far each pixel (..., 3) is on the way from the ground to the full colour, 0 to 1 or a little beyond.

    Also by how much that is off where each channel is off by 1.
    """
    way = metric @ (full - ground)
    length = float(way @ (full - ground))
    return np.clip((rgb - ground) @ (way / length), -0.25, 1.25), float(np.sqrt(way @ way)) / length


# ---- what they are


def _things(view: View, regions: np.ndarray, k: int, depth: int) -> list[Thing]:
    """What region k is: one object; or several, where that explains it better."""
    whole = _thing(view, regions, k)
    if whole is None or (whole.shape is None and np.count_nonzero(regions == k) < 2 * view.speck):
        return []
    if whole.fit >= WHOLE or depth == 0:
        return [whole]
    best, mark = [whole], max(KNOWN, whole.fit + 0.05)
    for parts in (_by_colour(view, regions == k), _by_waist(view, regions == k)):
        if len(parts) < 2:
            continue
        apart = np.where(regions == k, 0, regions)
        labels = range(int(regions.max()) + 1, int(regions.max()) + 1 + len(parts))
        for label, part in zip(labels, parts, strict=True):
            apart[part] = label
        things = [thing for label in labels for thing in _things(view, apart, label, depth - 1)]
        if len(things) > 1 and (worst := min(thing.fit for thing in things)) > mark:
            best, mark = things, worst
    return best


def _by_colour(view: View, where: np.ndarray) -> list[np.ndarray]:
    """The mask in pieces of a colour each."""
    from scipy import ndimage

    inner = where & (view.apart >= 0.8 * ndimage.maximum_filter(view.apart, 3))
    names = _nearest(view.smooth)
    counts = np.bincount(names[inner], minlength=len(COLOURS))
    kept = np.flatnonzero(counts >= view.speck / 2)
    if len(kept) < 2:
        return []
    middles = np.array([np.median(view.smooth[inner & (names == name)], axis=0) for name in kept])
    nearest = np.square(view.smooth[..., None, :] - middles).sum(-1).argmin(-1)
    return [part for own in range(len(kept)) for part in _pieces(where & (nearest == own), view.speck)]


def _by_waist(view: View, where: np.ndarray) -> list[np.ndarray]:
    """The mask cut where it is thin."""
    from scipy import ndimage

    core = where
    for _ in range(3):
        core = ndimage.binary_erosion(core)
        kernels = list(_pieces(core, max(2.0, view.speck / 4)))
        if len(kernels) > 1:
            distances = np.stack([ndimage.distance_transform_edt(~kernel) for kernel in kernels])
            nearest = distances.argmin(0)
            return [where & (nearest == own) for own in range(len(kernels))]
    return []


def _thing(view: View, regions: np.ndarray, k: int) -> Thing | None:
    """Region k as one object; None where it is too pale to be one, or has the name of the background's colour."""
    from scipy import ndimage

    side, own = len(regions), regions == k
    full = _full(view, own)
    if np.linalg.norm(full - view.ground) < PALE:
        return None
    rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    box = tuple(slice(max(int(at[0]) - 3, 0), int(at[-1]) + 4) for at in (rows, columns))
    others = ndimage.binary_dilation((regions[box] > 0) & ~own[box], iterations=2) & ~own[box]
    weight = np.where(others, 0, 1).astype(np.float32)
    shape, best = _explain(view, box, weight, full)
    known = best.over <= 1 - KNOWN
    if known:
        cover = best.cover * weight  # edges and thin limbs are mixtures: this is the colour that they are mixed of
        full = view.ground + np.einsum("yx,yxc", cover, view.rgb[box] - view.ground) / (cover * best.cover).sum()
    if _name(full) == _name(view.ground):
        return None
    x, y, radius = best.x / side, best.y / side, best.radius / side
    return Thing(shape if known else None, _name(full), _size(radius), x, y, radius, _place(x, y), 1 - best.over)


def _explain(view: View, box: tuple[slice, ...], weight: np.ndarray, full: np.ndarray) -> tuple[str, Fit]:
    """The shape that explains best what is in the box, and its pose; what the noise leaves over is forgiven.

    Where no shape fits well, hue and brightness are looked at apart, and what speaks for a shape is multiplied.
    """
    y, x = (np.arange(len(view.rgb), dtype=np.float32)[cut] + 0.5 for cut in box)
    odds = np.ones(len(SHAPES))
    best: dict[str, Fit] = {}
    for metric in (ALIKE, BRIGHTNESS):
        matte, off = _matte(view.rgb[box], view.ground, full, metric)
        noise = (view.noise * off) ** 2 * float(weight.sum() / (weight * matte**2).sum())
        fits, overs = fit(Patch(matte, weight, x, y))
        odds = odds * np.maximum(overs - noise, LITTLE)
        for name, each in fits.items():
            each = each._replace(over=max(each.over - noise, 0.0))
            best[name] = min(best.get(name, each), each, key=lambda one: one.over)
        shape = min(best, key=lambda name: odds[SHAPES.index(name)] * _oddness(best[name].radius / len(view.rgb)))
        if best[shape].over < CLEAN:
            break
    return shape, best[shape]


def _oddness(radius: float) -> float:
    """1 for a radius that this world knows, more beyond: a tiny ring and a small disc may look alike when blurred."""
    low, *_, high = SIZES.values()
    beyond = max(math.log(low / radius), math.log(radius / high)) - 0.06
    return 1 + (max(beyond, 0.0) / 0.1) ** 2


def _size(radius: float) -> str:
    return min(SIZES, key=lambda name: abs(math.log(radius / SIZES[name])))


def _place(x: float, y: float) -> str:
    return min(PLACES, key=lambda name: (x - PLACES[name][0]) ** 2 + (y - PLACES[name][1]) ** 2)
