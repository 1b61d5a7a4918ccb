"""Random draws keyed by (seed, index): pictures, captions and evaluation prompts of the world."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from limner.world.grammar import caption
from limner.world.render import render
from limner.world.scene import Scene, partial, random_held_out, random_scene

ENDLESS = 2**40  # pictures in a world of no stated size
# The share of optional attributes that a caption specifies. Mostly all (as in Betker et al. 2023: 95% long captions):
# with a sixth of the backgrounds unspecified a small denoiser learns no places (docs/experiments.md).
CAPTION_SHARES = (0.5, *[1.0] * 15)
PROMPT_SHARES = (0.5, 1.0, 1.0)  # the same for evaluation prompts
SCENE, LAYOUT, CAPTION = range(3)  # independent streams of random draws of a picture


def _key(seed: int, index: int, stream: int) -> int:
    return (seed * 4 + stream) * ENDLESS + index


def scene_at(seed: int, index: int, kind: str | None = None) -> Scene:
    """The complete scene of picture `index`; `kind` is one of scene.KINDS, or None for all."""
    return random_scene(Random(_key(seed, index, SCENE)), kind)


def pictures_at(seed: int, indices: Sequence[int], size: int, kind: str | None = None) -> np.ndarray:
    """The pictures at `indices`, uint8 (B, size, size, 3)."""
    keys = [_key(seed, index, LAYOUT) for index in indices]
    return render([scene_at(seed, index, kind) for index in indices], size, keys)


def caption_at(seed: int, index: int, kind: str | None = None) -> str:
    """The caption of picture `index` by its own key."""
    return draw_caption(scene_at(seed, index, kind), Random(_key(seed, index, CAPTION)))


def draw_caption(scene: Scene, random: Random) -> str:
    """A random caption of a scene, which specifies most or all of it."""
    return caption(partial(scene, random, random.choice(CAPTION_SHARES)), random)


def prompts(kind: str, count: int, held_out: bool, seed: int = 0) -> list[tuple[str, Scene]]:
    """`count` prompts of one kind of scene (scene.KINDS), each with its scene; `held_out` or seen compositions.

    Those of one object specify all but half of the backgrounds, the others 5/6 of the optional attributes.
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
