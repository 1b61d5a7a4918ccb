"""Photographs from words, 32x32, by a wider and deeper transformer over 2x2 patches: for a GPU."""

from dataclasses import replace

from limner.train.recipe import TextEncoder, Transformer
from limner.train.recipes.cifar10_text import RECIPE as SMALL

RECIPE = replace(
    SMALL,
    output="runs/cifar10-text-large",
    model=Transformer(patch_size=2, hidden_size=512, depth=12, num_heads=8),
    text=TextEncoder(hidden_size=512, layers=4, num_heads=8, length=16, vocab_size=1000),
    batch_size=256,
    steps=40_000,
    lr=3e-4,
    warmup=1000,
    schedule="cosine",
    ema=0.9995,
    precision="bf16",
    compile=True,
)
