"""World-quick with pictures and words in one sequence: an MMDiT, whose joint attention changes the words too.

limner train world-text, then limner train world-mmdit
"""

from dataclasses import replace

from limner.nets.mmdit_config import MMDiTConfig
from limner.train.recipes.world_quick import RECIPE as QUICK

RECIPE = replace(
    QUICK,
    output="runs/world-mmdit",
    network=MMDiTConfig(patch_size=4, hidden_size=192, depth=4, num_heads=6, conv_channels=32),
)
