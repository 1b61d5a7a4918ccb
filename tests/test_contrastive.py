"""The contrastive start: its loss by hand, what it teaches, and that a run begins with it once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from helpers import COLOURS, trainer
from rich.console import Console
from torch import Tensor

from limner.data.batches import Batches
from limner.data.sources import open_source
from limner.errors import LimnerError
from limner.nets.layers import masked_mean
from limner.nets.vae import AutoencoderKL, AutoencoderKLConfig
from limner.pipeline import save_autoencoder
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.tokenizer import Tokenizer
from limner.train.contrastive import ContrastiveLoss, PictureReader, learn_to_read, rate
from limner.train.latents import encode
from limner.train.loop import Trainer
from limner.train.loss import Words
from limner.train.recipe import Recipe, Transformer
from limner.train.setup import Reader
from limner.weights.file import read_tensors

SAID = ("a {} picture", "{} all over", "it is {}")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recipe(recipe: Recipe) -> Recipe:
    """The tiny run, with three captions for each picture and a text encoder that only reads first."""
    for file in Path(recipe.data.path or "").glob("*.txt"):
        name = file.read_text().split()[1]
        file.write_text("\n".join(said.format(name) for said in SAID))
    text = replace(recipe.text, length=16, contrastive=4, lr_scale=0.0)
    return replace(recipe, model=Transformer(4, 32, 1, 2), text=text, steps=2, save_every=1, sample_prompts=())


def encoder(vocab: int, end: int) -> CLIPTextModel:
    torch.manual_seed(0)
    numbers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return CLIPTextModel(CLIPTextConfig(vocab_size=vocab, max_position_embeddings=16, eos_token_id=end, **numbers))


def words(which: list[int]) -> Words:
    ids = torch.tensor([[50, 3, 4, 51, 0, 0], [50, 5, 51, 0, 0, 0], [50, 6, 7, 8, 9, 51]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    return Words(ids, mask, torch.tensor(which))


def test_masked_mean() -> None:
    text = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    torch.testing.assert_close(masked_mean(text, mask), torch.stack([text[0, :2].mean(0), text[1].mean(0)]))
    torch.testing.assert_close(masked_mean(text, None), text.mean(1))


@pytest.mark.parametrize(
    ("which", "pictures"),
    [([0, 1, 2], [0, 1, 2]), ([0, 1, 0, 2], [0, 1, 2, 3]), ([0, 1, 2, 1], [7, 8, 7, 9])],
    ids=["all apart", "a caption twice", "a picture twice"],
)
def test_loss_by_hand(which: list[int], pictures: list[int]) -> None:
    """Cross-entropy of each picture over the captions that are not its own too, and of each caption over pictures."""
    model = ContrastiveLoss(encoder(52, 51), 3, 8).double()
    x = torch.randn(len(which), 3, 8, 8, dtype=torch.float64)
    loss, found = model(x, words(which), torch.tensor(pictures))

    told, said = [], words(which)
    for row in which:
        states = model.encoder(said.ids[row : row + 1][:, said.mask[row]]).hidden[0]  # without its padding
        told.append(model.words(states.mean(0)))
    seen = model.pictures(x)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b / (a.norm() * b.norm())).float() / 0.07

    count, terms, right = len(which), [], 0
    for i in range(count):
        others = [j for j in range(count) if which[j] != which[i] and pictures[j] != pictures[i]]
        for own, rest in (
            (cosine(seen[i], told[i]), [cosine(seen[i], told[j]) for j in others]),
            (cosine(seen[i], told[i]), [cosine(seen[j], told[i]) for j in others]),
        ):
            terms.append(torch.logsumexp(torch.stack([own, *rest]), dim=0) - own)
        right += all(cosine(seen[i], told[i]) > cosine(seen[i], told[j]) for j in others)
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-5, atol=1e-5)
    assert found.item() == pytest.approx(right / count)


@pytest.mark.parametrize(("side", "halvings"), [(4, 0), (8, 1), (16, 2), (28, 3), (64, 4)])
def test_picture_reader_looks_everywhere(side: int, halvings: int) -> None:
    """Whatever the size, each pixel matters; and so does which picture of a batch it is in."""
    reader = PictureReader(3, side, 8)
    assert len(reader.layers) == 1 + halvings
    x = torch.randn(2, 3, side, side, requires_grad=True)
    out = reader(x)
    (gradient,) = torch.autograd.grad(out[0].sum(), x)
    assert (gradient[0].abs().sum(0) > 0).all() and not gradient[1].any()
    torch.testing.assert_close(out[1:], reader(x[1:]))


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_it_learns_to_read(recipe: Recipe, half: bool) -> None:
    """Colours said in other words: the texts of one colour come together, and those of others apart."""
    pictures = open_source(recipe.data)
    tokenizer = Tokenizer.train(pictures.all_captions(), vocab_size=600, length=16)
    model = encoder(tokenizer.vocab_size, tokenizer.end)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    reader, batches = Reader(tokenizer, model, False), Batches(pictures, 24, 8, 3)
    said: list[str] = []
    entered: list[bool] = []

    @contextmanager
    def autocast() -> Iterator[None]:
        entered.append(torch.is_autocast_enabled("cpu"))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            yield

    def ask(batch: dict) -> tuple[Tensor, Words]:
        return batch["images"].float() / 127.5 - 1, reader(batch["captions"], torch.device("cpu"))

    model.requires_grad_(False)
    learn_to_read(model, 3, 8, batches, ask, 200, torch.device("cpu"), autocast, said.append)
    assert entered == [False] * 200  # left after each step: torch forgets the cast weights only then
    assert not any(p.requires_grad for p in model.parameters())  # as it was given
    assert any(not torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert [line.split(":")[0] for line in said] == ["reading, step 100 of 200", "reading, step 200 of 200"]

    texts = [sentence.format(name) for name in COLOURS for sentence in SAID]
    ids, mask = tokenizer.encode(texts)
    states = masked_mean(model(ids).hidden, mask)
    states = torch.nn.functional.normalize(states - states.mean(0), dim=-1)
    alike = (states @ states.T).view(3, 3, 3, 3).mean(dim=(1, 3))  # colour by colour
    assert alike.diagonal().min() > alike.masked_fill(torch.eye(3).bool(), -1).max() + 0.5


def run(recipe: Recipe, resume: str | None = None) -> tuple[Trainer, list[str]]:
    """The trainer before its first step, and what it has said so far."""
    told = StringIO()
    made = trainer(recipe, resume, Console(file=told, width=200))
    return made, told.getvalue().splitlines()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Words, Tensor, Tensor]]:
    """What each step of a contrastive start is shown: pictures, words, which pictures; and what it makes of them."""
    seen: list[tuple[Tensor, Words, Tensor, Tensor]] = []
    forward = ContrastiveLoss.forward

    def watched(self: ContrastiveLoss, x: Tensor, words: Words, indices: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((x, words, indices, self.pictures(x)))
        return forward(self, x, words, indices)

    monkeypatch.setattr(ContrastiveLoss, "forward", watched)
    return seen


def text_states(begun: Trainer) -> dict[str, Tensor]:
    """A copy of the weights of the run's text encoder."""
    encoder = begun.task.trained.text_encoder
    assert isinstance(encoder, CLIPTextModel)
    return {name: p.clone() for name, p in encoder.state_dict().items()}


def text_of(folder: str, step: int) -> dict[str, Tensor]:
    return read_tensors(Path(folder) / f"checkpoint-{step}" / "text_encoder" / "model.safetensors")


@pytest.mark.parametrize("change", [{}, {"seed": 3, "flip": True}, {"precision": "bf16"}], ids=str)
def test_it_is_shown_the_pictures_of_the_run_and_their_captions(
    recipe: Recipe, any_precision: None, shown: list, change: dict
) -> None:
    """256 a step, in [-1, 1], in the order of the run's seed."""
    recipe = replace(recipe, **change)
    begun, _ = run(recipe)
    batches = Batches(open_source(recipe.data), 256, 8, 3, recipe.seed, recipe.flip)
    assert len(shown) == 4
    for step, (x, said, indices, out) in enumerate(shown):
        batch = batches.batch(step)
        torch.testing.assert_close(x, batch["images"] / 127.5 - 1)
        assert torch.equal(indices, batch["indices"])
        ids, mask = begun.task.pipeline.tokenizer.encode(batch["captions"])
        assert torch.equal(said.ids[said.which], ids[:, : said.ids.shape[1]])
        assert torch.equal(said.mask[said.which], mask[:, : said.ids.shape[1]])
        assert out.dtype == (torch.bfloat16 if recipe.precision == "bf16" else torch.float32)


def test_a_run_begins_with_it_and_resumes_without(recipe: Recipe) -> None:
    plain, _ = run(replace(recipe, output=recipe.output + "-plain", text=replace(recipe.text, contrastive=0)))
    begun, lines = run(recipe)
    read = text_states(begun)
    untaught = text_states(plain)
    assert all(not torch.equal(p, untaught[name]) for name, p in read.items() if "embed" in name)
    assert sum("reading, step 4 of 4" in line for line in lines) == 1
    begun.run()
    for step in (1, 2):  # at rate 0 it stays what it learnt
        assert all(torch.equal(p, read[name]) for name, p in text_of(recipe.output, step).items())
    resumed, lines = run(replace(recipe, steps=3), "latest")
    assert not any("reading" in line for line in lines)
    assert all(torch.equal(p, read[n]) for n, p in text_states(resumed).items())


def test_earlier_weights_are_not_taught_again(recipe: Recipe) -> None:
    first, _ = run(recipe)
    first.run()
    second, lines = run(replace(recipe, init=recipe.output, output=recipe.output + "-second"))
    assert not any("reading" in line for line in lines)
    states = text_states(second)
    assert all(torch.equal(p, states[name]) for name, p in text_of(recipe.output, 2).items())


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_resumed_run_may_free_or_freeze_the_text(recipe: Recipe, before: float, after: float) -> None:
    def at(scale: float, steps: int) -> Recipe:
        return replace(recipe, steps=steps, text=replace(recipe.text, lr_scale=scale, contrastive=0))

    run(at(before, 1))[0].run()
    early = text_of(recipe.output, 1)
    run(at(after, 3), "latest")[0].run()
    late = text_of(recipe.output, 3)
    assert any(not torch.equal(p, late[name]) for name, p in early.items()) == (after > 0)


@pytest.mark.parametrize("cache", [0, 24])
def test_it_is_shown_latents(recipe: Recipe, tmp_path: Path, shown: list, cache: int) -> None:
    """With an autoencoder the text is told from what is painted, kept latents or those encoded on the way."""
    config = AutoencoderKLConfig(in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1,
                                 latent_channels=4, norm_num_groups=4)  # fmt: skip
    torch.manual_seed(0)
    save_autoencoder(AutoencoderKL(config), tmp_path / "vae")
    latent = replace(recipe, autoencoder=str(tmp_path / "vae"), cache=cache, model=Transformer(2, 32, 1, 2))
    begun, lines = run(latent)
    assert sum("reading, step 4 of 4" in line for line in lines) == 1
    pictures = open_source(recipe.data)
    batches = Batches(begun.pictures if cache else pictures, 256, 8, 3)
    assert len(begun.pictures) == 24 and len(shown) == 4
    for step, (x, _, indices, _) in enumerate(shown):
        batch = batches.batch(step)
        assert torch.equal(indices, batch["indices"])
        rows = [begun.pictures.indices[k] for k in indices.tolist()] if cache else indices.tolist()
        wanted = encode(begun.task.pipeline.vae, pictures.load(rows, 8, 3).images)
        assert x.shape == (256, 4, 4, 4) and wanted.std() > 0.01
        torch.testing.assert_close(x, wanted, rtol=0, atol=2e-3 * wanted.std().item())  # kept in half precision


def test_a_gradient_that_is_no_number_is_told(recipe: Recipe) -> None:
    model = encoder(600, 599)
    torch.nn.init.constant_(model.text_model.final_layer_norm.weight, float("nan"))

    def ask(batch: dict) -> tuple[Tensor, Words]:
        return batch["images"].float(), words([0, 1, 2])

    batches = Batches(open_source(recipe.data), 3, 8, 3)
    with pytest.raises(LimnerError, match=r"norm nan at step 1: .*--text.contrastive 0"):
        learn_to_read(model, 3, 8, batches, ask, 2, torch.device("cpu"), nullcontext, lambda line: None)


def test_rates() -> None:
    assert [round(rate(step, 40), 4) for step in (0, 1, 20, 39)] == [0.5, 0.9985, 0.5, 0.0015]
    assert all(0 < rate(step, steps) <= 1 for steps in (1, 2, 19, 20) for step in range(steps))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r: replace(r, text=replace(r.text, contrastive=-1)), "contrastive must be at least 0, not -1"),
        (lambda r: replace(r, condition="none"), "--text.contrastive is for a text encoder that is trained"),
        (lambda r: replace(r, text=replace(r.text, pretrained="clip")), "--text.contrastive is for a text encoder"),
    ],
)
def test_where_there_is_nothing_to_teach(recipe: Recipe, wrong: Callable[[Recipe], Recipe], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        wrong(recipe)


def test_captions_are_padded_to_the_longest_alone() -> None:
    tokenizer = Tokenizer.train(["a red picture"] * 9, vocab_size=600, length=16)
    model = encoder(tokenizer.vocab_size, tokenizer.end)
    captions = ["a red picture", "", "a red"]
    said = Reader(tokenizer, model, False)(captions, torch.device("cpu"))
    ids, mask = tokenizer.encode(captions)
    assert said.ids.shape[1] == 8 < ids.shape[1] and torch.equal(mask.sum(1), said.mask.sum(1))
    torch.testing.assert_close(model(said.ids).hidden[said.mask], model(ids).hidden[mask])
