"""The UNet against diffusers' on the same weights, and what must hold without a reference."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sd import stir
from torch import Tensor

from limner.errors import LimnerError
from limner.nets.network import take
from limner.nets.unet import UNet2DConditionModel
from limner.nets.unet_config import UNET_FIXED, UNetConfig

pytestmark = pytest.mark.usefixtures("one_thread")

CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def blocks(*kinds: str, up: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """The blocks of the levels from full resolution down; `up` if those of the way up are of other kinds."""
    return {
        "down_block_types": tuple(kind.format("Down") for kind in kinds),
        "up_block_types": tuple(kind.format("Up") for kind in (up or kinds)[::-1]),
    }


TINY = UNetConfig(
    **blocks(CROSS, CROSS, PLAIN), sample_size=8, block_out_channels=(16, 32, 32), layers_per_block=1,
    cross_attention_dim=24, attention_head_dim=4, norm_num_groups=8,
)  # fmt: skip
COMMON = {"sample_size": 8, "cross_attention_dim": 24, "norm_num_groups": 8}
CASES = {
    "as Stable Diffusion 1": TINY,
    "as Stable Diffusion 2": UNetConfig(
        **COMMON, **blocks(CROSS, CROSS, PLAIN), block_out_channels=(16, 32, 48), layers_per_block=2,
        attention_head_dim=(2, 4, 8), use_linear_projection=True,
    ),
    "depths by level": UNetConfig(
        **COMMON, **blocks(CROSS, CROSS, CROSS), block_out_channels=(16, 24, 32), layers_per_block=1,
        attention_head_dim=(1, 3, 8), transformer_layers_per_block=(3, 1, 2),
    ),
    "no attention in the first and the middle level": UNetConfig(
        **COMMON, **blocks(PLAIN, PLAIN, CROSS), block_out_channels=(8, 16, 32), layers_per_block=1,
        attention_head_dim=2, transformer_layers_per_block=2,
    ),
    "attention on the way up alone": UNetConfig(
        **COMMON, **blocks(PLAIN, PLAIN, up=(CROSS, PLAIN)), block_out_channels=(16, 8), layers_per_block=3,
        attention_head_dim=(2, 4), norm_eps=1e-2,
    ),
    "one level": UNetConfig(
        **blocks(CROSS), sample_size=4, in_channels=3, out_channels=5, block_out_channels=(12,), layers_per_block=1,
        cross_attention_dim=7, attention_head_dim=3, norm_num_groups=3,
    ),
}  # fmt: skip
# Stable Diffusion 1's configuration as it was published.
PUBLISHED = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
# Stable Diffusion 2's, in what differs.
SECOND = PUBLISHED | {
    "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": False,
    "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96, "upcast_attention": True,
    "use_linear_projection": True,
}  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def both(name: str) -> tuple[Any, UNet2DConditionModel]:
    """diffusers' network with random weights, and ours with the same; both take each other's names, strictly."""
    import diffusers

    torch.manual_seed(0)
    reference = diffusers.UNet2DConditionModel.from_config(CASES[name].to_dict()).eval().requires_grad_(False)
    stir(reference)
    with torch.device("meta"):
        ours = UNet2DConditionModel(CASES[name])
    ours.load_state_dict(reference.state_dict(), strict=True, assign=True)
    reference.load_state_dict(ours.state_dict(), strict=True)
    return reference, ours.eval().requires_grad_(False)


def tiny() -> UNet2DConditionModel:
    """A network of random weights, new for each test."""
    torch.manual_seed(0)
    net = UNet2DConditionModel(TINY)
    for weight in net.parameters():  # those that training starts at zero among them
        if weight.ndim > 1:
            torch.nn.init.xavier_uniform_(weight)
    stir(net)
    return net.eval().requires_grad_(False)


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and theirs.isfinite().all()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def inputs(config: UNetConfig, height: int = 8, width: int = 8, length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and text of two pictures; the second is of low contrast, where the epsilon of the norms counts."""
    x = noise(2, config.in_channels, height, width) * torch.tensor([1.0, 0.01])[:, None, None, None]
    return x, torch.tensor([981.0, 20.5]), noise(2, length, config.cross_attention_dim, seed=1)


def assert_equal(name: str, height: int, width: int, length: int) -> None:
    reference, net = both(name)
    x, t, text = inputs(net.config, height, width, length)
    theirs = reference(x, t, encoder_hidden_states=text).sample
    ours = net(x, t, **net.prepare({"text": text}))
    for row in range(2):
        assert (got := error(ours[row], theirs[row])) < 1e-5, f"picture {row}: relative error {got:.1e}"


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name: str) -> None:
    assert_equal(name, 8, 8, 5)


@pytest.mark.parity
@pytest.mark.parametrize(("height", "width"), [(13, 9), (17, 17), (5, 16), (1, 2)])
def test_sides_that_do_not_halve_evenly_are_diffusers(height: int, width: int) -> None:
    assert_equal("as Stable Diffusion 1", height, width, 5)


@pytest.mark.parity
@pytest.mark.parametrize("length", [1, 77, 154])
def test_texts_of_any_length_are_diffusers(length: int) -> None:
    assert_equal("as Stable Diffusion 2", 8, 8, length)


@pytest.mark.parity
def test_a_mask_is_diffusers() -> None:
    reference, net = both("as Stable Diffusion 1")
    x, t, text = inputs(TINY, length=6)
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    theirs = reference(x, t, encoder_hidden_states=text, encoder_attention_mask=mask).sample
    assert error(net(x, t, **net.prepare({"text": text, "mask": mask})), theirs) < 1e-5


@pytest.mark.parity
def test_the_published_size_has_diffusers_names_and_shapes() -> None:
    import diffusers

    with torch.device("meta"):
        ours = UNet2DConditionModel(UNetConfig.from_dict(PUBLISHED)).state_dict()
        theirs = diffusers.UNet2DConditionModel.from_config(PUBLISHED).state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {n: weight.shape for n, weight in theirs.items()}
    assert len(ours) == 686
    assert sum(weight.numel() for weight in ours.values()) == 859_520_964


def test_what_is_behind_the_mask_changes_nothing() -> None:
    net = tiny()
    x, t, text = inputs(TINY, length=3)
    padding = noise(2, 4, TINY.cross_attention_dim, seed=2)
    mask = torch.arange(7).expand(2, 7) < 3
    alone = net(x, t, **net.prepare({"text": text}))
    for scale in (1.0, 100.0):
        padded = {"text": torch.cat([text, scale * padding], dim=1), "mask": mask}
        assert error(net(x, t, **net.prepare(padded)), alone) < 1e-5
    assert error(net(x, t, **net.prepare({"text": padded["text"]})), alone) > 1e-3


def test_text_and_time_reach_their_own_picture_alone() -> None:
    net = tiny()
    x, t, text = inputs(TINY)
    before = net(x, t, **net.prepare({"text": text}))
    other = torch.cat([text[:1], noise(1, *text.shape[1:], seed=3)])
    for after in (
        net(x, t, **net.prepare({"text": other})),
        net(x, t - t.new_tensor([0, 15]), **net.prepare({"text": text})),
    ):
        assert torch.equal(after[0], before[0])
        assert error(after[1], before[1]) > 1e-3


def test_a_picture_of_a_batch_is_the_picture_alone() -> None:
    net = tiny()
    x, t, text = inputs(TINY)
    prepared = net.prepare({"text": text, "mask": torch.arange(5) < torch.tensor([[5], [2]])})
    together = net(x, t, **prepared)
    for row in range(2):
        rows = slice(row, row + 1)
        assert error(net(x[rows], t[rows], **take(prepared, rows)), together[rows]) < 1e-5


def test_channels_last_equals_contiguous() -> None:
    net, last = tiny(), tiny().to(memory_format=torch.channels_last)
    x, t, text = inputs(TINY, 13, 9)
    expected = net(x, t, **net.prepare({"text": text}))
    x_last = x.to(memory_format=torch.channels_last)
    for model, latents in ((net, x_last), (last, x), (last, x_last)):
        assert error(model(latents, t, **model.prepare({"text": text})), expected) < 1e-5


def test_bfloat16_is_near_float32() -> None:
    net = tiny()
    x, t, text = inputs(TINY)
    exact = net(x, t, **net.prepare({"text": text}))
    net = net.bfloat16()
    prepared = net.prepare({"text": text})  # of float32 states, as the text encoder may be of another dtype
    assert {part.dtype for name in ("keys", "values") for part in prepared[name]} == {torch.bfloat16}
    rounded = net(x.bfloat16(), t, **prepared)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded.float() - exact).norm() < 0.03 * exact.norm()


def test_wrong_names_are_an_error() -> None:
    net = tiny()
    x, t, text = inputs(TINY)
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        net(x, t, **net.prepare({"text": text}), labels=torch.zeros(2))


# Configurations


@pytest.mark.parity
@pytest.mark.parametrize("config", [*CASES.values(), *map(UNetConfig.from_dict, (PUBLISHED, SECOND))])
def test_a_configuration_goes_through_diffusers(config: UNetConfig, tmp_path: Path) -> None:
    import diffusers

    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with torch.device("meta"):
        reference = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(tmp_path))
    reference.save_config(tmp_path / "saved")
    assert UNetConfig.from_dict(json.loads((tmp_path / "saved/config.json").read_text())) == config
    assert UNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parity
@pytest.mark.parametrize("published", [PUBLISHED, SECOND], ids=["1", "2"])
def test_a_published_configuration_is_read_as_diffusers_reads_it(published: dict[str, Any]) -> None:
    import diffusers

    with torch.device("meta"):
        wanted = dict(diffusers.UNet2DConditionModel.from_config(published).config)
        got = dict(diffusers.UNet2DConditionModel.from_config(UNetConfig.from_dict(published).to_dict()).config)
    about = ("_use_default_values", "_diffusers_version", "upcast_attention")  # the last is of half precision alone
    assert {name: v for name, v in got.items() if name not in about} == {
        name: v for name, v in wanted.items() if name not in about
    }


@pytest.mark.parity
def test_missing_fields_take_diffusers_defaults() -> None:
    import diffusers

    with torch.device("meta"):
        config = dict(diffusers.UNet2DConditionModel(sample_size=64).config)
    assert UNetConfig.from_dict({}) == UNetConfig(cross_attention_dim=1280) == UNetConfig.from_dict(config)
    assert UNetConfig.from_dict(PUBLISHED) == UNetConfig()


@pytest.mark.parametrize("name", UNET_FIXED)
def test_an_option_that_the_network_does_not_have_is_refused(name: str) -> None:
    usual = UNET_FIXED[name][0]
    other = {bool: not usual, str: "other", int: 7, float: 0.5}.get(type(usual), "text")
    with pytest.raises(LimnerError, match=f"a UNet with {name} {other!r} is not supported, only {usual!r}$"):
        UNetConfig.from_dict(PUBLISHED | {name: other})
    for value in UNET_FIXED[name]:
        assert UNetConfig.from_dict(PUBLISHED | {name: value}) == UNetConfig()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"down_block_types": ["DownBlock2D"] * 3}, "down_block_types names 3 levels, block_out_channels 4"),
        ({"up_block_types": []}, "up_block_types names 0 levels, block_out_channels 4"),
        ({"block_out_channels": [320, 640]}, "down_block_types names 4 levels, block_out_channels 2"),
        ({"block_out_channels": []}, "block_out_channels must hold a width of at least 1 for each level"),
        ({"block_out_channels": [320, 0, 320, 320]}, "block_out_channels must hold a width of at least 1"),
        (
            {"down_block_types": ["CrosAttnDownBlock2D"] * 4},
            "unknown down_block_types 'CrosAttnDownBlock2D'; did you mean 'CrossAttnDownBlock2D'",
        ),
        (
            {"up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4},
            "unknown up_block_types 'SimpleCrossAttnUpBlock2D'; did you mean 'CrossAttnUpBlock2D'",
        ),
        ({"attention_head_dim": [8, 8]}, r"attention_head_dim must be from 1 to \d+, one for each level, not \(8, 8\)"),
        ({"attention_head_dim": 0}, "attention_head_dim must be from 1"),
        ({"attention_head_dim": 7}, "block_out_channels 320 must be divisible by the heads, attention_head_dim 7"),
        ({"attention_head_dim": [8, 8, 8, 7]}, "block_out_channels 1280 must be divisible by the heads, attention"),
        ({"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block must be from 1"),
        ({"transformer_layers_per_block": [1, 2, 3, 0]}, "transformer_layers_per_block must be from 1"),
        ({"transformer_layers_per_block": [1, 1, 1, [1, 2]]}, "transformer_layers_per_block must be"),
        ({"layers_per_block": [2, 2, 2, 2]}, "layers_per_block must be a whole number"),
        ({"layers_per_block": 0}, "layers_per_block must be at least 1, not 0"),
        ({"cross_attention_dim": [768] * 4}, "cross_attention_dim must be a whole number"),
        ({"cross_attention_dim": 0}, "cross_attention_dim must be at least 1"),
        ({"norm_num_groups": 24}, "block_out_channels 320 must be divisible by norm_num_groups 24"),
        ({"norm_num_groups": None}, "norm_num_groups must be a whole number"),
        ({"norm_eps": 0.0}, "norm_eps must be more than 0"),
        ({"use_linear_projection": 1}, "use_linear_projection must be true or false"),
        ({"sample_size": [64, 96]}, "sample_size must be a whole number"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_used(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        UNetConfig.from_dict(PUBLISHED | entries)


@pytest.mark.parametrize(
    ("config", "text_width", "classes", "message"),
    [
        ({}, 24, 0, None),
        ({}, 32, 0, "cross_attention_dim is 24, but the text encoder's states have 32"),
        ({}, 24, 3, "a UNet takes no class names"),
        ({"in_channels": 9}, 24, 0, None),
        ({"in_channels": 8}, 24, 0, "the UNet takes 8 channels and gives 4"),
        ({"out_channels": 8}, 24, 0, "the UNet takes 4 channels and gives 8"),
    ],
)
def test_a_conditioner_that_does_not_fit(
    config: dict[str, Any], text_width: int, classes: int, message: str | None
) -> None:
    with torch.device("meta"):
        problem = UNet2DConditionModel(UNetConfig.from_dict(TINY.to_dict() | config)).misfit(text_width, classes)
    assert problem is None if message is None else message in str(problem)
