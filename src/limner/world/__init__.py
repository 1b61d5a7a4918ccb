"""The captioned world: a procedural data set that is graded exactly. Needs numpy, scipy and Pillow, no torch.

`scene` says what may be in a picture, `grammar` states it in words and parses them, `render` draws it, `find` detects
it again, `grade` compares; `draws` gives pictures, captions and prompts by number.
"""

from limner.world.draws import ENDLESS, caption_at, draw_caption, pictures_at, prompts, scene_at
from limner.world.find import MIN_SIDE, DetectedObject, Detection, find
from limner.world.grade import Claim, Verdict, grade, judge
from limner.world.grammar import NotUnderstood, caption, parse
from limner.world.lexicon import article
from limner.world.render import PLACE_JITTER, Layout, Object, draw, layout, render
from limner.world.scene import (
    COLOURS,
    KINDS,
    MAX_OBJECTS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Group,
    Scene,
    complete,
    held_out,
    partial,
    random_held_out,
    random_scene,
)

__all__ = [
    "COLOURS",
    "ENDLESS",
    "KINDS",
    "MAX_OBJECTS",
    "MIN_SIDE",
    "PLACES",
    "PLACE_JITTER",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Claim",
    "DetectedObject",
    "Detection",
    "Group",
    "Layout",
    "NotUnderstood",
    "Object",
    "Scene",
    "Verdict",
    "article",
    "caption",
    "caption_at",
    "complete",
    "draw",
    "draw_caption",
    "find",
    "grade",
    "held_out",
    "judge",
    "layout",
    "parse",
    "partial",
    "pictures_at",
    "prompts",
    "random_held_out",
    "random_scene",
    "render",
    "scene_at",
]
