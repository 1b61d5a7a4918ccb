"""The record in a PNG: every setting that changes the picture, and from it the same bytes again."""

import json
import re
import subprocess
import sys
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from helpers import tiny_pipeline
from hypothesis import given
from PIL import Image

from limner import __version__
from limner.canvas import parse_extend
from limner.cli import main
from limner.errors import LimnerError, LimnerWarning
from limner.model import Model
from limner.nets.dit import DiT, DiTConfig
from limner.pipeline import Pipeline
from limner.record import parameters_text, settings_entries
from limner.schedulers import read_schedule
from limner.settings import Settings
from limner.text.conditioner import Nothing

pytestmark = pytest.mark.usefixtures("one_thread")

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
# AUTOMATIC1111's own expressions (modules/infotext_utils.py).
ENTRY = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
LONG = "a red star " * 5
# Settings by the entries of the record that are not those of a picture painted without them.
CASES: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    ({"seed": 2**40}, {"Seed": str(2**40)}),
    ({"steps": 4}, {"Steps": "4"}),
    ({"guidance_scale": 2.3456789}, {"CFG scale": "2.3456789"}),
    ({"guidance_scale": 2.34568}, {"CFG scale": "2.34568"}),
    ({"guidance_rescale": 0.7}, {"CFG rescale": "0.7"}),
    ({"guidance_rescale": 0.1 + 0.2}, {"CFG rescale": "0.30000000000000004"}),
    ({"guidance_interval": (0.3, 2.0)}, {"CFG interval": "0.3-2"}),
    ({"guidance_interval": (1e-05, 1.23456789)}, {"CFG interval": "1e-05-1.23456789"}),
    ({"negative_prompt": "blue: 2, 3"}, {"Negative prompt": "blue: 2, 3"}),
    ({"sampler": "heun"}, {"Sampler": "heun"}),
    ({"sampler": "Euler a"}, {"Sampler": "euler_a"}),
    ({"schedule": "karras"}, {"Schedule type": "karras"}),
    ({"sampler": "ddim"}, {"Sampler": "ddim"}),
    ({"sampler": "ddim", "eta": 0.35}, {"Sampler": "ddim", "Eta": "0.35"}),
    ({"sampler": "euler_a", "eta": 0.0}, {"Sampler": "euler_a", "Eta": "0"}),
    ({"shift": 3.0}, {"Shift": "3"}),
    ({"width": 12, "height": 6}, {"Size": "12x6"}),
    ({"width": 6, "height": 12}, {"Size": "6x12"}),
    ({"rng": "torch"}, {"RNG": "torch"}),
    ({"prompt": LONG, "truncate": True}, {"Prompt": LONG, "Truncate": "True"}),
]
# The same with a picture to start from, whose hash is recorded.
FILES: dict[str, Any] = {
    "image": Image.linear_gradient("L").resize((8, 8)),
    "mask": Image.linear_gradient("L").rotate(90).resize((8, 8)),
}
PICTURE_CASES: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"variation_seed": 9, "variation_strength": 0.3}, {"Variation seed": "9", "Variation seed strength": "0.3"}),
    ({"image": True, "steps": 5}, {"Denoising strength": "0.8", "Steps": "5"}),
    ({"image": True, "strength": 0.4}, {"Denoising strength": "0.4"}),
    ({"image": True, "mask": True}, {"Denoising strength": "1"}),
    ({"image": True, "mask": True, "feather": 2}, {"Denoising strength": "1", "Feather": "2"}),
    ({"image": True, "mask": True, "paste": False}, {"Denoising strength": "1", "Paste": "off"}),
    ({"image": True, "extend": "left=4"}, {"Denoising strength": "1", "Extend": "left=4", "Feather": "1"}),
    (
        {"image": True, "extend": "top=2,left=4", "feather": 0, "width": 12},
        {"Denoising strength": "1", "Extend": "top=2,left=4", "Feather": "0"},
    ),
]
# Settings that change nothing here: on a flow, DDIM's steps and Euler's without fresh noise are Euler's.
UNSEEN = [{}, {"sampler": "ddim"}, {"sampler": "euler_a", "eta": 0.0}]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return tiny_pipeline(["a red star", "a blue circle"], steps=3)


def read(record: str) -> dict[str, str]:
    """A record's entries, its prompts among them."""
    *lines, last = record.split("\n")
    negative = next((k for k, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    entries = {name: json.loads(v) if v[:1] == '"' else v for name, v in ENTRY.findall(last)}
    entries["Prompt"] = "\n".join(lines[:negative])
    if negative < len(lines):
        entries["Negative prompt"] = "\n".join(lines[negative:]).removeprefix("Negative prompt: ")
    return entries


def settings_of(entries: dict[str, str]) -> dict[str, Any]:
    """What to ask a pipeline for, from a record alone."""
    names = {
        "Prompt": ("prompt", str), "Negative prompt": ("negative_prompt", str), "Steps": ("steps", int),
        "Sampler": ("sampler", str), "Schedule type": ("schedule", str), "CFG scale": ("guidance_scale", float),
        "Seed": ("seed", int), "Eta": ("eta", float), "Shift": ("shift", float), "RNG": ("rng", str),
        "CFG rescale": ("guidance_rescale", float), "Truncate": ("truncate", bool), "Batch size": ("num_images", int),
        "Denoising strength": ("strength", float), "Feather": ("feather", int), "Extend": ("extend", str),
        "Paste": ("paste", lambda word: word != "off"), "Variation seed": ("variation_seed", int),
        "Variation seed strength": ("variation_strength", float),
    }  # fmt: skip
    settings = {names[name][0]: names[name][1](value) for name, value in entries.items() if name in names}
    left, top, right, bottom = parse_extend(entries.get("Extend"))
    width, height = map(int, entries["Size"].split("x"))
    settings["width"], settings["height"] = width - left - right, height - top - bottom
    if "CFG interval" in entries:
        match = re.fullmatch(r"(.*?[^e])-(.+)", entries["CFG interval"])
        assert match is not None
        settings["guidance_interval"] = (float(match[1]), float(match[2]))
    unasked = {"Model", "Version", "Precision", "Batch pos", "Init image hash", "Mask hash"}
    assert set(entries) <= {*names, *unasked, "Size", "CFG interval"}
    return settings


def repaint(pipe: Pipeline, record: str) -> Image.Image:
    """The picture of a record."""
    entries = read(record)
    return pipe(**settings_of(entries))[int(entries.get("Batch pos", 0))]


def paint(pipe: Pipeline, settings: dict[str, Any]) -> Image.Image:
    return pipe(**{"prompt": "a red star", "seed": 7} | settings)[0]


@pytest.mark.parametrize(("settings", "entries"), CASES, ids=[str(case[0]) for case in CASES])
def test_a_setting_is_recorded_and_paints_the_same_bytes(
    pipe: Pipeline, settings: dict[str, Any], entries: dict[str, str]
) -> None:
    picture, plain = paint(pipe, settings), paint(pipe, {})
    usual = {
        "Prompt": "a red star", "Steps": "3", "Sampler": "euler", "CFG scale": "2", "Seed": "7", "Size": "8x8",
        "Model": "model", "Version": f"limner {__version__}",
    }  # fmt: skip
    assert read(picture.info["parameters"]) == usual | entries
    again = repaint(pipe, picture.info["parameters"])
    assert again.size == picture.size and again.tobytes() == picture.tobytes()
    assert again.info == picture.info
    if settings not in UNSEEN:
        assert picture.size != plain.size or picture.tobytes() != plain.tobytes()


def with_files(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {name: FILES[name] for name in settings.keys() & FILES.keys()}


@pytest.mark.filterwarnings("ignore:the picture of 8x8 is resized")
@pytest.mark.parametrize(("settings", "entries"), PICTURE_CASES, ids=[str(case[0]) for case in PICTURE_CASES])
def test_a_record_and_its_pictures_paint_the_same_bytes(
    pipe: Pipeline, settings: dict[str, Any], entries: dict[str, str]
) -> None:
    picture = paint(pipe, with_files(settings))
    recorded = read(picture.info["parameters"])
    assert entries.items() <= recorded.items()
    assert ("Init image hash" in recorded, "Mask hash" in recorded) == ("image" in settings, "mask" in settings)
    files = {name: FILES[name] for name in settings.keys() & FILES.keys()}
    again = pipe(**settings_of(recorded), **files)[0]
    assert again.tobytes() == picture.tobytes() and again.info == picture.info
    assert picture.tobytes() != paint(pipe, {}).tobytes()


@pytest.mark.filterwarnings("ignore:the picture of 8x8 is resized")
def test_every_setting_is_among_them(pipe: Pipeline) -> None:
    """And no two of these requests leave the same record."""
    cases = [settings for settings, _ in [*CASES, *PICTURE_CASES]]
    assert set(Settings.__dataclass_fields__) <= {name for settings in cases for name in settings}
    records = [pipe.paint(**{"prompt": "a red star", "seed": 7} | with_files(each)).records[0] for each in cases]
    assert [pair for pair in combinations(records, 2) if pair[0] == pair[1]] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_precision_is_recorded(pipe: Pipeline, tmp_path: Path, dtype: str) -> None:
    pipe.save(tmp_path / "model")
    whole, half = (Pipeline.from_pretrained(tmp_path / "model", dtype=kind) for kind in ("float32", dtype))
    picture, exact = paint(half, {}), paint(whole, {})
    entries = read(picture.info["parameters"])
    assert entries == read(exact.info["parameters"]) | {"Precision": dtype}
    again = repaint(
        Pipeline.from_pretrained(tmp_path / "model", dtype=entries["Precision"]), picture.info["parameters"]
    )
    assert again.tobytes() == picture.tobytes() != exact.tobytes()


def test_a_batch_of_torch_s_generator_is_told_apart(pipe: Pipeline) -> None:
    """One generator draws for the batch: the seed is the batch's, and the place in it finds the picture."""
    pictures = pipe("a red star", seed=9, num_images=2, rng="torch")
    records = [read(picture.info["parameters"]) for picture in pictures]
    shared = read(pipe("a red star", seed=9, rng="torch")[0].info["parameters"]) | {"Batch size": "2"}
    assert shared["Seed"] == "9" and records == [shared | {"Batch pos": str(k)} for k in range(2)]
    for picture in pictures:
        assert repaint(pipe, picture.info["parameters"]).tobytes() == picture.tobytes()
    assert pictures[0].tobytes() != pictures[1].tobytes()
    keyed = [read(p.info["parameters"]) for p in pipe("a red star", seed=9, num_images=2)]
    assert [entries["Seed"] for entries in keyed] == ["9", "10"] and not any("Batch pos" in e for e in keyed)
    with pytest.raises(LimnerError, match="rng torch has one generator for the whole batch: give one seed"):
        pipe("a red star", seed=[1, 2], num_images=2, rng="torch")


@given(st.floats(allow_nan=False), st.floats(0, 1), st.floats(1, 1e6))
def test_floats_survive_exactly(scale: float, low: float, more: float) -> None:
    wanted = Settings(guidance_interval=(low, low + more), eta=low, guidance_rescale=low, shift=more)
    entries = settings_entries(wanted, read_schedule(FLOW, 2), scale, (8, 8), "m", "float32") | {"Seed": 1}
    settings = settings_of(read(parameters_text("", "", entries)))
    assert settings["guidance_scale"] == scale and settings["guidance_interval"] == (low, low + more)
    assert settings["shift"] == more and settings["eta"] == settings.get("guidance_rescale", 0.0) == low


@pytest.mark.parametrize("name", ["v2, Seed: 7", "two\nlines", 'said "so"', '"quoted"', "a\\b, c", "猫: 犬", "plain"])
def test_names_of_models_are_quoted(pipe: Pipeline, tmp_path: Path, name: str) -> None:
    pipe.save(tmp_path / name)
    record = paint(Pipeline.from_pretrained(tmp_path / name), {"seed": 3}).info["parameters"]
    assert record.count("\n") == 1 and read(record)["Model"] == name and read(record)["Seed"] == "3"
    assert (f"Model: {name}, " in record) == (name == "plain")


def test_a_model_here_has_the_folder_s_name(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.save(tmp_path / "mine")
    (tmp_path / "mine/inner").mkdir()
    for place, source in [("mine", "."), ("mine/inner", ".."), ("", "mine/"), ("", "./mine")]:
        monkeypatch.chdir(tmp_path / place)
        main(["generate", "a red star", "--model", source, "-o", str(tmp_path / "out.png")])
        with Image.open(tmp_path / "out.png") as picture:
            assert read(picture.info["parameters"])["Model"] == "mine"
    assert capsys.readouterr().out.count("1 pictures in") == 4


def test_a_sheet_and_a_folder_carry_every_record(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save(tmp_path / "tiny")
    common = ["generate", "a red star", "a blue circle", "-n", "2", "--seed", "5", "--model", str(tmp_path / "tiny"),
              "--cfg-scale", "2.3456789", "--guidance-interval", "0.3", "2", "--dtype", "bfloat16"]  # fmt: skip
    main([*common, "-o", str(tmp_path / "sheet.png")])
    main([*common, "-o", f"{tmp_path}/many/"])
    records = []
    for file in sorted((tmp_path / "many").iterdir()):
        with Image.open(file) as picture:
            records.append(picture.info["parameters"])
    opened = Pipeline.from_pretrained(tmp_path / "tiny", dtype="bfloat16")
    prompts, settings = ["a red star", "a blue circle"], {"guidance_scale": 2.3456789, "guidance_interval": (0.3, 2.0)}
    assert records == opened.paint(prompts, num_images=2, seed=5, **settings).records
    assert [(read(r)["Prompt"], read(r)["Seed"]) for r in records] == [
        ("a red star", "5"), ("a red star", "6"), ("a blue circle", "7"), ("a blue circle", "8"),
    ]  # fmt: skip
    assert {(read(r)["CFG scale"], read(r)["CFG interval"], read(r)["Precision"]) for r in records} == {
        ("2.3456789", "0.3-2", "bfloat16")
    }
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.info["parameters"].split("\n\n") == records


def test_a_negative_prompt_without_effect_is_warned_of(pipe: Pipeline) -> None:
    """At guidance 1 and without a condition: once, not recorded, the same picture."""
    torch.manual_seed(0)
    network = DiT(DiTConfig(8, 1, 2, 32, 1, 2)).eval().requires_grad_(False)
    blind = Pipeline(Model(network, Nothing(), FLOW, defaults={"steps": 3, "guidance_scale": 1.0}))
    for painter, prompt, scale, reason in [(pipe, "a red star", 1.0, "guidance 1"), (blind, "", None, "without text")]:
        plain = painter(prompt, guidance_scale=scale)[0]
        with pytest.warns(LimnerWarning) as caught:
            picture = painter(prompt, guidance_scale=scale, negative_prompt="a blue circle")[0]
        assert len(caught) == 1
        assert re.fullmatch(f"the negative prompt has no effect with .*{reason}", str(caught[0].message))
        assert picture.info == plain.info and picture.tobytes() == plain.tobytes()
    assert "Negative" not in plain.info["parameters"]


def test_no_negative_prompt_is_an_empty_one(pipe: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (1.0, 3.0):
            empty, none = (pipe("a red star", guidance_scale=scale, negative_prompt=n)[0] for n in ("", None))
            assert empty.tobytes() == none.tobytes() and empty.info == none.info


def test_the_command_line_warns_in_a_line(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save(tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "-m", "limner", "generate", "a red star", "--model", "tiny", "--cfg-scale", "1", "-n", "2",
         "--negative-prompt", "a blue circle", "-o", "out.png"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "limner: the negative prompt has no effect with guidance 1\n"
    with Image.open(tmp_path / "out.png") as page:
        assert "Negative" not in page.info["parameters"]


def test_guidance_options_without_effect_are_warned_of(pipe: Pipeline) -> None:
    """At guidance 1 neither rescale nor interval acts: each is named, and neither is recorded."""
    plain = pipe("a red star", guidance_scale=1.0)[0]
    with pytest.warns(LimnerWarning) as caught:
        options = {"guidance_rescale": 0.5, "guidance_interval": (0.1, 5.0)}
        picture = pipe("a red star", guidance_scale=1.0, **options)[0]
    assert [str(each.message).split(" has")[0] for each in caught] == ["the guidance rescale", "the guidance interval"]
    assert picture.info == plain.info and picture.tobytes() == plain.tobytes()


def test_an_unconditional_model_records_guidance_one() -> None:
    network = DiT(DiTConfig(8, 1, 2, 32, 1, 2)).eval().requires_grad_(False)
    blind = Pipeline(Model(network, Nothing(), FLOW, defaults={"steps": 2, "guidance_scale": 5.0}))
    assert "CFG scale: 1," in blind()[0].info["parameters"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_rescale": 7.0}, "guidance_rescale must be from 0 to 1, not 7"),
        ({"sampler": "ddim", "eta": 10.0}, "eta must be from 0 to 1, not 10"),
        ({"sampler": "ddim", "eta": -1.0}, "eta must be from 0 to 1, not -1"),
        ({"sampler": "ddim", "eta": float("nan")}, "eta must be a number, not nan"),
        ({"guidance_scale": 1.0, "guidance_interval": (5, 1)}, "guidance between 5 and 1 is nowhere"),
    ],
)
def test_settings_out_of_range(pipe: Pipeline, options: dict, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        pipe("a red star", **options)


def test_a_prompt_that_begins_as_a_negative_one_is_not_taken_for_it() -> None:
    """Tokenizers lower its case, so that the same is painted."""
    text = parameters_text(" Negative prompt: b", "", {"Steps": 3})
    assert text == "negative prompt: b\nSteps: 3"


def test_spaces_around_a_value_are_kept_by_quotes() -> None:
    assert parameters_text("a", "", {"Model": " m "}) == 'a\nModel: " m "'
