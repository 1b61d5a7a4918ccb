"""Handwritten digits from noise alone by a deeper transformer over smaller patches."""

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
