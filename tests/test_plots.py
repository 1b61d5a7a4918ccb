"""limner inspect schedule --plot and inspect text: what the figures show, in numbers."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from sd import PNDM, save_with_diffusers

from limner.cli import main
from limner.errors import LimnerError
from limner.look.plots import plot_schedules, plot_similarity
from limner.look.similarity import cosines, text_vectors
from limner.model import Model
from limner.noise.paths import Flow
from limner.pipeline import Pipeline
from limner.schedulers import read_schedule
from limner.settings import Settings
from limner.text.conditioner import Classes, NullText, NullTextConfig, Text, masked_text

PROMPTS = ["", "a red star", "two green squares", "a cat on a beach"]


@pytest.fixture(scope="module")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    save_with_diffusers(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def curves(axes) -> dict[str, tuple[list[float], list[float]]]:
    """The lines of a panel by their labels: x and y."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


@pytest.mark.parametrize("options", [{}, {"sampler": "dpmpp_2m", "schedule": "karras"}, {"sampler": "euler"}])
def test_the_plot_shows_the_path_and_the_levels_of_a_discrete_schedule(options: dict[str, str]) -> None:
    schedule = read_schedule(PNDM, 7, **options)
    mixing, ratio, betas, steps = plot_schedules({"name": schedule}).axes
    lines = curves(mixing)
    for name in ("alpha", "sigma"):
        assert lines[name][0] == list(range(1000))
        assert lines[name][1] == [getattr(schedule.path.level(t), name) for t in range(1000)]
    t = [level.t for level in schedule.grid]
    points = [tuple(map(list, line.get_data())) for line in mixing.lines if line.get_marker() == "o"]
    assert points == [
        (t, [level.alpha for level in schedule.grid]),
        (t, [level.sigma for level in schedule.grid]),
    ]
    assert curves(ratio)["log SNR"][1][500] == pytest.approx(
        math.log(schedule.path.level(500).alpha ** 2 / schedule.path.level(500).sigma ** 2)
    )
    assert curves(betas)["beta"][1] == schedule.path.betas.tolist()
    assert curves(steps) == {"name": (t, [0] * 8)}
    assert [label.get_text() for label in steps.get_yticklabels()] == ["name"]


def test_infinite_ratios_are_not_drawn_and_flow_has_no_beta_panel() -> None:
    schedule = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 4)
    figure = plot_schedules({"flow": schedule})
    assert [axes.get_ylabel() for axes in figure.axes] == ["alpha, sigma", "log SNR", ""]
    points = next(line for line in figure.axes[1].lines if line.get_marker() == "o").get_ydata()
    assert math.isnan(points[0]) and math.isnan(points[-1])  # alpha is 0, then sigma
    assert list(points[1:-1]) == [2 * level.lam for level in schedule.grid[1:-1]]
    assert curves(figure.axes[0])["sigma"][0][-1] == 1000 == Flow().level(1000).t


def test_several_schedules_are_compared_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.json").write_text(json.dumps(PNDM))
    drawn = []
    monkeypatch.setattr("limner.look.plots.save_plot", lambda figure, file: drawn.append((figure, file)))
    main(["inspect", "schedule", str(tmp_path / "s.json"), "--steps", "5", "--sampler", "ddim,dpmpp_2m",
          "--schedule", "normal,karras", "--plot", "x.svg"])  # fmt: skip
    [(figure, file)] = drawn
    assert str(file) == "x.svg"
    expected = {}
    for row, (sampler, spacing) in enumerate(
        [("ddim", "normal"), ("ddim", "karras"), ("dpmpp_2m", "normal"), ("dpmpp_2m", "karras")]
    ):
        grid = read_schedule(PNDM, 5, sampler, spacing).grid
        expected[f"{sampler} {spacing}"] = ([level.t for level in grid], [row] * 6)
    assert curves(figure.axes[-1]) == expected
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == list(expected)


def test_the_command_plots_any_model(tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "schedule", "--plot", str(tmp_path / "flow.png"), "--steps", "4"])
    printed = capsys.readouterr()
    assert "a flow path has no betas: the plot is without them" in printed.err
    assert printed.out.rstrip().endswith("flow.png") and "800.48" in printed.out
    main(["inspect", "schedule", str(tiny_sd), "--plot", str(tmp_path / "sd.PNG"), "--steps", "4"])
    assert "betas" not in capsys.readouterr().err
    with Image.open(tmp_path / "flow.png") as flow, Image.open(tmp_path / "sd.PNG") as discrete:
        assert flow.format == discrete.format == "PNG" and discrete.height > flow.height  # by the panel of beta


def test_a_plot_that_cannot_be_written_is_refused_before_a_model_is_opened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("limner.model.Model.open", None)
    for command in (["schedule"], ["text", "a star"]):
        assert "a plot is a .png, .svg or .pdf" in refused(capsys, "inspect", *command, "--plot", "x.txt")
        assert "it is a folder" in refused(capsys, "inspect", *command, "--plot", str(_folder(tmp_path / "x.png")))
    monkeypatch.setattr("limner.look.plots.find_spec", lambda name: None)
    assert "a plot needs matplotlib; install it with: pip install" in refused(
        capsys, "inspect", "schedule", "--plot", "x.png"
    )


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def test_matplotlib_is_imported_for_a_plot_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    main(["inspect", "schedule", "--steps", "3"])
    main(["inspect", "text", "a red star"])
    main(["generate", "a red star", "--steps", "1", "--path", "sheet", "-o", str(tmp_path / "x.png")])
    assert "cosine similarity" in capsys.readouterr().out
    with pytest.raises(ImportError):
        plot_schedules({"x": read_schedule(PNDM, 3)})


def test_similarities_are_those_of_the_mean_states(one_thread: None) -> None:
    model = Model.open()
    matrix = cosines(text_vectors(model, PROMPTS))
    [encoder] = model.conditioner.encoders
    for i, one in enumerate(PROMPTS):
        for j, two in enumerate(PROMPTS):
            a, b = (encoder.encode([text])[0].tokens.double().mean(0) for text in (one, two))
            by_hand = float(a @ b / (a @ a).sqrt() / (b @ b).sqrt())
            assert float(matrix[i, j]) == pytest.approx(by_hand, abs=1e-6)
    assert torch.equal(matrix, matrix.T) and matrix.diagonal().tolist() == pytest.approx([1.0] * 4)
    assert float(matrix[0, 1]) < 0 < float(cosines(text_vectors(model, ["the digit 4", "a handwritten four"]))[0, 1])


def test_padding_is_not_in_the_mean_and_the_pooled_state_is_the_encoders(tiny_sd: Path) -> None:
    import transformers

    model = Model.open(tiny_sd)
    theirs = transformers.CLIPTextModel.from_pretrained(tiny_sd / "text_encoder").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")
    means, pooled = [], []
    for prompt in PROMPTS:
        with torch.no_grad():
            output = theirs(**tokenizer(prompt, return_tensors="pt"))  # without padding
        means.append(output.last_hidden_state[0].mean(0))
        pooled.append(output.pooler_output[0])
    for states, expected in (("mean", means), ("pooled", pooled)):
        vectors = text_vectors(model, PROMPTS, states)
        assert torch.allclose(vectors, torch.stack(expected).double(), atol=1e-5), states
    assert not torch.allclose(text_vectors(model, PROMPTS), text_vectors(model, PROMPTS, "pooled"), atol=1e-2)


def test_the_null_text_is_the_learned_one(one_thread: None) -> None:
    model = tiny_pipeline(PROMPTS, 2).model
    null = NullText(NullTextConfig(32))
    model.conditioner = Text(model.conditioner.encoders, masked_text, null)
    assert torch.equal(text_vectors(model, PROMPTS)[0], null.tokens[0].double().detach())
    with pytest.raises(LimnerError, match="not all of these texts have a pooled state in text_encoder; take --states"):
        text_vectors(model, PROMPTS, "pooled")


def test_what_has_no_text_states_is_refused() -> None:
    model = Pipeline.from_pretrained().model
    with pytest.raises(LimnerError, match="unknown text encoder 'text_encoder_2'; did you mean 'text_encoder'"):
        text_vectors(model, PROMPTS, encoder="text_encoder_2")
    with pytest.raises(LimnerError, match="unknown choice of states 'pool'; did you mean 'pooled'"):
        text_vectors(model, PROMPTS, "pool")
    model.conditioner = Classes(["0", "1"])
    with pytest.raises(LimnerError, match="limner reads no text"):
        text_vectors(model, PROMPTS)


def test_the_command_prints_and_draws_the_matrix(
    tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    drawn = []
    monkeypatch.setattr(
        "limner.look.plots.plot_similarity", lambda *given: drawn.append(given) or plot_similarity(*given)
    )
    command = ["inspect", "text", "a red star", "", "a cat on a beach", "a red star", "-m", str(tiny_sd)]
    for states in ("mean", "pooled"):
        drawn.clear()
        main([*command, "--states", states, "--encoder", "text_encoder", "--plot", str(tmp_path / "text.png")])
        prompts = ["", "a red star", "a cat on a beach"]
        matrix = cosines(text_vectors(Model.open(tiny_sd), prompts, states))
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        for k, prompt in enumerate(['"" (null)', *prompts[1:]]):
            assert [str(k), *prompt.split(), *(f"{value:.3f}" for value in matrix[k].tolist())] in rows
        [(names, given)] = drawn
        assert names == ['"" (null)', *prompts[1:]] and torch.equal(given, matrix)
        assert Image.open(tmp_path / "text.png").format == "PNG"
    assert "no prompts to compare" in refused(capsys, "inspect", "text")
    assert "unknown text encoder 'text_encoder_3'" in refused(capsys, *command, "--encoder", "text_encoder_3")


def test_each_square_of_the_plot_has_its_number() -> None:
    matrix = torch.tensor([[1.0, -0.25], [-0.25, 1.0]])
    [axes] = plot_similarity(["a star", "a very long prompt that is wrapped"], matrix).axes
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "1.00"), ((1, 0), "-0.25"), ((0, 1), "-0.25"), ((1, 1), "1.00"),
    ]  # fmt: skip
    assert axes.images[0].get_array().tolist() == matrix.tolist() and axes.images[0].get_clim() == (-1, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a star", "a very long prompt that\nis wrapped"]


def test_the_plot_of_a_model_follows_its_settings() -> None:
    pipe = Pipeline.from_pretrained()
    plain, shifted = (pipe.resolve(Settings(steps=5, shift=shift))[0] for shift in (None, 6.0))
    t = [curves(plot_schedules({"x": each}).axes[-1])["x"][0] for each in (plain, shifted)]
    assert t[0] != t[1] and all(a <= b for a, b in zip(*t, strict=True))
