"""Draws by number: picture `index` of a world depends on (seed, index) alone; and fresh prompts for evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from limner.world.grammar import caption
from limner.world.render import render
from limner.world.scene import Scene, partial, random_held_out, random_scene

ENDLESS = 2**40  # pictures in a world of no stated size
# How much captions specify of what may be left open: the share, drawn for each caption. Mostly all, as the rest can
# only be guessed (Betker et al. 2023 train on 95% long captions): with a sixth of the backgrounds unspecified a small
# denoiser had learned no places after 47,000 pictures; with all of them specified it got 97% right.
CAPTION_SHARES = (0.5, *[1.0] * 15)
PROMPT_SHARES = (0.5, 1.0, 1.0)  # the same of prompts for evaluation
SCENE, LAYOUT, CAPTION = range(3)  # the streams of draws of a picture


def _key(seed: int, index: int, stream: int) -> int:
    return (seed * 4 + stream) * ENDLESS + index


def scene_at(seed: int, index: int, kind: str | None = None) -> Scene:
    """The complete scene of picture `index`; `kind` is one of scene.KINDS, or None for all of them."""
    return random_scene(Random(_key(seed, index, SCENE)), kind)


def pictures_at(seed: int, indices: Sequence[int], size: int, kind: str | None = None) -> np.ndarray:
    """The pictures at `indices`, uint8 (B, size, size, 3)."""
    keys = [_key(seed, index, LAYOUT) for index in indices]
    return render([scene_at(seed, index, kind) for index in indices], size, keys)


def caption_at(seed: int, index: int, kind: str | None = None) -> str:
    """One caption of picture `index`, drawn by the picture's own key."""
    return draw_caption(scene_at(seed, index, kind), Random(_key(seed, index, CAPTION)))


def draw_caption(scene: Scene, random: Random) -> str:
    """One of the many captions of a scene, which states most or all of it."""
    return caption(partial(scene, random, random.choice(CAPTION_SHARES)), random)


def prompts(kind: str, count: int, held_out: bool, seed: int = 0) -> list[tuple[str, Scene]]:
    """Fresh prompts of one kind (scene.KINDS), each with the scene it states.

    Those of one object specify all but the background, which half of them do; the others five in six of what may be
    left open.
    """
    random = Random(f"{kind} {held_out} {seed}")
    draw = random_held_out if held_out else random_scene
    pairs = []
    for _ in range(count):
        scene = draw(random, kind)
        if kind == "one":
            scene = replace(scene, background=random.choice((scene.background, None)))
        else:
            scene = partial(scene, random, random.choice(PROMPT_SHARES))
        pairs.append((caption(scene, random), scene))
    return pairs
