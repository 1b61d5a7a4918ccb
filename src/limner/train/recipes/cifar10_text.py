"""Photographs from words, 32x32: CIFAR-10 with its captions in many phrasings.

The shape of the notebook "From Noise to Images" (width 256, depth 6, 8 heads, patch 4, text width 512; batch 64, rate
1e-4, dropout 10%), with a 256-wide time condition and a text encoder of its own trained along: 9.8 M parameters and
6.6 M. The notebook's mean loss falls from 0.5415 in its first epoch to 0.1997 in its thirtieth.

Run here only in part, on two CPU cores (Xeon, 2.5 GHz): 300 of 23,437 steps (0.4 epochs), stopped and resumed at step
150, 38 to 49 images/s eager. Mean loss over 10 steps: 1.2518 at step 10, 1.1876 at 50, 0.9266 at 100, 0.3936 at 150,
0.3562 at 200, 0.3236 at 250, 0.3120 at 300. Its pictures are coloured noise at that point.
"""

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
