"""The diffusion transformer against computations by hand, and what its output may and may not depend on."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.nets.dit import DiT, DiTBlock, DiTConfig
from limner.nets.layers import (
    ResnetBlock,
    TimestepEmbedder,
    attention,
    merge_heads,
    modulate,
    position_table,
    split_heads,
    timestep_embedding,
)

Module = TypeVar("Module", bound=nn.Module)
CPU = torch.device("cpu")
BOTH = DiTConfig(
    sample_size=8,
    in_channels=3,
    patch_size=2,
    hidden_size=16,
    depth=2,
    num_heads=4,
    mlp_ratio=3.0,
    num_classes=3,
    text_dim=5,
)
ENDS = replace(BOTH, conv_channels=16, conv_layers=1)
POOLED = replace(BOTH, pooled_text=True, position_scale=3.0)
PLAIN = DiTConfig(sample_size=8, in_channels=3, patch_size=2, hidden_size=16, depth=2, num_heads=4)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are faster without waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomised(module: Module, std: float = 0.2, seed: int = 0) -> Module:
    """Every parameter small normal noise, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module.eval().requires_grad_(False)


def normed(x: Tensor) -> Tensor:
    """LayerNorm without gain, by hand."""
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """One query at a time, one head at a time: softmax(q k / sqrt(d)) v."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                keep = torch.arange(k.shape[2]) if allowed is None else allowed[b, h, i].nonzero()[:, 0]
                scores = (k[b, h, keep] @ q[b, h, i]) / math.sqrt(q.shape[-1])
                weights = scores.exp() / scores.exp().sum()
                out[b, h, i] = weights @ v[b, h, keep]
    return out


class Case:
    """A batch of three with everything that the model of both conditions takes."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.x = noise(3, 3, 8, 8, seed=1, dtype=dtype)
        self.t = torch.tensor([20.0, 500.0, 981.0])
        self.labels = torch.tensor([0, 2, 1])
        self.text = noise(3, 6, 5, seed=2, dtype=dtype)
        self.mask = torch.arange(6) < torch.tensor([2, 6, 4])[:, None]


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.fixture(scope="module", params=[BOTH, ENDS, POOLED], ids=["patches", "convolutions", "pooled"])
def model(request: pytest.FixtureRequest) -> DiT:
    return randomised(DiT(request.param))


def read(model: DiT, text: Tensor, mask: Tensor | None = None) -> dict:
    """The text as the model's forward takes it."""
    return dict(model.prepare({"text": text} if mask is None else {"text": text, "mask": mask}))


def painted(model: DiT, case: Case) -> Tensor:
    return model(case.x, case.t, case.labels, **read(model, case.text, case.mask))


def differ(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs().amax(dim=(1, 2, 3)) > 1e-3).all())


# Layers


def test_attention_is_softmax() -> None:
    q, k, v = noise(2, 3, 4, 8), noise(2, 3, 5, 8, seed=1), noise(2, 3, 5, 8, seed=2)
    torch.testing.assert_close(attention(q, k, v), explicit_attention(q, k, v), rtol=1e-5, atol=1e-6)


def test_attention_looks_only_where_the_mask_is_true() -> None:
    q, k, v = noise(2, 3, 4, 8), noise(2, 3, 5, 8, seed=1), noise(2, 3, 5, 8, seed=2)
    mask = noise(2, 1, 4, 5, seed=3) > 0
    mask[..., 0] = True
    wanted = explicit_attention(q, k, v, mask.expand(2, 3, 4, 5))
    torch.testing.assert_close(attention(q, k, v, mask), wanted, rtol=1e-5, atol=1e-6)
    assert (attention(q, k, v) - wanted).abs().max() > 0.1
    padding = torch.tensor([[True] * 5, [True, True, False, False, False]])[:, None, None, :]
    wanted = explicit_attention(q, k, v, padding.expand(2, 3, 4, 5))
    torch.testing.assert_close(attention(q, k, v, padding), wanted, rtol=1e-5, atol=1e-6)


def test_causal_attention_looks_back_only() -> None:
    q, k, v = (noise(2, 3, 5, 8, seed=i) for i in range(3))
    allowed = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 3, 5, 5)
    wanted = explicit_attention(q, k, v, allowed)
    torch.testing.assert_close(attention(q, k, v, causal=True), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(wanted[:, :, 0], v[:, :, 0])


def test_heads_are_consecutive_channels() -> None:
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    heads = split_heads(x, 4)
    for h in range(4):
        assert torch.equal(heads[:, h], x[:, :, 2 * h : 2 * h + 2])
    assert torch.equal(merge_heads(heads), x)


def test_modulate_acts_per_picture() -> None:
    x, shift, scale = noise(2, 3, 4), noise(2, 4, seed=1), noise(2, 4, seed=2)
    out = modulate(x, shift, scale)
    for b in range(2):
        for n in range(3):
            torch.testing.assert_close(out[b, n], x[b, n] * (1 + scale[b]) + shift[b])


def test_timestep_embedding_by_hand() -> None:
    out = timestep_embedding(torch.tensor([0.0, 3.0, 981.0]), 8)
    freqs = [1.0, 0.1, 0.01, 0.001]
    for row, t in zip(out.tolist(), (0, 3, 981), strict=True):
        wanted = [math.cos(t * f) for f in freqs] + [math.sin(t * f) for f in freqs]
        assert row == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parity
def test_timestep_embedding_is_diffusers() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 0.5, 1.0, 37.25, 500.0, 999.0, 1000.0])
    for dim in (256, 320, 8):
        wanted = get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        torch.testing.assert_close(timestep_embedding(t, dim), wanted, rtol=0, atol=2e-4)


def test_timestep_embedder_by_hand() -> None:
    embedder = randomised(TimestepEmbedder(6, frequencies=10))
    t = torch.tensor([1.0, 700.0])
    hidden = timestep_embedding(t, 10) @ embedder.linear_1.weight.T + embedder.linear_1.bias
    hidden = hidden / (1 + (-hidden).exp())
    wanted = hidden @ embedder.linear_2.weight.T + embedder.linear_2.bias
    torch.testing.assert_close(embedder(t), wanted)


def cell(y: float, x: float, dim: int) -> list[float]:
    """The closed form: sines and cosines of y, then of x, at dim/4 frequencies each."""
    freqs = [10_000.0 ** (-i / (dim // 4)) for i in range(dim // 4)]
    return [f(place * freq) for place in (y, x) for f in (math.sin, math.cos) for freq in freqs]


@pytest.mark.parametrize(
    ("height", "width", "base", "rows", "columns"),
    [
        (4, 4, 4, [0, 1, 2, 3], [0, 1, 2, 3]),  # the trained size
        (8, 4, 4, [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25], [0, 1, 2, 3]),  # twice as high
        (2, 6, 4, [0.5, 2.5], [(i + 0.5) * 4 / 6 - 0.5 for i in range(6)]),
    ],
)
def test_position_table_closed_form(height: int, width: int, base: int, rows: list, columns: list) -> None:
    table = position_table(height, width, 16, base, CPU)
    wanted = torch.tensor([cell(y, x, 16) for y in rows for x in columns])
    torch.testing.assert_close(table, wanted, rtol=0, atol=1e-6)


def test_position_table_at_twice_the_size_has_the_trained_cells_as_midpoints() -> None:
    """Angles, read back from their sines and cosines at the highest frequency, of y and of x."""

    def places(table: Tensor) -> tuple[Tensor, Tensor]:
        return torch.atan2(table[:, 0], table[:, 2]), torch.atan2(table[:, 4], table[:, 6])  # dim 8: sin sin cos cos

    small, large = (places(position_table(n, n, 8, 3, CPU)) for n in (3, 6))
    for trained, fine in zip(small, large, strict=True):
        pooled = F.avg_pool2d(fine.view(1, 1, 6, 6), 2).flatten()
        torch.testing.assert_close(pooled, trained, rtol=0, atol=1e-6)


# One block, and the whole, by hand


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, layer.weight) + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def heads_of(x: Tensor, heads: int) -> Tensor:
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def joined(x: Tensor) -> Tensor:
    return torch.cat(list(x.unbind(1)), dim=-1)


def block_by_hand(block: DiTBlock, x: Tensor, c: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
    """Peebles & Xie 2023, figure 3 (adaLN-Zero), with PixArt's cross-attention between its halves."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (part[:, None] for part in linear(block.modulation, c).chunk(6, -1))
    q, k, v = (heads_of(p, 4) for p in linear(block.to_qkv, normed(x) * (1 + scale1) + shift1).chunk(3, -1))
    x = x + gate1 * linear(block.to_out, joined(explicit_attention(q, k, v)))
    if text is not None:
        cross = block.cross
        q = heads_of(linear(cross.to_q, normed(x)), 4)
        k, v = (heads_of(p, 4) for p in linear(cross.to_kv, text).chunk(2, -1))
        allowed = None if mask is None else mask[:, None, None].expand(-1, 4, x.shape[1], -1)
        x = x + linear(cross.to_out, joined(explicit_attention(q, k, v, allowed)))
    h = gelu(linear(block.mlp_in, normed(x) * (1 + scale2) + shift2))
    return x + gate2 * linear(block.mlp_out, h)


@pytest.mark.parametrize("masked", [False, True])
def test_block_by_hand(masked: bool) -> None:
    block = randomised(DiTBlock(BOTH).double(), std=0.3)
    x, c, text = (noise(*shape, dtype=torch.float64) for shape in ((2, 6, 16), (2, 16), (2, 3, 5)))
    mask = torch.tensor([[True, True, False], [True, False, True]]) if masked else None
    out = block(x, c, block.cross.project_text(text), mask[:, None, None] if masked else None)
    torch.testing.assert_close(out, block_by_hand(block, x, c, text, mask), rtol=1e-10, atol=1e-10)


def test_block_without_text_by_hand() -> None:
    block = randomised(DiTBlock(PLAIN).double(), std=0.3)
    x, c = noise(2, 6, 16, dtype=torch.float64), noise(2, 16, seed=1, dtype=torch.float64)
    torch.testing.assert_close(block(x, c, None, None), block_by_hand(block, x, c, None, None), rtol=1e-10, atol=1e-10)


def patches(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C*p*p), rows first; in a patch channels first, then rows."""
    out = [
        x[:, :, i : i + p, j : j + p].reshape(len(x), -1)
        for i in range(0, x.shape[2], p)
        for j in range(0, x.shape[3], p)
    ]
    return torch.stack(out, dim=1)


def unpatched(tokens: Tensor, channels: int, height: int, width: int, p: int) -> Tensor:
    out = torch.full((len(tokens), channels, height, width), math.nan, dtype=tokens.dtype)
    for n in range(tokens.shape[1]):
        i, j = n // (width // p) * p, n % (width // p) * p
        out[:, :, i : i + p, j : j + p] = tokens[:, n].reshape(-1, channels, p, p)
    return out


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_whole_model_by_hand(size: tuple[int, int]) -> None:
    model, case = randomised(DiT(BOTH).double(), std=0.3), Case(torch.float64)
    case.x = noise(3, 3, *size, dtype=torch.float64)
    x = linear(model.patch_in, patches(case.x, 2)) + position_table(size[0] // 2, size[1] // 2, 16, 4, CPU)
    c = model.time(case.t) + model.classes.weight[case.labels]
    c = c / (1 + (-c).exp())
    for block in model.blocks:
        x = block_by_hand(block, x, c, case.text, case.mask)
    shift, scale = (part[:, None] for part in linear(model.modulation_out, c).chunk(2, -1))
    wanted = unpatched(linear(model.patch_out, normed(x) * (1 + scale) + shift), 3, *size, 2)
    torch.testing.assert_close(painted(model, case), wanted, rtol=1e-9, atol=1e-9)


def test_pooled_text_and_loud_positions_by_hand() -> None:
    """What they change is what the plain model is given: a louder table, and the mean of the real words in the time."""
    model = randomised(DiT(POOLED).double(), std=0.3)
    case = Case(torch.float64)
    mean = torch.stack([words[real].mean(dim=0) for words, real in zip(case.text, case.mask, strict=True)])
    x = linear(model.patch_in, patches(case.x, 2)) + 3 * position_table(4, 4, 16, 4, CPU).double()
    c = swish(model.time(case.t) + model.classes.weight[case.labels] + linear(model.pool, mean))
    for block in model.blocks:
        x = block_by_hand(block, x, c, case.text, case.mask)
    shift, scale = (part[:, None] for part in linear(model.modulation_out, c).chunk(2, -1))
    wanted = unpatched(linear(model.patch_out, normed(x) * (1 + scale) + shift), 3, 8, 8, 2)
    torch.testing.assert_close(painted(model, case), wanted, rtol=1e-9, atol=1e-9)


def swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def group_normed(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    groups = []
    for group in x.split(8, dim=1):
        mean = group.mean(dim=(1, 2, 3), keepdim=True)
        groups.append((group - mean) / ((group - mean).square().mean(dim=(1, 2, 3), keepdim=True) + 1e-6).sqrt())
    return torch.cat(groups, dim=1) * layer.weight[:, None, None] + layer.bias[:, None, None]


def convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    columns = F.unfold(F.pad(x, (1, 1, 1, 1)), 3)  # (B, C*9, H*W)
    out = torch.einsum("oi,bin->bon", layer.weight.flatten(1), columns) + layer.bias[:, None]
    return out.reshape(len(x), -1, *x.shape[2:])


def resnet_by_hand(block: ResnetBlock, x: Tensor, c: Tensor) -> Tensor:
    """Ho et al. 2020, appendix B."""
    h = convolved(block.conv1, swish(group_normed(block.norm1, x))) + linear(block.time_emb_proj, c)[:, :, None, None]
    return x + convolved(block.conv2, swish(group_normed(block.norm2, h)))


def test_convolutional_ends_by_hand() -> None:
    """The transformer is a branch beside the skip from the first convolutions to the last."""
    model, case = randomised(DiT(ENDS).double(), std=0.3), Case(torch.float64)
    assert model.ends is not None
    c = swish(model.time(case.t) + model.classes.weight[case.labels])
    features = resnet_by_hand(model.ends.down[0], convolved(model.ends.conv_in, case.x), c)
    x = linear(model.patch_in, patches(features, 2)) + position_table(4, 4, 16, 4, CPU)
    for block in model.blocks:
        x = block_by_hand(block, x, c, case.text, case.mask)
    shift, scale = (part[:, None] for part in linear(model.modulation_out, c).chunk(2, -1))
    tokens = linear(model.patch_out, normed(x) * (1 + scale) + shift)
    x = resnet_by_hand(model.ends.up[0], features + unpatched(tokens, 16, 8, 8, 2), c)
    wanted = convolved(model.ends.conv_out, swish(group_normed(model.ends.conv_norm_out, x)))
    torch.testing.assert_close(painted(model, case), wanted, rtol=1e-9, atol=1e-9)


def test_patches_go_in_and_come_out_in_order() -> None:
    """A DiT of depth 0 whose layers are identities adds its positions to the picture, and moves nothing."""
    model = DiT(DiTConfig(sample_size=6, in_channels=4, patch_size=2, hidden_size=16, depth=0, num_heads=1))
    model.patch_in, model.norm_out, model.patch_out = nn.Identity(), nn.Identity(), nn.Identity()
    x = noise(2, 4, 6, 10)
    positions = position_table(3, 5, 16, 3, CPU)
    out = model(x, torch.tensor([5.0, 900.0]))
    for c in range(4):
        for i in range(6):
            for j in range(10):
                added = positions[i // 2 * 5 + j // 2, c * 4 + i % 2 * 2 + j % 2]
                torch.testing.assert_close(out[:, c, i, j], x[:, c, i, j] + added)


def test_patches_are_unfolds() -> None:
    """The order of torch's own unfold, so that a convolution's weights fit `patch_in` once flattened."""
    model = randomised(DiT(PLAIN))
    seen: list[Tensor] = []
    model.patch_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = noise(2, 3, 6, 10)
    model(x, torch.tensor([5.0, 900.0]))
    assert torch.equal(seen[0], F.unfold(x, 2, stride=2).transpose(1, 2))
    wanted = F.conv2d(x, model.patch_in.weight.view(16, 3, 2, 2), model.patch_in.bias, stride=2)
    torch.testing.assert_close(model.patch_in(seen[0]), wanted.flatten(2).transpose(1, 2))


# At initialisation


@pytest.mark.parametrize("config", [PLAIN, BOTH], ids=["plain", "both"])
def test_the_output_starts_at_zero_and_the_blocks_at_identity(config: DiTConfig, case: Case) -> None:
    model = DiT(config)
    text = read(model, case.text, case.mask) if config.text_dim else {}
    labels = case.labels if config.num_classes else None
    assert torch.count_nonzero(model(case.x, case.t, labels, **text)) == 0

    randomised(model.patch_out)
    tokens = model.patch_in(patches(case.x, 2)) + position_table(4, 4, 16, 4, CPU)
    assert tokens.std() > 0.3  # the way in is open
    with torch.no_grad():
        out = model(case.x, case.t, labels, **text)
        wanted = unpatched(linear(model.patch_out, normed(tokens)), 3, 8, 8, 2)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    assert out.abs().max() > 0.5


def test_convolutional_ends_start_at_zero_and_identity(case: Case) -> None:
    model = DiT(ENDS)
    assert model.ends is not None
    text = read(model, case.text, case.mask)
    assert torch.count_nonzero(model(case.x, case.t, case.labels, **text)) == 0
    x, c = noise(2, 16, 6, 6), noise(2, 16, seed=1)
    for block in (*model.ends.down, *model.ends.up):
        assert torch.equal(block(x, c), x)
    assert model.ends.conv_in(case.x).std() > 0.3  # the ways in and out are open
    randomised(model.ends.conv_out)
    assert model(case.x, case.t, case.labels, **text).std() > 0.1


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = DiT(DiTConfig(32, 3, 4, 64, 2, 4, num_classes=9, text_dim=40))
    block = model.blocks[1]
    for layer in (model.patch_in, block.to_qkv, block.to_out, block.cross.to_q, block.cross.to_kv, block.mlp_in):
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for weight in (model.time.linear_1.weight, model.time.linear_2.weight, model.classes.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    closed = (model.patch_out, model.modulation_out, block.modulation, block.cross.to_out)
    assert all(torch.count_nonzero(layer.weight) == 0 for layer in closed)
    assert all(torch.count_nonzero(p) == 0 for name, p in model.named_parameters() if name.endswith("bias"))


# What the output depends on


@pytest.mark.parametrize("config", [BOTH, ENDS, POOLED], ids=["patches", "convolutions", "pooled"])
def test_every_parameter_matters(config: DiTConfig, case: Case) -> None:
    model = randomised(DiT(config)).requires_grad_(True)
    (painted(model, case) * noise(3, 3, 8, 8, seed=9)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6]
    assert idle == []


def test_a_batch_is_its_pictures_alone(model: DiT, case: Case) -> None:
    together = painted(model, case)
    for i in range(3):
        one = slice(i, i + 1)
        text = read(model, case.text[one], case.mask[one])
        alone = model(case.x[one], case.t[one], case.labels[one], **text)
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)


def test_permuting_the_batch_permutes_the_output(model: DiT, case: Case) -> None:
    before, order = painted(model, case), [2, 0, 1]
    for name in ("x", "t", "labels", "text", "mask"):
        setattr(case, name, getattr(case, name)[order])
    torch.testing.assert_close(painted(model, case), before[order], rtol=1e-5, atol=1e-5)
    assert differ(before, before[order])


def test_padding_changes_nothing(model: DiT, case: Case) -> None:
    before = painted(model, case)
    case.text = torch.cat([case.text, 50 * noise(3, 4, 5, seed=7)], dim=1)
    case.mask = torch.cat([case.mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(painted(model, case), before, rtol=1e-5, atol=1e-5)
    case.mask[:] = True
    assert differ(painted(model, case), before)


def test_no_mask_is_all_tokens(model: DiT, case: Case) -> None:
    everywhere = model(case.x, case.t, case.labels, **read(model, case.text, torch.ones(3, 6, dtype=torch.bool)))
    unmasked = model(case.x, case.t, case.labels, **read(model, case.text))
    torch.testing.assert_close(unmasked, everywhere, rtol=1e-5, atol=1e-5)
    assert differ(unmasked[::2], painted(model, case)[::2])  # the two whose masks hide something


@pytest.mark.parametrize("name", ["x", "t", "labels", "text"])
def test_another_input_is_another_output(model: DiT, case: Case, name: str) -> None:
    before = painted(model, case)
    other = {"x": case.x + 0.5, "t": case.t + 10, "labels": (case.labels + 1) % 3, "text": case.text.roll(1, 0)}[name]
    if name == "text":
        case.mask[:] = True
        before = painted(model, case)
    setattr(case, name, other)
    assert differ(painted(model, case), before)


def test_every_pixel_sees_every_pixel(model: DiT, case: Case) -> None:
    before = painted(model, case)
    case.x[:, 1, 7, 0] += 3
    change = (painted(model, case) - before).abs().amax(dim=1)  # (B, H, W)
    assert (change > 1e-6).all()


def test_the_null_class_is_no_label(model: DiT, case: Case) -> None:
    assert model.null_class == 3
    text = read(model, case.text, case.mask)
    unlabelled = model(case.x, case.t, **text)
    assert torch.equal(unlabelled, model(case.x, case.t, torch.full((3,), model.null_class), **text))
    assert differ(unlabelled, model(case.x, case.t, torch.zeros(3, dtype=torch.long), **text))


def test_text_is_read_once_for_all_steps(model: DiT, case: Case) -> None:
    memory = read(model, case.text, case.mask)
    for t in (5.0, 500.0, 995.0):
        case.t = torch.full((3,), t)
        assert torch.equal(model(case.x, case.t, case.labels, **memory), painted(model, case))
    assert len(memory["keys"]) == len(memory["values"]) == BOTH.depth
    assert (memory["keys"][0] - memory["keys"][1]).abs().max() > 0.1  # each block reads for itself


@pytest.mark.parametrize("size", [(8, 4), (2, 2), (16, 16), (12, 24)])
def test_other_sizes_see_their_own_positions(size: tuple[int, int]) -> None:
    """They run, and no two patches of a constant picture come out alike."""
    model = randomised(DiT(PLAIN))
    x, t = noise(1, 3, *size), torch.tensor([300.0])
    out = model(x, t)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    tokens = patches(model(torch.full_like(x, 0.3), t), 2)[0]
    if len(tokens) > 1:
        assert torch.pdist(tokens).min() > 1e-3


def test_precision(model: DiT, case: Case) -> None:
    """float64 agrees to float32's precision, bfloat16 to its own."""
    wanted = painted(model, case)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.05)):
        same = DiT(model.config).to(dtype)
        same.load_state_dict(model.state_dict())
        text = read(same, case.text.to(dtype), case.mask)
        out = same(case.x.to(dtype), case.t, case.labels, **text)
        assert out.dtype == dtype
        assert (out - wanted).norm() / wanted.norm() < tolerance


def test_painting_before_training_leaves_training_whole(case: Case) -> None:
    """The cached position table, first made in inference mode, must not poison the gradients."""
    config = DiTConfig(sample_size=14, in_channels=3, patch_size=2, hidden_size=16, depth=1, num_heads=2)
    model = randomised(DiT(config)).requires_grad_(True)
    with torch.inference_mode():
        before = model(case.x, case.t)
    out = model(case.x, case.t)
    torch.testing.assert_close(out.detach(), before)
    out.square().sum().backward()
    assert model.patch_in.weight.grad.abs().max() > 1e-3


# Configurations


def test_parameter_count() -> None:
    with torch.device("meta"):
        model = DiT(DiTConfig(32, 3, 4, 256, 6, 8, text_dim=512))
    d, pixels, text, inner = 256, 3 * 4 * 4, 512, 4 * 256
    block = (d * 6 * d + 6 * d) + (d * 3 * d + 3 * d) + (d * d + d)  # modulation, qkv, out
    block += (d * d + d) + (text * 2 * d + 2 * d) + (d * d + d)  # cross-attention: q, kv, out
    block += (d * inner + inner) + (inner * d + d)
    around = (pixels * d + d) + (256 * d + d) + (d * d + d) + (d * 2 * d + 2 * d) + (d * pixels + pixels)
    count = sum(p.numel() for p in model.parameters())
    assert count == 6 * block + around == 9_754_416
    with torch.device("meta"):
        labelled = DiT(DiTConfig(32, 3, 4, 256, 6, 8, text_dim=512, num_classes=10))
    assert sum(p.numel() for p in labelled.parameters()) == count + 11 * d


def test_state_dict_holds_parameters_only() -> None:
    model = DiT(BOTH)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("size", "named"), [((8, 7), "7x8"), ((9, 8), "8x9")])
def test_sizes_that_do_not_divide(model: DiT, size: tuple[int, int], named: str) -> None:
    with pytest.raises(LimnerError, match=f"picture of {named} does not divide into patches of 2x2"):
        model(noise(1, 3, *size), torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"sample_size": 30}, "sample_size 30 is not divisible by patch_size 4"),
        ({"hidden_size": 100}, "hidden_size 100 must be divisible by num_heads 8"),
        ({"hidden_size": 30, "num_heads": 3}, "hidden_size 30 must be divisible by num_heads 3 and by 4"),
        ({"conv_channels": 12}, "conv_channels must be a multiple of 8 .* not 12 and 2"),
        ({"conv_channels": -8}, "not -8 and 2"),
        ({"conv_channels": 16, "conv_layers": 0}, "conv_layers at least 1, not 16 and 0"),
        ({"position_scale": 0.0}, "position_scale must be more than 0, not 0"),
        ({"pooled_text": True}, "pooled_text needs a text encoder"),
    ],
)
def test_configurations_that_do_not_divide(numbers: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        DiT(DiTConfig(**numbers))


def test_conditions_are_never_ignored() -> None:
    t, plain = torch.zeros(1), DiT(DiTConfig(8, 1, 4, 16, 1, 2))
    with pytest.raises(LimnerError, match="only one with num_classes takes labels"):
        plain(torch.zeros(1, 1, 8, 8), t, labels=torch.zeros(1, dtype=torch.long))
    with pytest.raises(LimnerError, match="must be given text"):
        DiT(DiTConfig(8, 1, 4, 16, 1, 2, text_dim=8))(torch.zeros(1, 1, 8, 8), t)


@pytest.mark.parametrize("name", ["sample_size", "in_channels", "patch_size", "hidden_size", "num_heads"])
def test_config_numbers_are_positive(name: str) -> None:
    with pytest.raises(LimnerError, match=f"{name} must be at least 1, not 0"):
        DiTConfig(**{name: 0})
