"""Accuracy of painted digits, by a classifier trained here on real ones.

    python benchmarks/digits.py --data ../shared/data/mnist [--model runs/mnist-text]

A small convolutional classifier is trained on MNIST to an accuracy of at least 99% on its test set, then classifies
1,000 pictures: ten digits, ten phrasings of each (one of them held out), ten seeds.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import limner
from limner.data.captions import DIGITS, fill
from limner.data.pictures import to_tensor
from limner.data.sources import Source, open_source
from limner.errors import LimnerError
from limner.picture import save, sheet


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
def classify(classifier: Classifier, images: Tensor) -> Tensor:
    """The predicted digits (N,) of pictures (N, 1, 28, 28)."""
    return torch.cat([classifier(part).argmax(dim=1) for part in images.split(500)])


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
    """Pictures of each prompt."""
    output: Path = Path("out/digits.png")
    """Sheet of misclassified pictures, or of ten examples."""


def main() -> None:
    """Train the classifier, paint, classify, print the table."""
    args = tyro.cli(Arguments)
    classifier, right = train_classifier(args.data)
    pipe = limner.Pipeline.from_pretrained(args.model)
    phrasings = [(template, False) for template in DIGITS.templates[:9]]
    phrasings += [(template, True) for template in DIGITS.held_out]
    table = Table("phrasing", "trained on", "right")
    wrong, shown, total, good = [], [], 0, 0
    for row, (template, held_out) in enumerate(phrasings):
        # Words and numerals alternate: "a handwritten zero", "a handwritten 1".
        prompts = [fill(template, names[(digit + row) % 2]) for digit, names in enumerate(DIGITS.label_words)]
        seeds = [10_000 * row + k for k in range(10 * args.seeds)]
        pictures = pipe(prompts, num_images=args.seeds, seed=seeds)
        labels = torch.arange(10).repeat_interleave(args.seeds)
        answers = classify(classifier, torch.stack([to_tensor(p, 28, 1) for p in pictures]).float() / 255)
        hits = int((answers == labels).sum())
        good, total = good + hits, total + len(labels)
        table.add_row(prompts[7], "no" if held_out else "yes", f"{hits}/{len(labels)}")
        wrong += [
            (pictures[i], f"{prompts[int(labels[i])]}; classified as {int(answers[i])}")
            for i in (answers != labels).nonzero().flatten().tolist()
        ]
        shown += [(pictures[i], prompts[int(labels[i])]) for i in range(0, len(pictures), 11)][:10]
    Console(highlight=False).print(table)
    print(f"{good} of {total} painted digits right: {good / total:.1%} (classifier: {right:.2%} on real digits)")
    chosen = wrong[:40] or shown[:10]
    save(sheet([p for p, _ in chosen], [text for _, text in chosen], scale=3), args.output)
    print(f"{args.output}  {'the wrong ones' if wrong else 'examples'}")


if __name__ == "__main__":
    main()
