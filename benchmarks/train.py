"""A training step of the CIFAR-10 transformer, against diffusers' PixArt transformer of the nearest size.

    python benchmarks/train_step.py

Forward, backward and AdamW at batch 64 on random pictures and text; the models are interleaved in one process against
drift of the machine's speed. Sizes differ slightly, so GFLOP/s are compared besides images/s; the peak is that of a
matrix product between the rounds. The FLOPs inside attention, equal for both, are not counted.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from diffusers import PixArtTransformer2DModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limner.nets.dit import DiT, DiTConfig

TEXT, WIDTH, LENGTH = 512, 256, 16


@dataclass
class Arguments:
    """Time limner's training step against diffusers'."""

    batch: int = 64
    rounds: int = 8
    """Timed rounds of `steps` steps of every model."""
    steps: int = 3
    no_compile: bool = False
    """Leave the compiled model out."""


def trainer(net: nn.Module, forward: Callable[..., Tensor], batch: int) -> Callable[[], None]:
    """A function that runs one training step of `net`."""
    x, noise = torch.randn(2, batch, 3, 32, 32).unbind()
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


def limner_model(compiled: bool) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The DiT of recipe cifar10-text."""
    net = DiT(DiTConfig(32, 3, 4, WIDTH, 6, 8, text_dim=TEXT))

    def forward(x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return net(x, t, **net.prepare({"text": text, "mask": mask}))

    if compiled:
        for block in net.blocks:  # as the trainer does
            block.compile()
    return net, forward


def peer_model() -> tuple[nn.Module, Callable[..., Tensor]]:
    """PixArt's transformer of the same width, depth, heads and patch."""
    net = PixArtTransformer2DModel(
        num_attention_heads=8, attention_head_dim=WIDTH // 8, in_channels=3, out_channels=3, num_layers=6,
        cross_attention_dim=WIDTH, sample_size=32, patch_size=4, caption_channels=TEXT, use_additional_conditions=False,
    )  # fmt: skip

    def forward(x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return net(x, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=t, return_dict=False)[0]

    return net.train(), forward


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
    models = {"diffusers PixArt": peer_model(), "limner DiT": limner_model(False)}
    if not args.no_compile:
        models["limner DiT, compiled"] = limner_model(True)
    steps, rates, peaks = {}, {name: [] for name in models}, []
    for name, (net, forward) in models.items():
        step = trainer(net, forward, args.batch)
        steps[name] = (step, steps["limner DiT"][1] if name.endswith("compiled") else gflop_of(step))
        step()
    for _ in range(args.rounds):
        peaks.append(gemm_peak())
        for name, (step, _) in steps.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            rates[name].append(args.steps * args.batch / (time.perf_counter() - start))
    report(models, steps, rates, peaks, args.batch)


def report(models: dict, steps: dict, rates: dict, peaks: list[float], batch: int) -> None:
    """Medians over rounds; ratios are medians of the ratios within each round."""
    table = Table("model", "parameters", "GFLOP/image", "images/s", "GFLOP/s", "of GEMM peak", "GFLOP/s to peer")
    peer = "diffusers PixArt"
    for name, (net, _) in models.items():
        each = steps[name][1] / batch
        to_peer = [a * each / (b * steps[peer][1] / batch) for a, b in zip(rates[name], rates[peer], strict=True)]
        of_peak = [rate * each / peak for rate, peak in zip(rates[name], peaks, strict=True)]
        rate = statistics.median(rates[name])
        table.add_row(
            name, f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M", f"{each:.2f}", f"{rate:.1f}",
            f"{rate * each:.0f}", f"{statistics.median(of_peak):.2f}", f"{statistics.median(to_peer):.2f}",
        )  # fmt: skip
    Console(highlight=False, width=110).print(table)
    threads, peak = torch.get_num_threads(), statistics.median(peaks)
    print(f"GEMM peak {peak:.0f} GFLOP/s on {threads} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
