"""Accuracy of painted digits, by a classifier trained here on real ones.

    python benchmarks/digits.py --data ../shared/data/mnist [--model runs/mnist-text] [--sampler ddpm --steps 1000]

A small convolutional classifier is trained on MNIST to an accuracy of at least 99% on its test set, then classifies
1,000 pictures: of a model that reads text ten digits, ten phrasings of each (one of them held out), ten seeds; of a
model by class 100 of each digit; of an unconditional model it counts those that it calls some digit with a probability
over 0.9. Pictures of 32x32 are MNIST's with two pixels of padding, which are cut off.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import tyro
from PIL.Image import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import limner
from limner.data.captions import DIGITS, fill
from limner.data.pictures import to_tensor
from limner.data.sources import Source, open_source
from limner.errors import LimnerError
from limner.picture import save, sheet
from limner.text.conditioner import Conditioner


class Classifier(nn.Sequential):
    """Grey pictures (B, 1, 28, 28) in [0, 1] -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(3),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(576, 10),
        )  # fmt: skip


def digits(path: str, split: str) -> tuple[Tensor, Tensor]:
    """Every real digit of a split: pictures (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    pictures = open_source(Source("mnist", path=path, split=split), captions=False)
    images = torch.stack([to_tensor(pictures.image(i), 28, 1) for i in range(len(pictures))])
    return images.float() / 255, torch.tensor(pictures.labels)


@torch.inference_mode()
def probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    """The probabilities (N, 10) of pictures (N, 1, 28, 28)."""
    return torch.cat([classifier(part).softmax(dim=1) for part in images.split(500)])


def classify(classifier: Classifier, images: Tensor) -> Tensor:
    """The predicted digits (N,) of pictures (N, 1, 28, 28)."""
    return probabilities(classifier, images).argmax(dim=1)


def painted(picture: Image) -> Tensor:
    """A painted picture (1, 28, 28) in [0, 1], without the padding of one of 32x32."""
    picture = picture.crop((2, 2, 30, 30)) if picture.size == (32, 32) else picture
    return to_tensor(picture, 28, 1).float() / 255


def train_classifier(path: str, least: float = 0.99, epochs: int = 4) -> tuple[Classifier, float]:
    """A classifier and its accuracy on the test set. LimnerError where that is below `least`."""
    torch.manual_seed(0)
    (images, labels), (test_images, test_labels) = digits(path, "train"), digits(path, "test")
    classifier, batch = Classifier(), 128
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * -(-len(images) // batch))
    right = 0.0
    for epoch in range(epochs):
        classifier.train()
        for rows in torch.randperm(len(images)).split(batch):
            # Augmented by shifts, since painted digits are not centred by mass as MNIST's are.
            dy, dx = torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(classifier(images[rows].roll((dy, dx), dims=(2, 3))), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        right = (classify(classifier.eval(), test_images) == test_labels).float().mean().item()
        print(f"classifier, epoch {epoch + 1}: {right:.2%} of the test set")
    if right >= least:
        return classifier, right
    raise LimnerError(f"the classifier is {right:.2%} accurate on the test set; at least {least:.0%} is needed")


@dataclass
class Arguments:
    """Classify the digits that a model paints."""

    data: str = "../shared/data/mnist"
    """Folder of MNIST's Parquet files."""
    model: str | None = None
    """A model folder or a training run; without it the shipped model."""
    seeds: int = 10
    """Pictures of each prompt; ten times as many without phrasings."""
    sampler: str | None = None
    steps: int | None = None
    output: Path = Path("out/digits.png")
    """Sheet of misclassified pictures, or of ten examples."""


class Request(NamedTuple):
    """Prompts, pictures of each, and the digits that they ask for; None where nothing is asked."""

    name: str
    seen: str
    prompts: list[str]
    each: int
    digits: list[int] | None


def requests(conditioner: Conditioner, seeds: int) -> list[Request]:
    """What to paint, by what the model is conditioned on."""
    if conditioner.kind == "none":
        return [Request("nothing", "yes", [""], 100 * seeds, None)]
    if conditioner.kind == "class":
        names = list(conditioner.names)
        return [Request("the class", "yes", names, 10 * seeds, [int(name) for name in names])]
    phrasings = [(template, "yes") for template in DIGITS.templates[:9]]
    phrasings += [(template, "no") for template in DIGITS.held_out]
    rows = []
    for row, (template, seen) in enumerate(phrasings):
        # Words and numerals alternate: "a handwritten zero", "a handwritten 1".
        prompts = [fill(template, names[(digit + row) % 2]) for digit, names in enumerate(DIGITS.label_words)]
        rows.append(Request(prompts[7], seen, prompts, seeds, list(range(10))))
    return rows


def main() -> None:
    """Train the classifier, paint, classify, print the table."""
    args = tyro.cli(Arguments)
    classifier, right = train_classifier(args.data)
    pipe = limner.Pipeline.from_pretrained(args.model)
    table = Table("asked for", "trained on", "right")
    wrong, shown, total, good = [], [], 0, 0
    for row, request in enumerate(requests(pipe.model.conditioner, args.seeds)):
        count = len(request.prompts) * request.each
        pictures = []
        for start in range(0, count, 100):  # a batch at a time
            chosen = [request.prompts[k // request.each] for k in range(start, min(count, start + 100))]
            seeds = [10_000 * row + start + k for k in range(len(chosen))]
            pictures += pipe(chosen, seed=seeds, sampler=args.sampler, steps=args.steps)
        chances, answers = probabilities(classifier, torch.stack([painted(p) for p in pictures])).max(dim=1)
        if request.digits is None:
            is_right, asked = chances > 0.9, ["a digit"] * count
        else:
            labels = torch.tensor(request.digits).repeat_interleave(request.each)
            is_right, asked = answers == labels, [request.prompts[k // request.each] for k in range(count)]
        hits = int(is_right.sum())
        good, total = good + hits, total + count
        table.add_row(request.name, request.seen, f"{hits}/{count}")
        wrong += [
            (pictures[i], f"{asked[i]}; classified as {int(answers[i])}")
            for i in (~is_right).nonzero().flatten().tolist()
        ]
        shown += [(pictures[i], asked[i]) for i in range(0, count, 11)][:10]
    Console(highlight=False).print(table)
    print(f"{good} of {total} painted digits right: {good / total:.1%} (classifier: {right:.2%} on real digits)")
    cells = wrong[:40] or shown[:10]
    save(sheet([p for p, _ in cells], [text for _, text in cells], scale=3), args.output)
    print(f"{args.output}  {'the wrong ones' if wrong else 'examples'}")


if __name__ == "__main__":
    main()
