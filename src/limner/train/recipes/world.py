"""Composition, and digits, at 64x64 pixels, in the latents of the shipped autoencoder (`world-vae`): the shipped model.

limner train world --data.name world=0.9,PATH_TO_MNIST=0.1, two CPU cores (EPYC, Zen 4), bfloat16. Not yet run from
nothing to its end: the shipped weights came in parts (docs/experiments.md), 1.3 million pictures in three hours at 119
to 172 images/s, mean loss over 50 steps 0.1348 at the last.
"""

from limner.data.sources import Source
from limner.nets.configs import DiTConfig
from limner.train.recipe import Recipe, TextRecipe

RECIPE = Recipe(
    data=Source("world=0.9,mnist=0.1"),
    output="runs/world",
    size=64,
    autoencoder="shipped",
    cache=72_000,
    network=DiTConfig(patch_size=4, hidden_size=256, depth=5, num_heads=8, conv_channels=64),
    text=TextRecipe(length=48),
    steps=20_000,
    shift=2.0,
    lr=1.5e-3,
    warmup=300,
    schedule="cosine",
    precision="bf16",
    sample_every=2000,
    grade=50,
    sample_prompts=("a large red heart in the centre on a white background", "a small blue star in the top left",
                    "three green circles", "a yellow ring above a purple square", "a pink cross left of a black moon",
                    "two small orange diamonds below a big blue triangle", "a purple star", "a green heart on black",
                    "four brown squares on a yellow background", "the digit seven", "a handwritten 3",
                    "a white crescent in the bottom right on a blue background"),
)  # fmt: skip
