"""The text encoder against transformers' on the same weights, and what must hold without a reference."""

import json
from functools import cache

import pytest
import torch

from limner.errors import LimnerError
from limner.text.clip import CLIPTextConfig, CLIPTextModel

TINY = CLIPTextConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=16,
    eos_token_id=99,
)
B32 = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
L14 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SD2 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "num_attention_heads": 16}
PUBLISHED = {
    "ViT-B/32": B32 | {"hidden_act": "quick_gelu", "eos_token_id": 49407},
    "ViT-L/14": L14 | {"hidden_act": "quick_gelu", "eos_token_id": 2, "projection_dim": 768},  # SD 1.5's config
    "SD2": SD2 | {"hidden_act": "gelu", "eos_token_id": 49407, "pad_token_id": 0},
    "other end": B32 | {"num_hidden_layers": 2, "vocab_size": 3000, "eos_token_id": 17, "bos_token_id": 16},
}


def prompts(vocab_size=49408, end=49407, length=77, pad=None):
    """Four texts of mixed lengths, the empty one and a full one among them: ids (4, L)."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.full((4, length), end if pad is None else pad)
    for row, words in zip(ids, (0, 5, length // 2, length - 2), strict=True):
        row[0] = 1
        row[1 : words + 1] = torch.randint(20, vocab_size - 2, (words,), generator=draw)
        row[words + 1] = end
    return ids


@cache
def tiny():
    torch.manual_seed(0)
    return CLIPTextModel(TINY).eval()


def tiny_ids():
    return prompts(TINY.vocab_size, TINY.eos_token_id, 16)


def theirs_and_ours(config, kind):
    """transformers' model with random weights, and ours with the same through a state dict of the published names."""
    import transformers

    torch.manual_seed(1)
    reference = getattr(transformers, kind)(transformers.CLIPTextConfig(**config)).eval()
    for name, weight in reference.named_parameters():
        # its own initial weights are too small to show an error in the deeper layers, or have zero biases
        if weight.ndim == 1:
            weight.data += 0.1 * torch.randn_like(weight)
        elif "_proj" in name or "fc" in name:
            weight.data.mul_(3.0)
    weights = {
        f"text_model.{name}".replace("text_model.text_", "text_"): w for name, w in reference.state_dict().items()
    }
    with torch.device("meta"):
        ours = CLIPTextModel(CLIPTextConfig.from_dict(config | {"architectures": [kind]}))
    ours.load_state_dict(weights, strict=True, assign=True)
    return reference, ours.eval()


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-5, f"relative error {error:.1e}"


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full_size] * (name == "ViT-L/14")) for name in PUBLISHED]
)
@torch.no_grad()
def test_equals_transformers(name, kind):
    config = PUBLISHED[name]
    reference, model = theirs_and_ours(config, kind)
    end = 49407 if config["eos_token_id"] == 2 else config["eos_token_id"]
    ids = prompts(config.get("vocab_size", 49408), end, pad=config.get("pad_token_id"))
    theirs = reference(input_ids=ids, output_hidden_states=True)
    ours = model(ids)
    assert len(ours.states) == len(theirs.hidden_states) == config["num_hidden_layers"] + 1
    for state, expected in zip(ours.states, theirs.hidden_states, strict=True):
        assert_close(state, expected)
    assert_close(ours.hidden, theirs.last_hidden_state)
    assert_close(ours.pooled, theirs.pooler_output if kind == "CLIPTextModel" else theirs.text_embeds)
    skipped = model(ids, layer=-2, norm=False)
    assert_close(skipped.hidden, theirs.hidden_states[-2])
    assert torch.equal(skipped.pooled, ours.pooled)


@pytest.mark.parity
def test_the_saved_files_have_our_names(tmp_path):
    from safetensors.torch import load_file
    from transformers import CLIPTextModelWithProjection

    config = CLIPTextConfig(**TINY.__dict__ | {"projection_dim": 8})
    ours = CLIPTextModel(config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    torch.save(ours.state_dict(), tmp_path / "pytorch_model.bin")
    reference, report = CLIPTextModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    reference.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert saved.keys() == ours.state_dict().keys()
    assert all(torch.equal(saved[name], weight) for name, weight in ours.state_dict().items())
    read = CLIPTextConfig.from_dict(json.loads((tmp_path / "saved/config.json").read_text()))
    assert read == config


@torch.no_grad()
def test_layer_choice():
    model, ids = tiny(), tiny_ids()
    norm = model.text_model.final_layer_norm
    out = model(ids)
    assert torch.equal(out.hidden, norm(out.states[3]))
    assert torch.equal(model(ids, layer=-2, norm=False).hidden, out.states[2])
    assert torch.equal(model(ids, layer=-2).hidden, norm(out.states[2]))
    assert torch.equal(model(ids, layer=0, norm=False).hidden, out.states[0])
    assert torch.equal(model(ids, layer=3).hidden, out.hidden)
    assert not torch.allclose(model(ids, layer=-2).hidden, out.hidden)


@torch.no_grad()
def test_padding_changes_nothing_before_it():
    model, ids = tiny(), tiny_ids()
    out = model(ids)
    other = ids.clone()
    other[1, 7:] = 0  # row 1: start, five words, end, then padding
    changed = model(other)
    assert torch.equal(changed.hidden[1, :7], out.hidden[1, :7])
    assert not torch.equal(changed.hidden[1, 7:], out.hidden[1, 7:])
    assert torch.equal(changed.pooled, out.pooled)
    short = model(ids[1:2, :7])
    torch.testing.assert_close(short.hidden[0], out.hidden[1, :7], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_batch_equals_its_texts_alone():
    model, ids = tiny(), tiny_ids()
    together = model(ids)
    for i in range(len(ids)):
        alone = model(ids[i : i + 1])
        torch.testing.assert_close(alone.hidden[0], together.hidden[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.pooled[0], together.pooled[i], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_another_prompt_another_output():
    model, ids = tiny(), tiny_ids()
    other = ids.clone()
    other[:, 1:] = torch.where((ids[:, 1:] != 99), (ids[:, 1:] + 1) % 99, ids[:, 1:])
    before, after = model(ids), model(other)
    assert torch.equal(before.hidden[0], after.hidden[0])  # the empty text stayed what it was
    assert ((before.pooled - after.pooled)[1:].norm(dim=-1) > 0.1 * before.pooled[1:].norm(dim=-1)).all()
    swapped = ids.clone()
    swapped[1, [1, 2]] = ids[1, [2, 1]]
    assert not torch.allclose(model(swapped).pooled[1], before.pooled[1], atol=1e-3)  # word order counts


@torch.no_grad()
def test_pooled_at_the_first_end_token():
    model, ids = tiny(), tiny_ids()
    out = model(ids)
    places = [1, 6, 9, 15]
    assert torch.equal(out.pooled, torch.stack([out.hidden[i, place] for i, place in enumerate(places)]))
    legacy = CLIPTextModel(CLIPTextConfig(**TINY.__dict__ | {"eos_token_id": 2})).eval()
    legacy.load_state_dict(model.state_dict())
    assert torch.equal(legacy(ids).pooled, out.pooled)


def test_a_fresh_encoder_tells_words_apart():
    """Eight words, each among many others: which it is explains most of its state. With CLIP's own embeddings (0.02)
    it explained 17%."""
    torch.manual_seed(0)
    config = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = CLIPTextModel(CLIPTextConfig(vocab_size=300, max_position_embeddings=48, eos_token_id=299, **config))
    ids = torch.randint(0, 298, (8, 32, 24))
    ids[..., 12] = torch.arange(8)[:, None]
    with torch.no_grad():
        states = model(ids.flatten(0, 1)).hidden[:, 12].unflatten(0, (8, 32))
    of_the_word = states.mean(dim=1).var(dim=0).sum() / states.flatten(0, 1).var(dim=0).sum()
    assert of_the_word > 0.8


def test_starts_as_clip_does():
    """But for the embeddings, see the test above."""
    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig(vocab_size=1000, num_hidden_layers=4, projection_dim=256))
    layer = model.text_model.encoder.layers[2]
    expected = {
        model.text_model.embeddings.token_embedding: 1.0,
        model.text_model.embeddings.position_embedding: 0.3,
        layer.self_attn.q_proj: 512**-0.5,
        layer.self_attn.v_proj: 512**-0.5,
        layer.self_attn.out_proj: (512 * 8) ** -0.5,
        layer.mlp.fc1: 1024**-0.5,
        layer.mlp.fc2: (512 * 8) ** -0.5,
        model.text_projection: 512**-0.5,
    }
    for module, std in expected.items():
        assert module.weight.std().item() == pytest.approx(std, rel=0.02)
    assert not layer.mlp.fc1.bias.any() and (layer.layer_norm1.weight == 1).all()


def test_gradients_reach_every_parameter():
    model = CLIPTextModel(CLIPTextConfig(**TINY.__dict__ | {"projection_dim": 8}))
    model(tiny_ids()).pooled.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    still = [name for name, weight in model.named_parameters() if not weight.grad.any() and "k_proj.bias" not in name]
    assert still == []  # a key bias shifts all scores alike, so its gradient is zero by nature


def test_constructs_on_meta():
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig.from_dict(PUBLISHED["ViT-L/14"]))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in model.parameters()) == 123_060_480  # Stable Diffusion 1.5's text encoder
    assert len(model.state_dict()) == 196 and "text_projection.weight" not in model.state_dict()


def test_config_from_a_published_file():
    published = L14 | {
        "architectures": ["CLIPTextModel"],
        "projection_dim": 768,
        "dropout": 0.0,
        "torch_dtype": "float32",
    }
    assert CLIPTextConfig.from_dict(published) == CLIPTextConfig(**L14)
    published["architectures"] = ["CLIPTextModelWithProjection"]
    assert CLIPTextConfig.from_dict(published) == CLIPTextConfig(**L14, projection_dim=768)


def test_what_cannot_be_used_is_said():
    with pytest.raises(LimnerError, match="unknown hidden_act 'quickgelu'; did you mean 'quick_gelu'"):
        CLIPTextConfig(hidden_act="quickgelu")
    with pytest.raises(LimnerError, match="hidden_size 30 cannot be split into num_attention_heads 4"):
        CLIPTextConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(LimnerError, match="layer -5 does not exist.*-4 to 3"):
        tiny()(tiny_ids(), layer=-5)
    with pytest.raises(LimnerError, match="17 tokens is over this encoder's 16"):
        tiny()(torch.zeros(1, 17, dtype=torch.int64))
