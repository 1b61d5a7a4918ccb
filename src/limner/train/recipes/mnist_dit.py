"""Handwritten digits from noise alone by a deeper transformer over smaller patches.

Run here in part, on two CPU cores (Xeon, 2.5 GHz): 150 of 6,000 steps of 64, 4.2 M parameters, 121 to 136 images/s.
Mean loss over 50 steps: 1.6195 at step 50, 1.0284 at 100, 0.4713 at 150.
"""

from limner.data.sources import Source
from limner.train.recipe import Recipe, Transformer

RECIPE = Recipe(
    data=Source("mnist"),
    output="runs/mnist-dit",
    size=28,
    channels=1,
    condition="none",
    model=Transformer(patch_size=4, hidden_size=192, depth=6, num_heads=6),
    steps=6000,
    batch_size=64,
    lr=5e-4,
    schedule="cosine",
)
