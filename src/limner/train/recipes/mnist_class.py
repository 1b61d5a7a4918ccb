"""Handwritten digits by class, with classifier-free guidance: a tenth of the labels is dropped.

limner train mnist-class, two CPU cores (Xeon, 2.5 GHz), in part: 300 of 4,000 steps of 64 at 202 to 246 images/s, mean
loss over 50 steps 0.3529. The curve is in docs/experiments.md.
"""

from limner.data.sources import Source
from limner.nets.configs import DiTConfig
from limner.train.recipe import Recipe

RECIPE = Recipe(
    data=Source("mnist"),
    output="runs/mnist-class",
    size=28,
    channels=1,
    condition="class",
    network=DiTConfig(patch_size=4, hidden_size=128, depth=6, num_heads=4),
    steps=4000,
    lr=1e-3,
    schedule="cosine",
)
