"""Emoji as pictures: what the font draws, what is said of it, and what is said when something is missing."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from limner.data import emoji as source
from limner.data.emoji import Emoji
from limner.errors import LimnerError


@pytest.fixture(scope="module")
def font() -> Path:
    pytest.importorskip("emoji")
    for place in source.PLACES:
        for file in sorted(Path(place).expanduser().rglob(source.FONT)):
            return file
    pytest.skip("needs the emoji font: the package fonts-noto-color-emoji")


@pytest.fixture(scope="module")
def emoji(font: Path) -> Emoji:
    return Emoji(font)


def at(emoji: Emoji, name: str) -> int:
    """The emoji whose first caption is `name`."""
    return [captions[0] for captions in emoji.captions].index(name)


def pixels(emoji: Emoji, name: str) -> np.ndarray:
    return np.asarray(emoji.image(at(emoji, name))).astype(int)


def ink(picture: np.ndarray) -> np.ndarray:
    """Where something is drawn on white, (H, W)."""
    return (picture < 240).any(-1)


# --- pictures ---


@pytest.mark.parametrize("colour, channel", [("red", 0), ("green", 1), ("blue", 2)])
def test_hearts_have_their_colour(emoji, colour, channel):
    picture = pixels(emoji, f"{colour} heart")
    assert picture.shape == (144, 144, 3)
    drawn = picture[ink(picture)]
    others = np.delete(drawn, channel, axis=1).max(1)
    assert (drawn[:, channel] > others + 40).mean() > 0.9
    assert 0.3 < ink(picture).mean() < 0.7


def test_colours_are_those_of_the_font_and_not_of_their_mirror(emoji):
    assert np.abs(pixels(emoji, "red circle")[72, 72] - (244, 67, 54)).max() < 40  # material design's red
    assert np.abs(pixels(emoji, "blue circle")[72, 72] - (25, 118, 210)).max() < 40


def test_pictures_are_in_the_middle_of_a_plain_background(emoji, font):
    picture = pixels(emoji, "red circle")
    rows, columns = np.flatnonzero(ink(picture).any(1)), np.flatnonzero(ink(picture).any(0))
    assert abs(rows[0] + rows[-1] - 143) <= 2 and abs(columns[0] + columns[-1] - 143) <= 2
    assert 4 <= rows[0] <= 12 and 4 <= columns[0] <= 12
    assert (picture[:4] == 255).all() and (picture[:, -4:] == 255).all()
    night = pixels(Emoji(font, background="#102030"), "red circle")
    assert (night[[0, 0, -1, -1], [0, -1, 0, -1]] == (16, 32, 48)).all()
    assert (night[72, 72] == picture[72, 72]).all()


def test_every_emoji_has_a_picture_and_few_share_one(emoji):
    assert len(emoji) > 1700
    by_picture: dict[bytes, list[str]] = {}
    for index in range(len(emoji)):
        picture = np.asarray(emoji.image(index))
        assert ink(picture).mean() > 0.01, emoji.name(index)
        by_picture.setdefault(picture.tobytes(), []).append(emoji.captions[index][0])
    shared = [name for names in by_picture.values() if len(names) > 1 for name in names]
    assert len(shared) < 0.02 * len(emoji) and all(name.startswith(("flag of ", "family")) for name in shared)


def test_the_order_is_that_of_the_characters(emoji, font):
    again = Emoji(str(font))
    assert again.captions == emoji.captions and emoji.characters == sorted(set(emoji.characters))
    assert emoji.characters[at(emoji, "red heart")] == "\N{HEAVY BLACK HEART}\ufe0f"
    item = emoji[at(emoji, "cat face")]
    assert item.label is None and item.index == emoji.characters.index("\N{CAT FACE}")
    assert item.captions is emoji.captions[item.index] and item.image.tobytes() == again.image(item.index).tobytes()
    assert (emoji.labels, emoji.label_names) == (None, None)


def test_a_copy_in_another_process_draws_the_same(emoji):
    copy = pickle.loads(pickle.dumps(emoji))
    assert np.array_equal(pixels(copy, "unicorn"), pixels(emoji, "unicorn"))


def test_skin_tones_are_there_when_asked_for(emoji, font):
    tones = Emoji(font, skin_tones=True)
    assert not any("skin tone" in caption for caption in emoji.all_captions())
    assert len(tones) > 1.5 * len(emoji) and set(emoji.characters) < set(tones.characters)
    dark = pixels(tones, "thumbs up with dark skin tone")
    assert dark[ink(dark)].mean() < pixels(tones, "thumbs up")[ink(dark)].mean() - 40
    people = "\N{MAN}\U0001f3ff\u200d\N{HANDSHAKE}\u200d\N{MAN}\U0001f3fb"
    said = tones.captions[tones.characters.index(people)]
    assert said[0] == "men holding hands with dark skin tone and light skin tone"


def test_without_raqm_sequences_are_left_out_and_the_rest_looks_the_same(emoji, font, monkeypatch):
    monkeypatch.setattr(ImageFont.core, "HAVE_RAQM", False)
    basic = Emoji(font)
    assert 1000 < len(basic) < len(emoji)
    assert not any("\u200d" in character for character in basic.characters)
    for name in ("red heart", "sun", "scissors", "cat face"):  # the first three end in a variation selector
        assert np.array_equal(pixels(basic, name), pixels(emoji, name))


# --- captions ---


def test_captions_of_known_emoji(emoji):
    heart = emoji.captions[at(emoji, "red heart")]
    assert heart[:2] == ["red heart", "heart"]
    assert {"a red heart", "an emoji of a red heart", "a picture of a heart", "a drawing of a red heart"} < set(heart)
    cat = emoji.captions[emoji.characters.index("\N{SMILING CAT FACE WITH HEART-SHAPED EYES}")]
    assert cat[:2] == ["smiling cat with heart-eyes", "smiling cat with heart eyes"]
    assert "an emoji of a smiling cat with heart-eyes" in cat
    assert "an emoji of an owl" in emoji.captions[at(emoji, "owl")]
    assert "owl emoji" in emoji.captions[at(emoji, "owl")]


@pytest.mark.parametrize(
    "name, said, unsaid",
    [
        ("cat face", "a picture of a cat face", "cat"),  # which is the name of another
        ("pencil", "a drawing of a pencil", "pencil2"),
        ("stop button", "a stop button", "black square for stop"),
        ("a button (blood type)", "a button", "a"),
        ("keycap 1", "an emoji of keycap 1", "one"),
        ("flag of germany", "an emoji of the flag of germany", "de"),
        ("flag of the netherlands", "netherlands flag", "flag of netherlands"),
        ("flag of the united states", "an icon of the united states flag", "flag of united states"),
        ("flag of côte d'ivoire", "flag of cote d'ivoire", "côte d'ivoire"),
        ("flag of england", "a picture of the england flag", "england"),
        ("rainbow flag", "a rainbow flag", "the rainbow flag"),
        ("woman with red hair", "red haired woman", "woman red hair"),
        ("bald man", "a bald man", "man bald"),
        ("family: man, woman, girl", "family man woman girl", "family man, woman, girl"),
        ("grapes", "an emoji of grapes", "a grapes"),
        ("two hearts", "a picture of two hearts", "a two hearts"),
        ("three o'clock", "an emoji showing three o'clock", "a three o'clock"),
        ("aquarius", "an emoji of aquarius", "an aquarius"),
        ("woman lifting weights", "a woman lifting weights", "an emoji of woman lifting weights"),
        ("woman's hat", "a woman's hat", "a picture of woman's hat"),
        ("bus", "a bus", "an emoji of bus"),
    ],
)
def test_names_are_said_as_one_says_them(emoji, name, said, unsaid):
    captions = emoji.captions[at(emoji, name)]
    assert said in captions and unsaid not in captions


def test_every_emoji_has_captions_of_its_own(emoji):
    everything = [caption for captions in emoji.captions for caption in captions]
    assert len(emoji.captions) == len(emoji) and all(len(captions) >= 7 for captions in emoji.captions)
    assert len(set(everything)) == len(everything)  # within an emoji, and between two
    assert emoji.all_captions() == everything
    assert all(caption == " ".join(caption.lower().split()) and caption for caption in everything)
    assert not any(character in caption for caption in everything for character in "_{}’")


def test_templates_of_ones_own_and_none(emoji, font):
    own = Emoji(font, templates=("see {a}", "my {}"))
    assert own.captions[emoji.characters.index("\N{OWL}")] == ["see an owl", "my owl"]
    with pytest.raises(LimnerError, match="'an emoji' has no place for the word"):
        Emoji(font, templates=("an emoji",))
    silent = Emoji(font, captions=False)
    assert silent.captions is None and silent.all_captions() == [] and list(silent[0].captions) == [""]


def test_a_picture_is_named_by_its_code_and_its_name(emoji, font):
    assert emoji.name(at(emoji, "red heart")) == f"the emoji of {font}, U+2764 U+FE0F (red heart)"


# --- what is missing ---


def test_a_font_that_is_not_there_or_none(tmp_path):
    pytest.importorskip("emoji")
    with pytest.raises(LimnerError, match="--data.path .*none.ttf: there is no such file.*fonts-noto-color-emoji"):
        Emoji(tmp_path / "none.ttf")
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(LimnerError, match="text.ttf cannot be used as a font: .*NotoColorEmoji.ttf .*fonts-noto-color"):
        Emoji(tmp_path / "text.ttf")
    letters = tmp_path / "letters.ttf"
    letters.write_bytes(ImageFont.load_default(12).path.getvalue())
    with pytest.raises(LimnerError, match="letters.ttf draws no emoji in colour; expected NotoColorEmoji.ttf"):
        Emoji(letters)


def test_the_font_is_looked_for_in_the_usual_places(tmp_path, monkeypatch):
    pytest.importorskip("emoji")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(source, "PLACES", (str(tmp_path / "nowhere"), "~/.fonts"))
    expected = (
        "NotoColorEmoji.ttf is in none of .*nowhere, ~/.fonts. .*apt-get install fonts-noto-color-emoji.*--data.path"
    )
    with pytest.raises(LimnerError, match=expected):
        Emoji()
    file = tmp_path / ".fonts" / "noto" / source.FONT
    file.parent.mkdir(parents=True)
    file.write_text("no font")
    with pytest.raises(LimnerError, match=f"{file} cannot be used as a font"):
        Emoji()


def test_the_font_found_is_the_font_given(emoji):
    assert Emoji().captions == emoji.captions


def test_a_missing_package_and_a_background_that_is_no_colour(monkeypatch):
    with pytest.raises(LimnerError, match="background of the emoji is a colour such as white.*'beyond'"):
        Emoji(background="beyond")
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(LimnerError, match=r"pip install emoji, or pip install 'limner\[train\]'"):
        Emoji()


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = "import sys, limner.data.emoji; print({'torch', 'numpy', 'PIL', 'emoji'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout == "set()\n"
