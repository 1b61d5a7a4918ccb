"""Handwritten digits by class, with classifier-free guidance: a tenth of the labels is dropped."""

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
