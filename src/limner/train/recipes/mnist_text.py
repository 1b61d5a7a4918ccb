"""Handwritten digits from words, in pixels: the smallest model that obeys.

limner train mnist-text, two CPU cores (Xeon, 2.5 GHz), compiled: 6,000 steps of 64 in an hour at 120 to 180 images/s,
mean loss over 50 steps 0.1750; benchmarks/digits.py: 1,000 of 1,000 digits right. See docs/experiments.md.
"""

from limner.data.sources import Source
from limner.nets.configs import DiTConfig
from limner.train.recipe import Recipe

RECIPE = Recipe(
    data=Source("mnist"),
    output="runs/mnist-text",
    size=28,
    channels=1,
    network=DiTConfig(patch_size=4, hidden_size=128, depth=6, num_heads=4),
    steps=6000,
    lr=1e-3,
    warmup=200,
    schedule="cosine",
    compile=True,
    sample_prompts=("a handwritten zero", "the digit 1", "a two", "3", "number four", "a drawing of a 5",
                    "a picture of the digit 6", "a handwritten seven", "the number 8", "nine"),
)  # fmt: skip
