"""T5's encoder against transformers' on the same weights, and what must hold without a reference."""

import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from limner.errors import LimnerError
from limner.text.t5 import T5Config, T5EncoderModel, relative_position_buckets, t5_encoder
from limner.weights.load import load

TINY = T5Config(
    vocab_size=100, d_model=32, d_kv=6, d_ff=48, num_layers=3, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=20, layer_norm_epsilon=0.01,
)  # fmt: skip
GATED = replace(TINY, feed_forward_proj="gated-gelu")
SMALL = T5Config()
XXL = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64, feed_forward_proj="gated-gelu")


def ids_and_mask(config, length=24, batch=3):
    """Texts of different lengths, the longest one full, padded with 0: ids and mask (B, L)."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(3, config.vocab_size, (batch, length), generator=draw)
    lengths = torch.linspace(1, length, batch).long()
    mask = torch.arange(length) < lengths[:, None]
    return ids * mask, mask


def theirs_and_ours(config, kind="T5EncoderModel"):
    """transformers' model with random weights, and ours with the same through a state dict of its names."""
    import transformers

    torch.manual_seed(1)
    entries = config.to_dict() | {"dropout_rate": 0.5}
    reference = getattr(transformers, kind)(transformers.T5Config(**entries)).eval()
    for name, weight in reference.named_parameters():
        if weight.ndim == 1:
            weight.data += 0.1 * torch.randn_like(weight)
        elif "relative_attention_bias" in name:
            weight.data += torch.randn_like(weight)
    names = ((t5_encoder(name), weight) for name, weight in reference.state_dict().items())
    with torch.device("meta"):
        ours = T5EncoderModel(T5Config.from_dict(entries))
    ours.load_state_dict({name: weight for name, weight in names if name is not None}, strict=True, assign=True)
    return reference, ours.eval()


def assert_close(ours, theirs, bound=1e-5):
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < bound, f"relative error {error:.1e}"


def compare(config, length, bound=1e-5):
    """Every state, with the mask and without."""
    reference, model = theirs_and_ours(config)
    ids, mask = ids_and_mask(config, length)
    outputs = []
    for each in (None, mask):
        seen = torch.ones_like(ids) if each is None else each.long()
        theirs = reference(input_ids=ids, attention_mask=seen, output_hidden_states=True)
        ours = model(ids, mask=each)
        real = mask if each is not None else torch.ones_like(mask)
        assert len(ours.states) == len(theirs.hidden_states) == config.num_layers + 1
        for state, expected in zip(ours.states[:-1], theirs.hidden_states[:-1], strict=True):
            assert_close(state[real], expected[real], bound)
        assert_close(ours.hidden[real], theirs.last_hidden_state[real], bound)
        outputs.append(ours.hidden)
    assert not torch.allclose(outputs[0][0, :1], outputs[1][0, :1], atol=1e-2), "the mask has no effect"


@pytest.mark.parametrize("length", [5, 24])
@pytest.mark.parametrize("config", [TINY, GATED], ids=["relu", "gated-gelu"])
@torch.no_grad()
def test_equals_transformers(config, length):
    compare(config, length)


@pytest.mark.parity
@pytest.mark.full_size
@pytest.mark.parametrize(("config", "length"), [(SMALL, 512), (XXL, 256)], ids=["small", "XXL of two layers"])
@torch.no_grad()
def test_equals_transformers_at_full_size(config, length):
    compare(config, length, bound=1e-4)


@pytest.mark.parametrize("config", [TINY, GATED], ids=["relu", "gated-gelu"])
def test_gradients_equal_transformers(config):
    reference, model = theirs_and_ours(config)
    ids, mask = ids_and_mask(config)
    weights = torch.randn(*ids.shape, config.d_model, generator=torch.Generator().manual_seed(5)) * mask[..., None]
    (reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state * weights).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in reference.named_parameters()}
    reference.zero_grad()  # the models share their weights
    model.requires_grad_(True).zero_grad()
    (model(ids, mask=mask).hidden * weights).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad.any(), name
        assert_close(weight.grad, gradients[name])


@pytest.mark.parametrize("config", [TINY, GATED], ids=["relu", "gated-gelu"])
def test_transformers_opens_our_folder_and_we_open_its(config, tmp_path):
    from transformers import T5EncoderModel as Reference

    ours = T5EncoderModel(config).requires_grad_(False)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(ours.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference, report = Reference.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, mask = ids_and_mask(config)
    theirs = reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert_close(ours(ids, mask=mask).hidden[mask], theirs[mask])
    reference.save_pretrained(tmp_path / "saved")
    read = T5Config.from_dict(json.loads((tmp_path / "saved/config.json").read_text()))
    again = load(lambda: T5EncoderModel(read), tmp_path / "saved/model.safetensors", t5_encoder)
    assert read == config
    assert all(torch.equal(weight, ours.state_dict()[name]) for name, weight in again.state_dict().items())


def test_the_encoder_of_a_whole_t5(tmp_path):
    reference, _ = theirs_and_ours(GATED, "T5ForConditionalGeneration")
    reference.save_pretrained(tmp_path)
    again = load(lambda: T5EncoderModel(GATED), tmp_path / "model.safetensors", t5_encoder)
    ids, mask = ids_and_mask(GATED)
    theirs = reference.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert_close(again(ids, mask=mask).hidden[mask], theirs[mask])
    assert T5Config.from_dict(json.loads((tmp_path / "config.json").read_text())) == GATED


def test_either_name_of_the_embedding(tmp_path):
    weights = T5EncoderModel(TINY).state_dict()
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, tmp_path / "model.safetensors")
    again = load(lambda: T5EncoderModel(TINY), tmp_path / "model.safetensors", t5_encoder)
    assert torch.equal(again.shared.weight, weights["encoder.embed_tokens.weight"])


@cache
def tiny():
    torch.manual_seed(0)
    model = T5EncoderModel(GATED).eval().requires_grad_(False)
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    return model


def test_buckets_by_hand():
    """T5's 32 buckets and 128 positions: 8 exact ones a side, then 8 over ratios of distance of 16^(1/8)."""
    row = relative_position_buckets(200, 32, 128, torch.device("cpu"))[0]  # the query is first, keys come after
    for distance in range(200):
        beyond = 8 + math.floor(8 * math.log(distance / 8) / math.log(16) + 1e-6) if distance >= 8 else distance
        assert row[distance] == (16 + min(beyond, 15) if distance else 0), distance
    column = relative_position_buckets(200, 32, 128, torch.device("cpu"))[:, 0]
    assert torch.equal(column[1:] + 16, row[1:])


def test_a_masked_batch_equals_its_texts_alone():
    model = tiny()
    ids, mask = ids_and_mask(GATED)
    together = model(ids, mask=mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = model(ids[row : row + 1, :length])
        torch.testing.assert_close(together.hidden[row, :length], alone.hidden[0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(ids).hidden[row, :length], alone.hidden[0], atol=1e-2) or length == 24


def test_layer_choice():
    model, (ids, mask) = tiny(), ids_and_mask(GATED)
    norm, out = model.encoder.final_layer_norm, model(ids, mask=mask)
    assert torch.equal(out.hidden, norm(out.states[3])) and out.pooled is None
    assert torch.equal(model(ids, layer=-2, norm=False, mask=mask).hidden, out.states[2])
    assert torch.equal(model(ids, layer=-2, mask=mask).hidden, norm(out.states[2]))
    assert torch.equal(model(ids, 0, False).hidden, model.shared(ids))
    with pytest.raises(LimnerError, match="layer 4 does not exist: the encoder has states -4 to 3"):
        model(ids, layer=4)


def large(config):
    """A model whose feed-forward layers have hidden units and outputs over the largest float16."""
    torch.manual_seed(0)
    model = T5EncoderModel(config).eval().requires_grad_(False)
    for block in model.encoder.block:
        dense = block.layer[1].DenseReluDense
        dense.wo.weight *= 200
        for name in {"wi", "wi_0", "wi_1"} & dense._modules.keys():
            getattr(dense, name).weight *= 600 if name == "wi" else 100
    return model


@pytest.mark.parametrize("config", [TINY, GATED], ids=["relu", "gated-gelu"])
def test_float16_does_not_overflow(config):
    model, (ids, mask) = large(config), ids_and_mask(config)
    expected = model(ids, mask=mask)
    assert expected.states[-1].abs().max() > 2 * torch.finfo(torch.float16).max
    half = model.half()(ids, mask=mask)
    assert half.hidden.dtype == torch.float16 and half.hidden.isfinite().all()
    error = (half.hidden.float() - expected.hidden)[mask].norm() / expected.hidden[mask].norm()
    assert error < 0.01, f"relative error {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_kept(dtype):
    model, (ids, mask) = large(GATED).to(dtype), ids_and_mask(GATED)
    out = model(ids, mask=mask)
    assert {state.dtype for state in (out.hidden, *out.states)} == {dtype} and out.hidden.isfinite().all()


def test_gradients_in_bfloat16():
    model, (ids, mask) = T5EncoderModel(GATED).bfloat16(), ids_and_mask(GATED)
    model(ids, mask=mask).hidden[mask].square().sum().backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in model.parameters())


def test_starts_as_t5_does():
    torch.manual_seed(0)
    config = T5Config(1000, 256, 32, 512, 2, 8, feed_forward_proj="gated-gelu", relative_attention_num_buckets=64)
    model = T5EncoderModel(config)
    attend, dense = (model.encoder.block[0].layer[0].SelfAttention, model.encoder.block[1].layer[1].DenseReluDense)
    expected = {
        model.shared: 1.0, attend.q: (256 * 32) ** -0.5, attend.k: 256**-0.5, attend.v: 256**-0.5, attend.o: 256**-0.5,
        attend.relative_attention_bias: 256**-0.5, dense.wi_0: 256**-0.5, dense.wi_1: 256**-0.5, dense.wo: 512**-0.5,
    }  # fmt: skip
    for module, std in expected.items():
        assert module.weight.std().item() == pytest.approx(std, rel=0.08)


def test_attention_adds_a_bias_and_scales():
    from limner.nets.layers import attention

    q, k, v, bias = (torch.randn(2, 3, 5, size, requires_grad=True) for size in (4, 4, 4, 5))
    expected = ((q @ k.mT) * 0.7 + bias).softmax(dim=-1) @ v
    assert_close(attention(q, k, v, bias, scale=0.7), expected)
    half = attention(*(each.bfloat16() for each in (q, k, v, bias)), scale=0.7)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), expected, 0.05)
    assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"feed_forward_proj": "gated-gelo"}, "unknown feed_forward_proj 'gated-gelo'; did you mean 'gated-gelu'"),
        ({"d_kv": 0}, "d_kv must be at least 1, not 0"),
        ({"num_layers": 1000}, "num_layers must be at most 512"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets must be at least 4"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance must be at least 9, not 8"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be more than 0"),
        ({"d_model": "512"}, "d_model must be a whole number"),
    ],
)
def test_configurations_that_cannot_be_built(entries, message):
    with pytest.raises(LimnerError, match=message):
        T5Config.from_dict(T5Config().to_dict() | entries)
