"""Handwritten digits from words: the recipe of the shipped model."""

from limner.data.sources import Source
from limner.train.recipe import Recipe, TextEncoder, Transformer

RECIPE = Recipe(
    data=Source("mnist"),
    output="runs/mnist-text",
    size=28,
    channels=1,
    condition="text",
    model=Transformer(patch_size=4, hidden_size=128, depth=6, num_heads=4),
    text=TextEncoder(hidden_size=128, layers=2, num_heads=4, length=16, vocab_size=1000),
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
