"""World-quick with a UNet in place of its transformer.

limner train world-text, then limner train world-unet
"""

from dataclasses import replace

from limner.nets.unet_config import UNetConfig
from limner.train.recipes.world_quick import RECIPE as QUICK

RECIPE = replace(
    QUICK,
    output="runs/world-unet",
    network=UNetConfig(
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
    ),
    lr=2e-3,
)
