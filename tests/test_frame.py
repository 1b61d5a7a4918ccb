"""The frame around networks: conditions, conditioners, families, and model folders that open as they were saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.errors import LimnerError
from limner.families import FAMILIES, Family, family
from limner.model import Model
from limner.nets.dit import DiT, DiTConfig
from limner.nets.network import cat, take
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.pipeline import Pipeline
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.conditioner import Ask, Classes, Nothing, NullText, NullTextConfig, Text, masked_text, no_text
from limner.text.encoder import Reads, TextEncoder, TextStates
from limner.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}
CAPTIONS = ["a red star", "a blue circle on the left of two green squares", ""]
SECOND = Reads("_2", -2, False)
KINDS = ["text", "class", "none", "latent", "null"]


def encoder(reads: Reads | None = None, length: int = 16) -> TextEncoder:
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=540, length=length)
    transformer = CLIPTextModel(CLIPTextConfig(tokenizer.vocab_size, 16, 32, 2, 2, length, eos_token_id=tokenizer.end))
    return TextEncoder(tokenizer, transformer, Reads() if reads is None else reads)


def tiny(kind: str) -> Model:
    """A model of random weights that is conditioned so; `latent` and `null` read text too."""
    torch.manual_seed(KINDS.index(kind))
    vae = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4))
    width = {"class": 0, "none": 0}.get(kind, 16)
    channels = 2 if kind == "latent" else 1
    network = DiT(DiTConfig(4, channels, 2, 16, 2, 2, num_classes=3 * (kind == "class"), text_dim=width))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    null = NullText(NullTextConfig(16)) if kind == "null" else None
    conditioner = {"class": lambda: Classes(["zero", "one", "two"]), "none": Nothing}.get(
        kind, lambda: Text([encoder()], masked_text, null)
    )()
    defaults = {"steps": 3, "guidance_scale": 1.0 if kind == "none" else 2.0}
    model = Model(network, conditioner, FLOW, vae if kind == "latent" else None, defaults, kind)
    for part in model.parts().values():
        part.eval().requires_grad_(False)
    return model


def prompt_of(model: Model) -> str:
    return {"class": "two", "none": ""}.get(model.name, "a red star")


def close(a: Any, b: Any) -> None:
    """Conditions of the same names and nearly the same numbers."""
    assert a.keys() == b.keys()
    torch.testing.assert_close(dict(a), dict(b), rtol=1e-6, atol=1e-6)


def same(a: Model, b: Model) -> None:
    """Bit-equal weights, the same tokenizers, names and numbers, the same picture."""
    assert list(a.parts()) == list(b.parts()) and list(a.tokenizers()) == list(b.tokenizers())
    for name, part in a.parts().items():
        ours, theirs = part.state_dict(), b.parts()[name].state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(t, theirs[key]) for key, t in ours.items())
        assert part.config == b.parts()[name].config
    for name, tokenizer in a.tokenizers().items():
        for one, other in zip(tokenizer.encode(CAPTIONS), b.tokenizers()[name].encode(CAPTIONS), strict=True):
            assert torch.equal(one, other)
    assert type(a.conditioner) is type(b.conditioner) and a.conditioner.names == b.conditioner.names
    assert (a.scheduler, a.defaults, a.size) == (b.scheduler, b.defaults, b.size)
    one, other = (Pipeline(model)(prompt_of(a), seed=2)[0] for model in (a, b))
    assert one.mode == other.mode and one.tobytes() == other.tobytes()


def test_take_and_cat() -> None:
    condition = {"a": torch.arange(6).view(3, 2), "b": (torch.arange(3), torch.arange(3) + 10)}
    taken = take(condition, slice(1, None))
    assert taken["a"].tolist() == [[2, 3], [4, 5]] and [part.tolist() for part in taken["b"]] == [[1, 2], [11, 12]]
    picked = take(condition, torch.tensor([2, 0, 2]))
    assert picked["a"].tolist() == [[4, 5], [0, 1], [4, 5]] and picked["b"][1].tolist() == [12, 10, 12]
    joined = cat([taken, picked])
    assert joined["a"].tolist() == [[2, 3], [4, 5], [4, 5], [0, 1], [4, 5]]
    assert isinstance(joined["b"], tuple) and joined["b"][0].tolist() == [1, 2, 2, 0, 2]
    back = cat([take(condition, slice(0, 1)), take(condition, slice(1, 3))])
    assert torch.equal(back["a"], condition["a"]) and cat([{}, {}]) == {}


def test_conditions_that_cannot_be_joined() -> None:
    with pytest.raises(LimnerError, match=r"other names cannot be joined: \[\['a'\], \['a', 'b'\]\]"):
        cat([{"a": torch.ones(1)}, {"b": torch.ones(1), "a": torch.ones(1)}])
    with pytest.raises(LimnerError, match=r"other shapes cannot be joined: \[\(2, 4\), \(3, 4\)\]"):
        cat([{"a": torch.ones(1, 3, 4)}, {"a": torch.ones(1, 2, 4)}])
    with pytest.raises(LimnerError, match=r"other shapes cannot be joined: \[\(1,\), \(2,\)\]"):
        cat([{"a": (torch.ones(1, 1), torch.ones(1, 1))}, {"a": (torch.ones(1, 1), torch.ones(1, 2))}])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_taken_before_or_after_prepare(kind: str) -> None:
    model = tiny(kind)
    network, prompts = model.network, [prompt_of(model), "", prompt_of(model)[:6] * (kind != "class"), ""]
    condition = model.conditioner(prompts)
    prepared = network.prepare(condition)
    x, t = torch.randn(4, network.latent_channels, 4, 4), torch.tensor([900.0, 500.0, 20.0, 0.0])
    whole = network(x, t, **prepared)
    for rows in (slice(1, 3), torch.tensor([3, 0]), slice(0, 1)):
        close(network.prepare(take(condition, rows)), take(prepared, rows))
        alone = network(x[rows], t[rows], **take(prepared, rows))
        torch.testing.assert_close(alone, whole[rows], rtol=1e-5, atol=1e-5)
    close(cat([take(prepared, slice(0, 1)), take(prepared, slice(1, 4))]), prepared)
    if kind != "none":
        assert (network(x[:1], t[:1], **take(prepared, slice(1, 2))) - whole[:1]).abs().max() > 1e-4


def test_wrong_names_are_an_error() -> None:
    network = tiny("class").network
    x, t = torch.randn(1, 1, 4, 4), torch.zeros(1)
    assert network(x, t, **network.prepare({"labels": torch.tensor([1])})).shape == x.shape
    for condition in ({"label": torch.tensor([1])}, {"labels": torch.tensor([1]), "guidance": torch.ones(1)}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            network(x, t, **network.prepare(condition))


def test_a_prompt_alone_is_that_prompt_of_a_batch() -> None:
    conditioner = tiny("text").conditioner
    batch = conditioner.encode([*CAPTIONS, CAPTIONS[0]])
    lengths = [int(mask.sum()) for mask in conditioner.tokenizers()["tokenizer"].encode(CAPTIONS)[1]]
    for prompt, (states,), length in zip(CAPTIONS, batch[:3], lengths, strict=True):
        [(alone,)] = conditioner.encode([prompt])
        assert states.tokens.shape == (length, 16)
        torch.testing.assert_close(states.tokens, alone.tokens, rtol=0, atol=1e-6)
        torch.testing.assert_close(states.pooled, alone.pooled, rtol=0, atol=1e-6)
    assert torch.equal(batch[3][0].tokens, batch[0][0].tokens)
    assert lengths[1] > 8 > lengths[0] > lengths[2] == 2

    condition = conditioner.combine(batch)
    assert condition["text"].shape == (4, 16, 16) and condition["mask"].shape == (4, 16)
    assert condition["mask"].tolist() == [[k < n for k in range(16)] for n in [*lengths, lengths[0]]]
    for row, mask, (states,) in zip(condition["text"], condition["mask"], batch, strict=True):
        assert torch.equal(row[mask], states.tokens) and row[~mask].abs().sum() == 0
    assert conditioner(["a red star"])["text"].shape == (1, 8, 16)  # a multiple of 8, and no longer than it must be


def test_no_prompt_is_the_empty_prompt() -> None:
    for kind in KINDS:
        conditioner = tiny(kind).conditioner
        close(conditioner([None]), conditioner([""]))
    condition = tiny("null").conditioner(["a red star", None])
    null = tiny("null").conditioner.null
    assert null is not None and condition["mask"].sum(dim=1).tolist()[1] == 1
    assert torch.equal(condition["text"][1, 0], null.tokens[0])


def test_classes() -> None:
    classes = Classes(["zero", "one", "two"])
    assert classes.encode(["two", "", None, "zero"]) == [2, 3, 3, 0]
    assert classes(["two", None])["labels"].tolist() == [2, 3] and list(classes(["two"])) == ["labels"]
    assert tiny("class").network.null_class == 3
    with pytest.raises(LimnerError, match="unknown class 'twoo'; did you mean 'two'"):
        classes(["one", "twoo"])
    with pytest.raises(LimnerError, match="reads no text; leave the prompt out"):
        Nothing()(["", "a star"])
    assert Nothing()(["", None]) == {} == no_text([]) and Nothing().encode(["", None]) == [None, None]


def both(encoded: Any) -> dict[str, Any]:
    """The words of two encoders one after the other."""
    return masked_text([(TextStates(torch.cat([one.tokens, other.tokens])),) for one, other in encoded])


def test_two_encoders_are_both_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its own state, in folders of its own, and each answers for its prompt's length."""
    torch.manual_seed(0)
    first, second = encoder(), encoder(SECOND)
    text = Text([first, second], both).eval().requires_grad_(False)
    assert list(text.parts()) == ["text_encoder", "text_encoder_2"]
    assert list(text.tokenizers()) == ["tokenizer", "tokenizer_2"]
    [(one, other)] = text.encode(["a red star"])
    ids, mask = first.tokenizer.encode(["a red star"])
    count = int(mask.sum())
    for states, module, layer, norm in ((one, first, -1, True), (other, second, -2, False)):
        hidden = module.transformer(ids, layer, norm).hidden[0, :count]
        torch.testing.assert_close(states.tokens, hidden, rtol=0, atol=1e-6)
    condition = text(["a red star", ""])
    assert condition["mask"].sum(dim=1).tolist() == [2 * count, 4]
    torch.testing.assert_close(condition["text"][0, count : 2 * count], other.tokens, rtol=0, atol=1e-6)

    changed = text.with_parts({"text_encoder_2": encoder().transformer})
    [(kept, new)] = changed.encode(["a red star"])
    assert torch.equal(kept.tokens, one.tokens) and (new.tokens - other.tokens).abs().max() > 1e-3
    with pytest.raises(LimnerError, match="over the text encoder's context length of 8"):
        Text([first, encoder(SECOND, length=8)], both)(["a red star " * 3])

    row = Family("denoiser", (Reads(), SECOND), both, {"steps": 2, "guidance_scale": 2.0})
    monkeypatch.setitem(FAMILIES, ("LimnerPipeline", "text"), row)
    model = Model(tiny("text").network, text, FLOW, defaults={"steps": 2, "guidance_scale": 2.0})
    model.save(tmp_path / "model")
    opened = Model.open(tmp_path / "model")
    same(model, opened)
    assert isinstance(opened.conditioner, Text) and [e.reads for e in opened.conditioner.encoders] == [Reads(), SECOND]


def test_long_prompts_are_refused_or_cut() -> None:
    conditioner = tiny("text").conditioner
    with pytest.raises(LimnerError, match="over the text encoder's context length of 16"):
        conditioner(["a red star " * 9])
    cut = conditioner(["a red star " * 9, "a red star " * 8], Ask(truncate=True))
    assert torch.equal(cut["text"][0], cut["text"][1]) and cut["mask"].all()


def test_families() -> None:
    for condition, guidance in [("text", 3.0), ("class", 3.0), ("none", 1.0)]:
        row = family("LimnerPipeline", condition)
        assert row.network == "denoiser" and row.defaults == {"steps": 20, "guidance_scale": guidance}
        assert row.encoders == ((Reads("", -1, True),) if condition == "text" else ())
    with pytest.raises(
        LimnerError, match="models of the class 'LimnerPipline' are not supported; supported: .*LimnerPipeline, "
    ):
        family("LimnerPipline", "text")
    with pytest.raises(
        LimnerError, match=r"condition of a LimnerPipeline 'txt'; did you mean 'text'\? Known: class, n"
    ):
        family("LimnerPipeline", "txt")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_opens_as_it_was_saved(tmp_path: Path, kind: str) -> None:
    model = tiny(kind)
    model.save(tmp_path / kind)
    opened = Model.open(tmp_path / kind)
    assert opened.name == kind and opened.dtype == torch.float32
    same(model, opened)
    opened.save(tmp_path / "again")  # and the files are the same, byte for byte
    for file in (tmp_path / kind).rglob("*"):
        if file.is_file():
            assert (tmp_path / "again" / file.relative_to(tmp_path / kind)).read_bytes() == file.read_bytes(), file


def test_the_index_names_every_part(tmp_path: Path) -> None:
    limner, text = {"denoiser": ["limner", "DiT"]}, {"text_encoder": ["transformers", "CLIPTextModel"]}
    text |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    parts: dict[str, dict[str, Any]] = {
        "text": limner | text,
        "class": limner | {"class_names": ["zero", "one", "two"]},
        "none": limner,
        "latent": limner | text | {"vae": ["diffusers", "AutoencoderKL"]},
        "null": limner | text | {"null_text": ["limner", "NullText"]},
    }
    for kind in KINDS:
        model, folder = tiny(kind), tmp_path / kind
        model.save(folder)
        index = json.loads((folder / "model_index.json").read_text())
        scheduler = {"scheduler": ["diffusers", model.scheduler["_class_name"]]}
        assert index == {"_class_name": "LimnerPipeline", "defaults": model.defaults} | scheduler | parts[kind]
        folders = {name for name, entry in index.items() if isinstance(entry, list) and name != "class_names"}
        assert {each.name for each in folder.iterdir() if each.is_dir()} == folders


@pytest.mark.parity
@torch.no_grad()
def test_the_parts_open_in_diffusers_and_transformers(tmp_path: Path) -> None:
    import diffusers
    import transformers

    model, folder = tiny("latent"), tmp_path / "model"
    model.save(folder)
    assert model.autoencoder is not None
    z = torch.randn(1, 2, 4, 4)
    theirs = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
    torch.testing.assert_close(model.autoencoder.decode(z), theirs.decode(z).sample, rtol=1e-4, atol=1e-5)
    ids, _ = model.tokenizers()["tokenizer"].encode(["a red star"])
    transformer = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    hidden = model.parts()["text_encoder"](ids).hidden
    torch.testing.assert_close(hidden, transformer(input_ids=ids).last_hidden_state, rtol=1e-4, atol=1e-5)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    count = len(tokenizer("a red star")["input_ids"])
    assert tokenizer("a red star")["input_ids"] == ids[0, :count].tolist()


@pytest.mark.parametrize("kind", ["text", "latent"])
def test_models_of_before_open(tmp_path: Path, kind: str) -> None:
    """Their model_index.json did not name the text encoder and the tokenizer."""
    model, file = tiny(kind), tmp_path / kind / "model_index.json"
    model.save(tmp_path / kind)
    index = json.loads(file.read_text())
    file.write_text(json.dumps({name: v for name, v in index.items() if name not in ("text_encoder", "tokenizer")}))
    same(model, Model.open(tmp_path / kind))


@pytest.mark.parametrize("kind", ["class", "text", "latent", "none"])
def test_saving_over_another_model(tmp_path: Path, kind: str) -> None:
    """Nothing of the other ones is left."""
    for other in ("null", "latent", "class", "text"):
        tiny(other).save(tmp_path / "model")
    model = tiny(kind)
    model.save(tmp_path / "model")
    same(model, Model.open(tmp_path / "model"))


def test_saving_touches_nothing_outside_the_folder(tmp_path: Path) -> None:
    """A part's name in a model_index.json is one folder's name."""
    tiny("class").save(tmp_path / "model")
    tiny("class").save(tmp_path / "other")
    file = tmp_path / "model/model_index.json"
    for name in ("../other/denoiser", "..", "."):
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: ["limner", "DiT"]}))
        for act in (lambda: tiny("class").save(tmp_path / "model"), lambda: Model.open(tmp_path / "model")):
            with pytest.raises(LimnerError, match="cannot be the folder of a part"):
                act()
        assert (tmp_path / "other/denoiser/config.json").is_file()
        tiny("class").save(tmp_path / "fresh")
        file.write_text((tmp_path / "fresh/model_index.json").read_text())


@pytest.mark.parametrize(("part", "other"), [("denoiser", "vae"), ("vae", "text_encoder"), ("text_encoder", "vae")])
def test_a_part_of_another_kind_is_refused(tmp_path: Path, part: str, other: str) -> None:
    tiny("latent").save(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {part: index[other]}))
    with pytest.raises(LimnerError, match=f"unknown class of .*{part} '{index[other][1]}'"):
        Model.open(tmp_path)


def test_what_a_folder_does_not_say_its_family_says(tmp_path: Path) -> None:
    model = tiny("class")
    for defaults, steps, scale in [({}, 20, 3.0), ({"steps": 7}, 7, 3.0), ({"guidance_scale": 1.5}, 20, 1.5)]:
        model.defaults = defaults
        model.save(tmp_path / "model")
        assert Model.open(tmp_path / "model").defaults == {"steps": steps, "guidance_scale": scale}
