"""Photographs from words, 32x32: CIFAR-10 with its captions in many phrasings."""

from limner.data.sources import Source
from limner.train.recipe import Recipe, TextEncoder, Transformer

RECIPE = Recipe(
    data=Source("cifar10"),
    output="runs/cifar10-text",
    size=32,
    channels=3,
    flip=True,
    condition="text",
    model=Transformer(patch_size=4, hidden_size=256, depth=6, num_heads=8),
    text=TextEncoder(hidden_size=512, layers=2, num_heads=8, length=16, vocab_size=1000),
    dropout=0.1,
    steps=30 * 50_000 // 64,
    batch_size=64,
    lr=1e-4,
    sample_prompts=(
        "a photo of an airplane", "a photo of a car", "a photo of a bird", "a photo of a cat", "a photo of a deer",
        "a photo of a dog", "a photo of a frog", "a photo of a horse", "a photo of a ship", "a photo of a truck",
    ),
)  # fmt: skip
