"""Where pictures are written, with what settings, and what is said when they cannot be."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.cli import main
from limner.cli.output import open_output
from limner.errors import LimnerError, LimnerWarning
from limner.evaluate.report import load_prompts
from limner.picture import save

LIMNER = [sys.executable, "-m", "limner"]
QUICK = ["generate", "a red star", "--steps", "1"]


def comment(path: Path) -> str:
    """The EXIF comment, as AUTOMATIC1111 and its readers decode it."""
    raw = Image.open(path).getexif().get_ifd(0x8769)[0x9286]
    assert raw[:8] == b"UNICODE\0"
    return raw[8:].decode("utf-16-be")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "avif"])
def test_the_settings_are_in_other_kinds_of_files_too(tmp_path: Path, suffix: str) -> None:
    text = 'a "red" star, ★\nSteps: 20, Seed: 3'
    save(Image.new("RGB", (16, 16)), tmp_path / f"a.{suffix}", text)
    assert comment(tmp_path / f"a.{suffix}") == text


def test_a_kind_without_a_place_for_the_settings_is_told(tmp_path: Path) -> None:
    with pytest.warns(LimnerWarning, match="the settings are not stored: a BMP file has no place for them"):
        save(Image.new("RGB", (16, 16)), tmp_path / "a.bmp", "Steps: 20")
    assert Image.open(tmp_path / "a.bmp").size == (16, 16)


def test_a_folder_is_numbered_on(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((2, 2), k, np.uint8)) for k in range(3)]
    output = open_output(f"{tmp_path}/many/")
    for first in (0, 3):
        _, paths = output.write(pictures, [])
        assert [path.name for path in paths] == [f"{first + k:05d}.png" for k in range(3)]
    (tmp_path / "many/00041.png").touch()
    assert output.write(pictures[:1], [])[1][0].name == "00042.png"
    assert [np.asarray(Image.open(tmp_path / f"many/{k:05d}.png"))[0, 0] for k in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_file_that_is_overwritten_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for overwritten in (False, True):
        main([*QUICK, "-o", str(tmp_path / "a.png")])
        assert (f"{tmp_path / 'a.png'} is overwritten" in capsys.readouterr().err) == overwritten


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file.png/b.png", "cannot write .*file.png/b.png: (Not a directory|File exists)"),
        ("file.png/", "cannot write .*00000.png: (Not a directory|File exists)"),
        ("a.xbm", "'a.xbm': a XBM file cannot hold it"),
        ("a.txt", "cannot tell the kind of picture from 'a.txt'"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_painting(tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(LimnerError, match=message):
        open_output(f"{tmp_path}/{output}")
    assert [file.name for file in tmp_path.iterdir()] == ["file.png"]


def test_trying_an_output_leaves_nothing_behind(tmp_path: Path) -> None:
    open_output(f"{tmp_path}/a/b/c.png")
    open_output(f"{tmp_path}/d/")
    assert list(tmp_path.iterdir()) == []


def test_the_output_is_opened_before_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*QUICK, "-m", "no/such/model", "-o", "/proc/no/a.png"])
    assert "cannot write /proc/no/a.png" in capsys.readouterr().err


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_output("~/x.png").path == tmp_path / "x.png"
    with pytest.raises(LimnerError, match="~nosuchuser/x.png: "):
        open_output("~nosuchuser/x.png")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["2>&-", ">&-"])
def test_a_closed_stream_does_not_cost_the_picture(tmp_path: Path, closed: str) -> None:
    command = f'"{sys.executable}" -m limner generate "a red star" --steps 1 -o {tmp_path}/a.png {closed}'
    assert subprocess.run(command, shell=True, capture_output=True).returncode == 0
    assert Image.open(tmp_path / "a.png").size == (64, 64)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f'"{sys.executable}" -m limner --help | true'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_an_ascii_terminal_shows_what_it_can(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [*LIMNER, *QUICK, "-o", f"{tmp_path}/ü.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == ""
    assert "\\xfc.png" in done.stdout


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_no_memory_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr("limner.cli.generate.run", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["generate"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("limner: out of memory; ask for fewer")
    monkeypatch.setattr("limner.cli.generate.run", lambda arguments: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["generate"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_stop_is_ctrl_c(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a command has open is closed, and its temporary files go."""
    number, closed = getattr(signal, name), []
    previous = signal.signal(number, signal.SIG_DFL)

    def run(arguments: list[str]) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            closed.append(True)

    monkeypatch.setattr("limner.cli.evaluate.run", run)
    try:
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate"])
        assert (stopped.value.code, closed) == (130, [True])
        assert capsys.readouterr().err == "limner: stopped\n"
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        monkeypatch.setattr("limner.cli.evaluate.run", lambda arguments: os.kill(os.getpid(), number))
        main(["evaluate"])
    finally:
        signal.signal(number, previous)


def test_what_is_graded_and_written_is_tried_first_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for arguments in (["evaluate", "grade", "-m", "no/model", "-o"], ["data", "world", "--out"]):
        with pytest.raises(SystemExit):
            main([*arguments, f"{tmp_path}/file/x"])
        assert f"limner: cannot write {tmp_path}/file/x" in capsys.readouterr().err
    (tmp_path / "prompts.txt").write_text("a red star\n")
    command = ["evaluate", "grade", "--prompts", f"{tmp_path}/prompts.txt", "--steps", "1", "-o", f"{tmp_path}/out"]
    main(command)
    assert capsys.readouterr().err == ""
    main(command)
    named = [f"limner: {tmp_path}/out/{file} is overwritten" for file in ("grade.json", "sheet.png")]
    assert capsys.readouterr().err.splitlines() == named


def test_a_run_s_output_is_tried_before_its_data_are_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    for output in (f"{tmp_path}/file", f"{tmp_path}/file/x", "/proc/x"):
        with pytest.raises(SystemExit):
            main(["train", "mnist-unconditional", "--data.path", f"{tmp_path}/nothing", "--output", output])
        assert f"limner: cannot write {output}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "mnist-unconditional", "--seed", "9" * 23], f"seed must be at most {2**64 - 1}, not 999"),
        (["train", "mnist-unconditional", "--data.path", "~nosuchuser/x"], "~nosuchuser/x: "),
        (["train", "mnist-unconditional", "--output", "~nosuchuser/x"], "~nosuchuser/x: "),
        (["generate", "x", "--device", "meta"], "nothing can be painted on the device 'meta'"),
        (["generate", "x", "-n", "99999999999"], "99999999999 pictures are over the most at once"),
        (["generate", "x", "-m", "~nosuchuser/x"], "~nosuchuser/x: "),
    ],
)
def test_an_option_is_named(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_of_prompts_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red star\n", encoding="utf-8-sig")
    assert [each.prompt for each in load_prompts(str(tmp_path / "prompts.txt"), 5)] == ["a red star"]


def test_numbers_go_on_after_the_largest_of_any_length_and_case(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    picture.info["parameters"] = ""
    for there, next_one in (("00004.PNG", "00005.png"), ("999999999.png", "1000000000.png")):
        (tmp_path / there).touch()
        assert open_output(f"{tmp_path}/").write([picture], [])[1] == [tmp_path / next_one]
    assert open_output(f"{tmp_path}/").write([picture], [])[1] == [tmp_path / "1000000001.png"]


def test_a_link_stays_a_link_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "deep/b.png")
    output = open_output(str(tmp_path / "a.png"))
    save(Image.new("RGB", (8, 8), "red"), output.path)
    assert (tmp_path / "a.png").is_symlink() and Image.open(tmp_path / "deep/b.png").getpixel((0, 0)) == (255, 0, 0)


def test_a_pipe_a_loop_and_a_name_with_nul_are_refused_before_painting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (
        ("pipe.png", "it is a pipe or a device, not a file"),
        ("loop/a.png", "Too many levels of symbolic links"),
        ("a\0.png", "embedded null"),
        (f"{'x' * 300}.png", "File name too long"),
    ):
        with pytest.raises(LimnerError, match=reason):
            open_output(str(tmp_path / name))
    assert os.stat(tmp_path / "pipe.png").st_mode & 0o170000 == 0o010000


def test_a_name_as_long_as_a_file_may_have_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    save(Image.new("RGB", (8, 8)), open_output(str(path)).path)
    assert path.is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a red star".encode("utf-16"), "is not UTF-8 text: it is text in UTF-16"),
        ("a red star".encode("utf-16-le"), "is not UTF-8 text: it holds NUL at character 1"),
    ],
)
def test_prompts_in_another_encoding_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(LimnerError, match=message):
        load_prompts(str(tmp_path / "p.txt"), 5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_picture_is_saved_though_what_is_said_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with open("/dev/full", "w") as full:
        done = subprocess.run([*LIMNER, *QUICK, "-o", tmp_path / "a.png"], stderr=full, stdout=subprocess.PIPE)
    assert done.returncode == 0 and Image.open(tmp_path / "a.png").size == (64, 64)
