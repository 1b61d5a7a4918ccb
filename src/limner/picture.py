"""Pictures: tensors to PIL, contact sheets, files with their `parameters`, and ANSI text."""

import io
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, PngImagePlugin
from torch import Tensor

from limner.errors import LimnerError, LimnerWarning
from limner.files import write_atomically

MAX_MARKER = 65533  # bytes of the EXIF block of a JPEG


def to_pictures(x: Tensor) -> list[Image.Image]:
    """x (B, 1 or 3, H, W) in [-1, 1] -> PIL pictures, mode L or RGB. Raises LimnerError for values not finite."""
    if not bool(torch.isfinite(x).all()):
        raise LimnerError("the picture holds values that are not numbers; try less guidance")
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]


def sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str] = (),
    columns: int | None = None,
    scale: int = 1,
    gap: int = 4,
    frames: Sequence[str] = (),
) -> Image.Image:
    """A contact sheet of equally large pictures, each enlarged `scale` times, with an optional caption below it.

    `frames` are the colours of the pictures' borders, drawn in the gap.
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    width, height = (side * scale for side in pictures[0].size)
    lines = [_wrap(caption, width + gap) for caption in captions]
    label = 12 * max((line.count("\n") + 1 for line in lines), default=0) + (2 if frames else 0)
    rows = math.ceil(len(pictures) / columns)
    cell = (width + gap, height + label + gap)
    page = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), "white")
    draw = ImageDraw.Draw(page)
    for i, picture in enumerate(pictures):
        left, top = gap + (i % columns) * cell[0], gap + (i // columns) * cell[1]
        page.paste(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (left, top))
        if i < len(frames):
            draw.rectangle((left - 2, top - 2, left + width + 1, top + height + 1), outline=frames[i], width=2)
        if i < len(lines):
            draw.multiline_text(
                (left, top + height + (3 if frames else 1)), lines[i], fill="black", font_size=10, spacing=1
            )
    return page


def labelled_sheet(
    pictures: Sequence[Image.Image], rows: Sequence[str], columns: Sequence[str], gap: int = 4
) -> Image.Image:
    """Pictures, row by row, each row's label to its left and each column's above it.

    Small pictures are enlarged, all alike, by a whole number; a picture smaller than the others is centred.
    """
    size = [max(each.size[axis] for each in pictures) for axis in (0, 1)]
    scale = max(1, 128 // max(size))
    above, left = ([_wrap(text, width) for text in texts] for texts, width in ((columns, size[0] * scale), (rows, 150)))
    width, height = max(size[0] * scale, _extent(above)[0]), max(size[1] * scale, _extent(left)[1])
    margin, header = _extent(left)[0] + gap, _extent(above)[1] + gap
    page = Image.new("RGB", (margin + len(columns) * (width + gap), header + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(page)
    for k, text in enumerate(above):
        draw.multiline_text((margin + k * (width + gap), 2), text, fill="black", font_size=10, spacing=1)
    for k, text in enumerate(left):
        place = (margin - gap, header + k * (height + gap))
        draw.multiline_text(place, text, fill="black", font_size=10, spacing=1, anchor="ra", align="right")
    for k, picture in enumerate(pictures):
        large = picture.convert("RGB").resize([side * scale for side in picture.size], Image.Resampling.NEAREST)
        x, y = margin + k % len(columns) * (width + gap), header + k // len(columns) * (height + gap)
        page.paste(large, (x + (width - large.width) // 2, y + (height - large.height) // 2))
    return page


def _extent(texts: Sequence[str]) -> tuple[int, int]:
    """(width, height) in pixels that hold any of the wrapped texts."""
    lines = [text.split("\n") for text in texts]
    return 6 * max(len(line) for text in lines for line in text) + 4, 12 * max(map(len, lines)) + 2


def _wrap(text: str, width: int) -> str:
    """Text wrapped to `width` pixels in the captions' font, whose letters are about 5.4 pixels wide."""
    if "\n" in text:
        return "\n".join(_wrap(line, width) for line in text.split("\n"))
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) * 5.4 > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def image_format(path: Path) -> str:
    """Pillow's format for the file's suffix. Raises LimnerError if it cannot write one."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise LimnerError(f"cannot tell the kind of picture from {path.name!r}; end it in .png, .jpg or .webp")
    return kind


def check_format(path: Path) -> None:
    """Raises LimnerError unless Pillow can write a colour picture of the file's suffix."""
    kind = image_format(path)
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), kind)
    except Exception as error:  # encoders raise whatever they meet
        raise LimnerError(
            f"{path.name!r}: a {kind} file cannot hold it ({error}); end it in .png, .jpg or .webp"
        ) from error


def save(picture: Image.Image, path: Path, parameters: str | None = None) -> None:
    """Write the picture atomically, with `parameters`, by default the picture's own, as AUTOMATIC1111 stores them: the
    text chunk of a PNG, the EXIF comment of a JPEG, WebP or AVIF. Warns where the file has no place for them.
    """
    kind = image_format(path)
    parameters = picture.info.get("parameters", "") if parameters is None else parameters
    extra = PARAMETERS[kind](parameters) if parameters and kind in PARAMETERS else {}
    if kind == "JPEG" and len(extra.get("exif", b"")) > MAX_MARKER:
        extra = {}
    if parameters and not extra:
        what = f"{len(parameters)} characters" if kind in PARAMETERS else "them"
        warnings.warn(
            f"the settings are not stored: a {kind} file has no place for {what}", LimnerWarning, stacklevel=2
        )

    def write(temporary: Path) -> None:
        try:
            picture.save(temporary, format=kind, **extra)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # encoders raise whatever they meet, as for a side too long for the kind of file
            raise LimnerError(f"cannot write {path} as {kind} ({error}); end it in .png") from error

    write_atomically(path, write)


def save_animation(pages: Sequence[Image.Image], path: Path, milliseconds: Sequence[int]) -> None:
    """Write an animated PNG atomically, each page shown for so long, again and again."""

    def write(temporary: Path) -> None:
        pages[0].save(
            temporary, format="PNG", save_all=True, append_images=pages[1:], duration=list(milliseconds), loop=0
        )

    write_atomically(path, write)


def _text_chunk(parameters: str) -> dict[str, Any]:
    """tEXt where it can, but that holds Latin-1 only."""
    info = PngImagePlugin.PngInfo()
    (info.add_text if parameters.isascii() else info.add_itxt)("parameters", parameters)
    return {"pnginfo": info}


def _exif_comment(parameters: str) -> dict[str, Any]:
    """The tag UserComment (0x9286) of the EXIF block (0x8769)."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return {"exif": exif.tobytes()}


# By the kind of file: `parameters` as an option of Pillow's.
PARAMETERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "PNG": _text_chunk, "JPEG": _exif_comment, "WEBP": _exif_comment, "AVIF": _exif_comment,
}  # fmt: skip


def to_ansi(picture: Image.Image, columns: int | None = None) -> str:
    """The picture as ANSI text for a 24-bit terminal, two pixels per character, one above the other."""
    columns = min(columns or shutil.get_terminal_size().columns, picture.width)
    height = max(2, round(picture.height * columns / picture.width) // 2 * 2)
    pixels = np.asarray(picture.convert("RGB").resize((columns, height), Image.Resampling.LANCZOS))
    rows = []
    for top, bottom in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (
            "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*a, *b)
            for a, b in zip(top.tolist(), bottom.tolist(), strict=True)
        )
        rows.append("".join(cells) + "\x1b[0m")
    return "\n".join(rows)
