"""Pictures: rounding, sheets, PNG text, the terminal, and files that are whole or absent."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from limner.errors import LimnerError
from limner.files import write_atomically
from limner.picture import save, sheet, to_ansi, to_pictures
from limner.record import parameters_text


def test_values_become_pixels() -> None:
    x = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5, -1 + 2 / 255]).view(1, 1, 2, 3)
    assert list(to_pictures(x)[0].get_flattened_data()) == [0, 0, 128, 255, 255, 1]
    colour = torch.stack([torch.full((2, 2), v) for v in (1.0, -1.0, 0.0)])[None]
    assert to_pictures(colour)[0].getpixel((1, 1)) == (255, 0, 128)


def test_a_sheet_holds_every_picture_in_its_place() -> None:
    shades = [Image.new("RGB", (4, 4), (40 * i, 0, 0)) for i in range(5)]
    page = sheet(shades, columns=3, scale=2, gap=1)
    assert page.size == (3 * 9 + 1, 2 * 9 + 1)
    for i in range(5):
        left, top = 1 + (i % 3) * 9, 1 + (i // 3) * 9
        assert page.getpixel((left, top)) == page.getpixel((left + 7, top + 7)) == (40 * i, 0, 0)
    assert page.getpixel((20, 12)) == (255, 255, 255)
    captioned, silent = (sheet(shades, [text] * 5, columns=3, scale=8) for text in ("dark", " "))
    assert captioned.size == silent.size and captioned.tobytes() != silent.tobytes()


def test_parameters_are_read_back(tmp_path: Path) -> None:
    for prompt in ("a cat, no dog: 7", "猫と犬", "naïve"):
        text = parameters_text(prompt, "ugly", {"Steps": 20, "Seed": 3})
        save(Image.new("L", (2, 2)), tmp_path / "x.png", text)
        with Image.open(tmp_path / "x.png") as picture:
            assert picture.info["parameters"] == f"{prompt}\nNegative prompt: ugly\nSteps: 20, Seed: 3"
    assert parameters_text("a", "", {"Seed": 1}) == "a\nSeed: 1"


def test_show_draws_two_pixels_a_letter() -> None:
    picture = Image.new("RGB", (3, 4), (1, 2, 3))
    picture.putpixel((2, 1), (9, 8, 7))
    lines = to_ansi(picture, columns=3).splitlines()
    assert len(lines) == 2
    cells = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+)m\x1b\[48;2;(\d+);(\d+);(\d+)m▀", lines[0])
    assert cells == [("1", "2", "3", "1", "2", "3")] * 2 + [("1", "2", "3", "9", "8", "7")]
    assert lines[0].endswith("\x1b[0m")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(LimnerError, match=r"cannot write .*x.txt: No space left on device"):
        write_atomically(path, half)
    assert path.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["x.txt"]
    with pytest.raises(LimnerError, match="cannot tell the kind of picture from 'x.abc'"):
        save(Image.new("L", (2, 2)), tmp_path / "x.abc")
