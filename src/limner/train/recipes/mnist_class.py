"""Handwritten digits by class, with classifier-free guidance: a tenth of the labels is dropped.

Run here in part, on two CPU cores (Xeon, 2.5 GHz): 300 of 4,000 steps of 64, 1.9 M parameters, 202 to 246 images/s.
Mean loss over 50 steps: 1.5794 at step 50, 0.4410 at 150, 0.3529 at 300.
"""

from limner.data.sources import Source
from limner.train.recipe import Recipe, Transformer

RECIPE = Recipe(
    data=Source("mnist"),
    output="runs/mnist-class",
    size=28,
    channels=1,
    condition="class",
    model=Transformer(patch_size=4, hidden_size=128, depth=6, num_heads=4),
    dropout=0.1,
    steps=4000,
    batch_size=64,
    lr=1e-3,
    schedule="cosine",
)
