"""Handwritten digits from noise alone: the smallest flow-matching run, minutes on a laptop."""

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
