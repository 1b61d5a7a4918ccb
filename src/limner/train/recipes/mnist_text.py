"""Handwritten digits from words, in pixels: the smallest model that obeys.

limner train mnist-text, two CPU cores (Xeon, 2.5 GHz), compiled: 6,000 steps of 64 in an hour at 120 to 180 images/s,
mean loss over 50 steps 0.1750; benchmarks/digits.py reads 1,000 of 1,000 digits as asked. See docs/experiments.md.
"""

from limner.data.sources import Source
from limner.nets.dit import DiTConfig
from limner.train.recipe import Recipe, TextRecipe

RECIPE = Recipe(
    data=Source("mnist"),
    output="runs/mnist-text",
    size=28,
    channels=1,
    condition="text",
    network=DiTConfig(patch_size=4, hidden_size=128, depth=6, num_heads=4),
    text=TextRecipe(hidden_size=128, layers=2, num_heads=4, length=16, vocab_size=1000),
    steps=6000,
    batch_size=64,
    lr=1e-3,
    warmup=200,
    schedule="cosine",
    ema=0.999,
    compile=True,
    sample_prompts=("a handwritten zero", "the digit 1", "a two", "3", "number four", "a drawing of a 5",
                    "a picture of the digit 6", "a handwritten seven", "the number 8", "nine"),
)  # fmt: skip
