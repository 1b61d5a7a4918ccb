"""One object of any shape, colour, size and place, in the latents of the shipped autoencoder, within half an hour.

Run whole on one of two CPU cores (EPYC, Zen 4, bfloat16), the other busy: 5,200 steps of 32 in 30 minutes, the
encoding of its 24,000 pictures included, 90 to 138 images/s. Mean loss over 50 steps: 1.6859 at step 50, 0.3528 at 500,
0.2646 at 1,000, 0.1916 at 2,000, 0.1489 at 3,000, 0.1341 at 4,000, 0.1252 at 5,200. Of 100 prompts 7 were obeyed at
step 3,000, 14 at 5,000, 17 at the end: colours, sizes and places come first, shapes last. In pixels (32x32, patch 8)
31,000 pictures gave the background alone.
"""

from limner.data.sources import Source
from limner.train.recipe import Recipe, TextEncoder, Transformer

RECIPE = Recipe(
    data=Source("world:one"),
    output="runs/world-quick",
    size=64,
    autoencoder="shipped",
    cache=24_000,
    model=Transformer(patch_size=4, hidden_size=256, depth=6, num_heads=8),
    text=TextEncoder(hidden_size=128, layers=2, num_heads=4, length=48, vocab_size=1000),
    steps=5200,
    batch_size=32,
    shift=2.0,
    lr=1.5e-3,
    warmup=200,
    schedule="cosine",
    ema=0.999,
    precision="bf16",
    save_every=1000,
    sample_every=1000,
    grade=100,
    sample_prompts=("a large red heart in the centre", "a small blue star in the top left", "a purple star",
                    "a green heart on black", "a white crescent in the bottom right", "a yellow ring on the left"),
)  # fmt: skip
