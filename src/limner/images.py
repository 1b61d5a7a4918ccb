"""Reading pictures of any kind: the result is 8 bits a channel, grey or sRGB, upright and opaque."""

import io
import os
import struct
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from limner.errors import BrokenPicture, LimnerError
from limner.files import PICTURE, expand, other_kind

MAX_PIXELS = 2**27  # of a picture that is read; larger ones are refused before they are decoded
ORIENTATION = 0x0112  # the EXIF tag
PHOTOMETRIC = 262  # the TIFF tag; 0: the least value is white
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

Source = Image.Image | str | os.PathLike | bytes


def read_image(source: Source, name: str | None = None) -> Image.Image:
    """A picture (a file's path or bytes, or a PIL picture) in mode L or RGB.

    EXIF orientation is applied, transparency composed on white, a colour profile converted to sRGB, 16 bits and
    floating point from 0 to 1 scaled to 8 bits; of several frames the first is read. `info["transparent"]` tells that
    pixels were transparent. `name` stands for the picture in messages.
    Raises BrokenPicture for anything else.
    """
    if not isinstance(source, Source):
        raise LimnerError(f"{name or 'a picture'} must be a file or a PIL picture, not a {type(source).__name__}")
    name = name or (str(source) if isinstance(source, str | os.PathLike) else "the picture")
    try:
        if isinstance(source, Image.Image):
            return _decode(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else expand(source)) as image:
            return _decode(image)
    except FileNotFoundError as error:
        raise BrokenPicture(f"{name} cannot be read as a picture: there is no such file") from error
    except Image.DecompressionBombError as error:  # of its header, before ours
        raise BrokenPicture(f"{name} cannot be read as a picture: it has more than {MAX_PIXELS} pixels") from error
    except Image.UnidentifiedImageError as error:  # its own words name a buffer, not the file
        kind = other_kind(expand(source), PICTURE) if isinstance(source, str | os.PathLike) else None
        reason = "no kind of picture that is known" + (f"; {kind}" if kind else "")
        raise BrokenPicture(f"{name} cannot be read as a picture: {reason}") from error
    except MemoryError as error:  # decoders take what the header says
        raise BrokenPicture(f"{name} cannot be read as a picture: it needs more memory than there is") from error
    except Exception as error:  # decoders raise whatever they meet
        raise BrokenPicture(f"{name} cannot be read as a picture: {str(error) or type(error).__name__}") from error


def _decode(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has more than {MAX_PIXELS} pixels")
    if not image.width * image.height:
        raise ValueError(f"it has no pixels: {image.width}x{image.height}")
    image.load()
    orientation, profile = _orientation(image), image.info.get("icc_profile")  # TIFF is turned when it is loaded
    inverted, transparent = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0, False
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image, inverted)
    elif image.has_transparency_data:
        opaque, layer = "L" if image.mode in ("L", "LA") else "RGB", image.convert("RGBA")
        transparent = layer.getchannel("A").getextrema() != (255, 255)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert(opaque)
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile:
        image = _to_srgb(image, profile)
    image = image.convert("RGB") if image.mode == "CMYK" else image.copy()
    image.info = (
        {"transparent": True} if transparent else {}
    )  # without an orientation or profile that is applied already
    return image


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, though other tags of its block are damaged; None without one."""
    try:
        found = image.getexif().get(ORIENTATION)
        return found if found is not None else _stored_orientation(image.info["exif"])
    except Exception:  # no block, or one whose parser met anything
        return None


def _stored_orientation(exif: bytes) -> int | None:
    """The orientation by itself: entries of 12 bytes, tag, type, count and value (TIFF 6.0, section 2)."""
    block = exif.removeprefix(b"Exif\0\0")
    order = "<" if block.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    entries = (struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * i) for i in range(count))
    return next((value for tag, _, _, value in entries if tag == ORIENTATION), None)


def _grey(image: Image.Image, inverted: bool) -> Image.Image:
    """One channel of 16 bits, or of floating point from 0 to 1, scaled to 8 bits."""
    values = np.asarray(image)
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # where it holds 16 bits
        raise ValueError("whole numbers that are signed or of 32 bits have no known white; save it with 8 or 16 bits")
    white = 1.0 if image.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):  # NaN fails both
        raise ValueError(f"its values go from {low:g} to {high:g}; expected 0 to {white:g}")
    scaled = values.astype(np.float32)  # a copy, worked on in place: it may have MAX_PIXELS values
    if inverted:
        np.subtract(white, scaled, out=scaled)
    np.multiply(scaled, 255 / white, out=scaled)
    return Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Grey, RGB or CMYK of a colour profile -> sRGB; unchanged where the profile is sRGB's or does not fit."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source)
        if name.startswith("sRGB") and "linear" not in name.lower():
            return image
        converted = ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB") or image
        return converted.convert("L") if image.mode == "L" else converted
    except (ImageCms.PyCMSError, OSError):
        return image


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
