"""Pictures that were damaged, or made to harm: each is read, or a broken picture; nothing else happens.

`LIMNER_FUZZ=10` tries ten times as many cases, others in each run.
"""

import io
import struct
import zlib
from contextlib import nullcontext
from functools import cache
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image, ImageCms
from test_fuzz import bounded, cases

from limner.data.batches import BrokenCount
from limner.data.pictures import Pictures
from limner.errors import BrokenPicture, LimnerError
from limner.images import read_image

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Pillow's, about what it reads all the same
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

# What a number in a header may be replaced by.
SIZES = [0, 1, 8000, 60_000, 65_535, 10**6, 2**31 - 1, 2**32 - 1]


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@cache
def sound_pictures() -> dict[str, bytes]:
    """A small picture in every kind that people keep pictures in, some with EXIF, XMP and a colour profile."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    colour, deep = Image.fromarray(pixels), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0words"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    more: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": profile}
    frames: dict[str, Any] = {"save_all": True, "append_images": [colour.rotate(180)]}
    return {
        "png": encoded(colour, "PNG", **more), "png of 16 bits": encoded(deep, "PNG"),
        "png of a palette": encoded(colour.quantize(8), "PNG", transparency=1),
        "png of 1 bit": encoded(colour.convert("1"), "PNG"), "rgba": encoded(colour.convert("RGBA"), "PNG"),
        "apng": encoded(colour, "PNG", **frames), "jpeg": encoded(colour, "JPEG", xmp=b"<x:xmpmeta/>", **more),
        "progressive": encoded(colour, "JPEG", progressive=True), "cmyk": encoded(colour.convert("CMYK"), "JPEG"),
        "mpo": encoded(colour, "MPO", **frames), "webp": encoded(colour, "WEBP", **more),
        "webp of frames": encoded(colour, "WEBP", **frames), "avif": encoded(colour, "AVIF", **more),
        "gif": encoded(colour, "GIF", **frames), "tiff": encoded(colour, "TIFF", **more),
        "tiff, packed": encoded(colour, "TIFF", compression="tiff_lzw"),
        "tiff of fractions": encoded(Image.fromarray(pixels[..., 0].astype(np.float32) / 255), "TIFF"),
        "tiff of 16 bits": encoded(deep, "TIFF"), "tiff of cmyk": encoded(colour.convert("CMYK"), "TIFF"),
        "bmp": encoded(colour, "BMP"), "jp2": encoded(colour, "JPEG2000"), "ppm": encoded(colour, "PPM"),
        "dds": encoded(colour, "DDS"), "ico": encoded(colour, "ICO", sizes=[(8, 8)]), "tga": encoded(colour, "TGA"),
        "dxt5": encoded(colour.convert("RGBA"), "DDS", pixel_format="DXT5"),
    }  # fmt: skip


@st.composite
def other_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes, some flipped, taken out, doubled or replaced by a number, or cut short."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, draw(st.sampled_from([len(data), min(len(data), 100)]))))
        end = place + draw(st.sampled_from([1, 2, 4, 16]))
        action = draw(st.sampled_from(["flip"] * 3 + ["number"] * 2 + ["cut", "double", "remove", "insert"]))
        if action == "flip" and place < len(data):
            data[place] ^= draw(st.integers(1, 255))
        elif action == "number":
            width, order = draw(st.sampled_from([2, 4])), draw(st.sampled_from(["little", "big"]))
            data[place : place + width] = (draw(st.sampled_from(SIZES)) % 256**width).to_bytes(width, order)
        elif action == "cut":
            del data[place:]
        elif action == "double":
            data[place:end] = data[place:end] * draw(st.sampled_from([2, 2, 1000]))
        elif action == "remove":
            del data[place:end]
        else:
            data[place:place] = draw(
                st.sampled_from([b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b"\n", b'"', b"[" * 99])
            )
    return bytes(data)


def is_read(data: bytes) -> bool:
    """Whether the picture is read; if not, it is a broken picture."""
    try:
        picture = read_image(data)
    except BrokenPicture as error:
        assert str(error).startswith("the picture cannot be read as a picture: "), error
        return False
    assert picture.mode in ("L", "RGB") and min(picture.size) > 0
    return True


def test_sound_pictures_are_read() -> None:
    assert [kind for kind, data in sound_pictures().items() if not is_read(data)] == []


@cases(120)
@given(st.data())
def test_pictures(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(sound_pictures())))
    content = data.draw(other_bytes(sound_pictures()[kind]))
    with bounded():
        is_read(content)


@cases(6)
@given(st.data())
def test_pictures_to_train_on(data: st.DataObject) -> None:
    """Each that is broken is counted, once, and another stands in its place."""
    sound = sound_pictures()
    files = [data.draw(other_bytes(sound[data.draw(st.sampled_from(sorted(sound)))])) for _ in range(6)]
    collection = Pictures([{"bytes": each, "path": None} for each in [*files, sound["png"]]], "files")
    with bounded():
        loaded = collection.load(range(7), 8, 3)
        broken = [f"files, row {k}" for k, each in enumerate(files) if each and not is_read(each)]
    assert set(broken) == {name for name in loaded.broken if files[int(name.split()[-1])]}
    assert loaded.images.shape == (7, 3, 8, 8) and loaded.indices[6] == 6
    refused = pytest.raises(LimnerError, match="--data.max-broken") if loaded.broken else nullcontext()
    with refused:
        BrokenCount(7, 0.0).add({"indices": loaded.indices, "broken": loaded.broken})


def of_size(width: int, height: int) -> dict[str, bytes]:
    """Files of a hundred bytes that say they are this large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    lines = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    bitmap = struct.pack("<IiiHH", 40, width, height, 1, 24) + bytes(24)
    screen, frame = struct.pack("<HHBBB", width, height, 0, 0, 0), struct.pack("<HHHHB", 0, 0, width, height, 0)
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 2**31}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    scan = struct.pack(">HBHHBBBB", 11, 8, height, width, 1, 1, 0x11, 0)
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return {
        "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", lines) + chunk(b"IDAT", b"x"),
        "bmp": b"BM" + struct.pack("<III", 100, 0, 54) + bitmap + bytes(50),
        "gif": b"GIF89a" + screen + b"," + frame + b"\x08",
        "ppm": b"P6 %d %d 255\n" % (width, height),
        "tiff": b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(8),
        "jpeg": b"\xff\xd8\xff\xc0" + scan + b"\xff\xda" + bytes(20),
        "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 2) + canvas,
    }


def test_a_header_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 60000x60000 is refused before it is decoded."""
    monkeypatch.setattr("test_fuzz.BYTES", 2**27)
    with bounded():
        for kind, data in of_size(60_000, 60_000).items():
            with pytest.raises(BrokenPicture) as error:
                read_image(data)
            if kind != "webp":  # whose decoder takes memory as it opens
                assert "more than 134217728 pixels" in str(error.value), kind
