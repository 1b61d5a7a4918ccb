"""The autoencoder of the world: 64x64 pictures of scenes and of digits to 16x16 latents of 8 channels.

limner train world-vae --data.name world=0.9,PATH_TO_MNIST=0.1, two CPU cores (Xeon with AMX), bfloat16: 6,500 steps of
16 in 50 minutes at 27 to 55 images/s, mean loss over 50 steps 0.0408; benchmarks/autoencoder.py: PSNR 34.97 dB, 98.3%
of 2,000 renders graded as the scene they show. See docs/experiments.md.
"""

from dataclasses import replace

from limner.data.sources import Source
from limner.train.recipe import SMALL_AUTOENCODER, AutoencoderRecipe

RECIPE = AutoencoderRecipe(
    data=Source("world=0.9,mnist=0.1"),
    output="runs/world-vae",
    size=64,
    network=replace(SMALL_AUTOENCODER, latent_channels=8),
    steps=6500,
    batch_size=16,
    precision="bf16",
    lr=2e-3,
    warmup=100,
    schedule="cosine",
    ema=0.998,
)
