"""Emoji as training pictures: the system's Noto Color Emoji font draws them, the `emoji` package says what they are.

Linux only: macOS and Windows have colour fonts that Pillow cannot draw at this size. Some pictures are there twice,
under two names: flags that several places share, and families of which the font draws the outline.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from limner.data.captions import CaptionSet, article, fill
from limner.data.pictures import Pictures
from limner.errors import LimnerError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

FONT = "NotoColorEmoji.ttf"
PLACES = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
HOW_TO_INSTALL = "on Debian and Ubuntu: apt-get install fonts-noto-color-emoji"
TEMPLATES = (
    "{}",
    "{a}",
    "{} emoji",
    "an emoji of {a}",
    "an emoji showing {a}",
    "an icon of {a}",
    "a picture of {a}",
    "a drawing of {a}",
)
BITMAP = 109  # the one size, in pixels an em, that the font has: bitmaps of 136x128
SIDE = 144  # of the pictures: the ink is at most 128x128

_KNOWN = "\N{GRINNING FACE}"  # which every emoji font draws
_FULL_FACE = "\N{VARIATION SELECTOR-16}"  # asks for colour, which the font has anyway
_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_INITIALS = {chr(code) for code in range(0x1F1E6, 0x1F200)}  # two of them name the flag of a country
_TAG_END = "\N{CANCEL TAG}"  # of the flags of parts of countries
_COLOURS = frozenset("black white grey red orange yellow green blue purple brown pink heavy".split())
_LEFT_OUT = frozenset("shit hankey zero one two three four five six seven eight nine".split())  # MNIST says the numbers
_UNCOUNTABLE = frozenset(  # and other last words that take no article
    "badminton bacon bowling bread broccoli butter camping construction cooking coral dizzy dna fog foggy food fuji "
    "garlic hockey ice information lacrosse laughing locked luggage multiply pong popcorn prohibited racing "
    "radioactive registered rice sake salt soap spaghetti star-struck sushi tennis unlocked wood yarn".split()
)


class Emoji(Pictures):
    """The emoji that the font draws as one glyph, 144x144 RGB, in the order of their characters.

    `font`: a NotoColorEmoji.ttf; looked for in the usual places when not given. `captions=False` leaves captions out.
    `templates` take the place of TEMPLATES; `skin_tones` adds every tone of skin. Without libraqm in Pillow the font
    draws no sequences, and about 1400 of the 1900 emoji are left.

    Raises LimnerError where the font or the `emoji` package is missing or of no use.
    """

    def __init__(
        self,
        font: str | Path | None = None,
        captions: bool = True,
        templates: tuple[str, ...] = (),
        background: str = "white",
        skin_tones: bool = False,
    ) -> None:
        from PIL import ImageColor

        try:
            self.background = ImageColor.getrgb(background)[:3]
        except ValueError as error:
            raise LimnerError(f"the background of the emoji is a colour such as white or #d0e0ff: {error}") from None
        templates = CaptionSet((), templates or TEMPLATES).templates  # which it checks
        known = _known(skin_tones)
        file = _find_font() if font is None else Path(font).expanduser()
        self.font, box = _open_font(file)
        self.left, self.top = ((SIDE - box[2] - box[0]) // 2, (SIDE - box[3] - box[1]) // 2)
        # Of one glyph, and of none that is missing: the box of a missing one is empty, two glyphs are wider
        self.characters = [emoji for emoji in sorted(known) if self.font.getbbox(_drawn(emoji)) == box]
        said = _words(known) if captions else {}
        spoken = [_captions(*said[emoji], templates) for emoji in self.characters] if captions else None
        super().__init__([{"emoji": emoji} for emoji in self.characters], f"the emoji of {file}", spoken)

    def image(self, index: int) -> "Image":
        """The picture, 144x144 RGB, drawn anew each time (half a millisecond)."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (SIDE, SIDE), self.background)
        place = (self.left, self.top)
        ImageDraw.Draw(image).text(place, _drawn(self.characters[index]), font=self.font, embedded_color=True)
        return image

    def name(self, index: int) -> str:
        """What to call a picture in a message."""
        code = " ".join(f"U+{ord(character):X}" for character in self.characters[index])
        said = f" ({self.captions[index][0]})" if self.captions else ""
        return f"{self.where}, {code}{said}"


def _drawn(emoji: str) -> str:
    """What to hand to the font: Pillow without libraqm would draw a box for the variation selector."""
    return emoji.replace(_FULL_FACE, "")


def _known(skin_tones: bool) -> dict[str, dict]:
    """The fully qualified emoji of the package -> their names."""
    try:
        import emoji
    except ImportError:
        raise LimnerError(
            "the names of the emoji come from the package emoji, which is missing: pip install emoji, or "
            "pip install 'limner[train]' for all that training needs"
        ) from None
    whole = emoji.STATUS["fully_qualified"]
    return {
        character: entry
        for character, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == whole and (skin_tones or not _TONES & set(character))
    }


def _find_font() -> Path:
    for place in PLACES:
        found = sorted(Path(os.path.expanduser(place)).rglob(FONT))
        if found:
            return found[0]
    raise LimnerError(
        f"the emoji font {FONT} is in none of {', '.join(PLACES)}. Install it ({HOW_TO_INSTALL}) or give its file "
        "with --data.path; the colour fonts of macOS and Windows are not supported"
    )


def _open_font(file: Path) -> tuple["FreeTypeFont", tuple[float, float, float, float]]:
    """The font, and the box of an emoji in it."""
    from PIL import Image, ImageDraw, ImageFont

    if not file.is_file():
        raise LimnerError(f"--data.path {file}: there is no such file; expected the font {FONT} ({HOW_TO_INSTALL})")
    try:
        font = ImageFont.FreeTypeFont(str(file), BITMAP)  # truetype() would take the system's for a broken one
        box = font.getbbox(_KNOWN)
        trial = Image.new("RGB", (SIDE, SIDE), "white")
        ImageDraw.Draw(trial).text((0, 0), _KNOWN, font=font, embedded_color=True)
    except OSError as error:
        raise LimnerError(
            f"--data.path {file} cannot be used as a font: {error}; expected {FONT} ({HOW_TO_INSTALL})"
        ) from error
    saturation = trial.convert("HSV").getchannel("S")
    if not any(saturation.histogram()[100:]):
        raise LimnerError(f"--data.path {file} draws no emoji in colour; expected {FONT} ({HOW_TO_INSTALL})")
    return font, box


# --- what is said ---


def _words(known: Mapping[str, dict]) -> dict[str, tuple[list[str], str | None]]:
    """emoji -> (its names, the usual one first; what to say before them, None for what each asks for).

    No name is given to two emoji: one that is the usual name of another is left out (`cat`, of the cat's face).
    """
    usual = {emoji: _english(emoji, entry["en"]) for emoji, entry in known.items()}
    owner = {name: emoji for emoji, name in usual.items()}
    candidates = {emoji: [usual[emoji], *_others(emoji, known[emoji], usual[emoji])] for emoji in sorted(known)}
    for emoji, names in candidates.items():
        for name in names:
            owner.setdefault(name, emoji)
    own = {emoji: dict.fromkeys(name for name in names if owner[name] == emoji) for emoji, names in candidates.items()}
    return {emoji: (list(names) or [usual[emoji]], _before(emoji, known[emoji]["en"])) for emoji, names in own.items()}


def _before(emoji: str, name: str) -> str | None:
    """What goes before flags, "the", and before one of a kind (Aquarius, Santa Claus), nothing."""
    one_of_a_kind = all(re.fullmatch("[A-Z][A-Za-z.]*", word) for word in name.strip(":").split("_"))
    return "the" if _is_flag(emoji) else "" if one_of_a_kind else None


def _english(emoji: str, name: str) -> str:
    """The usual name: :woman_red_hair: -> "woman with red hair"."""
    name = _plain(name)
    if _is_flag(emoji):
        return f"flag of {_the(name)}"
    name = re.sub(r" ((?:medium-)?(?:light|medium|dark) skin tone)", r" with \1", name)
    name = name.replace("skin tone with ", "skin tone and ")
    name = re.sub(r"^(man|woman|person) (\w+ hair|beard)$", r"\1 with \2", name)
    name = re.sub(r"^(man|woman|person) bald$", r"bald \1", name)
    members = re.fullmatch(r"(family|kiss|couple with heart)((?: (?:adult|child|man|woman|boy|girl|person))+)", name)
    return f"{members[1]}: {', '.join(members[2].split())}" if members else name


def _others(emoji: str, entry: dict, usual: str) -> Iterable[str]:
    """Other ways to say it: as one types it, without accents and hyphens, and the aliases that mislead nobody."""
    aliases = [_plain(alias) for alias in entry.get("alias", ())]
    if _is_flag(emoji):
        places = [_plain(entry["en"]), *(alias.removeprefix("flag for ") for alias in aliases)]
        aliases = [say for place in places if len(place) > 2 for say in (f"flag of {_the(place)}", f"{place} flag")]
    colours = _COLOURS & set(re.findall(r"\w+", usual))
    for name in (usual, *aliases):
        # Black and white in old names mean filled and outlined; numbers tell apart, and :a: is no name for a button
        honest = _COLOURS & set(name.split()) <= colours and len(re.sub(r"[^a-z]", "", name)) > 2
        if name == usual or (honest and not re.search(r"\d", name) and name not in _LEFT_OUT):
            yield name
            yield _as_typed(name)


def _plain(name: str) -> str:
    """:woman’s_hat: -> "woman's hat"."""
    return " ".join(name.replace(":", "").replace("_", " ").replace("’", "'").lower().split())


def _as_typed(name: str) -> str:
    """Plain letters: "são tomé & príncipe" -> "sao tome and principe", "a button (x-ray)" -> "a button"."""
    name = re.sub(r"\(.*?\)", "", name).replace("&", "and")
    letters = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[.!:,]", "", "".join(letters)).replace("-", " ").split())


def _is_flag(emoji: str) -> bool:
    return set(emoji) <= _INITIALS or emoji.endswith(_TAG_END)


def _the(place: str) -> str:
    """With its article: "netherlands" -> "the netherlands"."""
    some = r"united .*|u\.?s\.? .*|isle of .*|bahamas|comoros|gambia|maldives|netherlands|philippines|seychelles"
    lands = r"(?!south |heard ).* (islands|republic|territor\w+|lands|netherlands|union)"
    return f"the {place}" if re.fullmatch(f"{some}|{lands}", place) else place


def _captions(names: list[str], before: str | None, templates: tuple[str, ...]) -> list[str]:
    """Every name in every template, each caption once, the first name in the first template first."""
    said = (_say(template, name, before) for template in templates for name in names)
    return list(dict.fromkeys(said))


def _say(template: str, name: str, before: str | None) -> str:
    """The template, filled; {a} is the name after `before`, or after an article where it names one countable thing.

    "a cat", but "the flag of france", "two hearts", "grapes", "no smoking", "three o'clock", "aquarius".
    """
    if before is None:
        before = article(name) if _countable(name) else ""
    return fill(template.replace("{a}", f"{before} {{}}".lstrip()), name)


def _countable(name: str) -> bool:
    if re.search(r"^(no|keycap|input|two|three|men|women|people) |o'?clock$|[ -]thirty$", name):
        return False
    after = r" (?:with|without|of|in|on|for|at|and|behind|over|facing|showing|pointing|lifting|holding|savoring)\b"
    head = re.split(after, name)[0].split()[-1]
    return head not in _UNCOUNTABLE and bool(re.search(r"('s|ss|us|is|ceros|[^s])$", head))
