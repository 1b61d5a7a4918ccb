"""Evaluation: its prompts, counts, tables and sheets, and `limner evaluate` and `limner data` around it."""

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from limner.cli import main
from limner.data.sources import Source, open_source
from limner.data.world import World
from limner.errors import LimnerError
from limner.evaluate.report import (
    CLAIMS,
    EvalPrompt,
    Report,
    classify,
    evaluate,
    load_prompts,
    percent,
    wilson,
)
from limner.nets.dit import DiTConfig
from limner.train.diffusion import Diffusion
from limner.train.recipe import Recipe, TextRecipe
from limner.world import (
    KINDS,
    Group,
    NotUnderstood,
    Scene,
    complete,
    grade,
    held_out,
    parse,
    pictures_at,
    prompts,
    render,
)

STRANGE = "a photograph of my cat"


class Painter:
    """A pipeline that paints each prompt truly, or another in its place."""

    model = SimpleNamespace(name="painter", size=64)

    def __init__(self, instead: dict[str, str] | None = None) -> None:
        self.instead, self.calls = instead or {}, []

    def __call__(self, prompts: list[str], seed: int = 0, **settings) -> list[Image.Image]:
        self.calls.append((list(prompts), seed, settings))
        return [self.paint(prompt, seed + k) for k, prompt in enumerate(prompts)]

    def paint(self, prompt: str, seed: int) -> Image.Image:
        try:
            scene = parse(self.instead.get(prompt, prompt))
        except NotUnderstood:
            return Image.new("RGB", (64, 64), (seed, 0, 77))
        return Image.fromarray(render([complete(scene, Random(seed))], 64, [seed])[0])


# A prompt -> what is painted instead, one claim of it wrong, or "" where the prompt is painted.
PROMPTS = {
    "a large red circle in the centre on white": "",
    "a large green square on the left on black": "a large blue square on the left on black",  # colour
    STRANGE: "",
    "two large yellow squares on blue": "a large yellow square on blue",  # count
    "a large purple star": "",
    "a large blue star above a large orange ring on white": "a large orange ring above a large blue star on white",
    "a red square": "a large red circle on white",  # shape
    "three large red hearts on grey": "three large red hearts on black",  # background
    "a large black circle on the left on yellow": "a large black circle on the right on yellow",  # place
    "a large green heart in the centre on white": "a small green heart in the centre on white",  # size
}


@pytest.fixture(scope="module")
def graded() -> tuple[Painter, Report]:
    painter = Painter({prompt: other for prompt, other in PROMPTS.items() if other})
    return painter, evaluate(
        painter, [classify(prompt) for prompt in PROMPTS], batch_size=4, seed=20, steps=9, eta=None
    )


# --- shares ---


@pytest.mark.parametrize("right, n", [(0, 1), (1, 1), (0, 50), (50, 50), (1, 6), (37, 100), (999, 1000)])
def test_wilson_intervals_solve_their_equation(right, n):
    """Both ends p are where |share - p| is 1.96 standard errors of p, which is 0 for p = 0 and p = 1."""
    for p in wilson(right, n):
        assert (right / n - p) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / n, abs=1e-12)
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1 and high - low > 0.001


def test_shares_are_written_with_one_decimal():
    """Newcombe (1998): 81 of 263 is 30.8%, from 25.5 to 36.6; of none a dash."""
    assert percent(81, 263, interval=True) == "30.8% (25.5-36.6)" and percent(81, 263) == "30.8%"
    assert percent(0, 0, interval=True) == percent(0, 0) == "–"
    assert percent(20, 20, interval=True) == "100.0% (83.9-100.0)"


# --- what is counted ---


def test_the_table_counts_prompts_and_claims(graded):
    """Of each row how many, how many obeyed, and the share of every kind of claim that was right."""
    header, *rows = graded[1].table()
    assert header == ["prompts", "n", "obeyed", *CLAIMS]
    assert CLAIMS == ("shape", "colour", "size", "count", "place", "relation", "background")
    # 6 prompts with 7 groups: each has shape, colour and count; 6 sizes, 3 places, 1 relation, 5 backgrounds
    seen = ["seen", "6", "16.7% (3.0-56.4)", "85.7%", "85.7%", "100.0%", "85.7%", "66.7%", "0.0%", "100.0%"]
    out = ["held-out", "3", "33.3% (6.1-79.2)", "100.0%", "100.0%", "66.7%", "100.0%", "100.0%", "–", "50.0%"]
    assert rows == [seen, out]


def test_each_prompt_is_judged_by_its_own_picture(graded):
    """Exactly the claim that was painted wrong is found wrong; what is no sentence of the world is painted only."""
    report = graded[1].to_dict()
    kinds = {each["prompt"]: [claim["kind"] for claim in each.get("wrong", [])] for each in report["prompts"]}
    assert list(kinds) == list(PROMPTS)
    assert list(kinds.values()) == [
        [], ["colour"], [], ["count"], [], ["relation"], ["shape"], ["background"], ["place"], ["size"],
    ]  # fmt: skip
    by_prompt = {each.pop("prompt"): each for each in report["prompts"]}
    assert by_prompt[STRANGE] == {"row": "not judged", "obeyed": None}
    assert by_prompt["a large purple star"] == {"row": "held-out", "obeyed": True, "description": "obeyed", "wrong": []}
    green = by_prompt["a large green square on the left on black"]
    assert (
        green["obeyed"] is False
        and green["row"] == "seen"
        and "green" in green["description"]
        and "blue" in green["description"]
    )
    assert green["wrong"] == [{"kind": "colour", "expected": "green", "found": "blue", "right": False, "group": 0}]


def test_the_report_is_json(graded):
    """Shares and intervals as numbers, and the settings that were given."""
    report = json.loads(json.dumps(graded[1].to_dict()))
    assert report["settings"] == {"model": "painter", "seed": 20, "steps": 9}
    assert set(report["rows"]) == {"seen", "held-out"}
    assert report["rows"]["seen"] == {"n": 6, "obeyed": 1 / 6, "interval": list(wilson(1, 6))}
    assert report["rows"]["held-out"]["obeyed"] == pytest.approx(1 / 3) and len(report["prompts"]) == len(PROMPTS)


def test_each_prompt_is_painted_once_with_its_own_seed(graded):
    """Four at once, seeds going on from one to the next, so that the batches change nothing."""
    painter, report = graded
    given = list(PROMPTS)
    assert [call[:2] for call in painter.calls] == [(given[:4], 20), (given[4:8], 24), (given[8:], 28)]
    assert all(settings == {"steps": 9, "eta": None} for _, _, settings in painter.calls)
    done = []
    again = evaluate(painter, report.prompts, batch_size=7, seed=20, progress=done.append)
    assert [a.tobytes() for a in again.pictures] == [b.tobytes() for b in report.pictures] and done == [7, 10]
    assert again.verdicts == report.verdicts


def test_a_painter_that_obeys_and_one_that_does_not():
    """True pictures of the project's own prompts are nearly all found right, those of other prompts hardly ever."""
    each = load_prompts("all", 12)
    report = evaluate(Painter(), each)
    true = report.rows()
    swapped = {a.prompt: b.prompt for a, b in zip(each, each[5:] + each[:5], strict=True)}
    false = evaluate(Painter(swapped), each).rows()
    assert len(true) == 7 and all(len(verdicts) == 12 for verdicts in true.values())
    assert sum(v.obeyed for row in true.values() for v in row) >= 80  # of 84
    assert report.obeyed() == {row: sum(v.obeyed for v in verdicts) / 12 for row, verdicts in true.items()}
    assert sum(v.obeyed for row in false.values() for v in row) <= 4


def test_training_grades_as_evaluation_does(tmp_path):
    """The recipe's number of fresh prompts of each kind, with seeds from 0; the shares are those of the verdicts."""
    recipe = Recipe(
        data=Source("world:one"), output=str(tmp_path), size=32, grade=60, text=TextRecipe(32, 1, 2, 48, 700),
        network=DiTConfig(patch_size=4, hidden_size=32, depth=1, num_heads=2),
    )  # fmt: skip
    pairs = prompts("one", 60, held_out=False)
    painter = Painter({prompt: "a red star" for prompt, _ in pairs[::4]})
    shares = Diffusion.from_recipe(recipe, open_source(recipe.data), None).measure(painter)
    assert [call[1:] for call in painter.calls] == [(0, {}), (50, {})]
    assert [prompt for call in painter.calls for prompt in call[0]] == [prompt for prompt, _ in pairs]
    obeyed = [grade(painter.paint(prompt, k), scene).obeyed for k, (prompt, scene) in enumerate(pairs)]
    assert shares == {"obeyed_one": sum(obeyed) / 60} and 40 <= sum(obeyed) <= 46


# --- the sheet ---


def cells(page: Image.Image, n: int, scale: int) -> list[tuple[int, int]]:
    """The top left corners of the `n` pictures of a sheet with gaps of 8 pixels."""
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    assert page.width == 8 + columns * (64 * scale + 8)
    height = (page.height - 8) // rows
    return [(8 + k % columns * (64 * scale + 8), 8 + k // columns * height) for k in range(n)]


@pytest.mark.parametrize("most, chosen", [(60, range(10)), (4, (0, 3, 6, 9)), (2, (0, 9)), (1, (0,))])
def test_the_sheet_shows_the_pictures(graded, most, chosen):
    """Up to so many, evenly from all, their pixels enlarged and no more; a frame tells the verdict."""
    report = graded[1]
    page = report.sheet(most)
    frames = {None: (128, 128, 128), True: (0, 128, 0), False: (255, 0, 0)}
    for (left, top), k in zip(cells(page, len(chosen), 2), chosen, strict=True):
        shown = np.asarray(page.crop((left, top, left + 128, top + 128)))
        assert np.array_equal(shown, np.asarray(report.pictures[k]).repeat(2, 0).repeat(2, 1))
        verdict = report.verdicts[k]
        assert page.getpixel((left - 1, top + 5)) == frames[None if verdict is None else verdict.obeyed]
        below = np.asarray(page.crop((left, top + 131, left + 128, min(top + 160, page.height))))
        assert below.min() < 100  # something is written


# --- sets of prompts ---


@pytest.mark.parametrize("name, out", [("seen", [False]), ("held-out", [True]), ("all", [False, True])])
def test_the_sets_of_prompts(name, out):
    """`n` of each kind, each counted in its own row, seen or held out as the row says; two places hold nothing out."""
    loaded = load_prompts(name, 5, seed=3)
    kinds = [(kind, held) for kind in KINDS for held in out if not (held and kind == "places")]
    expected = [
        EvalPrompt(prompt, scene, f"{kind}, {'held-out' if held else 'seen'}")
        for kind, held in kinds
        for prompt, scene in prompts(kind, 5, held, 3)
    ]
    assert loaded == expected
    assert all(each.scene == parse(each.prompt) for each in loaded)
    assert [bool(held_out(each.scene)) for each in loaded] == [each.row.endswith("held-out") for each in loaded]
    assert loaded == load_prompts(name, 5, seed=3) != load_prompts(name, 5, seed=4)


def test_a_file_of_prompts(tmp_path):
    """A prompt a line, the first n; what training has seen the like of, what it has not, and what is no sentence."""
    (tmp_path / "p.txt").write_text("  a purple star \n\n" + STRANGE + "\r\na red star\nthree hearts\n", "utf-8")
    assert load_prompts(str(tmp_path / "p.txt"), 3) == [
        EvalPrompt("a purple star", Scene((Group("star", "purple"),)), "held-out"),
        EvalPrompt(STRANGE, None, "not judged"),
        EvalPrompt("a red star", Scene((Group("star", "red"),)), "seen"),
    ]
    assert [each.row for each in load_prompts(str(tmp_path / "p.txt"), 99)[3:]] == ["held-out"]


def test_sets_that_are_not_there(tmp_path):
    """A name that is neither a set nor a file, a folder, files with nothing or no text in them, no prompts at all."""
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    for name, message in [
        ("heldout", "unknown prompt set 'heldout'; did you mean 'held-out'.*or a file with a prompt on each line"),
        (str(tmp_path), "unknown prompt set"),
        (str(tmp_path / "empty.txt"), "empty.txt holds no prompt"),
        (str(tmp_path / "bytes.txt"), "bytes.txt is not UTF-8 text"),
    ]:
        with pytest.raises(LimnerError, match=message):
            load_prompts(name, 5)
    for n in (0, -1):
        with pytest.raises(LimnerError, match=f"--n must be at least 1, not {n}"):
            load_prompts("all", n)


# --- the command line ---


def test_evaluate_grade_prints_and_writes_the_report(tmp_path, monkeypatch, capsys):
    """The model is loaded by name, painted with the settings given; the table, each verdict, JSON and the sheet."""
    painter, loaded = Painter({"a red square": "a large red circle on white"}), []
    monkeypatch.setattr(
        "limner.pipeline.Pipeline.from_pretrained", lambda name, **kwargs: loaded.append((name, kwargs)) or painter
    )
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "p.txt").write_text(f"a large purple star\n{STRANGE}\na red square\nnever asked\n")
    out = tmp_path / "out"
    main(["evaluate", "grade", "-m", "mine", "--prompts", str(tmp_path / "p.txt"), "--n", "3", "--steps", "7",
          "--seed", "4", "-o", str(out)])  # fmt: skip
    assert loaded == [("mine", {"device": "auto"})]
    ((painted, seed, settings),) = painter.calls
    assert painted == ["a large purple star", STRANGE, "a red square"] and seed == 4 and settings["steps"] == 7
    printed = capsys.readouterr().out
    assert "a large purple star: obeyed" in printed and f"{STRANGE}: cannot be judged" in printed
    assert "a red square: wanted a red square, found a red circle" in printed and "never" not in printed
    assert "painter: 3 prompts" in printed and "100.0% (20.7-100.0)" in printed and "0.0% (0.0-79.3)" in printed
    report = json.loads((out / "grade.json").read_text())
    assert [each["obeyed"] for each in report["prompts"]] == [True, None, False]
    assert report["settings"]["steps"] == 7 and report["settings"]["seed"] == 4 and "shift" not in report["settings"]
    with Image.open(out / "sheet.png") as page:
        left, top = cells(page, 3, 2)[2]
        shown = np.asarray(page.convert("RGB").crop((left, top, left + 128, top + 128)))
    assert np.array_equal(shown[::2, ::2], np.asarray(painter.paint("a red square", 6)))


def test_data_world_writes_a_folder(tmp_path, capsys):
    """Five pictures of that size and seed, with their captions."""
    out = tmp_path / "world"
    main(["data", "world", "--count", "5", "--out", str(out), "--size", "48", "--seed", "2"])
    assert capsys.readouterr().out == f"{out}: 5 pictures, metadata.jsonl\n"
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert sorted(f.name for f in out.iterdir()) == [*(row["file_name"] for row in rows), "metadata.jsonl"]
    pictures = [np.asarray(Image.open(out / row["file_name"])) for row in rows]
    assert np.array_equal(pictures, pictures_at(2, range(5), 48))
    assert [row["text"] for row in rows] == World(5, seed=2).all_captions()
    main(["data", "--help"])
    assert "limner data world --count N --out DIR" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evaluate", "grad"], "usage: limner evaluate grade"),
        (["evaluate", "grade", "--n", "0"], "--n must be at least 1, not 0"),
        (["evaluate", "grade", "--prompts", "heldout"], "unknown prompt set 'heldout'; did you mean 'held-out'?"),
        (
            ["evaluate", "grade", "--prompts", "OUT/p.txt"],
            "p.txt'. Known: all, held-out, seen; or a file with a prompt",
        ),
        (["evaluate", "grade", "--prompts", "OUT/bytes.txt"], "bytes.txt is not UTF-8 text"),
        (["evaluate", "grade", "--model", "nowhere"], "no model at nowhere"),
        (["data", "wrold", "--out", "OUT/new"], "unknown data set to write 'wrold'; did you mean 'world'?"),
        (["data", "world", "--out", "OUT/new", "--count", "0"], "a world needs at least one picture"),
        (["data", "world", "--out", "OUT/new", "--seed", "-1"], "a seed from 0, not 10000 and -1"),
        (["data", "world", "--out", "OUT/new", "--size", "15"], "--size must be at least 16 pixels, not 15"),
        (["data", "world", "--out", "OUT"], "is not empty; choose another --out"),
        (["data", "world", "--out", "OUT/bytes.txt", "--count", "1"], "bytes.txt"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tmp_path: Path, arguments, message):
    """No traceback, nothing printed as if it had gone well, nothing left behind."""
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(SystemExit) as stopped:
        main([argument.replace("OUT", str(tmp_path)) for argument in arguments])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and printed.out == ""
    assert printed.err.startswith("limner: ") and printed.err.count("\n") == 1 and message in printed.err
    assert [file.name for file in tmp_path.iterdir()] == ["bytes.txt"]


def test_options_that_do_not_exist_end_with_status_2(capsys):
    """An option misspelt is answered with the nearest one, a missing --out is named."""
    for arguments, message in [
        (["evaluate", "grade", "--promts", "all"], "--prompts"),
        (["data", "world", "--cuont", "5", "--out", "x"], "--count"),
        (["data", "world"], "--out"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        printed = capsys.readouterr()
        assert stopped.value.code == 2 and message in printed.err and "Traceback" not in printed.err
