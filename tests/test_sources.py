"""Pictures and captions from files, and the order in which they are trained on."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from limner.data import captions as words
from limner.data.batches import Batches, BrokenCount
from limner.data.collection import epoch_order
from limner.data.pictures import Pictures, to_tensor
from limner.data.sources import Source, open_source
from limner.errors import LimnerError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def paint(file: Path, colour: str, size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(file)


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def seen(pictures: Pictures) -> dict[str, list[str]]:
    """colour of the picture -> its captions."""
    names = {colour: name for name, colour in COLOURS.items()}
    return {names[pictures.image(k).getpixel((3, 3))]: pictures.captions[k] for k in range(len(pictures))}


def numbered_pictures(n: int, broken: tuple[int, ...] = ()) -> Pictures:
    """`n` pictures whose pixels are all their own number, with three captions and a label that tell it too."""
    images = [{"bytes": png((k, k, k)), "path": None} for k in range(n)]
    for k in broken:
        images[k]["bytes"] = images[k]["bytes"][:40]
    return Pictures(images, "numbers", [[f"{k} a", f"{k} b", f"{k} c"] for k in range(n)], list(range(n)))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """What `datasets` makes of the files here goes the way of the files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder with three pictures, one of them in a folder of its own."""
    paint(tmp_path / "1.png", "red")
    paint(tmp_path / "2.png", "green")
    paint(tmp_path / "more" / "3.png", "blue")
    return tmp_path


def write_rows(folder: Path, *rows: dict) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


# --- captions ---


def held_out_captions(known: words.CaptionSet, label: int) -> list[str]:
    """The captions of a label in the phrasings left out of training."""
    return [words.fill(template, word) for template in known.held_out for word in known.label_words[label]]


@pytest.mark.parametrize("known", [words.DIGITS, words.CIFAR10])
def test_held_out_captions_are_new_phrasings_of_known_words(known):
    trained = {caption for label in range(10) for caption in known.all(label)}
    vocabulary = {word for caption in trained for word in caption.split()}
    for label in range(10):
        held_out = held_out_captions(known, label)
        assert held_out and not trained & set(held_out)
        assert {word for caption in held_out for word in caption.split()} <= vocabulary
        assert len(set(known.all(label))) == len(known.all(label)) >= 8


@pytest.mark.parametrize("known", [words.DIGITS, words.CIFAR10])
def test_no_caption_speaks_of_two_labels(known):
    captions = [caption for label in range(10) for caption in known.all(label) + held_out_captions(known, label)]
    assert len(set(captions)) == len(captions)


def test_captions_have_the_right_words_and_articles():
    assert words.DIGITS.all(7)[0] == "a handwritten seven"
    assert {"the digit 7", "a seven", "7", "number seven", "the number 7 written by hand"} <= set(words.DIGITS.all(7))
    assert {"an eight", "an 8"} <= set(words.DIGITS.all(8)) and "a one" in words.DIGITS.all(1)
    assert held_out_captions(words.DIGITS, 8)[1] == "a picture of an 8 drawn with a pen"
    assert [words.CIFAR10.all(label)[0] for label in (0, 1, 2)] == [
        "a photo of an airplane",
        "a photo of an automobile",
        "a photo of a bird",
    ]
    assert {"a photo of a puppy", "a dog"} <= set(words.CIFAR10.all(5))
    assert words.from_names(["red_fox", "ice-cream"]).all(1) == ["a photo of an ice cream"]


def test_a_template_without_a_place_is_an_error():
    with pytest.raises(LimnerError, match="'a photo' has no place for the word"):
        words.from_names(["fox"], ("a photo",))


# --- the published sets ---


@pytest.mark.parametrize(
    "name, split, count", [("mnist", "train", 60000), ("mnist", "test", 10000), ("cifar10", "train", 50000)]
)
def test_the_published_sets_are_read_as_they_lie_in_their_files(shared_data, name, split, count):
    pictures = open_source(Source(name, str(shared_data / name), split))
    column = {"mnist": "image", "cifar10": "img"}[name]
    table = pq.read_table(shared_data / name / f"{split}-00000-of-00001.parquet")
    assert len(pictures) == len(table) == count
    assert pictures.labels == table["label"].to_pylist()
    for row in (0, 1, count // 2, count - 1):
        expected = np.asarray(Image.open(io.BytesIO(table[column][row]["bytes"].as_py())))
        assert expected.sum() > 0 and np.array_equal(np.asarray(pictures.image(row)), expected)
        size, channels = (28, 1) if name == "mnist" else (32, 3)
        tensor = to_tensor(pictures.image(row), size, channels)
        assert np.array_equal(tensor.permute(1, 2, 0).numpy().squeeze(), expected)


def test_labels_become_the_captions_of_their_set(shared_data):
    photos = open_source(Source("cifar10", str(shared_data / "cifar10"), "test"))
    assert photos.label_names[0] == "airplane" and "a photo of an airplane" in photos.captions[photos.labels.index(0)]
    assert "a photo of a truck" in photos.captions[photos.labels.index(9)]
    digits = open_source(Source("mnist", str(shared_data / "mnist"), "test"))
    seven = digits.labels.index(7)
    assert digits.captions[seven] == words.DIGITS.all(7)
    assert sorted(digits.all_captions()) == sorted(c for label in range(10) for c in words.DIGITS.all(label))
    own = open_source(Source("mnist", str(shared_data / "mnist"), "test", templates=("my {}",)))
    assert own.captions[seven] == ["my seven", "my 7"]
    assert open_source(Source("mnist", str(shared_data / "mnist"), "test"), captions=False).captions is None


# --- folders and Parquet of one's own ---


def test_metadata_jsonl_gives_each_picture_its_captions(colours):
    rows = [("more/3.png", "blue one"), ("2.png", ["green one", "grass"]), ("./1.png", "red one"), ("1.png", "blood")]
    write_rows(colours, *({"file_name": name, "text": text} for name, text in rows))
    expected = {"red": ["red one", "blood"], "green": ["green one", "grass"], "blue": ["blue one"]}
    pictures = open_source(Source(path=str(colours)))
    assert seen(pictures) == expected
    assert pictures.all_captions() == ["red one", "blood", "green one", "grass", "blue one"]


@pytest.mark.parametrize("column, given", [("text", None), ("caption", None), ("said", "said")])
def test_metadata_csv_gives_each_picture_its_caption(colours, column, given):
    rows = f'file_name,{column}\n1.png,"red, said ""so"""\n2.png,green\nmore/3.png,blue\n'
    (colours / "metadata.csv").write_text(rows, "utf-8-sig")
    pictures = open_source(Source(path=str(colours), caption_column=given))
    assert seen(pictures) == {"red": ['red, said "so"'], "green": ["green"], "blue": ["blue"]}


def test_sidecars_give_a_caption_a_line(colours):
    (colours / "1.txt").write_text("red one\n\nred two\n")
    (colours / "2.txt").write_text("green one")
    (colours / "more" / "3.txt").write_text("blue one\n")
    expected = {"red": ["red one", "red two"], "green": ["green one"], "blue": ["blue one"]}
    assert seen(open_source(Source(path=str(colours)))) == expected


def test_class_folders_and_split_folders(tmp_path):
    for split, colour in (("train", "red"), ("test", "white")):
        paint(tmp_path / split / "owl" / "1.png", colour)
        paint(tmp_path / split / "sea_horse" / "1.png", "blue")
    pictures = open_source(Source(path=str(tmp_path)))
    assert seen(pictures) == {"red": ["a photo of an owl"], "blue": ["a photo of a sea horse"]}
    assert (pictures.labels, pictures.label_names) == ([0, 1], ["owl", "sea_horse"])
    tests = open_source(Source(path=str(tmp_path), split="test", templates=("{}!", "see {a}")))
    assert seen(tests) == {"white": ["owl!", "see an owl"], "blue": ["sea horse!", "see a sea horse"]}
    with pytest.raises(LimnerError, match="unknown split 'tset'; did you mean 'test'"):
        open_source(Source(path=str(tmp_path), split="tset"))


def test_parquet_with_captions_or_named_labels(tmp_path):
    raw = [png(colour) for colour in COLOURS.values()]  # a plain binary column, no Hub types
    pq.write_table(pa.table({"png": raw, "text": list(COLOURS)}), tmp_path / "train-0.parquet")
    pq.write_table(pa.table({"png": raw, "what": ["owl", "cat"] * 2}), tmp_path / "test-0.parquet")
    assert seen(open_source(Source(path=str(tmp_path)))) == {name: [name] for name in COLOURS}
    pictures = open_source(Source(path=str(tmp_path), split="test", label_column="what"))
    assert (pictures.labels, pictures.label_names) == ([1, 0, 1, 0], ["cat", "owl"])
    assert pictures.captions[0] == ["a photo of an owl"]
    one_file = open_source(Source(path=str(tmp_path / "test-0.parquet"), label_column="what"))
    assert one_file.captions == pictures.captions


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_column": "pgn"}, "unknown image column 'pgn'; did you mean 'png'"),
        ({"caption_column": "txet"}, "unknown caption column 'txet'; did you mean 'text'"),
        ({"label_column": "lable"}, "unknown label column 'lable'; did you mean 'label'"),
        ({"split": "test"}, "unknown split 'test'. Known: train"),
        ({"image_column": "label"}, "no column of pictures; name one of png, label, text"),
        ({"caption_column": "label"}, "row 0: a caption is a text or a list of texts, not 0"),
        ({}, "row 2.* have no caption|1 of 3 pictures have no caption: .*row 2"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, change, message):
    table = pa.table({"png": [png((0, 0, 0))] * 3, "label": [0, 1, 2], "text": ["a", "b", None]})
    pq.write_table(table, tmp_path / "train-0.parquet")
    with pytest.raises(LimnerError, match=message):
        open_source(Source(path=str(tmp_path), **change))


def test_a_label_without_a_name_is_named_by_its_row(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "cat"])})
    rows = {"image": [{"bytes": png((0, 0, 0)), "path": None}] * 3, "label": [0, 1, -1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(LimnerError, match="row 2: label -1 is out of range: this set has the labels 0 to 1"):
        open_source(Source(path=str(tmp_path)))
    assert open_source(Source(path=str(tmp_path)), captions=False).labels == [0, 1, -1]


# --- errors of names, paths and caption files ---


def test_paths_and_names_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(LimnerError, match="nowhere: there is no such file or folder"):
        open_source(Source(path=str(tmp_path / "nowhere")))
    with pytest.raises(LimnerError, match="holds no picture .* and no .parquet file"):
        open_source(Source(path=str(tmp_path)))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(LimnerError, match="broken.parquet cannot be read as Parquet"):
        open_source(Source(path=str(tmp_path)))
    with pytest.raises(LimnerError, match="unknown data set 'mnits'; did you mean 'mnist'.*--data.path"):
        open_source(Source("mnits"))

    def no_network(name, *args, **kwargs):
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    with pytest.raises(LimnerError, match="'ylecun/mnist', split 'train', could not be fetched.*--data.path takes"):
        open_source(Source("mnist"))


def test_a_folder_without_captions_says_how_to_give_them(colours):
    with pytest.raises(LimnerError, match="metadata.jsonl or .*a .txt beside.*a folder for each class.*Parquet"):
        open_source(Source(path=str(colours)))
    pictures = open_source(Source(path=str(colours)), captions=False)
    assert len(pictures) == 3 and pictures.captions is None and pictures.all_captions() == []
    assert Batches(pictures, 3, 8, 3).batch(0)["captions"] == ["", "", ""]


@pytest.mark.parametrize(
    "lines, message",
    [
        (['{"file_name": "x.png", "text": "a"}'], "1 of its rows name pictures that are not there: x.png.*1.png"),
        (['{"file_name": "1.png", "text": "a"}', '{"file_name"'], "metadata.jsonl, line 2 is not JSON"),
        (["[1]"], "line 1: expected {.file_name.: ..., .text.: ...}, not "),
        (
            ['{"file_name": "1.png", "txet": "a"}'],
            "line 1: no caption there. unknown column 'text'; did you mean 'txet'",
        ),
        (['{"file": "1.png", "text": "a"}'], "line 1: no file_name there. .*did you mean 'file'"),
        (['{"file_name": "1.png", "text": 5}'], "line 1: a caption is a text or a list of texts, not 5"),
        (['{"file_name": "1.png", "text": "a"}'], "2 of 3 pictures have no caption: .*2.png, .*3.png"),
    ],
)
def test_caption_files_that_do_not_fit(colours, lines, message):
    (colours / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(LimnerError, match=message):
        open_source(Source(path=str(colours)))


def test_a_missing_sidecar_and_unreadable_text_are_named(colours):
    (colours / "1.txt").write_text("red")
    (colours / "2.txt").write_text("green")
    with pytest.raises(LimnerError, match="1 of 3 pictures have no caption: .*3.png"):
        open_source(Source(path=str(colours)))
    (colours / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(LimnerError, match="1.txt is not UTF-8 text"):
        open_source(Source(path=str(colours)))


# --- pictures as tensors ---


def test_resize_takes_the_middle_and_averages():
    pattern = np.zeros((8, 16), np.uint8)
    pattern[:, 4:8] = 200  # the middle square is columns 4 to 12: its left half is bright, its right half dark
    pattern[:, 12:] = 90
    small = to_tensor(Image.fromarray(pattern), 2, 1)
    assert small.dtype == torch.uint8 and small.shape == (1, 2, 2)
    assert torch.equal(small[0, 0], small[0, 1]) and small[0, 0, 0] > 160 and small[0, 0, 1] < 30
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8))
    assert (to_tensor(checks, 8, 1).float() - 100).abs().max() <= 8  # aliasing would give 0 or 200
    assert to_tensor(Image.new("L", (5, 9), 77), 4, 3).unique().tolist() == [77]
    with pytest.raises(LimnerError, match="1 channel .grey. or 3 .RGB., not 4"):
        to_tensor(checks, 8, 4)


def test_pictures_of_every_mode_are_read(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "1.png")  # transparent: white
    Image.fromarray(np.full((4, 4), 0x8080, np.uint16)).save(tmp_path / "2.png")  # 16 bits
    Image.new("1", (4, 4), 1).save(tmp_path / "3.png")
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "4.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (4, 8)).save(tmp_path / "5.jpg", exif=turned)
    pictures = open_source(Source(path=str(tmp_path)), captions=False)
    values = [to_tensor(pictures.image(k), 4, 3).unique().tolist() for k in range(4)]
    assert values == [[255], [128], [255], [0]]
    assert pictures.image(4).size == (8, 4)


# --- batches ---


def test_each_epoch_shows_every_picture_once_in_its_own_order():
    orders = [epoch_order(1000, 3, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], epoch_order(1000, 4, 0))
    batches = Batches(numbered_pictures(10), 4, 4, 1)
    shown = torch.cat([batches[step]["indices"] for step in range(5)])  # 20 positions: two epochs
    assert sorted(shown[:10].tolist()) == sorted(shown[10:].tolist()) == list(range(10))


def test_picture_caption_and_label_of_a_batch_belong_together():
    batch = Batches(numbered_pictures(30), 8, 4, 3, flip=True).batch(5)
    assert batch["images"].shape == (8, 3, 4, 4) and batch["images"].dtype == torch.uint8
    assert batch["images"][:, 0, 0, 0].tolist() == batch["indices"].tolist() == batch["labels"].tolist()
    assert [int(caption.split()[0]) for caption in batch["captions"]] == batch["indices"].tolist()


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_a_batch_depends_on_its_step_alone():
    batches = Batches(numbered_pictures(10), 4, 4, 1, seed=5, flip=True)
    once = [batches.batch(step) for step in range(6)]
    epoch_order.cache_clear()
    again = Batches(numbered_pictures(10), 4, 4, 1, seed=5, flip=True)
    assert all(same(once[step], again.batch(step)) for step in (5, 0, 3))
    loader = DataLoader(batches, batch_size=None, sampler=range(2, 6), num_workers=2)
    assert all(same(a, b) for a, b in zip(once[2:], loader, strict=True))
    assert not same(once[0], Batches(numbered_pictures(10), 4, 4, 1, seed=6, flip=True).batch(0))


def test_processes_share_the_batch_of_one():
    single = Batches(numbered_pictures(10), 6, 4, 1, flip=True).batch(1)
    parts = [Batches(numbered_pictures(10), 6, 4, 1, flip=True, rank=rank, world=3).batch(1) for rank in range(3)]
    assert torch.equal(torch.cat([part["images"] for part in parts]), single["images"])
    assert torch.equal(torch.cat([part["indices"] for part in parts]), single["indices"])
    assert [caption for part in parts for caption in part["captions"]] == single["captions"]
    with pytest.raises(LimnerError, match="a batch of 7 cannot be shared by 3 processes"):
        Batches(numbered_pictures(10), 7, 4, 1, world=3)
    with pytest.raises(LimnerError, match="seed of the data order is -1"):
        Batches(numbered_pictures(10), 6, 4, 1, seed=-1)


def test_captions_are_drawn_anew_and_evenly():
    batches = Batches(numbered_pictures(6), 6, 4, 1)
    drawn = [caption for step in range(100) for caption in batches.batch(step)["captions"]]
    counts = {caption: drawn.count(caption) for caption in drawn}
    assert len(counts) == 18 and sum(counts.values()) == 600
    assert all(15 <= count <= 55 for count in counts.values())  # 33 expected, standard deviation 4.7


def test_flip_turns_about_half_of_the_pictures_and_nothing_else():
    ramp = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    file = io.BytesIO()
    ramp.save(file, "PNG")
    pictures = Pictures([{"bytes": file.getvalue(), "path": None}] * 200, "ramps")
    plain, flipped = (Batches(pictures, 200, 4, 1, flip=flip).batch(0) for flip in (False, True))
    straight = (flipped["images"] == plain["images"]).flatten(1).all(1)
    assert torch.equal(flipped["images"][~straight], plain["images"][~straight].flip(-1))
    assert 70 < straight.sum() < 130 and torch.equal(flipped["indices"], plain["indices"])


def test_a_broken_picture_is_replaced_by_the_next_and_counted():
    pictures = numbered_pictures(10, broken=(3, 4, 9))
    with pytest.raises(LimnerError, match="numbers, row 3 cannot be read as a picture: "):
        pictures.image(3)
    batch = Batches(pictures, 10, 4, 1).batch(0)
    expected = [{3: 5, 4: 5, 9: 0}.get(index, index) for index in epoch_order(10, 0, 0).tolist()]
    assert batch["indices"].tolist() == batch["images"][:, 0, 0, 0].tolist() == expected
    assert [int(caption.split()[0]) for caption in batch["captions"]] == expected
    assert set(batch["broken"]) == {f"numbers, row {row}" for row in (3, 4, 9)}
    BrokenCount(10, 0.3).add(batch)
    with pytest.raises(LimnerError, match="3 pictures cannot be read, more than the share 0.2 .*: numbers, row"):
        BrokenCount(10, 0.2).add(batch)
    with pytest.raises(LimnerError, match="4 pictures in a row cannot be read; the last: numbers, row"):
        Batches(numbered_pictures(4, broken=(0, 1, 2, 3)), 2, 4, 1).batch(0)


def test_broken_pictures_are_measured_against_what_was_seen():
    count = BrokenCount(100_000, 0.01)
    batch = {"indices": torch.zeros(500), "broken": [f"{k}.png" for k in range(10)]}
    for _ in range(4):
        count.add(batch)  # the same ten again and again: 10 of 2000
    count.add({"indices": torch.zeros(500), "broken": [f"{k}.png" for k in range(20)]})
    with pytest.raises(LimnerError, match="31 pictures.*: 0.png, 1.png, 2.png and 28 more"):
        count.add({"indices": torch.zeros(500), "broken": [f"{k}.png" for k in range(31)]})


def test_a_missing_file_and_an_empty_row_are_broken_pictures(colours):
    pictures = open_source(Source(path=str(colours)), captions=False)
    (colours / "1.png").unlink()
    with pytest.raises(LimnerError, match="1.png cannot be read as a picture"):
        pictures.image(0)
    with pytest.raises(LimnerError, match="rows, row 0 cannot be read as a picture: the row has no picture"):
        Pictures([None], "rows").image(0)


@pytest.mark.parametrize("value", [float("nan"), 7, -0.01, 1.01, float("inf"), True, "some"])
def test_the_share_of_broken_pictures_is_from_0_to_1(value):
    with pytest.raises(LimnerError, match="max_broken must be (from 0 to 1|a number), not"):
        Source(max_broken=value)
    assert [Source(max_broken=share).max_broken for share in (0, 0.5, 1)] == [0, 0.5, 1]


def test_the_settings_are_imported_without_the_heavy_libraries():
    heavy = "import sys, limner.data.sources; print({'torch', 'datasets', 'numpy', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout == "set()\n"


def test_the_package_datasets_is_needed_for_parquet_and_the_hub_alone(colours, tmp_path, monkeypatch):
    """Without it the world and folders of pictures are opened; the others say how to install it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    paint(tmp_path / "more" / "4.png", "white")
    batch = Batches(open_source(Source("world")), 2, 16, 3).batch(0)
    assert batch["images"].shape == (2, 3, 16, 16) and all(batch["captions"])
    assert len(open_source(Source(path=str(tmp_path)), captions=False)) == 4
    pq.write_table(pa.table({"png": [png((0, 0, 0))], "text": ["a"]}), tmp_path / "train-0.parquet")
    for source in (Source("mnist"), Source("owner/name"), Source(path=str(tmp_path))):
        with pytest.raises(LimnerError, match=r"need datasets; install it with: pip install 'limner\[train\]'"):
            open_source(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,text\n0.png,a red cat, sitting, on a mat\n", "line 2: more fields than columns"),
        ("metadata.csv", 'file_name,text\n0.png,"a red cat\n', "line 2: unexpected end of data"),
        ("metadata.csv", f"file_name,text\n0.png,{'a' * 140_000}\n", "line 2: field larger than field limit"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "red \\ud83d"}\n', "line 1: a caption holds half of a surr"),
        ("metadata.jsonl", '{"file_name": null, "text": "red"}\n', "line 1: file_name must be the name of a picture"),
        ("metadata.jsonl", "[" * 100_000 + "\n", "line 1 is not JSON"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "text": ' + "9" * 5000 + "}\n",
            "line 1 is not JSON that can be read",
        ),
    ],
)
def test_a_line_of_metadata_that_cannot_be_read_is_named(tmp_path, name, content, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(LimnerError, match=f"{name}, {message}"):
        open_source(Source(path=str(tmp_path)))


def test_names_match_whatever_the_form_of_their_accents(tmp_path):
    for picture, row in (("e\u0301.png", "\u00e9.png"), ("\u00fc.png", "u\u0308.png")):
        Image.new("RGB", (4, 4)).save(tmp_path / picture)
        with open(tmp_path / "metadata.jsonl", "a") as file:
            file.write(json.dumps({"file_name": row, "text": f"a {len(row)}"}) + "\n")
    assert sorted(map(tuple, open_source(Source(path=str(tmp_path))).captions)) == [("a 5",), ("a 6",)]


def test_suffixes_of_any_kind_and_case_and_folders_named_like_pictures(tmp_path):
    names = ["a.jfif", "b.AVIF", "c.JP2", "d.png"]
    for name, text in zip(names, (".txt", ".TXT", ".txt", ".TXT"), strict=True):
        kind = {"jfif": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "png": "PNG"}[name.split(".")[1].lower()]
        Image.new("RGB", (32, 32), "red").save(tmp_path / name, kind)
        (tmp_path / name).with_suffix(text).write_text(f"picture {name[0]}")
    (tmp_path / "x.png").mkdir()
    opened = open_source(Source(path=str(tmp_path)))
    assert opened.captions == [[f"picture {name[0]}"] for name in names]
    assert all(opened.image(k).getpixel((9, 9))[0] > 240 for k in range(4))
