"""Photographs from words, 32x32: CIFAR-10 with its captions in many phrasings.

limner train cifar10-text, two CPU cores (Xeon, 2.5 GHz), in part: 300 of 23,437 steps of 64 at 38 to 49 images/s, mean
loss over 10 steps 0.3120, pictures still noise. The curve is in docs/experiments.md.
"""

from limner.data.sources import Source
from limner.nets.configs import DiTConfig
from limner.train.recipe import Recipe, TextRecipe

RECIPE = Recipe(
    data=Source("cifar10"),
    output="runs/cifar10-text",
    flip=True,
    network=DiTConfig(patch_size=4, hidden_size=256, depth=6, num_heads=8),
    text=TextRecipe(hidden_size=512, num_heads=8),
    steps=30 * 50_000 // 64,
    sample_prompts=(
        "a photo of an airplane", "a photo of a car", "a photo of a bird", "a photo of a cat", "a photo of a deer",
        "a photo of a dog", "a photo of a frog", "a photo of a horse", "a photo of a ship", "a photo of a truck",
    ),
)  # fmt: skip
