"""Training steps of a DiT on pixels, a DiT on latents and a UNet, against diffusers' networks of the nearest size.

    python benchmarks/train.py

Forward, backward and AdamW at batch 64 on random pictures and text; the models are interleaved in one process against
drift of the machine's speed. The UNets are equal; the transformers' sizes differ slightly (diffusers' is PixArt's), so
GFLOP/s are compared besides images/s. The peak is that of a matrix product between the rounds. The FLOPs inside
attention, equal for both, are not counted.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import diffusers
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limner.nets.configs import DiTConfig
from limner.nets.network import Network
from limner.train.recipe import Recipe, load_recipe
from limner.weights.parts import build

TEXT, LENGTH = 512, 16
# (x (B, C, H, W), t (B,), text (B, L, C), mask (B, L)) -> F
Forward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """The network of a `recipe` on x (B, channels, side, side), and diffusers' peer of a configuration."""

    recipe: str
    channels: int
    side: int
    peer: Callable[[object, int, int], nn.Module]


def pixart(config: DiTConfig, channels: int, side: int) -> nn.Module:
    """PixArt's transformer of the same width, depth, heads and patch."""
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=config.num_heads, attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=channels, out_channels=channels, num_layers=config.depth, cross_attention_dim=config.hidden_size,
        sample_size=side, patch_size=config.patch_size, caption_channels=TEXT, use_additional_conditions=False,
    )  # fmt: skip


def unet(config: object, channels: int, side: int) -> nn.Module:
    """The same UNet."""
    return diffusers.UNet2DModel.from_config(config.to_dict())  # type: ignore[attr-defined]


CASES = {
    "DiT on pixels": Case("cifar10-text", 3, 32, pixart),
    "DiT on latents": Case("latent", 8, 16, pixart),
    "UNet": Case("unet-ddpm", 1, 32, unet),
}


@dataclass
class Arguments:
    """Time limner's training step against diffusers'."""

    batch: int = 64
    rounds: int = 8
    """Timed rounds of `steps` steps of every model."""
    steps: int = 3
    no_compile: bool = False
    """Leave the compiled models out."""
    cases: tuple[str, ...] = tuple(CASES)


def trainer(net: nn.Module, forward: Forward, batch: int, case: Case) -> Callable[[], None]:
    """A function that runs one training step of `net`."""
    x, noise = torch.randn(2, batch, case.channels, case.side, case.side).unbind()
    t, text = torch.rand(batch) * 1000, torch.randn(batch, LENGTH, TEXT)
    mask = torch.arange(LENGTH)[None] < torch.randint(4, LENGTH, (batch, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss = (forward(x, t, text, mask) - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def gflop_of(step: Callable[[], None]) -> float:
    """The GFLOP of an eager step: the counter cannot count compiled code."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def limner_model(case: Case, compiled: bool) -> tuple[nn.Module, Forward]:
    """The recipe's network."""
    recipe = load_recipe(case.recipe)[0]
    assert isinstance(recipe, Recipe)
    has_text = recipe.condition == "text"
    net: Network = build(recipe.network.fit(case.side, case.channels, 0, TEXT if has_text else 0)).train()

    def forward(x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return net(x, t, **net.prepare({"text": text, "mask": mask} if has_text else {}))

    if compiled:
        for block in net.repeated:  # as the trainer does
            block.compile()
    return net, forward


def peer_model(case: Case, config: object) -> tuple[nn.Module, Forward]:
    """diffusers' network."""
    net = case.peer(config, case.channels, case.side).train()

    def forward(x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        if isinstance(net, diffusers.UNet2DModel):
            return net(x, t, return_dict=False)[0]
        return net(x, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=t, return_dict=False)[0]

    return net, forward


def gemm_peak(size: int = 2048, repeats: int = 6) -> float:
    """GFLOP/s of a float32 matrix product."""
    a, b = torch.randn(2, size, size).unbind()
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return repeats * 2 * size**3 / (time.perf_counter() - start) / 1e9


def main() -> None:
    """Print the table."""
    args = tyro.cli(Arguments)
    torch.manual_seed(0)
    table = Table("", "model", "parameters", "GFLOP/image", "images/s", "of GEMM peak", "images/s to peer", "GFLOP/s")
    peaks: list[float] = []
    for name in args.cases:
        rows(table, name, args, peaks)
    Console(highlight=False, width=120).print(table)
    threads, peak = torch.get_num_threads(), statistics.median(peaks)
    print(f"GEMM peak {peak:.0f} GFLOP/s on {threads} threads, torch {torch.__version__}")


def rows(table: Table, name: str, args: Arguments, peaks: list[float]) -> None:
    """Measure a case and add a row for each model: medians over rounds; ratios are medians of those in each round."""
    case = CASES[name]
    ours = limner_model(case, compiled=False)
    models = {"diffusers": peer_model(case, ours[0].config), "limner": ours}
    if not args.no_compile:
        models["limner, compiled"] = limner_model(case, compiled=True)
    steps = {each: trainer(*model, args.batch, case) for each, model in models.items()}
    gflop = {each: gflop_of(steps["limner" if each.endswith("compiled") else each]) / args.batch for each in models}
    rates: dict[str, list[float]] = {each: [] for each in models}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        peaks.append(gemm_peak())
        for each, step in steps.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            rates[each].append(args.steps * args.batch / (time.perf_counter() - start))
    for each, (net, _) in models.items():
        rate = statistics.median(rates[each])
        ratio = statistics.median(a / b for a, b in zip(rates[each], rates["diffusers"], strict=True))
        table.add_row(
            name, each, f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M", f"{gflop[each]:.2f}", f"{rate:.1f}",
            f"{rate * gflop[each] / statistics.median(peaks):.2f}", f"{ratio:.2f}",
            f"{ratio * gflop[each] / gflop['diffusers']:.2f}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
