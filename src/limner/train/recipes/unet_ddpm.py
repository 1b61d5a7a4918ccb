"""Denoising diffusion by a UNet: the ancestors of all of these (Ho et al. 2020), on MNIST padded to 32x32.

limner train unet-ddpm
"""

from limner.data.sources import Source
from limner.nets.unet_config import UNet2DConfig
from limner.train.recipe import Recipe

RECIPE = Recipe(
    data=Source("mnist", pad=2),
    output="runs/unet-ddpm",
    size=32,
    channels=1,
    condition="none",
    network=UNet2DConfig(block_out_channels=(64, 128, 128, 128), attention_head_dim=None),
    path="linear",
    predicts="eps",
    sample_steps=50,
    steps=10_000,
    lr=4e-4,
    warmup=500,
    schedule="cosine",
    ema=0.9995,
    precision="bf16",
)
