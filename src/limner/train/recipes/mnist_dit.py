"""Handwritten digits from noise alone by a deeper transformer over smaller patches.

limner train mnist-dit, two CPU cores (Xeon, 2.5 GHz), in part: 150 of 6,000 steps of 64 at 121 to 136 images/s, mean
loss over 50 steps 0.4713. The curve is in docs/experiments.md.
"""

from limner.data.sources import Source
from limner.nets.configs import DiTConfig
from limner.train.recipe import Recipe

RECIPE = Recipe(
    data=Source("mnist"),
    output="runs/mnist-dit",
    size=28,
    channels=1,
    condition="none",
    network=DiTConfig(patch_size=4, hidden_size=192, depth=6, num_heads=6),
    steps=6000,
    lr=5e-4,
    schedule="cosine",
)
