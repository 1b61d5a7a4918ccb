"""The autoencoder of the world: 64x64 pictures of scenes and of digits to 16x16 latents of 8 channels.

Run on two CPU cores (Xeon with AMX, bfloat16), shared with other work: 6,500 steps of 16 in 50 minutes, 27 to 55
images/s. Mean loss over 50 steps: 0.9086 at step 50, 0.2001 at 500, 0.1671 at 1,000, 0.1078 at 2,000, 0.0720 at 4,000,
0.0541 at 5,000, 0.0408 at 6,500. (Its length was planned anew twice, from 4,000 to 8,000 steps at step 1,970 and to
6,500 at 3,724, so the learning rate was not quite this recipe's.) benchmarks/autoencoder.py, 2,000 fresh renders: PSNR
34.97 dB, 98.3% still graded as the scene they show. With 4 latent channels, 3,000 steps gave 30.6 dB and small objects
that took their neighbours' colours; levels of 16, 32, 64 and 64 channels to 8x8 latents were 3 dB behind in equal time.
"""

from limner.data.sources import Source
from limner.train.recipe import Autoencoder, AutoencoderRecipe

RECIPE = AutoencoderRecipe(
    data=Source("world=0.9,mnist=0.1"),
    output="runs/world-vae",
    size=64,
    model=Autoencoder(widths=(32, 64, 128), layers=1, latent_channels=8, groups=8),
    kl=1e-6,
    edges=1.0,
    steps=6500,
    batch_size=16,
    precision="bf16",
    lr=2e-3,
    warmup=100,
    schedule="cosine",
    ema=0.998,
    save_every=1000,
    sample_every=1000,
)
