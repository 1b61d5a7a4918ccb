"""The pictures that a request paints on: brought to the painted size, masked, and pasted back."""

import hashlib
import re
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.errors import LimnerError, LimnerWarning
from limner.images import Source, read_image

SIDES = ("left", "top", "right", "bottom")


class Frame(NamedTuple):
    """What a model can paint: sides that divide by `multiple`, best near `trained`, in pixels, and 1 or 3 channels."""

    multiple: int
    trained: int
    channels: int


class Layout(NamedTuple):
    """The size (width, height) that the picture is brought to, and the pixels that are added at each of its `SIDES`."""

    size: tuple[int, int]
    margins: tuple[int, int, int, int]

    @property
    def painted(self) -> tuple[int, int]:
        """The size with the margins."""
        left, top, right, bottom = self.margins
        return self.size[0] + left + right, self.size[1] + top + bottom


class Canvas(NamedTuple):
    """One picture (H, W, C), uint8, or one for each painted picture, and as many masks (H, W), True where it is
    repainted, or none. `hashes` are the record's entries about the picture and the mask as they were read; `overlap` is
    how far the mask of an extension goes into the picture."""

    pictures: list[np.ndarray]
    masks: list[np.ndarray]
    hashes: list[dict[str, object]]
    overlap: int

    @property
    def repaints(self) -> bool:
        """Whether there is anything to repaint: no masks, or one with white."""
        return not self.masks or any(mask.any() for mask in self.masks)

    def pixels(self) -> Tensor:
        """The pictures (N, C, H, W) in [-1, 1], float32."""
        return torch.from_numpy(np.stack(self.pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def mask(self) -> Tensor:
        """The masks (N, 1, H, W), bool; True everywhere if there are none."""
        whole = np.ones(self.pictures[0].shape[:2], bool)
        return torch.from_numpy(np.stack(self.masks or [whole for _ in self.pictures]))[:, None]

    def paste(self, painted: Sequence[Image.Image], feather: int) -> list[Image.Image]:
        """The painted pictures with the kept pixels of the originals, which fade out over `feather` pixels inside the
        repainted area."""
        if not self.masks:
            return list(painted)
        repeat = len(painted) // len(self.pictures)
        pairs = [pair for pair in zip(self.pictures, self.masks, strict=True) for _ in range(repeat)]
        return [_blend(new, old, mask, feather) for new, (old, mask) in zip(painted, pairs, strict=True)]


def blank_canvas(size: tuple[int, int], channels: int) -> Canvas:
    """A picture of (width, height) all of which is repainted: text to image with a network that is given a picture."""
    width, height = size
    return Canvas([np.zeros((height, width, channels), np.uint8)], [np.ones((height, width), bool)], [{}], 0)


def read_pictures(source: Source | Sequence[Source], what: str) -> list[Image.Image]:
    """One picture or several; `what` they are is told in errors. Raises LimnerError for none and for an unreadable
    one."""
    sources: list[Any] = list(source) if isinstance(source, list | tuple) else [source]
    if not sources or "" in [each for each in sources if isinstance(each, str)]:
        raise LimnerError(f"no {what} was given")
    return [read_image(each, None if isinstance(each, str | PathLike) else f"the {what}") for each in sources]


def plan(own: tuple[int, int], width: int | None, height: int | None, extend: str | None, frame: Frame) -> Layout:
    """The size that a picture of the size `own` is brought to, and the margins of `extend`, rounded up to the multiple.

    The size is `width` x `height`, one of them in the picture's proportions, or the picture's own, rounded down to the
    multiple; above four times the area that the model was trained at it is scaled to that area. Warns of any change.
    """
    size = _fit(own, width, height, frame)
    if size != own:
        _notice_resized("picture", own, size)
    asked = parse_extend(extend)
    margins = [-(-side // frame.multiple) * frame.multiple for side in asked]
    if margins != asked:
        words = ",".join(f"{side}={pixels}" for side, pixels in zip(SIDES, margins, strict=True) if pixels)
        _notice(f"extended by {words}: this model paints multiples of {frame.multiple}")
    return Layout(size, (margins[0], margins[1], margins[2], margins[3]))


def open_canvas(pictures: Sequence[Image.Image], masks: Sequence[Image.Image], layout: Layout, frame: Frame) -> Canvas:
    """Resize the pictures and their masks (none, one, or one each) and add the margins. Warns of a mask of another size
    and of one without white."""
    if masks and len(masks) not in (1, len(pictures)):
        raise LimnerError(f"{len(masks)} masks were given for {len(pictures)} pictures; give one, or one each")
    masks = [*masks] * len(pictures) if len(masks) == 1 else masks
    for size in dict.fromkeys(each.size for each in pictures[1:] if each.size != pictures[0].size):
        _notice_resized("picture", size, layout.size)
    hashes: list[dict[str, object]] = [{"Init image hash": _digest(each)} for each in pictures]
    areas = [np.zeros(layout.size[::-1], bool) for _ in pictures]
    for i, mask in enumerate(masks):
        hashes[i] |= {"Mask hash": _digest(mask)}
        areas[i] = _pixels(mask.convert("L"), layout.size, 1)[..., 0] >= 128
        if mask.size != pictures[i].size:
            _notice_resized("mask", mask.size, layout.size)
        if mask.info.get("transparent"):
            _notice("the mask's transparent pixels are taken as white, to be repainted")
    left, top, right, bottom = layout.margins
    overlap = _overlap(layout, frame) if any(layout.margins) else 0
    areas = [_extended_area(area, layout.margins, overlap) for area in areas] if masks or overlap else []
    if not all(area.any() for area in areas):
        at = f"{layout.size[0]}x{layout.size[1]}"
        _notice(f"nothing of the mask is nearer to white than to black at {at}: that picture stays as it is")
    padding = ((top, bottom), (left, right), (0, 0))
    pixels = [np.pad(_pixels(each, layout.size, frame.channels), padding, mode="edge") for each in pictures]
    return Canvas(pixels, areas, hashes, overlap)


def parse_extend(text: str | None) -> list[int]:
    """ "left=128,top=64" -> pixels to add at the left, top, right and bottom."""
    sides = dict.fromkeys(SIDES, 0)
    for part in text.split(",") if text is not None else ():
        match = re.fullmatch(r"\s*(left|top|right|bottom)\s*=\s*(\d{1,9})\s*", part.lower())
        if not match or sides[match[1]]:
            raise LimnerError(f"cannot extend by {part!r}; expected each side once, such as left=128,top=64")
        sides[match[1]] = int(match[2])
    if text is not None and not any(sides.values()):
        raise LimnerError(f"extending by {text!r} adds nothing; give a side more than 0 pixels")
    return list(sides.values())


def latent_mask(mask: Tensor, factor: int, nearest: bool) -> Tensor:
    """A mask (N, 1, H, W), bool, for latents, (N, 1, H/factor, W/factor): True where any of its pixels is, or with
    `nearest` where the first is, as diffusers has it."""
    pixels = mask.float()
    small = pixels[:, :, ::factor, ::factor] if nearest else F.max_pool2d(pixels, factor)
    return small > 0.5


def _fit(own: tuple[int, int], width: int | None, height: int | None, frame: Frame) -> tuple[int, int]:
    """(width, height) of a picture of the size `own`."""

    def rounded(side: float) -> int:
        return max(frame.multiple, int(side) // frame.multiple * frame.multiple)

    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, rounded(width * own[1] / own[0])
    if height is not None:
        return rounded(height * own[0] / own[1]), height
    area, trained = own[0] * own[1], frame.trained**2
    scale = (trained / area) ** 0.5 if area > 4 * trained else 1.0
    return rounded(own[0] * scale), rounded(own[1] * scale)


def _overlap(layout: Layout, frame: Frame) -> int:
    """A sixteenth of the picture's shorter side, in whole latents."""
    return max(frame.multiple, min(layout.size) // 16 // frame.multiple * frame.multiple)


def _pixels(picture: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """(H, W, C), uint8, resized (Lanczos, antialiased)."""
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(size[1], size[0], channels)


def _extended_area(area: np.ndarray, margins: tuple[int, int, int, int], overlap: int) -> np.ndarray:
    """The mask with its margins True, and `overlap` pixels of the picture at each side that has one."""
    left, top, right, bottom = (overlap if margin else 0 for margin in margins)
    height, width = area.shape
    inner = np.zeros_like(area)
    inner[top : height - bottom, left : width - right] = True
    left, top, right, bottom = margins
    return np.pad(area | ~inner, ((top, bottom), (left, right)), constant_values=True)


def _blend(painted: Image.Image, original: np.ndarray, area: np.ndarray, feather: int) -> Image.Image:
    new = np.asarray(painted).reshape(original.shape)
    if area.all():
        return painted
    weight = area.astype(np.float32)
    if feather:
        from scipy.ndimage import distance_transform_edt

        weight = np.minimum(distance_transform_edt(area) / (feather + 1), 1).astype(np.float32)
    mixed = np.rint(original + weight[..., None] * (new.astype(np.float32) - original)).astype(np.uint8)
    return Image.fromarray(mixed[..., 0] if mixed.shape[2] == 1 else mixed)


def _digest(picture: Image.Image) -> str:
    """The first ten hexadecimal digits of the SHA-256 of the size, mode and pixels."""
    header = f"{picture.mode} {picture.width}x{picture.height}\n".encode()
    return hashlib.sha256(header + picture.tobytes()).hexdigest()[:10]


def _notice_resized(what: str, own: tuple[int, int], size: tuple[int, int]) -> None:
    _notice(f"the {what} of {own[0]}x{own[1]} is resized to {size[0]}x{size[1]}")


def _notice(text: str) -> None:
    warnings.warn(text, LimnerWarning, stacklevel=4)
