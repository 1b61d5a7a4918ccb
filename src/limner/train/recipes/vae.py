"""An autoencoder of any folder of pictures, at any size: latents of 8 channels at an eighth of its sides.

limner data world --count 2000 --size 64 --out pictures, then limner train vae --data.path pictures
"""

from limner.data.sources import Source
from limner.nets.configs import AutoencoderKLConfig
from limner.train.recipe import AutoencoderRecipe

RECIPE = AutoencoderRecipe(
    data=Source(path="pictures"),
    output="runs/vae",
    size=64,
    network=AutoencoderKLConfig(
        block_out_channels=(24, 48, 96, 96), layers_per_block=1, latent_channels=8, norm_num_groups=8,
        use_quant_conv=False, use_post_quant_conv=False,
    ),
    steps=3000,
    batch_size=16,
    precision="bf16",
    lr=2e-3,
    schedule="cosine",
    ema=0.998,
)  # fmt: skip
