"""The command line, in its own process where that matters: what it writes, prints and refuses."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.cli import main


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`limner ARGUMENTS` in a process of its own."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "limner", *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must exit with 2 and print one."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return printed.err


def test_generate_writes_what_it_prints(tmp_path: Path) -> None:
    done = run("generate", "a handwritten seven", "--seed", "3", "--steps", "4", "--output", "seven.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seven.png  1 pictures in ")
    with Image.open(tmp_path / "seven.png") as picture:
        assert picture.size == (64, 64)
        assert picture.info["parameters"].splitlines() == [
            "a handwritten seven",
            "Steps: 4, Sampler: euler, CFG scale: 3, Seed: 3, Size: 64x64, Model: limner, Version: limner 0.1.0",
        ]
        pixels = picture.tobytes()
    import limner

    assert limner.Pipeline.from_pretrained()("a handwritten seven", seed=3, steps=4)[0].tobytes() == pixels


def test_a_sheet_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["generate", "the digit 2", "an 8", "-n", "2", "--seed", "1", "--steps", "2", "--cfg-scale", "2"]
    main([*common, "--output", str(tmp_path / "sheet.png"), "--show"])
    shown = capsys.readouterr().out
    assert shown.count("▀") > 1000 and "4 pictures in" in shown
    main([*common, "--negative-prompt", "a one", "-o", f"{tmp_path}/many/"])
    files = sorted((tmp_path / "many").iterdir())
    assert [f.name for f in files] == ["00000.png", "00001.png", "00002.png", "00003.png"]
    records = [Image.open(f).info["parameters"] for f in files]
    assert records[2].startswith("an 8\nNegative prompt: a one\nSteps: 2, Sampler: euler, CFG scale: 2, Seed: 3,")
    assert len({Image.open(f).tobytes() for f in files}) == 4
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.info["parameters"].count("Steps: 2") == 4
        assert page.width == 2 * (64 * 1 + 4) + 4


def test_a_bad_file_name_is_refused_before_a_model_is_opened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.pipeline.Pipeline.from_pretrained", None)
    assert "cannot tell the kind of picture from 'x.txt'" in refused(capsys, "generate", "a", "--output", "x.txt")


def test_the_settings_in_a_png_repaint_it(tmp_path: Path) -> None:
    """Each picture of a folder says its prompt, seed and settings, from which it is painted again, alone.

    A picture of a batch is that picture to 1e-5, so a value here and there may round to the next of 255.
    """
    main(["generate", "a red star", "an 8", "-n", "2", "--seed", "11", "--steps", "3", "--sampler", "dpmpp_2m",
          "--guidance-scale", "2.5", "--negative-prompt", "a one", "--width", "48", "--height", "64",
          "-o", f"{tmp_path}/many/"])  # fmt: skip
    files = sorted((tmp_path / "many").iterdir())
    assert len(files) == 4
    for file in files:
        with Image.open(file) as picture:
            prompt, negative, settings = picture.info["parameters"].split("\n")
            pixels = np.asarray(picture, dtype=int)
        entries = dict(entry.split(": ") for entry in settings.split(", "))
        width, height = entries["Size"].split("x")
        main(["generate", prompt, "--negative-prompt", negative.removeprefix("Negative prompt: "), "--steps",
              entries["Steps"], "--sampler", entries["Sampler"], "--cfg-scale", entries["CFG scale"],
              "--seed", entries["Seed"], "--width", width, "--height", height,
              "-o", str(tmp_path / "again.png")])  # fmt: skip
        with Image.open(tmp_path / "again.png") as again:
            apart = np.abs(np.asarray(again, dtype=int) - pixels)
            assert apart.max() <= 1 and (apart > 0).mean() < 0.01, file.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "unknown command 'paint'"),
        (["generat"], "did you mean 'generate'"),
        (["generate", "a two", "--steps", "0"], "steps must be at least 1, not 0"),
        (["generate", "a two", "--sampler", "eulr"], "unknown sampler 'eulr'; did you mean 'euler'"),
        (["generate", "a two", "--model", "nowhere"], "no model at nowhere"),
        (["generate", "a two", "--width", "30"], "width 30 is not a multiple of 16, as this model needs; try 32"),
        (["generate", "two " * 60], "over the text encoder's context length"),
        (["generate", "a two", "--output", "x.txt"], "cannot tell the kind of picture from 'x.txt'"),
        (["generate", "a two", "--output", "/proc/x/y.png", "--steps", "1"], "/proc/x"),
        (["generate", "a two", "--output", "x.psd"], "cannot tell the kind of picture from 'x.psd'"),
        (["generate", "a two", "--output", ""], "--output is empty"),
        (["generate", "a two", "--width", "4000000"], "over the largest that is painted"),
        (["generate", "a two", "--shift", "0"], "shift 0: only flow models have a shift, and it must be more than 0"),
        (["generate", "a two", "--eta", "0.5"], "the sampler euler draws no noise"),
        (["generate", "a two", "--rng", "torch", "--seed", str(2**64)], "must be a whole number from 0 to 2^64 - 1"),
        (["generate", "a two", "--guidance-interval", "2", "1"], "guidance between 2 and 1 is nowhere"),
        (["generate", "a two", "--stepz", "3"], "--steps"),
        (["generate", "a two", "--steps", "many"], "many"),
        (["train", "mnist-txt"], "unknown recipe 'mnist-txt'; did you mean 'mnist-text'"),
        (["train", "mnist-text", "--data.path", "nowhere", "--output", "nowhere"], "--data.path nowhere"),
        (["train", "mnist-text", "--batch-sise", "3"], "--batch-size"),
        (["inspect", "modell"], "did you mean 'model'"),
        (["inspect", "schedule", "--sampler", "dpm"], "unknown sampler 'dpm'"),
        (["inspect", "tokens", "x", "--model", "nowhere"], "no model at nowhere"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "holds a list; expected an object"),
        ('{"_class_name": "DDIMScheduler", "beta_end": "x"}', "beta_end must be a number, not 'x'"),
        ('{"_class_name": "DDIMScheduler", "num_train_timesteps": null}', "num_train_timesteps must be a number"),
        (
            '{"_class_name": "UniPCMultistepScheduler", "solver_order": 3}',
            "solver_order 3 is not supported",
        ),
        (
            '{"_class_name": "UniPCMultistepScheduler", "final_sigmas_type": "sigma_min"}',
            "final_sigmas_type 'sigma_min'",
        ),
        ('{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true}', "give a shift"),
        ('{"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}', "variance_type 'fixed_large'"),
        ('{"_class_name": "PNDMScheduler"}', "without skip_prk_steps"),
    ],
)
def test_schedulers_that_are_not_understood_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, config: str, message: str
) -> None:
    (tmp_path / "s.json").write_text(config)
    said = refused(capsys, "inspect", "schedule", str(tmp_path / "s.json"))
    assert message in said and f"{tmp_path}/s.json" in said


def test_help_needs_no_torch() -> None:
    code = "import sys; from limner.cli import main; main(['--help']); assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("generate", "train", "inspect"):
        assert word in done.stdout
    bare = subprocess.run(
        [sys.executable, "-c", "import limner, sys; print(sorted({'torch', 'numpy', 'tyro'} & set(sys.modules)))"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert bare.stdout.strip() == "[]"


def test_inspect(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["inspect", "model"])
    printed = capsys.readouterr().out
    assert "denoiser" in printed and "FlowMatchEuler" in printed
    main(["inspect", "schedule", "--steps", "4"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "800.48", "0.19952", "0.80048", "4.012", "-1.3893"] in rows  # 0.667 shifted by 2
    (tmp_path / "scheduler_config.json").write_text(
        '{"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,'
        ' "steps_offset": 1, "set_alpha_to_one": false, "clip_sample": false}'
    )
    main(["inspect", "schedule", str(tmp_path / "scheduler_config.json"), "--steps", "10"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows if len(row) == 6 and row[0].isdigit()] == [
        "901", "801", "701", "601", "501", "401", "301", "201", "101", "1", "0",
    ]  # fmt: skip
    main(["inspect", "tokens", "a handwritten seven"])
    printed = capsys.readouterr().out
    assert "seven</w>" in printed and "5 tokens of 48" in printed


def test_train_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train three steps on a folder, paint with the run, go on to five."""
    data = tmp_path / "data"
    data.mkdir()
    for i in range(4):
        Image.new("L", (28, 28), 60 * i).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text(f"shade {i}")
    run_folder = tmp_path / "run"
    common = [
        "train", "mnist-text", "--data.path", str(data), "--output", str(run_folder), "--batch-size", "4",
        "--network.depth", "1", "--no-compile", "--sample-prompts", "shade 1",
    ]  # fmt: skip
    main([*common, "--steps", "3"])
    assert f"limner generate PROMPT --model {run_folder}" in capsys.readouterr().out
    main(["generate", "shade 2", "--model", str(run_folder), "--output", str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").is_file()
    assert "already holds a run" in refused(capsys, *common, "--steps", "5")
    main([*common, "--steps", "5", "--resume", "latest"])
    assert (run_folder / "checkpoint-5/model_index.json").is_file()


def test_train_lists_and_explains_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train"])
    assert "mnist-unconditional" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["train", "mnist-text", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "--data.path" in printed and "--lr" in printed
