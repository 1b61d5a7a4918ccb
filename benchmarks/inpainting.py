"""Editing scenes with the shipped model: a red star becomes a blue one by a mask, graded before and after.

    python benchmarks/inpainting.py [--model MODEL] [--count 100] [--feather 4] [--sheet FILE]

Each scene has a red star and another object in two places. The mask is a square around the star, the prompt tells the
whole scene with a blue star. Printed: how many scenes are graded as their captions before and after, how many kept
pixels changed, and the step in brightness from a kept pixel to its repainted neighbour, with and without pasting,
beside the same step in the original. The sheet shows edits, extensions and variations.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from limner.canvas import Frame, open_canvas, plan
from limner.picture import save, sheet
from limner.pipeline import Pipeline
from limner.world import PLACES, Group, Scene, caption, draw, grade, layout, scene_at

BATCH = 20


def scenes(count: int) -> list[Scene]:
    """Complete scenes of a red star and another object, in two places, on a background that is neither red nor blue."""
    found: list[Scene] = []
    index = 0
    while len(found) < count:
        index += 1
        random, scene = Random(index), scene_at(71, index, "one")
        (other,) = scene.groups
        taken = {"red", "blue"} & {scene.background, other.colour}
        if taken or other.shape == "star" or other.place is None:
            continue
        free = [p for p, at in PLACES.items() if np.hypot(*np.subtract(at, PLACES[other.place])) > 0.6]
        if not free:
            continue
        star = Group("star", "red", random.choice(("medium", "large")), place=random.choice(free))
        found.append(replace(scene, groups=(star, replace(other, size="medium"))))
    return found


def blue(scene: Scene) -> Scene:
    """The scene with a blue star."""
    star, other = scene.groups
    return replace(scene, groups=(replace(star, colour="blue"), other))


def mask_of(x: float, y: float, radius: float, size: int) -> Image.Image:
    """White in the square around an object, a third larger."""
    sides = np.clip(np.round([(c + s * 1.3 * radius) * size for s in (-1, 1) for c in (x, y)]), 0, size).astype(int)
    mask = Image.new("L", (size, size))
    mask.paste(255, tuple(sides.tolist()))
    return mask


def border_step(picture: Image.Image, mask: Image.Image) -> float:
    """The mean difference in brightness (0 to 255) between a kept pixel and its repainted neighbour."""
    light, area = np.asarray(picture.convert("L"), np.float32), np.asarray(mask) > 0
    steps = [np.abs(np.diff(light, axis=axis))[np.diff(area, axis=axis)] for axis in (0, 1)]
    return float(np.concatenate(steps).mean())


def main() -> None:
    """Paint, grade, print, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--feather", type=int, default=4)
    parser.add_argument("--sheet")
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained(args.model)
    size, asked = pipe.model.size, scenes(args.count)
    layouts = [layout(scene, Random(k)) for k, scene in enumerate(asked)]
    before = [Image.fromarray(picture) for picture in draw(layouts, size)]
    masks = [mask_of(each.objects[0].x, each.objects[0].y, each.objects[0].radius, size) for each in layouts]
    prompts = [caption(blue(scene), Random(k)) for k, scene in enumerate(asked)]

    def edit(**options: object) -> list[Image.Image]:
        done: list[Image.Image] = []
        for i in range(0, args.count, BATCH):
            part = slice(i, i + BATCH)
            done += pipe(prompts[part], image=before[part], mask=masks[part], seed=i, **options)
        return done

    after, hard, whole = edit(feather=args.feather), edit(), edit(paste=False)
    for name, pictures, wanted in (
        ("red star, before", before, asked),
        ("blue star, before", before, [blue(scene) for scene in asked]),
        ("blue star, after", after, [blue(scene) for scene in asked]),
        ("blue star, without feather", hard, [blue(scene) for scene in asked]),
        ("blue star, without pasting", whole, [blue(scene) for scene in asked]),
    ):
        right = sum(grade(picture, scene).obeyed for picture, scene in zip(pictures, wanted, strict=True))
        print(f"{name}: {right} of {args.count} obeyed")
    changed = sum(
        int((np.asarray(a) != np.asarray(b))[np.asarray(m) == 0].sum())
        for a, b, m in zip(after, before, masks, strict=True)
    )
    print(f"kept pixels that changed: {changed}")
    for name, pictures in (("original", before), ("feathered", after), ("pasted", hard), ("without pasting", whole)):
        steps = [border_step(picture, mask) for picture, mask in zip(pictures, masks, strict=True)]
        print(f"step across the mask's border, {name}: {np.mean(steps):.2f} of 255")
    sides = [extended(pipe, picture, prompt) for picture, prompt in zip(before[:20], prompts[:20], strict=True)]
    for i, name in enumerate(("feathered", "pasted", "without pasting")):
        print(f"step across the seam of an extension, {name}: {np.mean([steps[i] for steps in sides]):.2f} of 255")
    if args.sheet:
        save(page(pipe, before, masks, after, prompts, [scene.background for scene in asked]), Path(args.sheet))


def extended(pipe: Pipeline, picture: Image.Image, prompt: str) -> list[float]:
    """The step across the seam of an extension to the right: feathered by default, without feather, without pasting."""
    model = pipe.model
    frame = Frame(model.network.multiple * model.factor, model.size, model.channels)
    canvas = open_canvas([picture], [], plan(picture.size, None, None, "right=32", frame), frame)
    mask = Image.fromarray(canvas.masks[0].astype(np.uint8) * 255)
    options: tuple[dict[str, Any], ...] = ({}, {"feather": 0}, {"paste": False})
    return [border_step(pipe(prompt, image=picture, extend="right=32", **each)[0], mask) for each in options]


def page(
    pipe: Pipeline,
    before: list[Image.Image],
    masks: list[Image.Image],
    after: list[Image.Image],
    prompts: list[str],
    backgrounds: list[str | None],
) -> Image.Image:
    """Edits (before, mask, after), extensions and variations, with captions."""
    cells: list[tuple[Image.Image, str]] = []
    for i in range(4):
        grey = Image.blend(before[i], Image.merge("RGB", [masks[i]] * 3), 0.6)
        cells += [(before[i], "a scene"), (grey, "its mask"), (after[i], prompts[i])]
    for i, sides in enumerate(("left=32", "right=32", "top=32", "left=16,right=16")):
        (wide,) = pipe(f"a large yellow circle on a {backgrounds[4 + i]} background", image=before[4 + i], extend=sides)
        cells += [(before[4 + i], "a scene"), (wide, f"extend {sides}")]
    for strength in (0.0, 0.15, 0.3, 0.5):
        variation = {"variation_seed": 7, "variation_strength": strength}
        (picture,) = pipe("a large red heart on a yellow background", seed=3, **variation)
        cells.append((picture, f"variation {strength:g}"))
    side = max(max(picture.size) for picture, _ in cells)
    squares = []
    for picture, _ in cells:
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        squares.append(square)
    return sheet(squares, [text for _, text in cells], columns=6, scale=2)


if __name__ == "__main__":
    main()
