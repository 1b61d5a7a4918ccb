"""limner inspect model: every tensor of a folder accounted for, and one call of each part."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny_pipeline
from safetensors.torch import load_file, save_file
from sd import as_older_versions_saved, save_with_diffusers
from torch import Tensor, nn

from limner.cli import main
from limner.errors import LimnerError
from limner.folders import PRETRAINED
from limner.look.run import Call, Report, calls, default_prompt, run, usage, watch
from limner.look.tensors import part_tensors, skipped_parts
from limner.model import Model
from limner.nets.dit import DiT, DiTConfig
from limner.noise.draws import KeyedNoise
from limner.pipeline import Pipeline
from limner.settings import Settings
from limner.text.conditioner import Classes, Conditioner, Nothing, NullText, NullTextConfig, Text, masked_text
from limner.text.encoder import Reads

POSITION_IDS = "text_model.embeddings.position_ids"
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Path]:
    """A tiny Stable Diffusion as diffusers saves it and as it did in 2022, and the shipped model."""
    root = tmp_path_factory.mktemp("sd")
    save_with_diffusers(root / "new")
    as_older_versions_saved(root / "new", root / "old")
    return {"new": root / "new", "old": root / "old", "shipped": PRETRAINED}


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Stable Diffusion, to be changed."""
    return Path(shutil.copytree(folders["new"], tmp_path / "broken"))


def tiny_dit(conditioner: Conditioner) -> Model:
    """A DiT of random weights in pixels, class-conditional or unconditional."""
    torch.manual_seed(0)
    network = DiT(DiTConfig(4, 1, 2, 16, 2, 2, num_classes=len(conditioner.names))).eval().requires_grad_(False)
    return Model(network, conditioner, FLOW, defaults={"steps": 2, "guidance_scale": 2.0})


def tiny_text(null: bool = False) -> Model:
    model = tiny_pipeline(["a red star", "two green squares"], 2).model
    if null:
        assert isinstance(model.conditioner, Text)
        model.conditioner = Text(model.conditioner.encoders, masked_text, NullText(NullTextConfig(32)))
    return model.to("cpu")


def reports_of(model: Model, prompt: str | None = None, size: int | None = None) -> dict[str, Report]:
    prompt = default_prompt(model.conditioner) if prompt is None else prompt
    return {call.name: run(call) for call in calls(model, prompt, model.size if size is None else size)}


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that `limner inspect model` prints, with single spaces."""
    main(["inspect", "model", "--device", "cpu", *arguments])
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "model", *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("which", ["new", "old", "shipped"])
def test_every_tensor_of_every_part_is_accounted_for(folders: dict[str, Path], which: str) -> None:
    folder = folders[which]
    model = Model.open(folder)
    parts = {name: part_tensors(folder / name, part) for name, part in model.parts().items()}
    files = sorted(folder.rglob("*.safetensors"))
    assert sorted(folder / name / file for name, part in parts.items() for file in part.files) == files
    assert sum(part.size for part in parts.values()) == sum(file.stat().st_size for file in files)
    for name, part in parts.items():
        held = load_file(folder / name / part.files[0])
        assert part.tensors == len(held) == part.used + len(part.unused)
        assert part.unused == ([POSITION_IDS] if (which, part.folder) == ("old", "text_encoder") else [])
        assert part.parameters == sum(tensor.numel() for key, tensor in held.items() if key not in part.unused)


def test_dtypes_are_those_of_the_file_and_of_the_network(folders: dict[str, Path]) -> None:
    model = Model.open(folders["old"], dtype="float32,unet=bfloat16")
    dtypes = {}
    for name, part in model.parts().items():
        tensors = part_tensors(folders["old"] / name, part)
        dtypes[name] = (tensors.stored, tensors.opened)  # without position_ids, which are whole numbers
    assert dtypes == {
        "unet": ("float32", "bfloat16"), "text_encoder": ("float32", "float32"), "vae": ("float32", "float32"),
    }  # fmt: skip
    shipped = part_tensors(PRETRAINED / "vae", Model.open().parts()["vae"])
    assert (shipped.kind, shipped.stored, shipped.opened) == ("AutoencoderKL", "float16", "float32")


def test_parts_that_are_not_opened_are_named_with_a_reason(folders: dict[str, Path], broken: Path) -> None:
    model = Model.open(folders["old"])
    assert list(skipped_parts(folders["old"], model)) == ["feature_extractor", "safety_checker"]
    assert skipped_parts(folders["new"], model) == skipped_parts(PRETRAINED, Model.open()) == {}
    for file in ("unet_ema/config.json", "image_encoder/config.json", ".cache/config.json", "pictures/a.txt"):
        (broken / file).parent.mkdir()
        (broken / file).write_text("{}")
    assert skipped_parts(broken, model) == {
        "image_encoder": "it reads pictures given as prompts",
        "unet_ema": "a StableDiffusionPipeline has no such part",
    }


def test_shapes_of_each_call(folders: dict[str, Path]) -> None:
    shapes = {name: (each.shape, each.output) for name, each in reports_of(Model.open(folders["new"])).items()}
    assert shapes == {
        "text_encoder": ((2, 77), (2, 77, 24)),
        "unet": ((2, 4, 8, 8), (2, 4, 8, 8)),
        "vae encode": ((1, 3, 64, 64), (1, 4, 8, 8)),
        "vae decode": ((1, 4, 8, 8), (1, 3, 64, 64)),
    }
    smaller = reports_of(Model.open(), size=32)
    assert smaller["denoiser"].shape == (2, 8, 8, 8) and smaller["vae decode"].output == (1, 3, 32, 32)
    assert list(reports_of(tiny_text(null=True))) == ["text_encoder", "null_text", "denoiser"]
    assert reports_of(tiny_dit(Classes(["zero", "one"])))["denoiser"].shape == (2, 1, 4, 4)
    assert reports_of(tiny_dit(Nothing()))["denoiser"].shape == (1, 1, 4, 4)


def test_values_are_those_of_the_parts_called_by_hand(folders: dict[str, Path]) -> None:
    model = Model.open(folders["new"])
    reports = reports_of(model, "a red star")
    ids, _ = model.tokenizers()["tokenizer"].encode(["", "a red star"])
    noise = KeyedNoise([0], (4, 8, 8)).start()
    condition = model.network.prepare(model.conditioner(["", "a red star"]))
    t = torch.tensor([981.0, 981.0])  # PNDM's first of 50
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    assert model.autoencoder is not None
    outputs = {
        "text_encoder": model.parts()["text_encoder"](ids).hidden,
        "unet": model.network(torch.cat([noise, noise]), t, **condition),
        "vae encode": model.autoencoder.encode(ramp).mean * 0.18215,
        "vae decode": model.autoencoder.decode(noise / 0.18215),
    }
    assert outputs.keys() == reports.keys()
    for name, output in outputs.items():
        each = reports[name]
        expected = (output.min(), output.mean(), output.max(), output.std(correction=0))
        torch.testing.assert_close(
            torch.tensor([each.min, each.mean, each.max, each.std]), torch.stack(expected), rtol=1e-4, atol=1e-5
        )
        assert each.broken is None and each.seconds > 0


def test_states_and_noise_are_those_of_the_family_and_the_schedule() -> None:
    model = tiny_text()
    assert isinstance(model.conditioner, Text)
    model.scheduler = {
        "_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-3,
    }  # fmt: skip
    schedule, _ = Pipeline(model).resolve(Settings())
    assert abs(schedule.start - 1) > 0.1
    model.conditioner.encoders[0].reads = Reads(layer=1, norm=False)
    reports = reports_of(model, "a red star")
    ids, _ = model.tokenizers()["tokenizer"].encode(["", "a red star"])
    states = model.parts()["text_encoder"](ids, 1, False).hidden
    x = schedule.start * KeyedNoise([0], (1, 8, 8)).start().repeat(2, 1, 1, 1)
    condition = model.network.prepare(model.conditioner(["", "a red star"]))
    output = model.network(x, torch.full((2,), schedule.grid[0].t), **condition)
    assert reports["text_encoder"].std == pytest.approx(float(states.std(correction=0)), rel=1e-5)
    assert reports["denoiser"].std == pytest.approx(float(output.std(correction=0)), rel=1e-5)


@pytest.mark.parametrize("which", ["new", "old", "shipped", "text", "null", "class", "none"])
def test_one_call_of_each_part_uses_every_tensor(folders: dict[str, Path], which: str) -> None:
    models = {
        "text": tiny_text, "null": lambda: tiny_text(null=True), "class": lambda: tiny_dit(Classes(["zero", "one"])),
        "none": lambda: tiny_dit(Nothing()),
    }  # fmt: skip
    model = models[which]() if which in models else Model.open(folders[which])
    used = usage(model.parts(), list(reports_of(model, size=32 if which == "shipped" else None).values()))
    assert used.keys() == model.parts().keys()
    for name, part in model.parts().items():
        assert used[name].unused == [] and used[name].used == used[name].tensors == len(part.state_dict()), name
        assert used[name].called == used[name].modules > 0


class Part(nn.Module):
    """Two layers of which one is called, a tensor of its own, and a layer whose weight is used without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.spare, self.direct = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](x) @ self.direct.weight + self.bias


def call_of(net: nn.Module, part: str = "part") -> Call:
    return Call(part, part, net, (2, 3), lambda: net(torch.ones(2, 3)))


def test_the_tensors_of_a_module_that_is_never_called_are_listed() -> None:
    net = Part()
    report = run(call_of(net))
    assert report.called == {"", "inner.0"}
    assert usage({"part": net}, [report])["part"] == (
        2, 5, 3, 11,
        ["inner.1.weight", "inner.1.bias", "inner.1.running_mean", "inner.1.running_var", "inner.1.num_batches_tracked",
         "spare.weight", "spare.bias", "direct.weight"],
    )  # fmt: skip
    assert usage({"part": net}, [report._replace(part="other")])["part"].called == 0
    rest = Call("rest", "part", net, (), lambda: net.spare(net.inner[1](net.direct(torch.ones(2, 3)))))
    assert usage({"part": net}, [report, run(rest)])["part"] == (5, 5, 11, 11, [])


def test_watching_changes_nothing_and_ends() -> None:
    net, seen = Part(), list[str]()
    with watch(net, lambda name, inputs, output: seen.append(name) or 1):  # what it returns is not the output
        watched = net(torch.ones(2, 3))
    assert seen == ["inner.0", ""]
    assert torch.equal(net(torch.ones(2, 3)), watched) and len(seen) == 2


@pytest.mark.parametrize(
    ("part", "tensor", "expected"),
    [
        ("vae", "decoder.conv_in.weight", {"vae decode": "decoder.conv_in"}),
        ("vae", "encoder.mid_block.attentions.0.to_v.bias", {"vae encode": "encoder.mid_block.attentions.0.to_v"}),
        ("unet", "up_blocks.2.resnets.0.conv1.bias", {"unet": "up_blocks.2.resnets.0.conv1"}),
        (
            "unet",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            {"unet": "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"},
        ),
        (
            "text_encoder",
            "encoder.layers.1.mlp.fc1.bias",
            {
                "text_encoder": "text_model.encoder.layers.1.mlp.fc1",
                "unet": "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k (its input is not finite either)",
            },
        ),
    ],
)
def test_the_first_module_that_is_not_finite_is_named(
    broken: Path, part: str, tensor: str, expected: dict[str, str]
) -> None:
    (file,) = (broken / part).glob("*.safetensors")
    weights = load_file(file)
    weights[tensor].fill_(float("nan"))
    save_file(weights, file)
    reports = reports_of(Model.open(broken))
    assert {name: each.broken for name, each in reports.items() if each.broken} == expected


def test_what_is_not_finite_after_the_last_module_is_said() -> None:
    net = nn.Linear(3, 3)
    call = Call("part", "part", net, (2, 3), lambda: net(torch.ones(2, 3)) * float("inf"))
    assert run(call).broken == "the computation after the last module"
    nn.init.constant_(net.bias, float("inf"))
    assert run(call).broken == "Linear"  # the part itself


def test_memory_is_the_growth_of_the_peak() -> None:
    net = nn.Linear(3, 3)
    small = run(call_of(net))
    large = run(Call("part", "part", net, (), lambda: net(torch.ones(8_000_000, 3))[:1]))  # 96 MB in, 96 MB out
    if small.megabytes is None:
        pytest.skip("the peak memory of a process is not known on this system")
    assert large.megabytes is not None and small.megabytes < 90 < 180 < large.megabytes < 400


def test_prompts_and_sizes_that_a_model_cannot_use_are_refused() -> None:
    for prompt, size, message in (
        ("star " * 60, 8, "over the text encoder's context length"),
        ("a red star", 7, "size 7 is not a multiple of 2, as this model needs; try 8"),
        ("a red star", 0, "size 0 is not a multiple of 2, as this model needs; try 2"),
        ("a red star", 2**20, "over the largest"),
    ):
        with pytest.raises(LimnerError, match=message):
            list(calls(tiny_text(), prompt, size))
    with pytest.raises(LimnerError, match="reads no text"):
        list(calls(tiny_dit(Nothing()), "a red star", 4))
    with pytest.raises(LimnerError, match="unknown class 'on'; did you mean 'one'"):
        list(calls(tiny_dit(Classes(["zero", "one"])), "on", 4))


def test_the_command_prints_the_account(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = inspected(capsys, str(folders["old"]), "--dtype", "float32,vae=bfloat16")
    assert lines[0] == str(folders["old"])
    for line in (
        "text_encoder 37 36 24,696 0.10 MB float32 float32",
        "vae 180 180 67,231 0.29 MB float32 bfloat16",
        "total 541 540 465,243 1.92 MB",
        f"text_encoder: 37 tensors, 36 used, unused: {POSITION_IDS}",
        "safety_checker is not needed to paint: it judges finished pictures",
        "feature_extractor is not needed to paint: it prepares pictures for other parts",
        "unet UNet2DConditionModel, diffusion_pytorch_model.safetensors",
        "defaults steps=50, guidance_scale=7.5",
    ):
        assert line in lines, line
    assert not any("modules called" in line for line in lines)
    assert "every tensor is used" in inspected(capsys, str(folders["new"]))


def test_the_command_prints_a_run(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folders["old"]), "--run", "--prompt", "a red star", "--dtype", "float32"]
    main(["inspect", "model", *arguments, "--device", "cpu", "--size", "40"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.removeprefix(str(folders["old"])).splitlines())) <= 100
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "one call of each part for 'a red star', 40x40, on cpu" in lines
    for start in ("text_encoder 2x77 2x77x24 ", "unet 2x4x5x5 2x4x5x5 ", "vae encode 1x3x40x40 1x4x5x5 ",
                  "vae decode 1x4x5x5 1x3x40x40 "):  # fmt: skip
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert {"unet 183 of 183 324 of 324", "text_encoder 19 of 19 36 of 36", "vae 90 of 90 180 of 180"} <= {*lines}
    assert not any("not finite" in line or "not called" in line for line in lines)


def test_the_command_says_what_is_not_finite_and_what_is_not_called(
    broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = broken / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.bias"].fill_(float("inf"))
    save_file(weights, file)
    monkeypatch.setattr("limner.text.clip.CLIPMLP.forward", lambda self, x: x)
    lines = inspected(capsys, str(broken), "--run")
    assert "vae decode: the output is not finite, first in decoder.conv_out" in lines
    (unused,) = (line for line in lines if "not called" in line)
    assert unused.startswith(
        "text_encoder: not used, as their modules were not called: text_model.encoder.layers.0.mlp.fc1.weight, "
    )


def test_a_pickle_is_inspected_if_allowed(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = broken / "text_encoder/model.safetensors"
    torch.save(load_file(file), broken / "text_encoder/pytorch_model.bin")
    file.unlink()
    assert "--allow-pickle" in refused(capsys, str(broken))
    assert "text_encoder CLIPTextModel, pytorch_model.bin" in inspected(capsys, str(broken), "--allow-pickle")


def test_bad_input(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(folders["new"])
    for arguments, message in (
        (["nowhere"], "no model at nowhere"),
        ([folder, "--dtype", "float23"], "unknown dtype 'float23'; did you mean 'float32'"),
        ([folder, "--device", "nowhere"], "device 'nowhere' cannot be used here"),
        ([folder, "--run", "--size", "63"], "size 63 is not a multiple of 8, as this model needs; try 64"),
        ([folder, "--run", "--prompt", "cat " * 90], "over the text encoder's context length"),
    ):
        assert message in refused(capsys, *arguments)
    main(["inspect", "model", folder, "--prompt", "a red star", "--size", "64"])
    assert capsys.readouterr().err.splitlines() == [
        f"limner: the {name} has no effect with inspect model without --run" for name in ("prompt", "size")
    ]
