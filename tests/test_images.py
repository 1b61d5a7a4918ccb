"""Pictures of any kind, read as 8 bits, upright, opaque and sRGB, or refused in words."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from limner.data.pictures import Pictures
from limner.errors import BrokenPicture
from limner.images import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
# What each EXIF orientation does to the stored picture to set it upright.
TURNS = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}  # fmt: skip


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture as a file's bytes."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def read(source: Any) -> np.ndarray:
    return np.asarray(read_image(source))


def grey16(kind: str) -> bytes:
    return encoded(Image.fromarray(np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)), kind)


def float_tiff(*values: float) -> bytes:
    return encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_picture_is_set_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = TURNS[orientation](PIXELS)
    assert np.array_equal(read(data), upright)
    assert np.array_equal(read(read_image(data)), upright)  # and not turned again


def test_a_picture_in_memory_is_left_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(io.BytesIO(encoded(Image.fromarray(PIXELS), exif=exif)))
    assert read_image(picture).size == (5, 7)
    assert picture.size == (7, 5) and picture.getexif()[0x0112] == 6


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_damaged_exif_block_does_not_cost_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    data = bytearray(exif.tobytes())
    at = data.index(struct.pack(">HH", 0x010F, 2)) if b"MM" in data[:12] else data.index(struct.pack("<HH", 0x010F, 2))
    data[at + 2 : at + 4] = b"\xee\xee"  # no type of value
    assert np.array_equal(read(encoded(Image.fromarray(PIXELS), exif=bytes(data))), TURNS[6](PIXELS))
    for kind in (3, 4, 9, 11, 13):  # six numbers of this type run over the end of the block
        data[at + 2 : at + 4] = struct.pack(">H" if b"MM" in data[:12] else "<H", kind)
        assert np.array_equal(read(encoded(Image.fromarray(PIXELS), exif=bytes(data))), TURNS[6](PIXELS))
    assert np.array_equal(read(encoded(Image.fromarray(PIXELS), exif=b"Exif\0\0MM\0*\0\0")), PIXELS)


def test_transparency_is_composed_on_white() -> None:
    alpha = np.concatenate([PIXELS, np.full((5, 7, 1), 51, np.uint8)], axis=-1)
    wanted = np.rint(255 + (PIXELS.astype(float) - 255) * 0.2)
    for mode in ("RGBA", "LA"):
        picture = Image.fromarray(alpha).convert(mode)
        over = wanted if mode == "RGBA" else 255 + (np.asarray(picture)[..., 0].astype(float) - 255) * 0.2
        got = read(encoded(picture))
        assert got.shape == over.shape
        assert np.abs(got - over).max() <= 1
    palette = Image.fromarray(PIXELS).quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert tuple(read(encoded(palette, transparency=palette.getpixel((0, 0))))[0, 0]) == (255, 255, 255)


def test_grey_stays_grey_and_palettes_become_colours() -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    assert np.array_equal(read(encoded(grey)), PIXELS[..., 0])
    bits = Image.fromarray(PIXELS[..., 0] > 127)
    assert np.array_equal(read(encoded(bits)), np.where(PIXELS[..., 0] > 127, 255, 0))
    palette = Image.fromarray(PIXELS).quantize(8)
    assert np.array_equal(read(encoded(palette, "GIF")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    assert read(grey16(kind)).tolist() == [[0, 0, 1, 1, 128, 255]]


def test_sixteen_bits_of_a_pgm_are_scaled() -> None:
    assert read(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32896, 65535)).tolist() == [[0, 128, 255]]


def test_floating_point_from_0_to_1_is_scaled() -> None:
    assert read(float_tiff(0.0, 0.001, 0.5, 1.0)).tolist() == [[0, 0, 128, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind: str) -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind, **({"quality": 100} if kind == "JPEG" else {}))
    assert np.abs(read(data).astype(int) - (255, 0, 0)).max() <= 2


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green are exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def test_a_colour_profile_is_applied() -> None:
    picture = Image.fromarray(PIXELS)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read(encoded(picture, icc_profile=own)), PIXELS)
    turned = read(encoded(picture, icc_profile=swapped_profile()))
    assert np.abs(turned.astype(int) - PIXELS[..., [1, 0, 2]]).max() <= 2
    assert np.array_equal(read(encoded(picture, icc_profile=b"no profile")), PIXELS)


def test_a_linear_profile_is_applied() -> None:
    linear = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {bytes(linear[i : i + 4]): i for i in range(132, 132 + 12 * struct.unpack(">I", linear[128:132])[0], 12)}
    curve = struct.unpack(">I", linear[at[b"rTRC"] + 4 : at[b"rTRC"] + 8])[0]
    linear[curve : curve + 12] = b"curv" + bytes(8)  # no entries: the identity
    for tag in (b"rTRC", b"gTRC", b"bTRC"):
        linear[at[tag] + 4 : at[tag] + 12] = struct.pack(">II", curve, 12)
    named = bytes(linear).replace("sRGB built-in".encode("utf-16-be"), "sRGB linear!!".encode("utf-16-be"))
    share = PIXELS / 255.0
    wanted = 255 * np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)
    assert np.abs(read(encoded(Image.fromarray(PIXELS), icc_profile=named)) - wanted).max() <= 2


def test_a_tiff_whose_least_value_is_white_is_inverted() -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    data = bytearray(encoded(Image.fromarray(values), "TIFF"))
    assert read(bytes(data)).tolist() == [[0, 1, 255]]
    at = data.index(struct.pack("<HHI", 262, 3, 1))
    data[at + 8 : at + 10] = b"\0\0"
    assert read(bytes(data)).tolist() == [[255, 254, 0]]


def header(width: int, height: int) -> bytes:
    """A PNG that says it is this large."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "no kind of picture that is known"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "no kind of picture that is known"),
        (header(40_000, 25_000), "it has more than 134217728 pixels"),
        (header(14_000, 10_000), "it has more than 134217728 pixels"),
        (encoded(Image.fromarray(PIXELS))[:60], "image file is truncated|Truncated|unexpected end|broken"),
        (float_tiff(0.0, 1.5), "its values go from 0 to 1.5; expected 0 to 1"),
        (float_tiff(-0.5, 1.0), "its values go from -0.5 to 1; expected 0 to 1"),
        (float_tiff(float("nan")), "its values go from nan to nan; expected 0 to 1"),
        (
            encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"),
            "whole numbers that are signed or of 32",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_is_refused_in_words(source: bytes, reason: str) -> None:
    with pytest.raises(BrokenPicture, match=f"^the picture cannot be read as a picture: .*({reason})"):
        read_image(source)


def test_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenPicture, match="gone.png cannot be read as a picture: there is no such file"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(BrokenPicture, match="text.png cannot be read as a picture: no kind"):
        read_image(str(tmp_path / "text.png"))
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert np.array_equal(read("~/a.png"), PIXELS)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save(tmp_path / "~nobody.png")
    assert np.array_equal(read("~nobody.png"), PIXELS)


def test_whatever_a_decoder_raises_is_a_broken_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strange(RuntimeError):
        pass

    def load(image: Image.Image) -> None:
        raise Strange

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(BrokenPicture, match="the picture cannot be read as a picture: Strange"):
        read_image(Image.new("L", (1, 1)))


def test_training_reads_pictures_by_the_same_loader() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded(Image.fromarray(PIXELS), exif=exif), grey16("TIFF"), float_tiff(0.5), float_tiff(2.0)]
    pictures = Pictures([{"bytes": data, "path": None} for data in files], "files")
    for i in range(3):
        assert np.array_equal(np.asarray(pictures.image(i)), read(files[i]))
    with pytest.raises(BrokenPicture, match="files, row 3 cannot be read as a picture: its values go from 2 to 2"):
        pictures.image(3)


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(BrokenPicture, match="it has no pixels: 0x4"):
        read_image(Image.new("RGB", (0, 4)))


def test_transparent_pixels_are_told_of() -> None:
    layers = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    assert not read_image(layers).info
    layers.putpixel((1, 0), (255, 255, 255, 0))
    assert read_image(layers).info == {"transparent": True}
