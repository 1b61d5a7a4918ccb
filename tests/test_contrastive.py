"""The contrastive training of a text encoder: its loss by hand, what it learns from, and a denoiser that takes it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import COLOURS, KEPT, assert_equal, logged, tensors, trainer, worked_out
from torch import Tensor

from limner.data.batches import Batches
from limner.data.sources import open_source
from limner.errors import LimnerError
from limner.nets.layers import masked_mean
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.pipeline import Pipeline
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.encoder import TextEncoder
from limner.text.tokenizer import Tokenizer
from limner.train.contrastive import ContrastiveHead, ContrastiveLoss, ImageEncoder
from limner.train.latents import encode
from limner.train.recipe import ContrastiveRecipe, Recipe, Run, TextRecipe
from limner.weights.file import read_tensors
from limner.weights.parts import save_part

SENTENCES = ("a {} picture", "{} all over", "it is {}")
HELD_BACK = 2**20
DRIFTS = "k_proj.bias"  # its gradient is 0 but for rounding (softmax), whose sign alone AdamW follows
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def reading(recipe: Recipe) -> ContrastiveRecipe:
    """The tiny training of a text encoder, on the pictures of the tiny run, now with three captions each."""
    for file in Path(recipe.data.path or "").glob("*.txt"):
        name = file.read_text().split()[1]
        file.write_text("\n".join(sentence.format(name) for sentence in SENTENCES))
    return ContrastiveRecipe(
        data=recipe.data, output=recipe.output + "-text", size=8, text=replace(recipe.text, length=16), steps=4,
        batch_size=8, lr=1e-3, warmup=1, log_every=2, save_every=2, sample_every=2, keep=0,
    )  # fmt: skip


def encoder_of(captions: list[str]) -> TextEncoder:
    tokenizer = Tokenizer.train(captions, vocab_size=600, length=16)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, eos_token_id=tokenizer.end,
    )  # fmt: skip
    return TextEncoder(tokenizer, CLIPTextModel(config))


def latents_in(folder: Path) -> str:
    """A model folder with an untrained autoencoder of two levels."""
    config = AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    torch.manual_seed(0)
    save_part(AutoencoderKL(config), folder / "vae")
    return str(folder)


def cosines(loss: ContrastiveLoss, x: Tensor, captions: list[str]) -> Tensor:
    """Of each picture (rows) and each caption (columns), whose states are computed one by one, without padding."""
    states = []
    for caption in captions:
        ids, mask = loss.encoder.tokenizer.encode([caption])
        states.append(loss.head.text_projection(loss.encoder.transformer(ids[mask][None]).hidden[0].mean(0)))
    pictures, words = loss.head.image_encoder(x).float(), torch.stack(states).float()
    return torch.stack([torch.stack([p @ w / (p.norm() * w.norm()) for w in words]) for p in pictures])


def test_masked_mean() -> None:
    text = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    torch.testing.assert_close(masked_mean(text, mask), torch.stack([text[0, :2].mean(0), text[1].mean(0)]))
    torch.testing.assert_close(masked_mean(text, None), text.mean(1))


@pytest.mark.parametrize("scale", [1 / 0.07, 20.0, 1000.0])
@pytest.mark.parametrize(
    ("which", "pictures"),
    [([0, 1, 2], [0, 1, 2]), ([0, 1, 0, 2], [0, 1, 2, 3]), ([0, 1, 2, 1], [7, 8, 7, 9])],
    ids=["all apart", "a caption twice", "a picture twice"],
)
def test_loss_by_hand(which: list[int], pictures: list[int], scale: float) -> None:
    """Cross-entropy of each picture over its caption and those that are not its own, and of each caption over
    pictures; the mean over the batch is CLIP's."""
    texts = ["a red picture", "green", "it is blue nearly everywhere"]
    loss = ContrastiveLoss(encoder_of(texts), ContrastiveHead(3, 8, 32)).double()
    assert loss.head.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    torch.nn.init.constant_(loss.head.logit_scale, torch.tensor(scale).log().item())
    x, captions = torch.randn(len(which), 3, 8, 8, dtype=torch.float64), [texts[k] for k in which]
    values = loss(x, captions, torch.tensor(pictures))

    count = len(which)
    scaled = min(scale, 100.0) * cosines(loss, x, captions)
    logits = loss.logits(x, captions, torch.tensor(pictures))
    by_picture, by_caption = [], []
    for i in range(count):
        others = [j for j in range(count) if which[j] != which[i] and pictures[j] != pictures[i]]
        own = scaled[i, i]
        by_picture.append(torch.logsumexp(torch.stack([own, *(scaled[i, j] for j in others)]), dim=0) - own)
        by_caption.append(torch.logsumexp(torch.stack([own, *(scaled[j, i] for j in others)]), dim=0) - own)
        for j in range(count):
            wanted = scaled[i, j].item() if j in (i, *others) else float("-inf")
            assert logits[i, j].item() == pytest.approx(wanted, abs=1e-3)
    expected = torch.stack([(a + b) / 2 for a, b in zip(by_picture, by_caption, strict=True)])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-3 if scale > 100 else 1e-4)
    clip = (torch.stack(by_picture).mean() + torch.stack(by_caption).mean()) / 2
    torch.testing.assert_close(values.mean(), clip, rtol=1e-5, atol=1e-3 if scale > 100 else 1e-4)


@pytest.mark.parametrize(("side", "halvings"), [(4, 0), (8, 1), (16, 2), (28, 3), (64, 4)])
def test_image_encoder_looks_everywhere(side: int, halvings: int) -> None:
    """Whatever the size, each pixel matters; and so does which picture of a batch it is in."""
    encoder = ImageEncoder(3, side, 8)
    assert len(encoder.layers) == 1 + halvings
    x = torch.randn(2, 3, side, side, requires_grad=True)
    out = encoder(x)
    (gradient,) = torch.autograd.grad(out[0].sum(), x)
    assert (gradient[0].abs().sum(0) > 0).all() and not gradient[1].any()
    torch.testing.assert_close(out[1:], encoder(x[1:]))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_learns_to_read(reading: ContrastiveRecipe, any_precision: None, precision: str) -> None:
    """Colours in several words: the texts of one colour come together and those of others apart, and more captions
    are found. Of three captions that all fit, the right one is found by chance."""
    begun = trainer(
        replace(reading, precision=precision, steps=200, batch_size=24, lr=3e-3, warmup=20, schedule="cosine", ema=0.0,
                sample_every=100)
    )  # fmt: skip
    before = {name: p.clone() for name, p in begun.trained["text_encoder"].state_dict().items()}
    start = begun.task.measure(begun.result)["accuracy"]
    begun.run()
    changed = begun.trained["text_encoder"].state_dict()
    assert any(not torch.equal(p, before[name]) for name, p in changed.items())
    found = logged(reading.output)["accuracy"]
    assert [step for step, _ in found] == [100, 200] and found[-1][1] > start + 0.1

    texts = [sentence.format(name) for name in COLOURS for sentence in SENTENCES]
    states = torch.stack([state.tokens.mean(0) for state in begun.result.loss.encoder.encode(texts)])
    states = torch.nn.functional.normalize(states - states.mean(0), dim=-1)
    alike = (states @ states.T).view(3, 3, 3, 3).mean(dim=(1, 3))  # colour by colour
    assert alike.diagonal().min() > alike.masked_fill(torch.eye(3).bool(), -1).max() + 0.5


def test_every_caption_is_found_where_each_colour_has_one(recipe: Recipe, reading: ContrastiveRecipe) -> None:
    for file in Path(recipe.data.path or "").glob("*.txt"):
        file.write_text(file.read_text().splitlines()[0])
    done = trainer(replace(reading, steps=60, batch_size=24, lr=3e-3, ema=0.0, sample_every=0))
    start = done.task.measure(done.result)["accuracy"]
    done.run()
    assert start < 0.8 and logged(reading.output)["accuracy"] == [(60, 1.0)]


@pytest.mark.parametrize("latent", [False, True])
def test_the_log_tells_the_loss_and_the_share_found(reading: ContrastiveRecipe, tmp_path: Path, latent: bool) -> None:
    """The mean loss of the steps; the share by hand, by the averaged weights, of the pictures of a later batch."""
    if latent:
        reading = replace(reading, autoencoder=latents_in(tmp_path / "latents"))
    done = trainer(replace(reading, batch_size=12))
    done.run()
    log = logged(reading.output)
    wanted = worked_out(replace(reading, batch_size=12), 4)
    means = [(2, sum(wanted.losses[:2]) / 2), (4, sum(wanted.losses[2:]) / 2)]
    assert [step for step, _ in log["loss"]] == [2, 4]
    assert [value for _, value in log["loss"]] == pytest.approx([value for _, value in means], rel=1e-4)
    for name, p in done.average.state_dict().items():
        if not name.endswith(DRIFTS):
            torch.testing.assert_close(p.double(), wanted.average[name], rtol=0, atol=1e-5, msg=name)
    assert not (Path(reading.output) / "samples").exists()

    assert_equal(done.result.loss.state_dict(), {
        f"{'encoder.transformer' if part == 'text_encoder' else part}.{name}": p
        for part, module in done.average.items() for name, p in module.state_dict().items()
    })  # fmt: skip
    batch = Batches(open_source(reading.data), 12, 8, 3, reading.seed).batch(HELD_BACK)
    autoencoder = done.task.autoencoder
    x = batch["images"] / 127.5 - 1 if autoencoder is None else encode(autoencoder, batch["images"])
    cosine = cosines(done.result.loss, x, batch["captions"])
    right = 0
    for i, (caption, index) in enumerate(zip(batch["captions"], batch["indices"], strict=True)):
        others = [j for j in range(12) if batch["captions"][j] != caption and batch["indices"][j] != index]
        right += all(cosine[i, i] > cosine[i, j] for j in others)
    assert log["accuracy"][-1] == (4, pytest.approx(right / 12))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, list[str], Tensor, Tensor]]:
    """What each step is shown: pictures, captions, which pictures; and what the image encoder makes of them."""
    seen: list[tuple[Tensor, list[str], Tensor, Tensor]] = []
    forward = ContrastiveLoss.forward

    def watched(self: ContrastiveLoss, x: Tensor, captions: list[str], indices: Tensor) -> Tensor:
        seen.append((x, captions, indices, self.head.image_encoder(x)))
        return forward(self, x, captions, indices)

    monkeypatch.setattr(ContrastiveLoss, "forward", watched)
    return seen


@pytest.mark.parametrize("change", [{}, {"seed": 3, "flip": True}, {"precision": "bf16"}], ids=str)
def test_it_is_shown_the_pictures_and_their_captions(
    reading: ContrastiveRecipe, any_precision: None, shown: list, change: dict
) -> None:
    """In [-1, 1], in the order of the run's seed."""
    reading = replace(reading, **change)
    trainer(reading).run()
    batches = Batches(open_source(reading.data), 8, 8, 3, reading.seed, reading.flip)
    assert len(shown) == 4
    for step, (x, captions, indices, out) in enumerate(shown):
        batch = batches.batch(step)
        torch.testing.assert_close(x, batch["images"] / 127.5 - 1)
        assert captions == batch["captions"] and torch.equal(indices, batch["indices"])
        assert out.dtype == (torch.bfloat16 if reading.precision == "bf16" else torch.float32)


@pytest.mark.parametrize(("cache", "flip"), [(0, False), (0, True), (24, False)])
def test_it_is_shown_latents(reading: ContrastiveRecipe, tmp_path: Path, shown: list, cache: int, flip: bool) -> None:
    """With an autoencoder: kept latents, or those of each picture, mirrored or not, encoded on the way."""
    begun = trainer(replace(reading, autoencoder=latents_in(tmp_path / "latents"), cache=cache, flip=flip))
    begun.run()
    pictures = open_source(reading.data)
    batches = Batches(begun.pictures if cache else pictures, 8, 8, 3, 0, flip)
    assert len(begun.pictures) == 24 and len(shown) == 4 and set(begun.trained) == {"text_encoder", "head"}
    for step, (x, captions, indices, _) in enumerate(shown):
        batch = batches.batch(step)
        assert captions == batch["captions"] and torch.equal(indices, batch["indices"])
        rows = [begun.pictures.indices[k] for k in indices.tolist()] if cache else []
        wanted = encode(begun.task.autoencoder, pictures.load(rows, 8, 3).images if cache else batch["images"])
        assert x.shape == (8, 4, 4, 4) and wanted.std() > 0.01
        torch.testing.assert_close(x, wanted, rtol=0, atol=2e-3 * wanted.std().item())  # kept in half precision


def test_a_resumed_run_is_the_whole_one(reading: ContrastiveRecipe, tmp_path: Path) -> None:
    """Bit for bit, the head's average too; and words keep their ids where the captions have changed."""
    whole = trainer(reading)
    whole.run()
    half = replace(reading, output=str(tmp_path / "half"), steps=2)
    trainer(half).run()
    resumed = trainer(replace(half, steps=4), "latest")
    assert resumed.step == 2
    resumed.run()
    one = tensors(reading.output, 4)
    assert_equal(one, tensors(half.output, 4))
    assert_equal(whole.average.state_dict(), resumed.average.state_dict())
    head = {name.removeprefix("training/average.safetensors:") for name in one if "average" in name}
    assert head == {f"head.{name}" for name in whole.trained["head"].state_dict()}
    name = "head.text_projection.weight"
    average, raw = one[f"training/average.safetensors:{name}"], one[f"training/weights.safetensors:{name}"]
    assert torch.equal(average, whole.average.state_dict()[name]) and not torch.equal(average, raw)

    for file in Path(reading.data.path or "").glob("*.txt"):
        file.write_text("green things")
    again, captions = trainer(replace(half, steps=6), "latest"), ["it is red all over"]
    ids = whole.task.loss.encoder.tokenizer.encode(captions)[0]
    assert torch.equal(again.task.loss.encoder.tokenizer.encode(captions)[0], ids)


def test_two_processes_train_one_encoder(reading: ContrastiveRecipe, tmp_path: Path) -> None:
    """The weights of both are those of one process that follows the mean gradient of both shares of each batch."""
    (tmp_path / "kept.py").write_text(KEPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "kept.py"), str(tmp_path), "train", "world-text"]
    options = {
        "data.path": reading.data.path, "output": reading.output, "size": 8, "autoencoder": None, "cache": 0,
        "text.hidden-size": 32, "text.layers": 1, "text.num-heads": 2, "text.length": 16, "steps": 3, "batch-size": 8,
        "warmup": 1, "lr": 1e-3, "ema": 0.99, "log-every": 1, "seed": 4, "clip": 100, "precision": "no",
    }  # fmt: skip
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("use it: limner train world-quick --text.pretrained") == 1
    assert [p.name for p in Path(reading.output).glob("checkpoint-*")] == ["checkpoint-3"]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert_equal(one["weights"], other["weights"])
    assert_equal(one["average"], other["average"])
    wanted = worked_out(one["recipe"], 3, world=2)
    assert wanted.weights.keys() == one["weights"].keys()
    for name, weight in wanted.weights.items():
        if not name.endswith(DRIFTS):
            torch.testing.assert_close(one["weights"][name].double(), weight, rtol=0, atol=1e-5, msg=name)
    moments = read_tensors(Path(reading.output) / "checkpoint-3/training/optimizer.safetensors")
    for name, moment in wanted.first.items():
        torch.testing.assert_close(moments[f"{name}/exp_avg"].double(), moment, rtol=1e-3, atol=1e-5, msg=name)
    assert [value for _, value in logged(reading.output)["loss"]] == pytest.approx(wanted.losses, rel=1e-5)


def text_of(run: str, step: int) -> dict[str, Tensor]:
    return read_tensors(Path(run) / f"checkpoint-{step}" / "text_encoder" / "model.safetensors")


@pytest.mark.parametrize("lr_scale", [None, 0.5])
@pytest.mark.parametrize("folder", ["", "checkpoint-4"], ids=["a run", "a checkpoint"])
def test_a_denoiser_takes_the_text_encoder(
    recipe: Recipe, reading: ContrastiveRecipe, folder: str, lr_scale: float | None
) -> None:
    """The newest averaged weights, with their tokenizer; they stay as they are unless lr_scale frees them."""
    done = trainer(reading)
    done.run()
    text = TextRecipe(pretrained=str(Path(reading.output) / folder), lr_scale=lr_scale)
    begun = trainer(replace(recipe, text=text, steps=4))
    read = text_of(reading.output, 4)
    assert_equal(read, begun.task.model.parts()["text_encoder"].state_dict())
    assert_equal(read, done.average["text_encoder"].state_dict())
    assert begun.task.model.network.config.text_dim == 32
    begun.run()
    pipe = Pipeline.from_pretrained(recipe.output)
    if lr_scale is None:
        assert set(begun.trained) == {"denoiser"}
        assert_equal(read, text_of(recipe.output, 4))
        assert_equal(read, pipe.model.parts()["text_encoder"].state_dict())
    else:
        assert any(not torch.equal(p, read[name]) for name, p in text_of(recipe.output, 4).items())
    texts = [sentence.format(name) for name in COLOURS for sentence in SENTENCES]
    ids = done.task.loss.encoder.tokenizer.encode(texts)[0]
    assert torch.equal(pipe.model.tokenizers()["tokenizer"].encode(texts)[0], ids)


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_resumed_run_may_free_or_freeze_the_text(recipe: Recipe, before: float, after: float) -> None:
    def at(scale: float, steps: int) -> Recipe:
        return replace(recipe, steps=steps, save_every=1, text=replace(recipe.text, lr_scale=scale))

    trainer(at(before, 1)).run()
    early = text_of(recipe.output, 1)
    trainer(at(after, 3), "latest").run()
    late = text_of(recipe.output, 3)
    assert any(not torch.equal(p, late[name]) for name, p in early.items()) == (after > 0)


def test_a_resumed_run_needs_no_other_and_may_free_a_pretrained_text(
    recipe: Recipe, reading: ContrastiveRecipe
) -> None:
    """Its text encoder is in its checkpoint, whatever became of the run that trained it."""
    trainer(reading).run()
    frozen = replace(recipe, text=TextRecipe(pretrained=reading.output), save_every=3)
    trainer(frozen).run()
    shutil.rmtree(reading.output)
    before = text_of(recipe.output, 6)
    free = replace(frozen, steps=8, text=replace(frozen.text, lr_scale=1.0))
    run = trainer(free, "latest")
    assert_equal(run.trained.text_encoder.state_dict(), before)
    run.run()
    assert any(not torch.equal(p, before[name]) for name, p in text_of(recipe.output, 8).items())


def test_a_text_encoder_that_is_absent_or_of_other_words_is_refused(recipe: Recipe, reading: ContrastiveRecipe) -> None:
    taking = replace(recipe, text=TextRecipe(pretrained=reading.output))
    with pytest.raises(LimnerError, match=r"no text encoder at .*-text: .*limner train world-text"):
        trainer(taking)
    done = trainer(reading)
    done.run()
    encoder = done.task.loss.encoder
    words = [f"{a}{b}{c} {b}{a}{c}" for a in "bcdf" for b in "aeiou" for c in "klmn"]
    larger = Tokenizer.train(words * 3, vocab_size=1000, length=16)
    assert larger.vocab_size > encoder.tokenizer.vocab_size
    larger.save(Path(reading.output) / "checkpoint-4" / "tokenizer")
    sizes = f"{larger.vocab_size} ids, the text encoder a vocab_size of {encoder.tokenizer.vocab_size}"
    with pytest.raises(LimnerError, match=f"the tokenizer has {sizes}"):
        trainer(taking)


def test_a_gradient_that_is_no_number_names_the_weights(reading: ContrastiveRecipe) -> None:
    begun = trainer(reading)
    torch.nn.init.constant_(begun.trained["head"].text_projection.weight, float("nan"))
    with pytest.raises(
        LimnerError, match=r"norm nan at step 0; not finite: the weights of head.text_projection.weight"
    ):
        begun.run()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r: replace(r, text=TextRecipe(pretrained="clip")), "trained from nothing and alone here"),
        (lambda r: replace(r, text=replace(r.text, lr_scale=0.5)), "leave --text.pretrained, --text.lr-scale and"),
        (lambda r: replace(r, text=replace(r.text, learned_null=True)), "trained from nothing and alone here"),
        (lambda r: replace(r, cache=8), "--cache keeps latents: give an --autoencoder"),
        (lambda r: replace(r, cache=8, autoencoder="shipped", flip=True), "--flip mirrors pictures"),
        (lambda r: replace(r, cache=-1), "cache must be at least 0, not -1"),
        (lambda r: replace(r, autoencoder="nowhere"), "no autoencoder at nowhere"),
        (lambda r: replace(r, text=replace(r.text, length=3)), "over the text encoder's context length of 3"),
    ],
)
def test_refusals(reading: ContrastiveRecipe, wrong: Callable[[Run], Run], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        trainer(wrong(reading))


@pytest.mark.parametrize("change", [{"channels": 1}, {"size": 7}], ids=str)
def test_pictures_that_the_autoencoder_does_not_take(reading: ContrastiveRecipe, tmp_path: Path, change: dict) -> None:
    with pytest.raises(LimnerError, match="takes pictures of 3 channels with sides that are multiples of 2"):
        trainer(replace(reading, autoencoder=latents_in(tmp_path / "latents"), **change))


def test_captions_are_padded_to_the_longest_alone() -> None:
    encoder, captions, lengths = encoder_of(["a red picture"] * 9), ["a red picture", "", "a red"], []
    encoder.transformer.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    states = encoder.encode(captions)
    ids, mask = encoder.tokenizer.encode(captions)
    assert lengths == [8] and ids.shape[1] == 16
    hidden = encoder.transformer(ids).hidden
    for k, state in enumerate(states):
        torch.testing.assert_close(state.tokens, hidden[k][mask[k]])
