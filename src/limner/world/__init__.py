"""The captioned world: a procedural dataset with an exact grader. Needs numpy, scipy and Pillow, no torch.

`scene` defines scenes, `grammar` turns them into captions and parses prompts, `render` draws them, `find` detects
objects, `grade` compares them with a scene; `draws` has pictures, captions and prompts by index.
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
