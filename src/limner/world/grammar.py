"""The grammar of the world: `caption` draws a random sentence that states a scene, and `parse` inverts it.

`parse(caption(scene, random)) == scene`; other sentences of the grammar are parsed too.
"""

import re
from difflib import get_close_matches
from random import Random

from limner.errors import LimnerError
from limner.world.lexicon import (
    ANY_SHAPE,
    COLOUR_WORDS,
    NUMBER_WORDS,
    OPENINGS,
    PLACE_WORDS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    Word,
    article,
    lexicon,
    plural,
)  # fmt: skip
from limner.world.scene import Group, Scene

LIMITS = (
    "one or two kinds of objects, four in all: a number, a size, a colour, a shape, a place or above, below, left of, "
    "right of, and a background"
)


class NotUnderstood(LimnerError):
    """A prompt outside the grammar, which cannot be graded."""


# ---- generation


def _pick(words: tuple[str, ...], random: Random, canonical: float = 0.6) -> str:
    """The canonical (first) word with probability `canonical`, else a synonym."""
    return words[0] if len(words) == 1 or random.random() < canonical else random.choice(words[1:])


def _noun_phrase(group: Group, random: Random) -> str:
    noun = _pick(SHAPE_WORDS[group.shape] if group.shape else ANY_SHAPE, random, 0.7)
    size = _pick(SIZE_WORDS[group.size], random) if group.size else ""
    colour = _pick(COLOUR_WORDS[group.colour], random, 0.8) if group.colour else ""
    before, after = [size, colour], ""
    way = random.random()
    if way < 0.06 and (size or colour):
        both = " and ".join(filter(None, random.sample([size, colour], 2)))
        before, after = [], f" that {'is' if group.count == 1 else 'are'} {both}"
    elif way < 0.1 and size:
        before, after = [colour], f" of {size} size"
    elif way < 0.14 and colour:
        before, after = [size], f" {random.choice(('coloured', 'in'))} {colour}"
    elif way < 0.2:
        before = [colour, size]
    words = " ".join(filter(None, [*before, noun if group.count == 1 else plural(noun)])) + after
    if group.count == 1 and random.random() < 0.9:
        return f"{article(words)} {words}"
    return f"{_pick(NUMBER_WORDS[group.count], random, 0.75)} {words}"


def _placed(group: Group, random: Random) -> str:
    phrase = _noun_phrase(group, random)
    if group.place is None:
        return phrase
    place = _pick(PLACE_WORDS[group.place], random)
    return f"{place}, {phrase}" if random.random() < 0.1 else f"{phrase} {place}"


def caption(scene: Scene, random: Random) -> str:
    """A random sentence that states exactly the specified attributes of `scene`."""
    if scene.relation is None:
        text = random.choice((" and ", ", ", " and ", " with ")).join(_placed(group, random) for group in scene.groups)
    else:
        first, second = (_noun_phrase(group, random) for group in scene.groups)
        relation = _pick(RELATION_WORDS[scene.relation], random)
        way = random.random()
        if way < 0.75:
            text = f"{first} {relation} {second}"
        elif way < 0.85:
            text = f"{first} {'is' if scene.groups[0].count == 1 else 'are'} {relation} {second}"
        elif way < 0.93:
            text = f"{relation} {second} there {'is' if scene.groups[0].count == 1 else 'are'} {first}"
        else:
            text = f"{second} with {first} {relation} {'it' if scene.groups[1].count == 1 else 'them'}"
    opened = random.random() < 0.2
    if scene.background is not None:
        colour = _pick(COLOUR_WORDS[scene.background], random, 0.8)
        ground = f"{article(colour)} {colour} background"
        way = random.random()
        if way < 0.1 and not opened:
            return f"on {ground}, {text}"
        text += f" {_pick(('on', 'against'), random, 0.8)} {ground}" if way < 0.85 else f" on {colour}"
    return f"{_pick(OPENINGS, random)} {text}" if opened else text


# ---- parsing


def split_phrases(prompt: str) -> list[Word]:
    """The phrases of a prompt by longest match, fillers removed. NotUnderstood names the first unknown word."""
    words = re.findall(r"[\w']+|,", re.sub(r"[-_]", " ", prompt.lower()))
    known, phrases, at = lexicon(), [], 0
    while at < len(words):
        for length in range(min(5, len(words) - at), 0, -1):
            word = known.get(tuple(words[at : at + length]))
            if word is not None:
                phrases.append(word._replace(text=" ".join(words[at : at + length])))
                at += length
                break
        else:
            raise NotUnderstood(f"{_unknown_word(words[at])} This world knows {LIMITS}")
    return [word for word in phrases if word.kind != "filler"]


def _unknown_word(word: str) -> str:
    """The message for an unknown word, with the nearest known one, or for one known only within a phrase."""
    parts = {part: " ".join(phrase) for phrase in reversed(lexicon()) for part in phrase}  # the first phrase wins
    if word in parts:
        return f"{word!r} is understood only as in {parts[word]!r}."
    near = get_close_matches(word, parts, 1)
    return f"{word!r} is not a word of this world" + (f", did you mean {near[0]!r}?" if near else ".")


def parse(prompt: str) -> Scene:
    """The scene that a prompt states. NotUnderstood outside the grammar, or for an impossible scene."""
    return _Parser(prompt).scene()


class _Parser:
    """A recursive-descent parser of one prompt."""

    def __init__(self, prompt: str) -> None:
        self.prompt, self.words, self.at = prompt, split_phrases(prompt), 0
        self.background: str | None = None

    def kind(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.words[at].kind if at < len(self.words) else "end"

    def accept(self, *kinds: str) -> Word | None:
        """Consume the next word if it is of one of these kinds."""
        if self.kind() not in kinds:
            return None
        self.at += 1
        return self.words[self.at - 1]

    def expect(self, kind: str, expected: str) -> Word:
        word = self.accept(kind)
        return word if word is not None else self.fail(expected)

    def fail(self, expected: str):
        if self.kind() == "too many":
            raise NotUnderstood(f"{self.words[self.at].text!r} is too many: a scene has one to four objects")
        found = f"before {self.words[self.at].text!r}" if self.at < len(self.words) else "at the end"
        raise NotUnderstood(f"expected {expected} {found} of {self.prompt!r}. This world knows {LIMITS}")

    def scene(self) -> Scene:
        self.parse_background()
        self.accept("opening")
        self.accept("there is")
        if relation := self.accept("relation"):  # above a circle there is a star
            second = self.group()
            self.accept("and")
            self.accept("there is")
            groups: tuple[Group, ...] = (self.group(), second)
            name = relation.value
        else:
            groups, name = self.groups()
        self.parse_background()
        if self.kind() != "end":
            self.fail("nothing more")
        try:
            return Scene(groups, None if name is None else str(name), self.background)
        except LimnerError as error:
            raise NotUnderstood(f"{self.prompt!r} cannot be painted: {error}") from error

    def groups(self) -> tuple[tuple[Group, ...], str | int | None]:
        first = self.group()
        has_and = self.parse_background()
        self.accept("is")
        if relation := self.accept("relation"):
            return (first, self.group()), relation.value
        if self.kind() == "end":
            return (first,), None
        if not has_and:
            self.expect("and", "'and', a relation or a place")
        self.parse_background()
        if self.kind() == "end":
            return (first,), None
        second = self.group()
        self.accept("is")
        if self.kind() == "relation" and self.kind(1) == "it":  # a circle with a star above it
            relation = self.accept("relation")
            self.accept("it")
            return (second, first), relation.value if relation else None
        return (first, second), None

    def parse_background(self) -> bool:
        """An optional "on a blue background", "against blue" ...; whether an "and" follows it."""
        start = self.at
        self.accept("and")
        if self.accept("on", "in colour"):
            self.accept("number")
            colour = self.accept("colour")
            if colour and (self.accept("background") or self.kind() in ("end", "and")):
                if self.background is not None:
                    raise NotUnderstood(f"{self.prompt!r} speaks of two backgrounds")
                self.background = str(colour.value)
                return self.accept("and") is not None
        self.at = start
        return False

    def group(self) -> Group:
        place = self.accept("place")
        self.accept("and")
        self.accept("there is")
        number = self.accept("number")
        attributes: dict[str, str | None] = {}
        while word := self.accept("size", "colour"):
            self.set_attribute(attributes, word)
        noun = self.accept("shape", "shapes") or self.fail("a shape")
        if noun.kind == "shapes" and (number is None or number.value == 1):
            raise NotUnderstood(f"how many {noun.text}? expected one to four")
        self.postmodifiers(attributes)
        self.accept("is")
        after = self.accept("place")
        if place and after:
            raise NotUnderstood(f"{self.prompt!r} puts one object in two places")
        place, count = place or after, int(number.value or 1) if number else 1
        colour, size = attributes.get("colour"), attributes.get("size")
        return Group(noun.value, colour, size, count, place.value if place else None)  # type: ignore[arg-type]

    def postmodifiers(self, attributes: dict[str, str | None]) -> None:
        """Optional attributes after the noun: "that is small and red", "of small size", "coloured red"."""
        if self.accept("that is"):
            while word := self.accept("size", "colour"):
                self.set_attribute(attributes, word)
                if self.kind() == "and" and self.kind(1) in ("size", "colour") and not self.starts_group(1):
                    self.accept("and")
        elif self.accept("of size"):
            first = self.accept("size itself")  # of size small, of small size
            self.set_attribute(attributes, self.expect("size", "a size"))
            if first is None:
                self.expect("size itself", "'size'")
        elif self.kind() == "in colour" and self.kind(1) == "colour" and self.kind(2) != "background":
            self.at += 1
            self.set_attribute(attributes, self.expect("colour", "a colour"))

    def starts_group(self, ahead: int) -> bool:
        """Whether adjectives and a noun follow, which begin another group."""
        while self.kind(ahead) in ("size", "colour"):
            ahead += 1
        return self.kind(ahead) in ("shape", "shapes")

    def set_attribute(self, attributes: dict[str, str | None], word: Word) -> None:
        if word.kind in attributes:
            both = f"{attributes[word.kind]}, {word.value}"
            raise NotUnderstood(f"{self.prompt!r} gives one object two {word.kind}s: {both}")
        attributes[word.kind] = None if word.value is None else str(word.value)
