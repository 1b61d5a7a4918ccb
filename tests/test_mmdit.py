"""Transformers of pictures and words: Stable Diffusion 3's against diffusers' on the same weights, and what must hold
without a reference."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from sd import stir
from torch import Tensor

from limner.errors import LimnerError
from limner.nets.layers import RMSNorm, SwiGLU, rope, rotate
from limner.nets.mmdit import JointTransformer, MMDiT, SD3Transformer2DModel, grid_rope
from limner.nets.mmdit_config import MMDiTConfig, SD3TransformerConfig
from limner.nets.network import take

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = SD3TransformerConfig(
    sample_size=16, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
    joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=12, pos_embed_max_size=11,
)  # fmt: skip
CASES = {
    "3 medium": TINY,
    "3.5 large": replace(TINY, qk_norm="rms_norm"),
    "3.5 medium": replace(TINY, qk_norm="rms_norm", dual_attention_layers=(0, 1), pos_embed_max_size=24),
    "a second attention in the last block": replace(TINY, dual_attention_layers=(2, 7)),
    "one block, patches of 4": replace(TINY, num_layers=1, patch_size=4),
}
# The published configurations of Stable Diffusion 3 medium, 3.5 large and 3.5 medium.
PUBLISHED = {
    "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.29.0.dev0", "attention_head_dim": 64,
    "caption_projection_dim": 1536, "in_channels": 16, "joint_attention_dim": 4096, "num_attention_heads": 24,
    "num_layers": 24, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
    "sample_size": 128,
}  # fmt: skip
LARGE = PUBLISHED | {
    "num_attention_heads": 38, "caption_projection_dim": 2432, "num_layers": 38, "qk_norm": "rms_norm",
    "dual_attention_layers": [],
}  # fmt: skip
MEDIUM = PUBLISHED | {
    "qk_norm": "rms_norm", "dual_attention_layers": list(range(13)), "pos_embed_max_size": 384,
}  # fmt: skip

OWN = MMDiTConfig(sample_size=8, in_channels=3, patch_size=2, hidden_size=32, depth=3, num_heads=2, text_dim=12)
CONV = replace(OWN, conv_channels=8, conv_layers=1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(config: SD3TransformerConfig) -> tuple[Any, SD3Transformer2DModel]:
    """diffusers' network with random weights, and ours with the same; both take each other's names, strictly."""
    import diffusers

    torch.manual_seed(0)
    reference = diffusers.SD3Transformer2DModel.from_config(config.to_dict()).eval().requires_grad_(False)
    stir(reference)
    with torch.device("meta"):
        ours = SD3Transformer2DModel(config)
    ours.load_state_dict(reference.state_dict(), strict=True, assign=True)
    reference.load_state_dict(ours.state_dict(), strict=True)
    return reference, ours.eval().requires_grad_(False)


@cache
def both(name: str) -> tuple[Any, SD3Transformer2DModel]:
    return pair(CASES[name])


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and theirs.isfinite().all()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def inputs(config: SD3TransformerConfig, height: int = 16, width: int = 16, length: int = 7) -> tuple[Tensor, ...]:
    """x, t, text and pooled text of two pictures; the second is of low contrast, where epsilons count."""
    x = noise(2, config.in_channels, height, width) * torch.tensor([1.0, 0.01])[:, None, None, None]
    text = noise(2, length, config.joint_attention_dim, seed=1)
    return x, torch.tensor([981.0, 20.5]), text, noise(2, config.pooled_projection_dim, seed=2)


def outputs(reference: Any, net: SD3Transformer2DModel, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Ours and theirs."""
    x, t, text, pooled = batch
    theirs = reference(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t).sample
    return net(x, t, **net.prepare({"text": text, "pooled": pooled})), theirs


def assert_equal(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    for row in range(len(theirs)):
        assert (got := error(ours[row], theirs[row])) < tolerance, f"picture {row}: relative error {got:.1e}"


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name: str) -> None:
    assert_equal(*outputs(*both(name), inputs(CASES[name])))


@pytest.mark.parity
@pytest.mark.parametrize(("height", "width"), [(22, 6), (2, 22), (10, 14), (2, 2)])
def test_sides_of_any_number_of_patches_are_diffusers(height: int, width: int) -> None:
    assert_equal(*outputs(*both("3 medium"), inputs(TINY, height, width)))


@pytest.mark.parity
@pytest.mark.parametrize("length", [1, 333])
def test_texts_of_any_length_are_diffusers(length: int) -> None:
    assert_equal(*outputs(*both("3.5 medium"), inputs(TINY, length=length)))


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_the_position_table_is_diffusers(name: str) -> None:
    table = SD3Transformer2DModel(CASES[name]).state_dict()["pos_embed.pos_embed"]
    torch.testing.assert_close(table, both(name)[0].pos_embed.pos_embed, rtol=0, atol=1e-6)


@pytest.mark.parity
def test_an_inpainting_transformer_is_diffusers() -> None:
    reference, net = pair(replace(TINY, in_channels=9))
    x, t, text, pooled = inputs(net.config)
    theirs = reference(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t).sample
    condition = {"text": text, "pooled": pooled, "concat": x[:, 4:]}
    assert_equal(net(x[:, :4], t, **net.prepare(condition)), theirs)
    assert net.concat_channels == 5 and net.latent_channels == 4 and net.misfit(24, 0) is None


@pytest.mark.parity
@pytest.mark.parametrize("name", ["3 medium", "3.5 medium"])
def test_gradients_are_diffusers(name: str) -> None:
    reference, net = pair(CASES[name])
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)  # weights, and gradients, of its own
    batch = inputs(CASES[name], 8, 6)
    for each in (net, reference):
        each.requires_grad_(True)
    for output in outputs(reference, net, batch):
        (output * noise(2, 4, 8, 6, seed=5)).sum().backward()
    ours, theirs = ({n: w.grad for n, w in each.named_parameters() if w.grad is not None} for each in (net, reference))
    unused = {f"transformer_blocks.2.attn.{each}" for each in ("add_q_proj.weight", "add_q_proj.bias")}
    assert theirs.keys() - ours.keys() <= unused | {"transformer_blocks.2.attn.norm_added_q.weight"}
    for key, gradient in ours.items():
        assert (got := error(gradient, theirs[key])) < 1e-4, f"{key}: relative error {got:.1e}"


@pytest.mark.parity
@pytest.mark.parametrize("name", ["3 medium", "3.5 medium"])
def test_bfloat16_is_as_near_as_diffusers_in_bfloat16(name: str) -> None:
    reference, net = pair(CASES[name])
    exact = outputs(reference, net, inputs(CASES[name]))[1]
    x, t, text, pooled = inputs(CASES[name])
    batch = x.bfloat16(), t, text.bfloat16(), pooled.bfloat16()
    ours, theirs = outputs(reference.bfloat16(), net.bfloat16(), batch)
    assert ours.dtype == torch.bfloat16
    assert error(ours.float(), exact) < 1.5 * error(theirs.float(), exact) + 0.01 < 0.05


@pytest.mark.parity
@pytest.mark.full_size
@pytest.mark.parametrize(("config", "depth"), [(PUBLISHED, 4), (LARGE, 3), (MEDIUM, 4)], ids=["3", "large", "medium"])
def test_blocks_of_true_width_are_diffusers(config: dict[str, Any], depth: int) -> None:
    reference, net = pair(SD3TransformerConfig.from_dict(config | {"num_layers": depth}))
    assert_equal(*outputs(reference, net, inputs(net.config, 24, 40, 154)), tolerance=1e-4)


# Stable Diffusion 3's without a reference


def tiny(**changes: Any) -> SD3Transformer2DModel:
    """A network of random weights, new for each test."""
    torch.manual_seed(0)
    net = SD3Transformer2DModel(replace(CASES["3.5 medium"], **changes)).eval().requires_grad_(False)
    stir(net)
    return net


def test_the_published_configurations_are_read_and_written() -> None:
    for published in (PUBLISHED, LARGE, MEDIUM):
        config = SD3TransformerConfig.from_dict(published)
        written = config.to_dict()
        assert written == written | {name: value for name, value in published.items() if name != "_diffusers_version"}
        assert SD3TransformerConfig.from_dict(written) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm must be rms_norm or null, not 'layer_norm'"),
        ({"caption_projection_dim": 1152}, "caption_projection_dim 1152 must be num_attention_heads 24"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"dual_attention_layers": ["first"]}, "dual_attention_layers must be a list"),
        ({"_class_name": "FluxTransformer2DModel"}, "'FluxTransformer2DModel' is not supported"),
        ({"sample_size": 1}, "sample_size 1 is smaller than patch_size 2"),
    ],
)
def test_a_configuration_that_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        SD3TransformerConfig.from_dict(PUBLISHED | changes)


def test_a_picture_over_the_position_table_is_refused() -> None:
    net = tiny(pos_embed_max_size=4)
    x, t, text, pooled = inputs(net.config, 8, 8)
    prepared = net.prepare({"text": text, "pooled": pooled})
    assert net(x, t, **prepared).isfinite().all()
    for shape in ((2, 4, 10, 8), (2, 4, 8, 10)):
        with pytest.raises(LimnerError, match="is too large: positions end at 8 a side"):
            net(noise(*shape), t, **prepared)
    with pytest.raises(LimnerError, match="a picture of 7x8 does not divide into patches of 2x2"):
        net(noise(2, 4, 8, 7), t, **prepared)


def test_what_does_not_fit_the_network_is_named() -> None:
    assert tiny().misfit(24, 0) is None
    assert "joint_attention_dim is 24, but the text encoders' states have 7" in str(tiny().misfit(7, 0))
    assert "no class names" in str(tiny().misfit(24, 3))
    assert "takes 7 channels and gives 4; supported are 4 and, for inpainting, 9" in str(
        tiny(in_channels=7).misfit(24, 0)
    )


def test_tokens_are_patches() -> None:
    net = tiny()
    assert net.tokens(16, 10) == 40 == net.pos_embed(noise(1, 4, 16, 10)).shape[1]
    assert net.multiple == 2 and net.latent_channels == 4 and net.concat_channels == 0


# Both


@pytest.fixture(params=["3.5 medium", "own", "convolutions"])
def net(request: pytest.FixtureRequest) -> JointTransformer:
    """A network of random weights of each kind."""
    return tiny() if request.param == "3.5 medium" else own({"own": OWN, "convolutions": CONV}[request.param])


def own(config: MMDiTConfig = OWN, std: float = 0.2) -> MMDiT:
    """An MMDiT whose every weight is noise, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    net = MMDiT(config).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight += std * torch.randn(weight.shape, generator=draw)
    return net


def condition(net: JointTransformer, length: int = 6) -> dict[str, Tensor]:
    """Text of three pictures, of 2, 6 and 4 words."""
    mask = torch.arange(length) < torch.tensor([2, 6, 4])[:, None]
    text = {"text": noise(3, length, net.context_embedder.in_features, seed=1), "mask": mask}
    return text if isinstance(net, MMDiT) else text | {"pooled": noise(3, 12, seed=2)}


def painted(net: JointTransformer, condition: dict[str, Tensor], x: Tensor | None = None) -> Tensor:
    x = noise(3, net.latent_channels, 8, 12) if x is None else x
    return net(x, torch.tensor([20.0, 500.0, 981.0])[: len(x)], **net.prepare(condition))


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether every picture differs."""
    return bool(((a - b).abs().amax(dim=(1, 2, 3)) > 1e-3).all())


def test_padding_changes_nothing(net: JointTransformer) -> None:
    given = condition(net)
    wanted = painted(net, given)
    mask = given["mask"]
    filled = given | {"text": torch.where(mask[..., None], given["text"], 100.0)}
    torch.testing.assert_close(painted(net, filled), wanted, rtol=1e-4, atol=1e-4)
    longer = given | {"text": torch.cat([given["text"], noise(3, 5, given["text"].shape[2], seed=7)], dim=1)}
    longer["mask"] = torch.cat([mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(painted(net, longer), wanted, rtol=1e-4, atol=1e-4)
    assert differ(painted(net, given | {"mask": torch.ones_like(mask)})[[0, 2]], wanted[[0, 2]])


def test_a_picture_of_a_batch_is_the_picture_alone(net: JointTransformer) -> None:
    given, x, t = condition(net), noise(3, net.latent_channels, 8, 12), torch.tensor([20.0, 500.0, 981.0])
    wanted, prepared = painted(net, given), net.prepare(given)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = net(x[rows], t[rows], **net.prepare(take(given, rows)))
        torch.testing.assert_close(alone, wanted[rows], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(x[rows], t[rows], **take(prepared, rows)), wanted[rows], rtol=1e-4, atol=1e-4)


def test_text_time_and_picture_act(net: JointTransformer) -> None:
    given, x, t = condition(net), noise(3, net.latent_channels, 8, 12), torch.tensor([20.0, 500.0, 981.0])
    wanted, prepared = painted(net, given), net.prepare(given)
    assert differ(painted(net, given | {"text": given["text"].flip(0)})[[0, 2]], wanted[[0, 2]])
    assert differ(net(x, t.flip(0), **prepared)[[0, 2]], wanted[[0, 2]])
    for dim in (2, 3):  # without positions, patches that change places would take their outputs along
        assert differ(net(x.roll(4, dim), t, **prepared).roll(-4, dim), wanted)
    assert differ(net(x, t, **prepared | {"pooled": prepared["pooled"].flip(0)})[[0, 2]], wanted[[0, 2]])


def test_words_have_one_position(net: JointTransformer) -> None:
    given = condition(net)
    wanted = painted(net, given)
    turned = given | {name: given[name].flip(1) for name in ("text", "mask")}
    torch.testing.assert_close(painted(net, turned), wanted, rtol=1e-4, atol=1e-4)


def test_prepare_is_in_the_dtype_of_the_network(net: JointTransformer) -> None:
    exact, given, x = painted(net, condition(net)), condition(net), noise(3, net.latent_channels, 8, 12)
    prepared = net.bfloat16().prepare(given)
    assert {name: entry.dtype for name, entry in prepared.items()} == {
        "text": torch.bfloat16, "pooled": torch.bfloat16, "mask": torch.bool
    }  # fmt: skip
    out = net(x.bfloat16(), torch.tensor([20.0, 500.0, 981.0]), **prepared)
    assert out.dtype == torch.bfloat16 and error(out.float(), exact) < 0.05


# The MMDiT that is trained from nothing


@pytest.mark.parametrize("config", [OWN, CONV], ids=["patches", "convolutions"])
def test_training_starts_with_blocks_that_change_nothing(config: MMDiTConfig) -> None:
    net = MMDiT(config)
    assert painted(net, condition(net)).abs().max() == 0
    x, text, c = noise(2, 24, 32), noise(2, 5, 32, seed=1), noise(2, 32, seed=2)
    for block in net.repeated:
        after = block(x, text, c)
        assert torch.equal(after[0], x) and torch.equal(after[1], text)
    for resnet in [] if net.ends is None else [*net.ends.down, *net.ends.up]:
        assert torch.equal(resnet(noise(2, 8, 6, 6), c), noise(2, 8, 6, 6))
    time = net.time_text_embed.timestep_embedder
    assert time.linear_1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert time.linear_2.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_features_of_the_convolutions_go_past_the_transformer() -> None:
    net = own(CONV)
    net.proj_out.weight.zero_()
    assert differ(painted(net, condition(net)), painted(net, condition(net), noise(3, 3, 8, 12, seed=9)))


@pytest.mark.parametrize("config", [OWN, CONV], ids=["patches", "convolutions"])
def test_every_weight_has_a_gradient(config: MMDiTConfig) -> None:
    net = own(config).requires_grad_(True)
    grid_rope.cache_clear()
    with torch.inference_mode():  # as a sheet painted before training
        painted(net, condition(net))
    painted(net, condition(net)).square().sum().backward()
    for name, weight in net.named_parameters():
        # A bias of keys adds the same to every score of a query, but normalisation makes it count.
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("changes", [{"rope_theta": 50.0}, {"sample_size": 16}], ids=["rope_theta", "sample_size"])
def test_the_options_of_positions_act(changes: dict[str, Any]) -> None:
    other, net = own(replace(OWN, **changes)), own()
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters(), strict=True))
    assert differ(painted(other, condition(other)), painted(net, condition(net)))


def test_positions_are_interpolated_to_the_trained_size() -> None:
    axes = {3: [1 / 6, 1.5, 17 / 6], 4: [0.0, 1.0, 2.0, 3.0], 8: [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25]}
    for rows, columns in ((3, 8), (8, 4), (4, 4)):
        positions = torch.tensor([[y, x] for y in axes[rows] for x in axes[columns]])
        drawn = grid_rope(rows, columns, 4, 8, 100.0, torch.device("cpu"))
        torch.testing.assert_close(drawn, rope(positions, (4, 4), 100.0))


def test_a_picture_attends_to_itself_by_differences_of_positions_and_to_words_from_their_origin() -> None:
    block, x, text, c = own().transformer_blocks[0], noise(2, 6, 32), noise(2, 5, 32, seed=1), noise(2, 32, seed=2)
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0))
    words, none = torch.ones(1, 1, 1, 11, dtype=torch.bool), torch.arange(11)[None, None, None] < 6

    def attended(mask: Tensor, shift: float, scale: float = 1.0) -> Tensor:
        return block(x, text, c, mask, rope(scale * places + shift, (8, 8), 100.0))[0]

    torch.testing.assert_close(attended(none, 7.0), attended(none, 0.0), rtol=1e-4, atol=1e-4)
    for change in (attended(words, 7.0) - attended(words, 0.0), attended(none, 0.0, 2.0) - attended(none, 0.0)):
        assert (change.abs().amax(dim=(1, 2)) > 1e-3).all()


def test_an_mmdit_is_refused_without_text_and_with_classes() -> None:
    with pytest.raises(LimnerError, match="needs a text encoder: text_dim is 0"):
        MMDiT(replace(OWN, text_dim=0))
    assert own().misfit(12, 0) is None
    assert "text_dim is 12, but the text encoder's states have 7" in str(own().misfit(7, 0))
    assert "no class names" in str(own().misfit(12, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 36, "num_heads": 2}, "hidden_size 36 must be divisible by 4 \\* num_heads 2"),
        ({"sample_size": 9}, "sample_size 9 must be 1 to 256 times patch_size 2"),
        ({"conv_channels": 12}, "conv_channels must be a multiple of 8, not 12"),
        ({"mlp_ratio": 0.0}, "mlp_ratio 0.0 of hidden_size 32 is no width"),
        ({"rope_theta": 0.5}, "rope_theta must be at least 1, not 0.5"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_a_configuration_that_makes_no_network_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        replace(OWN, **changes)


def test_the_configuration_is_read_and_written() -> None:
    assert MMDiTConfig.from_dict(CONV.to_dict()) == CONV
    with pytest.raises(LimnerError, match="does not describe an MMDiT: got an unexpected keyword argument 'heads'"):
        MMDiTConfig.from_dict({"heads": 2})


# Layers


def test_products_of_rotated_vectors_depend_on_differences_of_positions() -> None:
    q, k = noise(1, 1, 1, 16).double(), noise(1, 1, 1, 16, seed=1).double()

    def product(a: tuple[float, float], b: tuple[float, float]) -> float:
        turns = rope(torch.tensor([a, b]), (8, 8), 100.0)
        rows = [[part[i : i + 1] for part in turns] for i in range(2)]
        return (rotate(q, *rows[0]) * rotate(k, *rows[1])).sum().item()

    wanted = product((3, 1), (1, 6))
    assert product((10, 2), (8, 7)) == pytest.approx(wanted, abs=1e-5)
    assert product((2, -5), (0, 0)) == pytest.approx(wanted, abs=1e-5)
    assert abs(product((3, 1), (1, 7)) - wanted) > 0.01 and abs(product((3, 1), (2, 6)) - wanted) > 0.01
    assert product((0, 0), (0, 0)) == pytest.approx((q * k).sum().item())


@pytest.mark.parity
def test_rope_over_axes_is_diffusers() -> None:
    from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed

    positions = torch.cartesian_prod(torch.arange(2.0), torch.arange(5.0), torch.arange(3.0))
    parts = [
        get_1d_rotary_pos_embed(dim, positions[:, i], use_real=True, repeat_interleave_real=True)
        for i, dim in enumerate((4, 8, 12))
    ]
    x = noise(2, 3, 30, 24)
    theirs = apply_rotary_emb(x, tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))
    torch.testing.assert_close(rotate(x, *rope(positions, (4, 8, 12))), theirs, rtol=0, atol=1e-5)


def test_rms_norm_and_swiglu_by_hand() -> None:
    x, norm, mlp = noise(2, 3, 8), RMSNorm(8, eps=0.1), SwiGLU(8, 5)
    norm.weight.data = noise(8, seed=1)
    wanted = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), wanted)
    hidden, gate = (x @ mlp.proj_in.weight.T + mlp.proj_in.bias).split(5, dim=-1)
    wanted = (hidden * gate / (1 + (-gate).exp())) @ mlp.proj_out.weight.T + mlp.proj_out.bias
    torch.testing.assert_close(mlp(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), wanted)
