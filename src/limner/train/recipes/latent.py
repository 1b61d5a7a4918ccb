"""Any captioned folder of pictures, painted in the latents of its own autoencoder.

limner train vae --data.path pictures, then limner train latent --data.path pictures
"""

from limner.data.sources import Source
from limner.nets.configs import DiTConfig
from limner.train.recipe import Recipe, TextRecipe

RECIPE = Recipe(
    data=Source(path="pictures"),
    output="runs/latent",
    size=64,
    autoencoder="runs/vae",
    cache=20_000,
    network=DiTConfig(patch_size=1, hidden_size=192, depth=6, num_heads=6, pooled_text=True),
    text=TextRecipe(length=48),
    steps=4000,
    lr=2e-3,
    shift=2.0,
    beta2=0.99,
    schedule="cosine",
    ema=0.998,
    precision="bf16",
)
