"""The autoencoder against diffusers' on the same weights, and what must hold without a reference."""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import LimnerError
from limner.nets.layers import ResnetBlock
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig, Downsample, Posterior, SpatialAttention, Upsample
from limner.weights.load import load

TINY = AutoencoderKLConfig(
    block_out_channels=(8, 16, 24),
    layers_per_block=2,
    latent_channels=3,
    norm_num_groups=4,
    scaling_factor=0.7,
    shift_factor=0.2,
)
SMALL = {
    "tiny": TINY,
    "one level": AutoencoderKLConfig(block_out_channels=(8,), norm_num_groups=2),
    "odd": AutoencoderKLConfig(
        in_channels=1,
        out_channels=2,
        block_out_channels=(12, 6),
        norm_num_groups=3,
        mid_block_add_attention=False,
        use_quant_conv=False,
    ),
}
USUAL = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
WIDE = USUAL | {
    "latent_channels": 16,
    "force_upcast": True,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "SD1": USUAL,
    "SDXL": USUAL | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "SD3": WIDE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "Flux": WIDE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are faster without waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def stir(net: torch.nn.Module) -> None:
    """Move every parameter off its start, so that norms are no identities and queries prefer some places."""
    draw = torch.Generator().manual_seed(1)
    for name, weight in net.named_parameters():
        if weight.ndim == 1:
            weight += 0.2 * torch.randn(weight.shape, generator=draw)
        elif "to_q" in name or "to_k" in name:
            weight *= 3.0


def random_net(config: AutoencoderKLConfig) -> AutoencoderKL:
    torch.manual_seed(0)
    net = AutoencoderKL(config)
    stir(net)
    return net.eval().requires_grad_(False)


@cache
def tiny() -> AutoencoderKL:
    return random_net(TINY)


def theirs_and_ours(config: AutoencoderKLConfig) -> tuple[Any, AutoencoderKL]:
    """diffusers' network with random weights, and ours with the same; both take each other's names, strictly."""
    import diffusers

    torch.manual_seed(0)
    reference = diffusers.AutoencoderKL.from_config(config.to_dict()).eval().requires_grad_(False)
    stir(reference)
    with torch.device("meta"):
        ours = AutoencoderKL(config)
    ours.load_state_dict(reference.state_dict(), strict=True, assign=True)
    reference.load_state_dict(ours.state_dict(), strict=True)
    return reference, ours.eval().requires_grad_(False)


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and theirs.isfinite().all()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def assert_equals_diffusers(config: AutoencoderKLConfig, height: int, width: int) -> None:
    reference, net = theirs_and_ours(config)
    # the second picture is of low contrast, where the epsilon of the norms counts
    x = noise(2, config.in_channels, height, width) * torch.tensor([1.0, 0.01])[:, None, None, None]
    theirs, ours = reference.encode(x).latent_dist, net.encode(x)
    noised = theirs.sample(torch.Generator().manual_seed(5))
    z = noise(2, config.latent_channels, height // net.factor, width // net.factor, seed=2)
    pairs = {
        "mean": (ours.mean, theirs.mean),
        "logvar": (ours.logvar, theirs.logvar),
        "sample": (ours.sample(noise(*z.shape, seed=5)), noised),
        "kl": (ours.kl(), theirs.kl()),
        "decode": (net.decode(z), reference.decode(z).sample),
    }
    for name, (mine, other) in pairs.items():
        for row in range(2):
            assert (got := error(mine[row], other[row])) < 1e-5, f"{name} of picture {row}: relative error {got:.1e}"


@pytest.mark.parity
@pytest.mark.parametrize("name", SMALL)
def test_equals_diffusers(name: str) -> None:
    factor = 2 ** (len(SMALL[name].block_out_channels) - 1)
    assert_equals_diffusers(SMALL[name], 6 * factor, 4 * factor)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "size", "tensors"), [("SD1", 64, 248), ("SD3", 32, 244)])
def test_equals_diffusers_at_the_published_size(name: str, size: int, tensors: int) -> None:
    config = AutoencoderKLConfig.from_dict(PUBLISHED[name])
    with torch.device("meta"):
        assert len(AutoencoderKL(config).state_dict()) == tensors
    assert_equals_diffusers(config, size, size)


@pytest.mark.parity
def test_the_spread_is_clamped_as_in_diffusers() -> None:
    reference, net = theirs_and_ours(TINY)
    for model in (reference, net):
        model.quant_conv.bias[3:] = torch.tensor([100.0, -100.0, 0.0])
    x = noise(1, 3, 16, 16)
    ours, theirs = net.encode(x), reference.encode(x).latent_dist
    assert (ours.logvar[:, 0] == 20).all() and (ours.logvar[:, 1] == -30).all()
    assert (ours.logvar[:, 2].abs() < 10).all()
    assert error(ours.logvar, theirs.logvar) < 1e-5
    assert error(ours.kl(), theirs.kl()) < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_config_goes_through_diffusers(name: str, tmp_path: Path) -> None:
    import diffusers

    config = AutoencoderKLConfig.from_dict(PUBLISHED[name])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with torch.device("meta"):
        reference = diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(tmp_path))
        theirs = diffusers.AutoencoderKL.from_config(PUBLISHED[name])
        shapes = {key: weight.shape for key, weight in AutoencoderKL(config).state_dict().items()}
    assert shapes == {key: weight.shape for key, weight in theirs.state_dict().items()}
    about = ("_diffusers_version", "_use_default_values", "sample_size", "_name_or_path")  # not the network
    wanted, got = ({k: v for k, v in model.config.items() if k not in about} for model in (theirs, reference))
    assert got == wanted
    reference.save_config(tmp_path / "saved")
    assert AutoencoderKLConfig.from_dict(json.loads((tmp_path / "saved/config.json").read_text())) == config
    assert AutoencoderKLConfig.from_dict(dict(theirs.config)) == config


@pytest.mark.parity
def test_missing_fields_take_diffusers_defaults() -> None:
    import diffusers

    with torch.device("meta"):
        config = dict(diffusers.AutoencoderKL().config)
    assert AutoencoderKLConfig.from_dict({}) == AutoencoderKLConfig() == AutoencoderKLConfig.from_dict(config)


@pytest.mark.parity
def test_files_open_on_both_sides(tmp_path: Path) -> None:
    import diffusers

    ours = tiny()
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    torch.save(ours.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    reference, report = diffusers.AutoencoderKL.from_pretrained(
        tmp_path, output_loading_info=True, use_safetensors=False
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    reference.save_pretrained(tmp_path / "saved")
    loaded = load(lambda: AutoencoderKL(TINY), tmp_path / "saved/diffusion_pytorch_model.safetensors")
    x = noise(1, 3, 16, 16)
    assert torch.equal(loaded.encode(x).mean, ours.encode(x).mean)


@pytest.mark.parametrize("shift", [None, 0.0609])
def test_scale_of_the_latents(shift: float | None) -> None:
    net = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(32,), scaling_factor=1.5305, shift_factor=shift))
    z = noise(2, 4, 5, 5) + 0.5
    # the formulas of diffusers' pipelines: StableDiffusion3Img2Img's prepare_latents, StableDiffusion3's __call__
    expected = z * 1.5305 if shift is None else (z - 0.0609) * 1.5305
    back = z / 1.5305 if shift is None else (z / 1.5305) + 0.0609
    torch.testing.assert_close(net.to_latents(z), expected, rtol=0, atol=0)
    torch.testing.assert_close(net.from_latents(z), back, rtol=0, atol=0)
    torch.testing.assert_close(net.from_latents(net.to_latents(z)), z)
    torch.testing.assert_close(net.to_latents(net.from_latents(z)), z)


def test_kl_in_closed_form() -> None:
    posterior = Posterior(noise(3, 4, 5, 6, seed=1), 2 * noise(3, 4, 5, 6, seed=2))
    spread = torch.distributions.Normal(posterior.mean.double(), (0.5 * posterior.logvar.double()).exp())
    expected = torch.distributions.kl_divergence(spread, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(posterior.kl().double(), expected, rtol=1e-6, atol=0)
    unit = Posterior(torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3))
    assert unit.kl().tolist() == [0.0, 0.0]


def test_kl_next_to_the_unit_gaussian() -> None:
    near = Posterior(torch.full((1, 1, 2, 2), 1e-4), torch.full((1, 1, 2, 2), 2e-4))
    logvar = near.logvar.double()
    expected = 0.5 * (near.mean.double() ** 2 + logvar**2 / 2 + logvar**3 / 6).sum()
    assert near.kl().item() == pytest.approx(expected.item(), rel=1e-2)
    assert Posterior(near.mean.bfloat16(), near.logvar.bfloat16()).kl().dtype == torch.float32


def test_kl_is_the_mean_log_ratio_of_samples() -> None:
    mean, logvar = torch.tensor([0.7, -1.2, 0.0, 2.0]), torch.tensor([-1.0, 0.5, 2.0, -6.0])
    draws = 100_000
    posterior = Posterior(*(part.reshape(1, 4, 1, 1).expand(draws, 4, 1, 1) for part in (mean, logvar)))
    z = posterior.sample(noise(draws, 4, 1, 1, seed=7))
    torch.testing.assert_close(z.mean(0).flatten(), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(0).flatten().log(), logvar, rtol=0, atol=0.03)
    own = torch.distributions.Normal(posterior.mean, (0.5 * posterior.logvar).exp())
    ratio = (own.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)).sum(dim=(1, 2, 3))
    assert ratio.mean().item() == pytest.approx(posterior.kl()[0].item(), abs=4 * ratio.std().item() / draws**0.5)


def test_downsample_pads_right_and_bottom() -> None:
    layer, x = Downsample(1).requires_grad_(False), noise(1, 1, 6, 8)
    layer.conv.bias.zero_()
    padded = F.pad(x, (0, 1, 0, 1))
    for dy in range(3):
        for dx in range(3):
            layer.conv.weight.zero_()[0, 0, dy, dx] = 1.0
            assert torch.equal(layer(x), padded[:, :, dy : dy + 5 : 2, dx : dx + 7 : 2])


def test_upsample_repeats() -> None:
    layer, x = Upsample(1).requires_grad_(False), noise(1, 1, 3, 4)
    layer.conv.bias.zero_()
    layer.conv.weight.zero_()[0, 0, 1, 1] = 1.0
    assert torch.equal(layer(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(5, 3), (1, 1), (8, 8)])
def test_a_large_picture_is_upsampled_by_one_transposed_convolution(
    height: int, width: int, layout: torch.memory_format
) -> None:
    layer, x = Upsample(6).requires_grad_(False), noise(2, 6, height, width).contiguous(memory_format=layout)
    wanted = layer.conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert (layer._double(x) - wanted).abs().max() < 1e-6
    assert torch.equal(layer(x), wanted)  # a small one by the convolution itself


def test_what_is_large_depends_on_the_dtype_and_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, asked = Upsample(8).requires_grad_(False), []
    monkeypatch.setattr(Upsample, "_double", lambda self, x: asked.append(x.shape) or x)
    x = noise(1, 8, 256, 256)  # 2^19 numbers
    layer(x)
    layer(x, (512, 512))
    assert len(asked) == 2
    layer(x, (511, 512))
    layer(x[:, :, 1:])
    layer.bfloat16()(x.bfloat16())
    assert len(asked) == 2


def test_silu_in_place_leaves_training_and_its_input_alone() -> None:
    block = ResnetBlock(4, 8, 2)
    x = noise(2, 4, 4, 4)
    before = x.clone()
    with torch.no_grad():
        wanted = block(x)
    assert torch.equal(x, before)
    assert torch.equal(block(x.requires_grad_()), wanted)
    with torch.no_grad():
        h = block.conv2(
            torch.nn.functional.silu(block.norm2(block.conv1(torch.nn.functional.silu(block.norm1(before)))))
        )
        assert torch.equal(h + block.conv_shortcut(before), wanted)


@torch.no_grad()
def test_attention_by_hand() -> None:
    layer = SpatialAttention(6, groups=2).double()
    stir(layer)
    x = noise(1, 6, 3, 2).double()
    grouped = x.reshape(2, 18)
    spread = (grouped.var(dim=1, correction=0, keepdim=True) + 1e-6).sqrt()
    h = ((grouped - grouped.mean(dim=1, keepdim=True)) / spread).reshape(6, 6)  # (C, H*W)
    h = (h * layer.group_norm.weight[:, None] + layer.group_norm.bias[:, None]).T
    q, k, v = (h @ proj.weight.T + proj.bias for proj in (layer.to_q, layer.to_k, layer.to_v))
    read = torch.softmax(q @ k.T / math.sqrt(6), dim=-1) @ v
    expected = x + (read @ layer.to_out[0].weight.T + layer.to_out[0].bias).T.reshape(1, 6, 3, 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_a_batch_equals_its_pictures_alone() -> None:
    net = tiny()
    x, z = noise(3, 3, 16, 24), noise(3, 3, 4, 6, seed=1)
    together, decoded = net.encode(x), net.decode(z)
    for i in range(3):
        alone = net.encode(x[i : i + 1])
        assert error(together.mean[i], alone.mean[0]) < 1e-5
        assert error(together.logvar[i], alone.logvar[0]) < 1e-5
        assert error(together.kl()[i], alone.kl()[0]) < 1e-5
        assert error(decoded[i], net.decode(z[i : i + 1])[0]) < 1e-5


def test_channels_last_equals_contiguous() -> None:
    net, last = tiny(), random_net(TINY).to(memory_format=torch.channels_last)
    x, z = noise(2, 3, 16, 24), noise(2, 3, 4, 6, seed=1)
    x_last, z_last = (t.to(memory_format=torch.channels_last) for t in (x, z))
    for plain, other in ((net, last), (net, net), (last, last)):  # weights, pictures, both
        for pictures, latents in ((x, z), (x_last, z_last)):
            assert error(other.encode(pictures).mean, plain.encode(x).mean) < 1e-5
            assert error(other.encode(pictures).logvar, plain.encode(x).logvar) < 1e-5
            assert error(other.decode(latents), plain.decode(z)) < 1e-5
    assert last.decode(z_last).is_contiguous(memory_format=torch.channels_last)
    assert net.decode(z).is_contiguous()


def test_every_parameter_counts() -> None:
    net = random_net(TINY)
    x, z = noise(1, 3, 16, 16), noise(1, 3, 4, 4, seed=1)
    encoded, decoded = torch.cat(net.encode(x), dim=1), net.decode(z)
    assert encoded.std() > 0.1 and decoded.std() > 0.1
    for name, weight in net.named_parameters():
        saved = weight.clone()
        weight.zero_()
        changes = (error(torch.cat(net.encode(x), dim=1), encoded), error(net.decode(z), decoded))
        weight.copy_(saved)
        mine, other = changes if name.startswith(("encoder", "quant")) else changes[::-1]
        assert other == 0, name
        if "to_k.bias" in name:  # a key bias shifts all scores of a query alike
            assert mine < 1e-5
        else:
            assert mine > 1e-4, f"{name} changes the output by {mine:.1e}"


def test_gradients_reach_every_parameter() -> None:
    net = random_net(TINY).train().requires_grad_(True)
    x = noise(2, 3, 16, 16)
    posterior = net.encode(x)
    loss = (net.decode(posterior.sample(noise(2, 3, 4, 4, seed=1))) - x).square().mean() + 0.01 * posterior.kl().mean()
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
    weak = [name for name, w in net.named_parameters() if w.grad.abs().max() < 1e-6 and "to_k.bias" not in name]
    assert weak == []


def test_constructs_on_meta() -> None:
    with torch.device("meta"):
        sd1, flux = (AutoencoderKL(AutoencoderKLConfig.from_dict(PUBLISHED[name])) for name in ("SD1", "Flux"))
    assert {weight.device.type for weight in sd1.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in sd1.parameters()) == 83_653_863
    assert sum(weight.numel() for weight in flux.parameters()) == 83_819_683
    assert (len(sd1.state_dict()), len(flux.state_dict())) == (248, 244)
    assert (sd1.factor, random_net(SMALL["one level"]).factor, tiny().factor) == (8, 1, 4)


def test_config_from_a_published_file() -> None:
    sd1 = AutoencoderKLConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    assert AutoencoderKLConfig.from_dict(PUBLISHED["SD1"]) == sd1
    flux = AutoencoderKLConfig.from_dict(PUBLISHED["Flux"])
    assert (flux.latent_channels, flux.scaling_factor, flux.shift_factor) == (16, 0.3611, 0.1159)
    assert not flux.use_quant_conv and not flux.use_post_quant_conv and flux.mid_block_add_attention
    for config in (*SMALL.values(), sd1, flux):
        assert AutoencoderKLConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported, only 'silu'"),
        ({"_class_name": "AutoencoderTiny"}, "_class_name 'AutoencoderTiny' is not supported"),
        ({"latents_mean": [0.0] * 4}, r"latents_mean \[0.0, .* is not supported"),
        ({"latents_std": [1.0] * 4}, r"latents_std \[1.0, .* is not supported"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types .*AttnDown.* is not supported"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "up_block_types .* is not supported"),
        ({"block_out_channels": [128, 250]}, "block_out_channels 250 is not divisible by norm_num_groups 32"),
        ({"block_out_channels": []}, "block_out_channels must hold a width of at least 1 for each level"),
        ({"block_out_channels": 64}, "block_out_channels must be a list, not 64"),
        ({"block_out_channels": [128, 0]}, "block_out_channels must hold a width of at least 1"),
        ({"in_channels": 0}, "in_channels must be at least 1, not 0"),
        ({"out_channels": 0}, "out_channels must be at least 1, not 0"),
        ({"layers_per_block": 1.5}, "layers_per_block must be a whole number, not 1.5"),
        ({"latent_channels": -4}, "latent_channels must be at least 1, not -4"),
        ({"norm_num_groups": None}, "norm_num_groups must be a whole number, not None"),
        ({"scaling_factor": 0.0}, "scaling_factor must be more than 0, not 0.0"),
        ({"scaling_factor": None}, "scaling_factor must be a number, not None"),
        ({"shift_factor": "0.1"}, "shift_factor must be a number or null, not '0.1'"),
        ({"shift_factor": float("nan")}, "shift_factor must be a number or null, not nan"),
    ],
)
def test_configs_that_cannot_be_honoured(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        AutoencoderKLConfig.from_dict(USUAL | change)


def test_sizes_that_cannot_be_taken() -> None:
    net = tiny()
    for width, height in ((18, 16), (16, 18)):
        with pytest.raises(LimnerError, match=f"a picture of {width}x{height} .* divide by 4"):
            net.encode(torch.zeros(1, 3, height, width))
    with pytest.raises(LimnerError, match=r"takes pictures of shape \(B, 3, H, W\), not \(1, 4, 16, 16\)"):
        net.encode(torch.zeros(1, 4, 16, 16))
    with pytest.raises(LimnerError, match=r"takes pictures of shape .* not \(2, 3, 16\)"):
        net.encode(torch.zeros(2, 3, 16))
    with pytest.raises(LimnerError, match=r"takes pictures of shape .* not \(1, 3, 0, 16\)"):
        net.encode(torch.zeros(1, 3, 0, 16))
    with pytest.raises(LimnerError, match=r"takes latents of shape \(B, 3, H, W\), not \(1, 4, 4, 4\)"):
        net.decode(torch.zeros(1, 4, 4, 4))
