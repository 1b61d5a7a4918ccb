"""Sheets by two settings, pictures along the forward process, and the sampling trajectory."""

import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from sd import save_with_diffusers

from limner.cli import main
from limner.errors import LimnerError
from limner.look.axes import AXES, Axis, make_cells, read_axis
from limner.look.forward import TIMES, noised
from limner.look.trajectory import Trajectory, shown_steps
from limner.noise.draws import KeyedNoise
from limner.picture import labelled_sheet, to_pictures
from limner.pipeline import Pipeline
from limner.settings import CHECKS, Settings

STAR = "a red star"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Path]:
    """A tiny Stable Diffusion, and a tiny model of limner's in pixels."""
    root = tmp_path_factory.mktemp("models")
    save_with_diffusers(root / "sd")
    tiny_pipeline([STAR, "a cat"], 2).save(root / "pixels")
    return {"sd": root / "sd", "pixels": root / "pixels", "shipped": Path("shipped")}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What is opened and painted."""
    seen: dict[str, list[Any]] = {"opened": [], "painted": []}
    opener, painter = Pipeline.from_pretrained, Pipeline.__call__

    def opens(source: Any = None, *options: Any) -> Pipeline:
        seen["opened"].append(source)
        return opener(source, *options)

    def paints(self: Pipeline, prompt: str = "", **options: Any) -> list[Image.Image]:
        seen["painted"].append({"prompt": prompt} | options)
        return painter(self, prompt, **options)

    monkeypatch.setattr(Pipeline, "from_pretrained", opens)
    monkeypatch.setattr(Pipeline, "__call__", paints)
    return seen


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == status
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return printed.err


def pixels(file: Path) -> bytes:
    with Image.open(file) as picture:
        return picture.tobytes()


@pytest.mark.parametrize("name", ["shipped", "sd"])
def test_each_cell_is_the_picture_of_its_settings(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    out = tmp_path / "sheet.png"
    main(["sheet", STAR, "--rows", "guidance-scale=1,2.5", "--columns", "steps=2,3", "--sampler", "dpmpp_2m",
          "--seed", "7", "-m", str(folders[name]), "--dtype", "float32", "-o", str(out)])  # fmt: skip
    pipe = Pipeline.from_pretrained(folders[name] if name != "shipped" else None)
    pictures = [
        pipe(STAR, seed=7, sampler="dpmpp_2m", steps=steps, guidance_scale=scale)[0]
        for scale, steps in product((1, 2.5), (2, 3))
    ]
    page = labelled_sheet(pictures, ["guidance_scale = 1", "guidance_scale = 2.5"], ["steps = 2", "steps = 3"])
    assert pixels(out) == page.tobytes()
    kept = sorted(pixels(file) for file in (tmp_path / "sheet.cells").iterdir())
    assert kept == sorted(picture.tobytes() for picture in pictures)
    with Image.open(out) as sheet:
        records = sheet.info["parameters"].split("\n\n")
    assert records == [picture.info["parameters"] for picture in pictures]


def test_a_resumed_sheet_repaints_nothing(tmp_path: Path, counted: dict[str, list[Any]]) -> None:
    command = ["sheet", STAR, "--rows", "seed=0,1", "--columns", "steps=1,2", "-o", str(tmp_path / "s.png")]
    main(command)
    first = (tmp_path / "s.png").read_bytes()
    assert len(counted["painted"]) == 4 and counted["opened"] == [None]
    main(command)
    assert len(counted["painted"]) == 4 and len(counted["opened"]) == 1
    assert (tmp_path / "s.png").read_bytes() == first
    gone, torn, *_ = sorted((tmp_path / "s.cells").iterdir())
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:200])
    main(command)
    assert len(counted["painted"]) == 6 and (tmp_path / "s.png").read_bytes() == first
    main([*command[:3], "seed=0,1,2", *command[4:]])  # a row more
    assert [(each["seed"], each["steps"]) for each in counted["painted"][6:]] == [(2, 1), (2, 2)]
    main([*command, "--guidance-scale", "1"])
    assert len(counted["painted"]) == 12
    main([*command[:5], "steps=2,2", *command[6:]])
    assert len(counted["painted"]) == 12


def test_models_are_opened_one_after_the_other_and_a_changed_one_is_painted_again(
    folders: dict[str, Path], tmp_path: Path, counted: dict[str, list[Any]]
) -> None:
    one, two = (str(shutil.copytree(folders[name], tmp_path / name)) for name in ("sd", "pixels"))
    command = ["sheet", "--rows", f'prompt={STAR}, "a, cat"', "--columns", f"model={one},{two}",
               "--steps", "1", "--dtype", "float32", "-o", str(tmp_path / "s.png")]  # fmt: skip
    main(command)
    assert counted["opened"] == [one, two]
    assert [each["prompt"] for each in counted["painted"]] == [STAR, "a, cat"] * 2
    assert {each["seed"] for each in counted["painted"]} == {0}  # the same noise in each cell
    weights = next(Path(two).rglob("denoiser/*.safetensors"))
    os.utime(weights, (1, 1))
    main(command)
    assert counted["opened"][2:] == [two] and len(counted["painted"]) == 6


def test_what_is_changed_in_an_image_is_painted_again(tmp_path: Path, counted: dict[str, list[Any]]) -> None:
    image = tmp_path / "start.png"
    command = ["sheet", STAR, "--image", str(image), "--columns", "strength=0.5,1", "--steps", "2",
               "-o", str(tmp_path / "s.png")]  # fmt: skip
    for shade in (0, 90):
        Image.new("RGB", (64, 64), (shade, 0, 0)).save(image)
        main(command)
    assert [each["strength"] for each in counted["painted"]] == [0.5, 1, 0.5, 1]


def test_every_option_reaches_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, painted = [], []
    opener = Pipeline.from_pretrained
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *options: opened.append(options) or opener())

    def paints(self: Pipeline, **options: Any) -> list[Image.Image]:
        painted.append(options)
        picture = Image.new("RGB", (64, 64))
        picture.info["parameters"] = "Steps: 1"
        return [picture]

    monkeypatch.setattr(Pipeline, "__call__", paints)
    command = ["sheet", STAR, "--rows", "seed=3,4", "--negative-prompt", "ugly", "--image", "a.png", "--mask", "b.png",
               "--shift", "3", "--eta", "0.5", "--sampler", "ddim", "--truncate", "--no-paste", "--device", "cpu",
               "-o", str(tmp_path / "s.png")]  # fmt: skip
    main([*command, "--dtype", "bfloat16", "--allow-pickle", "--offload", "--without", "t5, clip_g"])
    assert opened == [(None, "cpu", "bfloat16", True, ["t5", "clip_g"], True)]
    settings = vars(Settings(shift=3, eta=0.5, sampler="ddim", truncate=True, paste=False))
    request = {"prompt": STAR, "negative_prompt": "ugly", "image": "a.png", "mask": "b.png"}
    assert painted == [settings | request | {"seed": seed} for seed in (3, 4)]
    main(command)  # in another dtype and with all encoders: painted again
    assert len(painted) == 4


def test_the_dtype_that_was_chosen_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("limner.model.Model.precision", "bfloat16")
    command = ["sheet", STAR, "--rows", "steps=1", "-o", str(tmp_path / "s.png")]
    main(command)
    assert "limner: limner in bfloat16, --dtype auto; float32 is exact" in capsys.readouterr().err
    main([*command, "--dtype", "float32"])
    assert "exact" not in capsys.readouterr().err


def test_a_stopped_sheet_keeps_what_was_painted(
    tmp_path: Path, counted: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    painter = Pipeline.__call__

    def stops(self: Pipeline, prompt: str, **options: Any) -> list[Image.Image]:
        if options["steps"] == 2:
            raise KeyboardInterrupt
        return painter(self, prompt, **options)

    command = ["sheet", STAR, "a cat", "--columns", "steps=1,2", "-o", str(tmp_path / "s.png")]
    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "__call__", stops)
        said = refused(capsys, *command, status=130)
    assert f"what is painted is in {tmp_path / 's.cells'}, and the same command goes on" in said
    assert len(list((tmp_path / "s.cells").iterdir())) == 1 and not (tmp_path / "s.png").exists()
    main(command)
    assert [(each["prompt"], each["steps"]) for each in counted["painted"]] == [
        (STAR, 1), (STAR, 2), ("a cat", 1), ("a cat", 2),
    ]  # fmt: skip
    assert "4 pictures, 3 painted now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "name", "values", "labels"),
    [
        ("steps=4, 8", "steps", (4, 8), ["steps = 4", "steps = 8"]),
        ("guidance-scale=1,7.5", "guidance_scale", (1.0, 7.5), ["guidance_scale = 1", "guidance_scale = 7.5"]),
        ("sampler=ddim,euler_a", "sampler", ("ddim", "euler_a"), ["sampler = ddim", "sampler = euler_a"]),
        ('prompt="a, b",c', "prompt", ("a, b", "c"), ["a, b", "c"]),
        ("negative_prompt=,ugly", "negative_prompt", ("", "ugly"), ["negative_prompt = ", "negative_prompt = ugly"]),
        ("truncate=true,false", "truncate", (True, False), ["truncate = true", "truncate = false"]),
        ("guidance_interval=0.5:2", "guidance_interval", ((0.5, 2.0),), ["guidance_interval = 0.5:2"]),
        ('extend="left=16,top=16"', "extend", ("left=16,top=16",), ["extend = left=16,top=16"]),
    ],
)
def test_an_axis_is_read(text: str, name: str, values: tuple[Any, ...], labels: list[str]) -> None:
    axis = read_axis(text)
    assert axis == Axis(name, values) and axis.labels == labels
    assert [type(value) for value in axis.values] == [type(value) for value in values]


def test_every_setting_is_an_axis_whose_values_reach_the_cells() -> None:
    assert Settings.__dataclass_fields__.keys() == CHECKS.keys() and AXES.keys() > CHECKS.keys()
    cells = make_cells(
        {"prompt": "a", "seed": 0, "eta": 0.5}, Axis("sampler", ("ddim", "euler_a")), Axis("eta", (0.0, 1.0))
    )
    assert [(cell["sampler"], cell["eta"]) for cell in cells] == [
        ("ddim", 0.0), ("ddim", 1.0), ("euler_a", 0.0), ("euler_a", 1.0),
    ]  # fmt: skip
    assert all(cell["prompt"] == "a" for cell in cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "guidance=1,2"], "unknown axis 'guidance'; did you mean 'guidance_scale'?"),
        (["--rows", "steps"], "the axis steps has no values; write them as steps=FIRST,SECOND"),
        (["--rows", "steps=4,many"], "steps must be a whole number, not 'many'"),
        (["--rows", "steps=4,,8"], "steps must be a whole number, not ''"),
        (["--rows", "steps=2.5"], "steps must be a whole number, not '2.5'"),
        (["--columns", "eta=0.5,high"], "eta must be a number, not 'high'"),
        (["--columns", "eta=2"], "eta must be from 0 to 1, not 2"),
        (["--columns", "truncate=yes"], "truncate must be True or False, not 'yes'"),
        (["--columns", "guidance_interval=2"], "guidance_interval must be two numbers"),
        (["--columns", "sampler=ddim,eulr"], "unknown sampler 'eulr'; did you mean 'euler'"),
        (["--columns", "schedule=karas"], "unknown schedule 'karas'; did you mean 'karras'"),
        (["--columns", "seed=0,-1"], "seed -1 must be a whole number from 0 to 2^64 - 1"),
        (["--columns", "negative_prompt=a\nb"], "the values of negative_prompt cannot be read"),
        (["--columns", "steps=\n"], "steps must be a whole number, not ''"),
        (["--columns", "model=shipped,nowhere"], "no model at nowhere"),
        (["--rows", "steps=1", "--columns", "steps=2"], "rows and columns are both steps; give two settings"),
        ([], "nothing to compare"),
        (["--rows", "prompt=a,b"], "the prompt is an axis, too"),
        (["a cat", "--rows", "steps=1", "--columns", "seed=2"], "2 prompts beside steps and seed"),
        (["--rows", "model=shipped", "-m", "shipped"], "--model is an axis, too"),
        (["--times", "3"], "--times are of a picture along the forward process"),
        (["--noise", "x.png"], "--noise shows a picture without painting"),
        (["--rows", "seed=0", "-o", "x.txt"], "cannot tell the kind of picture from 'x.txt'"),
        (["--rows", "seed=0", "-o", "out/"], "--output out/ is a folder; a sheet is one file"),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("limner.model.Model.open", None)  # all is refused before a model is opened
    assert message in refused(capsys, "sheet", STAR, *arguments)


def test_a_cell_that_the_model_cannot_paint_is_refused_before_the_first_is_painted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, counted: dict[str, list[Any]]
) -> None:
    command = ["sheet", STAR, "--rows", "sampler=ddim,euler", "--columns", "eta=0,0.5", "-o", str(tmp_path / "s.png")]
    assert "the sampler euler draws no noise" in refused(capsys, *command)
    assert counted["painted"] == []


def test_labels_stand_beside_the_pictures_not_on_them() -> None:
    shades = [
        Image.new("RGB", size, (200, 40 * i, 0)) for i, size in enumerate([(64, 64), (64, 64), (32, 32), (64, 64)])
    ]
    labelled, silent = (labelled_sheet(shades, [text] * 2, [text] * 2) for text in ("label", "....."))
    assert labelled.size == silent.size
    changed = np.argwhere((np.asarray(labelled) != np.asarray(silent)).any(axis=2))
    coloured = np.argwhere((np.asarray(silent)[..., [0, 2]] == (200, 0)).all(axis=2))
    assert len(changed) and not {*map(tuple, changed)} & {*map(tuple, coloured)}
    top, left = coloured.min(axis=0)
    below, right = coloured.max(axis=0)
    assert (below - top + 1, right - left + 1) == (2 * 128 + 4, 2 * 128 + 4)  # twice as large
    for k, (y, x) in enumerate([(0, 0), (0, 132), (132 + 32, 32), (132, 132)]):  # the small one is centred
        side = 64 if k == 2 else 128
        assert silent.crop((left + x, top + y, left + x + side, top + y + side)).getcolors() == [
            (side * side, (200, 40 * k, 0))
        ]


@pytest.mark.parametrize("name", ["shipped", "sd", "pixels"])
def test_a_picture_along_the_forward_process(folders: dict[str, Path], name: str) -> None:
    pipe = Pipeline.from_pretrained(None if name == "shipped" else folders[name])
    size = pipe.model.size
    channels = pipe.model.channels
    values = np.random.default_rng(0).integers(0, 256, (size, size, channels), np.uint8)
    image = Image.fromarray(values[..., 0] if channels == 1 else values)
    x0 = pipe.model.encode(torch.from_numpy(values).permute(2, 0, 1)[None] / 127.5 - 1)
    eps = KeyedNoise([3], tuple(x0.shape[1:])).start()
    times = [0, 250, 900]
    steps = noised(pipe, image, times, 3, Settings())
    path = pipe.resolve(Settings())[0].path
    for t, each in zip(times, steps, strict=True):
        level = path.level(t)
        assert each.level == level
        [by_hand] = to_pictures(pipe.model.decode(level.alpha * x0 + level.sigma * eps))
        assert each.picture.tobytes() == by_hand.tobytes()
        assert each.label == f"t = {t}\nalpha = {level.alpha:.3g}\nsigma = {level.sigma:.3g}"
    assert name != "pixels" or steps[0].picture.tobytes() == image.tobytes()
    default = [each.level.t for each in noised(pipe, image, [], 0, Settings())]
    assert len(default) == TIMES and default[0] == 0 and default[-1] == (999 if name == "sd" else 1000)


def test_the_command_of_the_forward_process(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "n.png"
    Image.linear_gradient("L").resize((60, 90)).save(photo)
    command = ["sheet", "--noise", str(photo), "-m", str(folders["sd"]), "--dtype", "float32", "-o", str(out)]
    main([*command, "--times", "100", "600", "--seed", "4", "--width", "32", "--height", "48"])
    steps = noised(Pipeline.from_pretrained(folders["sd"]), photo, [100, 600], 4, Settings(width=32, height=48))
    assert steps[0].picture.size == (32, 48)
    page = labelled_sheet([each.picture for each in steps], [""], [each.label for each in steps])
    assert pixels(out) == page.tobytes()
    assert "time 1000.0 is outside the path's table 0..999" in refused(capsys, *command, "--times", "1000")
    assert "there is no such file" in refused(capsys, "sheet", "--noise", "gone.png", "-o", str(out))


@pytest.mark.parametrize("name", ["shipped", "sd"])
def test_the_trajectory_is_written_beside_the_picture(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    pipe = Pipeline.from_pretrained(None if name == "shipped" else folders[name])
    states = list(pipe.paint([STAR, "a cat"], steps=3, seed=5).steps)
    x, x0 = ([to_pictures(pipe.model.decode(getattr(each, side))) for each in states] for side in ("x", "x0"))
    command = ["generate", STAR, "a cat", "--steps", "3", "--seed", "5", "-m", str(folders[name]), "--dtype", "float32"]
    main([*command, "-o", str(tmp_path / "plain.png")])
    main([*command, "-o", str(tmp_path / "out.png"), "--path", "sheet"])
    assert pixels(tmp_path / "plain.png") == pixels(tmp_path / "out.png")
    pictures = [side[i][k] for k in range(2) for side in (x, x0) for i in range(3)]
    labels = [f"{STAR}\nx", "x0", "a cat\nx", "x0"]
    page = labelled_sheet(pictures, labels, [f"step {i} of 3" for i in (1, 2, 3)])
    assert pixels(tmp_path / "out.path.png") == page.tobytes()
    main([*command, "-o", str(tmp_path / "out.webp"), "--path", "apng"])
    with Image.open(tmp_path / "out.apng") as animation:
        assert animation.n_frames == 3 and animation.info["loop"] == 0
        for i in range(3):
            animation.seek(i)
            assert animation.info["duration"] == (2000 if i == 2 else 100)
            pair = [x[i][0], x0[i][0], x[i][1], x0[i][1]]
            page = labelled_sheet(pair, [f"step {i + 1} of 3\n{text}" for text in (STAR, "a cat")], ["x", "x0"])
            assert animation.convert("RGB").tobytes() == page.tobytes()
            large = x0[i][0].convert("RGB").resize((128, 128), Image.Resampling.NEAREST)
            right, top = page.width - 4, page.height - 2 * 132
            assert page.crop((right - 128, top, right, top + 128)).tobytes() == large.tobytes()


def test_the_trajectory_of_a_folder_and_of_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", STAR, "--steps", "1", "-o", f"{tmp_path}/many/", "--path", "sheet"])
    main(["generate", STAR, "--steps", "1", "-o", f"{tmp_path}/many/", "--path", "apng"])
    assert sorted(file.name for file in (tmp_path / "many").iterdir()) == [
        "00000.path.png", "00000.png", "00001.apng", "00001.png",
    ]  # fmt: skip
    assert f"{tmp_path}/many/00001.png, {tmp_path}/many/00001.apng" in capsys.readouterr().out


def test_the_steps_that_are_shown_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert shown_steps(0, 8) == {0} and shown_steps(1, 8) == {1} and shown_steps(3, 8) == {1, 2, 3}
    assert shown_steps(20, 8) == {1, 4, 6, 9, 12, 15, 17, 20}
    assert len(shown_steps(1000, 50)) == 50 and max(shown_steps(1000, 50)) == 1000


def test_only_the_shown_steps_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.from_pretrained()
    trajectory, decoded = Trajectory(pipe.model, "sheet"), []
    decode = pipe.model.decode
    monkeypatch.setattr(pipe.model, "decode", lambda x: decoded.append(x) or decode(x))
    for state in pipe.paint(STAR, steps=20, guidance_scale=1.0).steps:
        trajectory.add(state)
    assert len({page.size for page in trajectory.animation()}) == 1
    assert trajectory.frames[0].label == "step 01 of 20"
    assert len(decoded) == 2 * 8 and [frame.step for frame in trajectory.frames] == sorted(shown_steps(20, 8))


def test_an_unknown_kind_of_axis_value_is_an_error_in_python_too() -> None:
    with pytest.raises(LimnerError, match="unknown axis 'sede'; did you mean 'seed'"):
        read_axis("sede=1")
