"""Handwritten digits from noise alone: the smallest flow-matching run, minutes on a laptop.

Run on two CPU cores (Xeon, 2.5 GHz) for 1,000 steps of 64 (1.1 epochs, two minutes): 1.3 M parameters, 726 to 804
images/s. Mean loss over 100 steps: 1.3764 at step 100, 0.3726 at 500, 0.3329 at 1,000. Its pictures are strokes by
then, not yet digits.
"""

from limner.data.sources import Source
from limner.train.recipe import Recipe, Transformer

RECIPE = Recipe(
    data=Source("mnist"),
    output="runs/mnist-unconditional",
    size=28,
    channels=1,
    condition="none",
    model=Transformer(patch_size=7, hidden_size=128, depth=4, num_heads=4),
    steps=2000,
    batch_size=64,
    lr=1e-3,
    schedule="cosine",
)
