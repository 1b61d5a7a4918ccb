"""The lexicon of the world: synonyms of each value, the canonical one first; articles and plurals."""

from functools import lru_cache
from typing import NamedTuple

from limner.world.scene import COLOURS, PLACES, RELATIONS, SHAPES, SIZES

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "disk", "ball", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus", "plus sign"),
    "ring": ("ring", "hoop", "donut"),
    "crescent": ("crescent", "moon", "crescent moon"),
}
ANY_SHAPE = ("shape", "object", "thing")
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "scarlet", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown", "chocolate"),
    "black": ("black", "jet black"),
    "white": ("white", "snow white"),
    "grey": ("grey", "gray"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "middle-sized"),
    "large": ("large", "big", "huge"),
}
NUMBER_WORDS: dict[int, tuple[str, ...]] = {
    1: ("one", "1", "a single"),
    2: ("two", "2", "a pair of"),
    3: ("three", "3"),
    4: ("four", "4"),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "top": ("at the top", "at the top centre", "in the top middle"),
    "left": ("on the left", "at the left", "on the left side"),
    "centre": ("in the centre", "in the middle", "in the center"),
    "right": ("on the right", "at the right", "on the right side"),
    "bottom": ("at the bottom", "at the bottom centre", "in the bottom middle"),
} | {
    f"{v} {h}": (f"in the {v} {h}", f"in the {other} {h}", f"in the {v} {h} corner", f"at the {other} {h}")
    for v, other in (("top", "upper"), ("bottom", "lower"))
    for h in ("left", "right")
}
TOO_MANY = ("five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "many", "several")
OPENINGS = ("a picture of", "an image of", "a drawing of")

assert (*SHAPE_WORDS,) == SHAPES and {*COLOUR_WORDS} == {*COLOURS} and {*SIZE_WORDS} == {*SIZES}
assert {*RELATION_WORDS} == {*RELATIONS} and {*PLACE_WORDS} == {*PLACES}


class Word(NamedTuple):
    """A word or phrase of a prompt: kind, value and spelling."""

    kind: str
    value: str | int | None = None
    text: str = ""


def article(word: str) -> str:
    """a or an, by approximate pronunciation: an owl, an 8; a one, a unicorn."""
    word = word.lower()
    if word.startswith(("one", "uni", "use", "eu", "ew")):
        return "a"
    return "an" if word.startswith((*"aeiou8", "11", "18", "hour", "x-ray", "x ray")) else "a"


def plural(noun: str) -> str:
    """The plural of a shape's word."""
    return noun + ("es" if noun.endswith(("s", "x", "sh", "ch")) else "s")


@lru_cache(maxsize=1)
def lexicon() -> dict[tuple[str, ...], Word]:
    """Every phrase of the grammar: a tuple of lower-case words -> its kind and value."""
    known: dict[tuple[str, ...], Word] = {}

    def add(kind: str, value: str | int | None, *phrases: str) -> None:
        for phrase in phrases:
            known[tuple(phrase.replace("-", " ").split())] = Word(kind, value, phrase)

    for shape, names in [*SHAPE_WORDS.items(), (None, ANY_SHAPE)]:
        add("shape", shape, *names)
        add("shapes", shape, *map(plural, names))
    for kind, table in (("colour", COLOUR_WORDS), ("size", SIZE_WORDS), ("relation", RELATION_WORDS)):
        for value, phrases in table.items():
            add(kind, value, *phrases)
    for number, phrases in NUMBER_WORDS.items():
        add("number", number, *phrases)
    add("number", 1, "a", "an")
    add("too many", None, *TOO_MANY, *map(str, range(5, 100)))
    for place, phrases in PLACE_WORDS.items():
        for phrase in phrases:
            bare = phrase.split(" ", 2)[2]
            alike = (bare, bare.replace("centre", "center"), bare.removesuffix(" corner") + " corner" * (" " in place))
            for before in ("in the", "at the", "on the", "in", "at", "on"):
                add("place", place, *(f"{before} {each}" for each in alike))
    add("opening", None, *OPENINGS, "a photo of", "a painting of", "picture of", "image of", "drawing of")
    add("on", None, "on", "against", "in front of")
    add("background", None, "background", "backdrop")
    add("and", None, "and", ",", "with", "as well as")
    add("is", None, "is", "are", "stands", "stand")
    add("that is", None, "that is", "that are", "which is", "which are")
    add("there is", None, "there is", "there are")
    add("of size", None, "of")
    add("size itself", None, "size")
    add("in colour", None, "coloured", "colored", "in")
    add("it", None, "it", "them")
    add("filler", None, "the", ".")
    return known
