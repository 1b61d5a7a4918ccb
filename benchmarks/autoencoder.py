"""Reconstruction of fresh renders by an autoencoder: PSNR, the share graded as their scene, and a sheet.

python benchmarks/autoencoder.py [--model MODEL] [--count 2000] [--sheet FILE]
"""

import argparse
from pathlib import Path

import torch

from limner.data.world import World
from limner.picture import save, sheet, to_pictures
from limner.train.setup import open_autoencoder
from limner.world import grade


def main() -> None:
    """Print the mean PSNR of the pictures, and the PSNR of the mean error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shipped")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--sheet")
    args = parser.parse_args()
    vae, world = open_autoencoder(args.model), World(seed=99)  # a seed that no recipe trains on
    errors, shown, obeyed = [], [], 0
    for start in range(0, args.count, 50):
        indices = range(start, min(start + 50, args.count))
        x = world.load(indices, args.size, 3).images.float() / 127.5 - 1
        with torch.inference_mode():
            y = vae.decode(vae.encode(x.contiguous(memory_format=torch.channels_last)).mean).clamp(-1, 1)
        errors.append(((x - y) / 2).square().mean(dim=(1, 2, 3)))
        scenes = (world.scene(index) for index in indices)
        obeyed += sum(grade(picture, scene).obeyed for picture, scene in zip(to_pictures(y), scenes, strict=True))
        if len(shown) < 2:
            shown.append(torch.stack([x[:32], y[:32]], dim=1).flatten(0, 1))
    error = torch.cat(errors)
    each = -10 * error.log10()
    print(f"{args.count} fresh renders at {args.size}x{args.size}: PSNR {each.mean():.2f} dB (mean of the pictures'),")
    print(f"{-10 * error.mean().log10():.2f} dB (of the mean error), lowest {each.min():.2f} dB")
    print(f"{obeyed / args.count:.1%} are still graded as the scene they show")
    if args.sheet:
        save(sheet(to_pictures(torch.cat(shown)), columns=8, scale=2), Path(args.sheet))


if __name__ == "__main__":
    main()
