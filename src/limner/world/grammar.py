"""From scenes to sentences and back.

`caption` draws one of the many sentences that state a scene; `parse` inverts it, for these sentences and others like
them: `parse(caption(scene, random)) == scene`.
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
    """A prompt outside the grammar: a model may paint it, but it cannot be graded."""


# ---- from scenes to words


def _pick(words: tuple[str, ...], random: Random, canonical: float = 0.6) -> str:
    """The canonical word, the first, with that probability; else one of its synonyms."""
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
    """One of the many sentences that state the specified attributes of `scene`, and no others."""
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


# ---- from words to scenes


def split_phrases(prompt: str) -> list[Word]:
    """The phrases of a prompt, by longest match, without fillers. NotUnderstood names the first unknown word."""
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
    """The message for a word that is unknown (with the nearest known), or known only as part of a phrase."""
    parts = {part: " ".join(phrase) for phrase in reversed(lexicon()) for part in phrase}  # the first phrase stays
    if word in parts:
        return f"{word!r} is understood only as in {parts[word]!r}."
    near = get_close_matches(word, parts, 1)
    return f"{word!r} is not a word of this world" + (f", did you mean {near[0]!r}?" if near else ".")


def parse(prompt: str) -> Scene:
    """The scene that a prompt states. NotUnderstood where it is no sentence of the grammar, or an impossible scene."""
    return _Parser(prompt).scene()


class _Parser:
    """Recursive descent over the words of one prompt."""

    def __init__(self, prompt: str) -> None:
        self.prompt, self.words, self.at = prompt, split_phrases(prompt), 0
        self.background: str | None = None

    def kind(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.words[at].kind if at < len(self.words) else "end"

    def take(self, *kinds: str) -> Word | None:
        """The next word where it is of one of these kinds."""
        if self.kind() not in kinds:
            return None
        self.at += 1
        return self.words[self.at - 1]

    def need(self, kind: str, expected: str) -> Word:
        word = self.take(kind)
        return word if word is not None else self.fail(expected)

    def fail(self, expected: str):
        if self.kind() == "too many":
            raise NotUnderstood(f"{self.words[self.at].text!r} is too many: a scene has one to four objects")
        found = f"before {self.words[self.at].text!r}" if self.at < len(self.words) else "at the end"
        raise NotUnderstood(f"expected {expected} {found} of {self.prompt!r}. This world knows {LIMITS}")

    def scene(self) -> Scene:
        self.ground()
        self.take("opening")
        self.take("there is")
        if relation := self.take("relation"):  # above a circle there is a star
            second = self.group()
            self.take("and")
            self.take("there is")
            groups: tuple[Group, ...] = (self.group(), second)
            name = relation.value
        else:
            groups, name = self.groups()
        self.ground()
        if self.kind() != "end":
            self.fail("nothing more")
        try:
            return Scene(groups, None if name is None else str(name), self.background)
        except LimnerError as error:
            raise NotUnderstood(f"{self.prompt!r} cannot be painted: {error}") from error

    def groups(self) -> tuple[tuple[Group, ...], str | int | None]:
        first = self.group()
        joined = self.ground()
        self.take("is")
        if relation := self.take("relation"):
            return (first, self.group()), relation.value
        if self.kind() == "end":
            return (first,), None
        if not joined:
            self.need("and", "'and', a relation or a place")
        self.ground()
        if self.kind() == "end":
            return (first,), None
        second = self.group()
        self.take("is")
        if self.kind() == "relation" and self.kind(1) == "it":  # a circle with a star above it
            relation = self.take("relation")
            self.take("it")
            return (second, first), relation.value if relation else None
        return (first, second), None

    def ground(self) -> bool:
        """on a blue background, against blue, on blue; or nothing. Whether an "and" follows."""
        start = self.at
        self.take("and")
        if self.take("on", "in colour"):
            self.take("number")
            colour = self.take("colour")
            if colour and (self.take("background") or self.kind() in ("end", "and")):
                if self.background is not None:
                    raise NotUnderstood(f"{self.prompt!r} speaks of two backgrounds")
                self.background = str(colour.value)
                return self.take("and") is not None
        self.at = start
        return False

    def group(self) -> Group:
        place = self.take("place")
        self.take("and")
        self.take("there is")
        number = self.take("number")
        attributes: dict[str, str | None] = {}
        while word := self.take("size", "colour"):
            self.note(attributes, word)
        noun = self.take("shape", "shapes") or self.fail("a shape")
        if noun.kind == "shapes" and (number is None or number.value == 1):
            raise NotUnderstood(f"say how many {noun.text}: one to four")
        self.described(attributes)
        self.take("is")
        after = self.take("place")
        if place and after:
            raise NotUnderstood(f"{self.prompt!r} puts one object in two places")
        spot, count = place or after, int(number.value or 1) if number else 1
        colour, size = attributes.get("colour"), attributes.get("size")
        return Group(noun.value, colour, size, count, spot.value if spot else None)  # type: ignore[arg-type]

    def described(self, attributes: dict[str, str | None]) -> None:
        """The attributes after the noun: that is small and red, of small size, coloured red."""
        if self.take("that is"):
            while word := self.take("size", "colour"):
                self.note(attributes, word)
                if self.kind() == "and" and self.kind(1) in ("size", "colour") and not self.starts_group(1):
                    self.take("and")
        elif self.take("of size"):
            first = self.take("size itself")  # of size small, of small size
            self.note(attributes, self.need("size", "a size"))
            if first is None:
                self.need("size itself", "'size'")
        elif self.kind() == "in colour" and self.kind(1) == "colour" and self.kind(2) != "background":
            self.at += 1
            self.note(attributes, self.need("colour", "a colour"))

    def starts_group(self, ahead: int) -> bool:
        """Whether adjectives and then a noun come next: another group, not more attributes of this one."""
        while self.kind(ahead) in ("size", "colour"):
            ahead += 1
        return self.kind(ahead) in ("shape", "shapes")

    def note(self, attributes: dict[str, str | None], word: Word) -> None:
        if word.kind in attributes:
            both = f"{attributes[word.kind]}, {word.value}"
            raise NotUnderstood(f"{self.prompt!r} gives one object two {word.kind}s: {both}")
        attributes[word.kind] = None if word.value is None else str(word.value)
