"""Several sources of pictures in one, each drawn by its weight."""

import math
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data.batches import Batches
from limner.data.mixture import Mixture
from limner.data.pictures import Pictures
from limner.data.sources import Source, open_source
from limner.data.world import World
from limner.errors import LimnerError
from limner.world import ENDLESS, parse


def paint(folder: Path, values: list[int], broken: tuple[int, ...] = ()) -> Path:
    """Pictures of one grey each, 5 x 5, and a caption that tells it; the broken ones are no pictures."""
    folder.mkdir()
    for value in values:
        Image.new("RGB", (5, 5), (value,) * 3).save(folder / f"{value:03d}.png")
        (folder / f"{value:03d}.txt").write_text(f"grey {value}\nshade {value}")
        if value in broken:
            (folder / f"{value:03d}.png").write_bytes(b"\x89PNG no")
    return folder


@pytest.fixture
def mixed(tmp_path: Path) -> Mixture:
    """60% world, 40% a folder of ten greys."""
    folder = paint(tmp_path / "greys", list(range(0, 100, 10)))
    return open_source(Source(f"world=0.6,{folder}=0.4"))


def test_each_part_has_its_share(mixed):
    """10,000 positions: shares within four standard deviations, the pictures of a part alike often."""
    drawn = [mixed.index_at(position, 5) for position in range(10_000)]
    parts = Counter(mixed.locate(index)[0] for index in drawn)
    assert abs(parts[0] - 6000) < 4 * math.sqrt(10_000 * 0.24) and sum(parts.values()) == 10_000
    greys = Counter(index - ENDLESS for index in drawn if index >= ENDLESS)
    assert sorted(greys) == list(range(10)) and len(mixed) == ENDLESS + 10
    assert all(abs(n - parts[1] / 10) < 4.5 * math.sqrt(parts[1] * 0.09) for n in greys.values())
    worlds = [index for index in drawn if index < ENDLESS]
    assert len(set(worlds)) == len(worlds) and 0.45 < np.mean(worlds) / ENDLESS < 0.55


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.01, 0.98, 0.01), (1 / 3, 1 / 3, 1 / 3)])
def test_three_parts_of_very_different_lengths(weights):
    """The share is the weight's, not the length's; the first and last picture of every part come."""
    parts = [World(2), World(700, seed=1), World(3, seed=2)]
    mixture, n = Mixture(parts, weights), 6000
    where = [mixture.locate(mixture.index_at(position, 0)) for position in range(n)]
    for number, weight in enumerate(weights):
        inner = Counter(k for part, k in where if part == number)
        assert abs(inner.total() - n * weight) < 4 * math.sqrt(n * weight * (1 - weight))
        assert set(inner) <= set(range(len(parts[number]))) and (len(parts[number]) > 9 or len(inner) > 1)
    ends = [mixture.locate(index) for index in (0, 1, 2, 701, 702, 704)]
    assert ends == [(0, 0), (0, 1), (1, 0), (1, 699), (2, 0), (2, 2)] and len(mixture) == 705


def test_the_order_depends_on_position_and_seed_alone(mixed):
    """Asked again in another order it is the same; another seed gives another."""
    forward = [mixed.index_at(position, 1) for position in range(300)]
    assert [mixed.index_at(position, 1) for position in reversed(range(300))] == forward[::-1]
    assert sum(a == mixed.index_at(k, 2) for k, a in enumerate(forward)) < 30


@pytest.mark.parametrize("size, channels", [(16, 3), (32, 1)])
def test_every_picture_comes_from_its_part(mixed, size, channels):
    """Pixels, captions, names and indices are those of the part alone, in the order given."""
    indices = [ENDLESS + 3, 7, ENDLESS, 123_456_789_012, ENDLESS + 9, 7]
    images, found, broken = mixed.load(indices, size, channels)
    assert found == indices and broken == [] and images.dtype == torch.uint8
    assert images.shape == (6, channels, size, size)
    for row, grey in ((0, 30), (2, 0), (4, 90)):
        assert images[row].unique().tolist() == [grey]
        assert mixed.picture_name(indices[row]).endswith(f"greys/{grey:03d}.png")
        assert {mixed.draw_caption(indices[row], Random(k)) for k in range(20)} == {f"grey {grey}", f"shade {grey}"}
    world = World()
    for row in (1, 3, 5):
        assert torch.equal(images[row], world.load([indices[row]], size, channels).images[0])
        assert mixed.draw_caption(indices[row], Random(row)) == world.draw_caption(indices[row], Random(row))
        assert mixed.picture_name(indices[row]) == f"picture {indices[row]} of the captioned world"


def test_a_stand_in_is_of_the_same_part(tmp_path):
    """Where a picture cannot be read the next good one of its folder stands in, from its start after its end."""
    one = paint(tmp_path / "one", [0, 10, 20], broken=(20,))
    two = paint(tmp_path / "two", [100, 110, 120, 130], broken=(100, 110, 130))
    mixture = open_source(Source(f"{one}=0.5,{two}=0.5"))
    assert mixture.name == f"{one} and {two}"
    images, found, broken = mixture.load([2, 3, 6, 5, 1], 8, 1)
    assert found == [0, 5, 5, 5, 1] and images[:, 0, 0, 0].tolist() == [0, 120, 120, 120, 10]
    names = ["one/020.png", "two/100.png", "two/110.png", "two/130.png", "two/100.png", "two/110.png"]
    assert [name.removeprefix(f"{tmp_path}/") for name in broken] == names
    batch = Batches(mixture, 32, 8, 3).batch(0)
    shades = [int(caption.split()[1]) for caption in batch["captions"]]
    assert batch["images"][:, 0, 0, 0].tolist() == shades and {0, 10, 120} == set(shades)


def test_processes_share_the_batch_of_one(mixed):
    """The shares of three processes, side by side, are the batch of one, flips and captions included."""
    single = Batches(mixed, 24, 16, 3, seed=3, flip=True).batch(4)
    shares = [Batches(mixed, 24, 16, 3, seed=3, flip=True, rank=rank, world=3).batch(4) for rank in range(3)]
    for key in ("images", "indices"):
        assert torch.equal(torch.cat([share[key] for share in shares]), single[key])
    assert [caption for share in shares for caption in share["captions"]] == single["captions"]
    assert single["labels"] is None and len(set(single["indices"].tolist())) > 12
    assert torch.equal(Batches(mixed, 24, 16, 3, seed=3, flip=True).batch(4)["images"], single["images"])
    for index, caption in zip(single["indices"].tolist(), single["captions"], strict=True):
        assert caption.split()[1] == str(10 * (index - ENDLESS)) if index >= ENDLESS else parse(caption)


def test_a_tokenizer_sees_the_captions_of_all_parts(mixed):
    """Those of the world and those of the folder."""
    captions = mixed.all_captions()
    assert captions == World().all_captions() + [f"{word} {k}" for k in range(0, 100, 10) for word in ("grey", "shade")]


def test_options_reach_each_part(tmp_path):
    """The split and the templates of the source are those of its parts; pictures without captions are let be."""
    for split, value in (("train", 10), ("test", 20)):
        for word in ("owl", "cat"):
            (tmp_path / "set" / split / word).mkdir(parents=True)
            Image.new("L", (4, 4), value).save(tmp_path / "set" / split / word / "a.png")
    mixture = open_source(Source(f"world=0.5, {tmp_path / 'set'}=0.5", split="test", templates=("my {}",)))
    assert mixture.load([ENDLESS], 4, 1).images.unique().tolist() == [20]
    assert {mixture.draw_caption(ENDLESS + k, Random(0)) for k in (0, 1)} == {"my cat", "my owl"}
    assert mixture.draw_caption(5, Random(0)) == World(seed=1).draw_caption(5, Random(0))
    bare = open_source(Source(f"{tmp_path / 'set'}=1"), captions=False)
    assert bare.draw_caption(0, Random(0)) == "" and isinstance(bare.parts[0], Pictures)


def test_a_name_of_limners_own_is_never_a_folder(tmp_path, monkeypatch):
    """`world` means the captioned world also where a folder called world lies."""
    paint(tmp_path / "world", [0])
    paint(tmp_path / "greys", [50])
    monkeypatch.chdir(tmp_path)
    mixture = open_source(Source("world=0.5, greys=0.5"))
    assert isinstance(mixture.parts[0], World) and mixture.load([ENDLESS], 4, 1).images.unique().tolist() == [50]


@pytest.mark.parametrize(
    "name, message",
    [
        ("world=0.6,PATH=0.3", "sum to 0.9; they must sum to 1"),
        ("world=0.6,PATH=0.5", "sum to 1.1; they must sum to 1"),
        ("world=0,PATH=1", "the weight of world must be over 0 and at most 1, not 0"),
        ("world=1.5", "the weight of world must be over 0 and at most 1, not 1.5"),
        ("world=-0.5,PATH=1.5", "the weight of world must be over 0 and at most 1, not -0.5"),
        ("world=nan,PATH=1", "the weight of world must be over 0 and at most 1, not nan"),
        ("world=half,PATH=0.5", "'world=half' in the mixture '.*' is not NAME=WEIGHT"),
        ("world=0.5,PATH", "PATH' in the mixture '.*' is not NAME=WEIGHT"),
        ("world=0.5,", "'' in the mixture 'world=0.5,' is not NAME=WEIGHT"),
        ("=1", "'=1' in the mixture '=1' is not NAME=WEIGHT"),
        ("world=", "'world=' in the mixture 'world=' is not NAME=WEIGHT"),
        ("wrold=0.5,PATH=0.5", "unknown data set 'wrold'; did you mean 'world'"),
    ],
)
def test_mixtures_that_are_refused(tmp_path, name, message):
    """Weights, entries and names that make no mixture are named."""
    path = paint(tmp_path / "PATH", [0])
    with pytest.raises(LimnerError, match=message):
        open_source(Source(name.replace("PATH", str(path))))
