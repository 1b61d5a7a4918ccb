"""The layouts of docs/data.md: of each row, which pictures, captions and labels are in the collection."""

import io
import json
import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from limner.data.pictures import Pictures
from limner.data.sources import Source, open_source
from limner.data.world import World
from limner.errors import LimnerError, LimnerWarning

pytestmark = pytest.mark.filterwarnings("ignore::limner.errors.LimnerWarning")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """What `datasets` makes of the files here goes the way of the files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, "PNG")
    return file.getvalue()


def paint(root: Path, *names: str) -> None:
    """Pictures whose grey values are 0, 1, 2, ..."""
    for grey, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(grey))


def table(file: Path, *greys: int, **columns: list) -> None:
    """A Parquet file of pictures of these grey values, captioned by them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    held = {"image": [png(grey) for grey in greys], "text": [f"grey {grey}" for grey in greys]}
    pq.write_table(pa.table(held | columns), file)


def rows(file: Path, *named: tuple[str, object]) -> None:
    """metadata.jsonl or metadata.csv of (file_name, text)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        file.write_text("file_name,text\n" + "".join(f'"{name}","{text}"\n' for name, text in named))
    elif file.suffix == ".parquet":
        pq.write_table(pa.table({"file_name": [n for n, _ in named], "text": [t for _, t in named]}), file)
    else:
        file.write_text("".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in named))


def greys(pictures: Pictures) -> list[int]:
    return [pictures.image(row).getpixel((1, 1)) for row in range(len(pictures))]


def opened(root: Path, split: str = "train", **options) -> Pictures:
    return open_source(Source(path=str(root), split=split, **options))


def captioned(root: Path, split: str = "train", **options) -> dict[int, list[str]]:
    pictures = opened(root, split, **options)
    return dict(zip(greys(pictures), pictures.captions, strict=True))


def classes(root: Path, split: str = "train", captions: bool = True) -> dict[int, str | None]:
    """grey value -> class."""
    pictures = open_source(Source(path=str(root), split=split), captions)
    names = [None if pictures.labels is None else pictures.label_names[label] for label in pictures.labels or []]
    return dict(zip(greys(pictures), names or [None] * len(pictures), strict=True))


def said(root: Path, captions: bool = True, split: str = "train") -> str:
    with pytest.warns(LimnerWarning) as warned:
        open_source(Source(path=str(root), split=split), captions)
    return " | ".join(str(each.message) for each in warned)


def test_each_row_of_the_table_is_a_test_here():
    lines = (Path(__file__).parent.parent / "docs" / "data.md").read_text().splitlines()
    named = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    headings = {"layout"}
    assert len(named) > 20
    assert [name for name in named if name not in headings and f"test_{name.replace(' ', '_')}" not in globals()] == []


# --- splits ---


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("training", "testing"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("train2017", "test2017"),
        ("pictures/train", "pictures/test"),
        ("mnist_png/pngs/training", "mnist_png/pngs/testing"),
    ],
)
def test_class_folders_in_split_folders(tmp_path, train, test):
    paint(tmp_path, f"{train}/0/a.png", f"{train}/1/b.png", f"{test}/0/c.png", f"{test}/1/d.png")
    assert classes(tmp_path) == {0: "0", 1: "1"}
    for split in ("test", "Testing"):
        assert classes(tmp_path, split) == {2: "0", 3: "1"}
    assert len(open_source(Source(path=str(tmp_path)), captions=False)) == 2


@pytest.mark.parametrize("word", ["validation", "valid", "val", "dev", "Val"])
def test_any_word_for_a_split(tmp_path, word):
    paint(tmp_path, "train/0/a.png", "train/1/b.png", f"{word}/0/c.png", f"{word}/1/d.png")
    for asked in ("validation", "valid", "val", "dev", word):
        assert classes(tmp_path, asked) == {2: "0", 3: "1"}
    with pytest.raises(LimnerError, match="unknown split 'test'. Known: train, validation"):
        opened(tmp_path, "test")


def test_split_folders_in_class_folders(tmp_path):
    paint(tmp_path, "owl/train/a.png", "cat/train/b.png", "owl/test/c.png", "cat/test/d.png")
    assert classes(tmp_path) == {0: "owl", 1: "cat"}
    assert classes(tmp_path, "test") == {2: "owl", 3: "cat"}


def test_a_folder_of_the_same_name_inside_a_split(tmp_path):
    paint(tmp_path, "seg_train/seg_train/sea/a.png", "seg_train/seg_train/ice/b.png", "seg_test/seg_test/sea/c.png")
    paint(tmp_path / "vehicles", "train/car/a.png", "train/train/b.png", "test/car/c.png", "test/train/d.png")
    assert classes(tmp_path / "vehicles") == {0: "car", 1: "train"}
    (tmp_path / "vehicles").rename(tmp_path.parent / f"{tmp_path.name}-vehicles")
    assert classes(tmp_path) == {0: "sea", 1: "ice"}


def test_one_folder_named_as_a_split_beside_others(tmp_path):
    paint(tmp_path, "train/a.png", "car/b.png", "bus/c.png")
    with pytest.raises(LimnerError, match=r"train/ may be a split or a class, as it lies beside bus, car"):
        opened(tmp_path)
    paint(tmp_path / "wrapped", "set/train/a.png", "set/car/b.png")
    with pytest.raises(LimnerError, match=r"set/train/ may be a split or a class.* --data.path .*wrapped/set/train,"):
        opened(tmp_path / "wrapped")
    paint(tmp_path / "loose", "train/a.png", "b.png")
    rows(tmp_path / "loose" / "metadata.csv", ("train/a.png", "a"), ("b.png", "b"))
    assert captioned(tmp_path / "loose") == {0: ["a"]}
    assert "left out: 1 picture of no split (b.png)" in said(tmp_path / "loose")


def test_other_splits_and_folders_of_no_split(tmp_path):
    paint(tmp_path, "train/0/a.png", "train/1/b.png", "test/0/c.png", "test/1/d.png", "unlabeled/e.png")
    text = said(tmp_path)
    assert "2 pictures of the split test (test/0/c.png, test/1/d.png)" in text
    assert "1 picture of no split (unlabeled/e.png)" in text


def test_pictures_named_by_split(tmp_path):
    paint(tmp_path, "owl/train_1.png", "cat/train_1.png", "owl/test_1.png", "cat/test_1.png")
    assert classes(tmp_path) == {0: "owl", 1: "cat"}
    assert classes(tmp_path, "test") == {2: "owl", 3: "cat"}
    paint(tmp_path / "some", "a/train_1.png", "b/train_2.png", "b/other.png")  # a name, no split
    assert classes(tmp_path / "some") == {0: "a", 1: "b", 2: "b"}


def test_an_empty_split_folder(tmp_path):
    paint(tmp_path, "train/0/a.png", "train/1/b.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(LimnerError, match="the folder of the split 'test' is empty"):
        opened(tmp_path, "test")
    assert classes(tmp_path) == {0: "0", 1: "1"}


@pytest.mark.parametrize(
    "train, test",
    [
        ("training-0.parquet", "testing-0.parquet"),
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("mnist-train.parquet", "mnist-test.parquet"),
        ("Train.parquet", "Test.PARQUET"),
        ("train.parquet", "test.parquet"),
        ("train/0.parquet", "test/0.parquet"),
        ("Training/a/0.parquet", "Testing/a/0.parquet"),
        ("data/train-0.parquet", "data/test-0.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
        ("trainset.parquet", "evaluation.parquet"),
    ],
)
def test_parquet_by_split(tmp_path, train, test):
    table(tmp_path / train, 1, 2)
    table(tmp_path / test, 3)
    assert captioned(tmp_path) == {1: ["grey 1"], 2: ["grey 2"]}
    assert captioned(tmp_path, "testing") == {3: ["grey 3"]}
    with pytest.raises(LimnerError, match="unknown split 'validation'. Known: test, train"):
        opened(tmp_path, "validation")


def test_parquet_in_shards_and_without_splits(tmp_path):
    for k in range(3):
        table(tmp_path / "a" / f"train-{k}.parquet", k)
        table(tmp_path / "b" / f"part-{k}.parquet", k)
    table(tmp_path / "a" / "extra.parquet", 9)
    paint(tmp_path / "a", "beside.png")
    assert sorted(captioned(tmp_path / "a")) == sorted(captioned(tmp_path / "b")) == [0, 1, 2]
    assert "1 file of no split (extra.parquet); 1 other file (beside.png)" in said(tmp_path / "a")


def test_one_parquet_file(tmp_path):
    table(tmp_path / "test.parquet", 1)
    assert greys(opened(tmp_path / "test.parquet")) == greys(opened(tmp_path / "test.parquet", "test")) == [1]
    with pytest.raises(LimnerError, match="unknown split 'validation'. Known: test"):
        opened(tmp_path / "test.parquet", "validation")


def test_the_world_has_three_splits():
    seeds = {split: open_source(Source("world", split=split)).seed for split in ("train", "Test", "val", "validation")}
    assert seeds == {"train": 0, "Test": 1, "val": 2, "validation": 2}
    with pytest.raises(LimnerError, match="world: unknown split 'tset'; did you mean 'test'"):
        open_source(Source("world", split="tset"))
    assert isinstance(open_source(Source("world")), World)


# --- metadata ---


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet", "Metadata.CSV"])
def test_metadata_above_the_splits(tmp_path, name):
    paint(tmp_path, "train/a.png", "test/b.png")
    rows(tmp_path / name.lower(), ("train/a.png", "red, or so"), ("test/b.png", "blue"))
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert captioned(tmp_path) == {0: ["red, or so"]}
    assert captioned(tmp_path, "test") == {1: ["blue"]}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_metadata_in_each_split(tmp_path, name):
    paint(tmp_path, "train/a.png", "testing/a.png", "testing/b.png")
    rows(tmp_path / "train" / name, ("a.png", "red"))
    rows(tmp_path / "testing" / name, ("a.png", "blue"), ("b.png", "green"))
    assert captioned(tmp_path) == {0: ["red"]}
    assert captioned(tmp_path, "test") == {1: ["blue"], 2: ["green"]}


def test_a_row_whose_picture_is_nowhere(tmp_path):
    paint(tmp_path, "train/a.png", "test/b.png")
    rows(tmp_path / "metadata.jsonl", ("train/a.png", "red"), ("test/b.png", "blue"), ("test/c.png", "x"))
    with pytest.raises(LimnerError, match=r"1 of its rows name pictures that are not there: test/c.png. .*a.png"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "name", [".a.png", "notes.doc", "../beside.png", "missing.png", "/absolute/a.png", "a" * 5000, "a\0.png"]
)
def test_a_row_whose_picture_is_left_out(tmp_path, name):
    root = tmp_path / "root"
    paint(root, "a.png")
    paint(tmp_path, "beside.png", "root/.a.png", "root/notes.doc")
    rows(root / "metadata.jsonl", ("a.png", "red"), (name, "x"))
    absent = name not in (".a.png", "notes.doc", "../beside.png")
    with pytest.raises(LimnerError, match="are not there: " if absent else "are left out: .*they are hidden"):
        opened(root)


@pytest.mark.parametrize(
    "name",
    ["sub/a.png", "./sub/a.png", r"sub\a.png", " sub/a.png ", "sub//a.png", "sub/../sub/a.png", "ROOT/sub/a.png"],
)
@pytest.mark.parametrize("kind", ["metadata.csv", "metadata.jsonl"])
def test_spellings_of_file_name(tmp_path, monkeypatch, name, kind):
    paint(tmp_path, "sub/a.png")
    rows(tmp_path / kind, (name.replace("ROOT", str(tmp_path)), "red"))
    assert captioned(tmp_path) == {0: ["red"]}
    monkeypatch.chdir(tmp_path)
    assert captioned(Path(".")) == {0: ["red"]}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_either_form(tmp_path, form):
    other = "NFD" if form == "NFC" else "NFC"
    paint(tmp_path, unicodedata.normalize(form, "é/ü.png"))
    rows(tmp_path / "metadata.csv", (unicodedata.normalize(other, "é/ü.png"), "red"))
    assert captioned(tmp_path) == {0: ["red"]}


@pytest.mark.parametrize("column", ["file_name", "filename", "image"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_columns_of_metadata(tmp_path, column, mark):
    paint(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(f'{mark}{column}, text\n\n a.png , "red, or so"\n,\n')
    assert captioned(tmp_path) == {0: ["red, or so"]}
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text(mark + json.dumps({column: "a.png", "text": "red"}) + "\n")
    assert captioned(tmp_path) == {0: ["red"]}


def test_several_rows_of_one_picture(tmp_path):
    paint(tmp_path, "a.png", "b.png")
    rows(tmp_path / "metadata.jsonl", ("a.png", "red"), ("b.png", ["blue", " "]), ("a.png", ["rose", "ruby"]))
    rows(tmp_path / "metadata.csv", ("b.png", "sky"))
    assert captioned(tmp_path) == {0: ["red", "rose", "ruby"], 1: ["sky", "blue"]}


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "metadata.csv holds no row; expected a file_name and a text for each picture"),
        ("file_name,text\n", "metadata.csv holds no row"),
        ("file_name;text\na.png;red\n", "line 1: expected the header file_name,text, .* by semicolons, not commas"),
        ("file_name\ttext\na.png\tred\n", "line 1: expected the header file_name,text, .* by tabs, not commas"),
        ("file_name;text\na.png;red, or so\n", "by semicolons, not commas"),
        ("a.png,red\n", "line 1: expected the header file_name,text, no file_name there: 'a.png,red'"),
        ("file_name,text\na.png,red, or so\n", "line 2: more fields than columns; a text with a comma must be in quot"),
        ("file_name,text\na.png\n", r"line 2: fewer fields \(1\) than columns \(2\)"),
        ("file_name,text,text\na.png,red,blue\n", "line 1: the column 'text' is there twice"),
        (
            "file_name,txet\na.png,red\n",
            "line 2: no caption there. unknown column 'text'; did you mean 'txet'.*file_name",
        ),
        ("file_name,text\na.png,\n", "1 of 1 pictures have no caption: .*a.png"),
        ("file_name,text\n,red\n", "line 2: file_name must be the name of a picture, not ''"),
    ],
)
def test_a_metadata_csv_of_another_form(tmp_path, content, message):
    paint(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(LimnerError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize(
    "row, message",
    [
        ('{"file_name": "a.png", "text": null}', "1 of 1 pictures have no caption"),
        ('{"file_name": "a.png", "text": []}', "1 of 1 pictures have no caption"),
        ('{"file_name": "a.png", "text": 5}', "line 1: a caption is a text or a list of texts, not 5"),
        (
            '{"file_name": "a.png", "text": ["red", null]}',
            "line 1: a caption is a text or a list of texts, not .'red', No",
        ),
        ('{"file_name": "a.png", "text": {"en": "red"}}', "line 1: a caption is a text or a list of texts, not {'en'"),
        ('{"file_name": "a.png", "text": "red", "text": "blue"}', "line 1: 'text' is there twice"),
        ("", "metadata.jsonl holds no row"),
    ],
)
def test_captions_that_are_texts_or_lists_of_texts(tmp_path, row, message):
    paint(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(row + "\n")
    with pytest.raises(LimnerError, match=message):
        opened(tmp_path)


def test_metadata_parquet_that_cannot_be_read_or_holds_no_names(tmp_path):
    paint(tmp_path, "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(LimnerError, match="metadata.parquet cannot be read as Parquet"):
        opened(tmp_path)
    pq.write_table(pa.table({"file_name": ["a.png"], "text": [5]}), tmp_path / "metadata.parquet")
    with pytest.raises(LimnerError, match="metadata.parquet, row 0: a caption is a text or a list of texts, not 5"):
        opened(tmp_path)


def test_metadata_parquet_alone_is_a_table_of_pictures(tmp_path):
    table(tmp_path / "metadata.parquet", 5)
    assert captioned(tmp_path) == {5: ["grey 5"]}


def test_metadata_then_text_files_then_classes(tmp_path):
    paint(tmp_path, "owl/a.png", "cat/b.png")
    for name in ("owl/a.txt", "cat/b.TXT"):
        (tmp_path / name).write_text(f"text of {name[0]}\n")
    assert captioned(tmp_path) == {0: ["text of o"], 1: ["text of c"]}
    rows(tmp_path / "metadata.csv", ("owl/a.png", "an owl"), ("cat/b.png", "a cat"))
    assert captioned(tmp_path) == {0: ["an owl"], 1: ["a cat"]}
    assert classes(tmp_path) == {0: "owl", 1: "cat"}
    assert "2 other files (cat/b.TXT, owl/a.txt)" in said(tmp_path)


# --- folders ---


def test_class_folders_inside_other_folders(tmp_path):
    paint(tmp_path, "set/pictures/owl/a.png", "set/pictures/cat/more/b.png")
    assert classes(tmp_path) == {0: "owl", 1: "cat"}


def test_a_loose_picture_beside_class_folders(tmp_path):
    paint(tmp_path, "owl/a.png", "cat/b.png", "loose.png")
    with pytest.raises(LimnerError, match="loose.png in no class folder, beside those of cat, owl"):
        opened(tmp_path)
    assert "loose.png in no class folder, beside those of cat, owl: the folders are not" in said(
        tmp_path, captions=False
    )
    rows(tmp_path / "metadata.csv", ("owl/a.png", "x"), ("cat/b.png", "y"), ("loose.png", "z"))
    assert captioned(tmp_path) == {0: ["x"], 1: ["y"], 2: ["z"]}
    assert "loose.png in no class folder" in said(tmp_path)


def test_folders_called_like_pictures_and_empty_ones(tmp_path):
    paint(tmp_path, "x.png/a.png", "cat/b.png")
    for empty in ("dog", "y.jpg"):
        (tmp_path / empty).mkdir()
    assert classes(tmp_path) == {0: "x.png", 1: "cat"}
    assert "2 empty folders (dog, y.jpg)" in said(tmp_path)


def test_hidden_files_and_folders(tmp_path):
    hidden = ("owl/._a.png", "__MACOSX/owl/a.png", ".cache/b.png", "cat/@eaDir/b.png", ".c.png")
    paint(tmp_path, "owl/a.png", "cat/b.png", *hidden)
    for name in (".DS_Store", "owl/Thumbs.db", "cat/desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    assert classes(tmp_path) == {0: "owl", 1: "cat"}
    assert "5 hidden files or folders (.c.png, .cache, __MACOSX and 2 more)" in said(tmp_path)


def test_links_to_files_and_folders(tmp_path):
    paint(tmp_path / "elsewhere", "owls/a.png", "b.png")
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "owl").symlink_to(tmp_path / "elsewhere" / "owls")
    (tmp_path / "set" / "cat" / "b.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert classes(tmp_path / "set") == {0: "owl", 1: "cat"}
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert classes(tmp_path / "link") == {0: "owl", 1: "cat"}


def test_links_that_lead_back_or_nowhere(tmp_path):
    paint(tmp_path, "owl/a.png", "cat/b.png")
    (tmp_path / "owl" / "up").symlink_to(tmp_path)
    (tmp_path / "owl" / "self").symlink_to(tmp_path / "owl" / "self")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert classes(tmp_path) == {0: "owl", 1: "cat"}
    text = said(tmp_path)
    assert "1 link to a folder above it (owl/up)" in text
    assert "3 other files (cat/gone.png, owl/self, pipe.png)" in text


def test_files_of_other_suffixes(tmp_path):
    paint(tmp_path, "owl/a.PNG", "cat/b.png")
    for name in ("README.md", "owl/a.caption", "cat/b.heic"):
        (tmp_path / name).write_bytes(b"x")
    assert classes(tmp_path) == {0: "owl", 1: "cat"}
    assert "3 other files (README.md, cat/b.heic, owl/a.caption)" in said(tmp_path)


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, recwarn):
    paint(tmp_path, "a.png", "more/b.png")
    for name in ("a.txt", "more/b.txt"):
        (tmp_path / name).write_text("red")
    assert captioned(tmp_path) == {0: ["red"], 1: ["red"]}
    opened(tmp_path)
    assert not [each for each in recwarn if each.category is LimnerWarning]


def test_options_of_tables_are_said_to_have_no_effect_on_folders(tmp_path):
    paint(tmp_path, "owl/a.png", "cat/b.png")
    with pytest.warns(LimnerWarning, match="the label column has no effect with a folder of pictures"):
        opened(tmp_path, label_column="what")


# --- columns of Parquet ---

PNG = [png(0), png(1)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("name", ["image", "anything"])
@pytest.mark.parametrize(
    "values",
    [
        pa.array([{"bytes": each, "path": None} for each in PNG], STRUCT),
        pa.array([{"path": "x.png", "bytes": each} for each in PNG], pa.struct([*STRUCT][::-1])),
        pa.array([{"bytes": each} for each in PNG], pa.struct([("bytes", pa.binary())])),
        pa.array(PNG, pa.binary()),
        pa.array(PNG, pa.large_binary()),
    ],
    ids=["struct", "turned struct", "bytes alone", "binary", "large binary"],
)
def test_a_column_of_encoded_pictures(tmp_path, values, name):
    pq.write_table(pa.table({"id": ["a", "b"], name: values, "text": ["red", "blue"]}), tmp_path / "0.parquet")
    assert captioned(tmp_path) == {0: ["red"], 1: ["blue"]}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), STRUCT])
def test_a_column_of_paths(tmp_path, kind):
    paint(tmp_path / "set", "a.png", "sub/b.png")
    names = ["a.png", "sub/b.png"]
    values = names if kind != STRUCT else [{"bytes": None, "path": name} for name in names]
    pq.write_table(pa.table({"image": pa.array(values, kind), "text": ["red", "blue"]}), tmp_path / "set" / "t.parquet")
    assert captioned(tmp_path / "set") == captioned(tmp_path / "set" / "t.parquet") == {0: ["red"], 1: ["blue"]}


def test_several_columns_that_might_be_meant(tmp_path):
    pictures = pa.array([{"bytes": each, "path": None} for each in PNG[::-1]], STRUCT)
    columns = {
        "conditioning_image": pictures,
        "image": pictures.take([1, 0]),
        "caption": ["c", "c"],
        "text": ["a", "b"],
    }
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    assert captioned(tmp_path) == {0: ["a"], 1: ["b"]}
    text = said(tmp_path)
    assert "the image column is 'image', not conditioning_image: --data.image-column" in text
    assert "the caption column is 'text', not caption: --data.caption-column" in text
    assert captioned(tmp_path, image_column="conditioning_image", caption_column="caption") == {0: ["c"], 1: ["c"]}
    pq.write_table(pa.table({"before": pictures, "after": pictures, "text": ["a", "b"]}), tmp_path / "0.parquet")
    with pytest.raises(LimnerError, match="pictures may be in before, after; name one with --data.image-column"):
        opened(tmp_path)


def test_names_of_columns_in_any_case(tmp_path):
    pq.write_table(pa.table({"Image": PNG, "Text": ["red", "blue"], "Label": ["x", "y"]}), tmp_path / "0.parquet")
    assert captioned(tmp_path) == {0: ["red"], 1: ["blue"]}
    assert classes(tmp_path) == {0: "x", 1: "y"}


def test_labels_without_a_column_of_captions(tmp_path):
    pq.write_table(pa.table({"image": PNG, "label": ["x", "y"], "story": ["red", "blue"]}), tmp_path / "0.parquet")
    assert captioned(tmp_path) == {0: ["a photo of a x"], 1: ["a photo of a y"]}
    assert "captions are made of the column 'label', not of story: --data.caption-column" in said(tmp_path)
    assert captioned(tmp_path, caption_column="story") == {0: ["red"], 1: ["blue"]}


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"txet": ["a", "b"]},
            "none of image, txet is a column of captions .*did you mean 'txet'.*--data.caption-column",
        ),
        ({"label": [0, 1]}, "nothing says what they show.*the labels of 'label' have no names"),
        ({"text": [1, 2]}, "row 0: a caption is a text or a list of texts, not 1"),
        ({"text": ["a", None]}, "1 of 2 pictures have no caption: .*row 1"),
        ({"text": [["a"], ["b", None]]}, "row 1: a caption is a text or a list of texts, not .'b', None"),
    ],
)
def test_a_column_of_captions_that_is_missing(tmp_path, columns, message):
    pq.write_table(pa.table({"image": PNG} | columns), tmp_path / "0.parquet")
    with pytest.raises(LimnerError, match=message):
        opened(tmp_path)


# --- where `datasets` cannot keep its cache ---


@pytest.mark.parametrize("cache", ["/dev/null/x/datasets", "~/.cache/huggingface/datasets"])
def test_parquet_without_a_cache_that_can_be_written(tmp_path, monkeypatch, cache):
    table(tmp_path / "set" / "0.parquet", 1, 2)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.chdir(tmp_path)
    assert captioned(tmp_path / "set") == {1: ["grey 1"], 2: ["grey 2"]}
    assert "the cache of `datasets`" in said(tmp_path / "set") and cache.split("/datasets")[0] in said(tmp_path / "set")
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


def test_the_hub_names_a_cache_that_cannot_be_written(monkeypatch):
    def unwritable(*args, **kwargs):
        raise PermissionError("Permission denied")

    monkeypatch.setattr("datasets.load_dataset", unwritable)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/dev/null/x/datasets")
    with pytest.raises(LimnerError, match="the cache of `datasets` .*/dev/null/x/datasets.*; set HF_HOME"):
        open_source(Source("mnist"))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((name, LFS, "it is a git-LFS pointer") for name in
          ("train.parquet", "metadata.jsonl", "metadata.csv", "metadata.parquet")),
        ("metadata.csv", b"<!DOCTYPE html>", "it is a web page"),
        ("metadata.jsonl", b'{\n "file_name": "1.png"\n}', "each line is an object of its own"),
        ("train.parquet", b"", "it is empty"),
        ("train.parquet", b"PAR1cut", "probably cut short"),
        ("1.txt", "a red star".encode("utf-16"), "it is text in UTF-16"),
        ("1.txt", "a red star".encode("utf-16-le"), "it holds NUL at character 1"),
        ("metadata.jsonl", b'{"file_name": "1.png", "text": "a\\u0000"}', "line 1: a caption holds NUL"),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_called_what_they_are(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    paint(tmp_path, "1.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LimnerError, match=message):
        open_source(Source(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ("a {}",)}, "the templates has no effect with the captions of"),
        ({"caption_column": "x"}, "the caption column has no effect with no metadata"),
    ],
)
def test_options_without_effect_on_captions_from_texts_are_told(tmp_path: Path, options: dict, message: str) -> None:
    paint(tmp_path, "1.png")
    (tmp_path / "1.txt").write_text("a red star")
    with pytest.warns(LimnerWarning, match=message):
        open_source(Source(path=str(tmp_path), **options))
