"""Parts loaded when they are used and released before the next one: the same pictures, the memory of the largest."""

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sd
import sd3
import torch
from PIL import Image
from sd import ours
from test_pictures_in import box, smooth

from limner import model as model_module
from limner.cli import main
from limner.errors import LimnerError
from limner.nets.mmdit import SD3Transformer2DModel
from limner.nets.mmdit_config import SD3TransformerConfig
from limner.offload import Offload
from limner.pipeline import Pipeline
from limner.text.t5 import T5Config, T5EncoderModel
from limner.weights.parts import save_part

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["a cat on a beach, two green squares", "a red star"]
ENCODERS = ["text_encoder", "text_encoder_2", "text_encoder_3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    root = tmp_path_factory.mktemp("offload")
    sd.save_with_diffusers(root / "sd1")
    sd3.save_with_diffusers(root / "sd3")
    return {"shipped": None, "sd1": root / "sd1", "sd3": root / "sd3"}


def both(folder: Path | None, **options: Any) -> tuple[Pipeline, Pipeline]:
    """The pipeline of a folder without and with offload."""
    return Pipeline.from_pretrained(folder, **options), Pipeline.from_pretrained(folder, **options, offload=True)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the parts that are loaded from here on."""
    names: list[str] = []

    def watched(self: Offload, name: str) -> None:
        before = self.loaded
        use(self, name)
        names.extend([name] if before != name else [])

    use = Offload.use
    monkeypatch.setattr(Offload, "use", watched)
    return names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16,vae=float32"])
@pytest.mark.parametrize("name", ["shipped", "sd1", "sd3"])
def test_pictures_are_those_without_offload(folders: dict[str, Path | None], name: str, dtype: str) -> None:
    whole, offloaded = both(folders[name], dtype=dtype)
    for options in ({"rng": "keyed", "seed": [1, 2]}, {"guidance_scale": 1.0}):
        assert torch.equal(ours(offloaded, PROMPTS, steps=3, **options), ours(whole, PROMPTS, steps=3, **options))
    mine, other = offloaded.model, whole.model
    assert (mine.precision, mine.dtype, mine.device, mine.size) == (
        other.precision, other.dtype, other.device, other.size
    )  # fmt: skip


@pytest.mark.parametrize("name", ["shipped", "sd1", "sd3"])
def test_pictures_of_pictures_are_those_without_offload(folders: dict[str, Path | None], name: str) -> None:
    whole, offloaded = both(folders[name])
    for mask in (None, box(0, 0, 31, 63)):
        options = {"image": smooth(2), "mask": mask, "strength": 0.6, "steps": 3}
        [drawn], [wanted] = offloaded("a red star", **options), whole("a red star", **options)
        assert np.array_equal(np.asarray(drawn), np.asarray(wanted))


def test_each_part_is_loaded_when_it_is_used(folders: dict[str, Path | None], loads: list[str]) -> None:
    pipe = Pipeline.from_pretrained(folders["sd3"], offload=True)
    assert loads == []
    for _ in range(2):
        pipe("a red star", steps=3)
    assert loads == [*ENCODERS, "transformer", "vae"] * 2
    loads.clear()
    pipe("a red star", image=smooth(2), steps=3)
    assert loads == [*ENCODERS, "transformer", "vae"]  # the autoencoder was the last in use
    pipe("a red star", image=smooth(2), steps=3, strength=0.5)
    assert loads == [*ENCODERS, "transformer", "vae"] * 2


def alive() -> int:
    """Bytes of the storages of all tensors that Python holds, garbage included."""
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and not each.is_meta]
    tensors = [each for each in tensors if each.layout == torch.strided]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def size(part: torch.nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in part.parameters())


def test_one_part_at_a_time_is_in_memory(
    folders: dict[str, Path | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Painting and saving; the parts of the tiny folder differ fivefold in size."""
    before, moments = alive(), []

    def weighed(self: Offload, name: str) -> None:
        use(self, name)
        moments.append((name, alive() - before))

    use = Offload.use
    monkeypatch.setattr(Offload, "use", weighed)
    pipe = Pipeline.from_pretrained(folders["sd3"], offload=True)
    sizes = {name: size(part) for name, part in pipe.model.parts().items()}
    assert 5 * min(sizes.values()) < max(sizes.values()) < 0.6 * sum(sizes.values())
    released, states = 4 * sum(len(list(part.parameters())) for part in pipe.model.parts().values()), 250_000
    assert alive() - before < released + 10_000
    pipe("a red star", steps=3)
    pipe.save(tmp_path)
    assert {name for name, _ in moments} == sizes.keys()
    for name, held in moments:
        assert sizes[name] <= held < sizes[name] + released + states, name


def test_a_saved_model_is_the_same(folders: dict[str, Path | None], tmp_path: Path) -> None:
    whole, offloaded = both(folders["sd3"])
    for pipe, name in ((whole, "whole"), (offloaded, "offloaded")):
        pipe.save(tmp_path / name)
    files = [file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*.*")]
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "offloaded" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_weights_that_are_not_finite_are_named(folders: dict[str, Path | None], tmp_path: Path) -> None:
    """Those of the files: released ones hold NaN, too."""
    shutil.copytree(folders["sd3"], tmp_path / "model")  # type: ignore[arg-type]
    [_, pipe] = both(tmp_path / "model")
    network = Pipeline.from_pretrained(tmp_path / "model").model.network
    network.proj_out.bias[0] = torch.nan
    save_part(network, tmp_path / "model/transformer")
    with pytest.raises(LimnerError, match="the weights of the transformer are not finite: proj_out.bias"):
        pipe("a red star", steps=1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "transformer"), "transformer"),
        (lambda f: (f / "transformer/diffusion_pytorch_model.safetensors").unlink(), "transformer.* no weights"),
        (
            lambda f: save_part(
                SD3Transformer2DModel(SD3TransformerConfig.from_dict(sd3.TINY_TRANSFORMER | {"num_layers": 2})),
                f / "transformer",
            ),
            "the files of the transformer have changed since the model was opened",
        ),
    ],
    ids=["folder", "weights", "other"],
)
def test_files_that_vanish_or_change_are_named(
    folders: dict[str, Path | None], tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(folders["sd3"], tmp_path / "model")  # type: ignore[arg-type]
    pipe = Pipeline.from_pretrained(tmp_path / "model", offload=True)
    [first] = pipe("a red star", steps=3)
    spoil(tmp_path / "model")
    with pytest.raises(LimnerError, match=message):
        pipe("a red star", steps=3)
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(folders["sd3"], tmp_path / "model")  # type: ignore[arg-type]
    [again] = pipe("a red star", steps=3)
    assert np.array_equal(np.asarray(again), np.asarray(first))


def test_folders_with_a_pickle_are_opened_again_as_they_were(folders: dict[str, Path | None], tmp_path: Path) -> None:
    shutil.copytree(folders["sd3"], tmp_path / "model")  # type: ignore[arg-type]
    part = Pipeline.from_pretrained(folders["sd3"]).model.parts()["text_encoder"]
    torch.save(dict(part.state_dict()), tmp_path / "model/text_encoder/pytorch_model.bin")
    (tmp_path / "model/text_encoder/model.safetensors").unlink()
    with pytest.raises(LimnerError, match="pickle"):
        Pipeline.from_pretrained(tmp_path / "model", offload=True)
    _, pipe = both(tmp_path / "model", allow_pickle=True)
    assert torch.equal(ours(pipe, PROMPTS, steps=1), ours(Pipeline.from_pretrained(folders["sd3"]), PROMPTS, steps=1))


def test_an_encoder_can_be_left_out(folders: dict[str, Path | None], loads: list[str]) -> None:
    whole, offloaded = both(folders["sd3"], without=["t5"])
    assert torch.equal(ours(offloaded, PROMPTS, steps=3), ours(whole, PROMPTS, steps=3))
    assert loads == [*ENCODERS[:2], "transformer", "vae"]


def test_an_offloaded_model_stays_on_its_device(folders: dict[str, Path | None]) -> None:
    with pytest.raises(LimnerError, match="open it with that device or dtype"):
        Pipeline.from_pretrained(folders["sd3"], offload=True).model.to("cpu", torch.bfloat16)


def test_the_command_line_offloads(
    folders: dict[str, Path | None], tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "a red star", "-m", str(folders["sd3"]), "--steps", "3", "--dtype", "float32", "-o"]
    main([*common, f"{tmp_path}/whole.png"])
    assert loads == []
    main([*common, f"{tmp_path}/offloaded.png", "--offload"])
    assert loads == [*ENCODERS, "transformer", "vae"]
    whole, offloaded = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("whole", "offloaded"))
    assert np.array_equal(whole, offloaded)
    with pytest.raises(SystemExit) as stop:
        main(["generate", "a two", "-m", "mnist-text", "--random", "--offload", "-o", f"{tmp_path}/random.png"])
    assert stop.value.code == 2
    assert "offload loads parts from a model's files" in capsys.readouterr().err


def test_parts_are_opened_one_at_a_time(folders: dict[str, Path | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without offload each part is converted before the next is opened, and no weight is held twice."""
    before, opened = alive(), []

    def weighed(*arguments: Any) -> Any:
        part = open_part(*arguments)
        opened.append((alive() - before, size(part)))
        return part

    open_part = model_module.open_part
    monkeypatch.setattr(model_module, "open_part", weighed)
    model = Pipeline.from_pretrained(folders["sd3"], dtype="bfloat16").model
    assert len(opened) == len(model.parts()) == 5
    for i, (held, _) in enumerate(opened):
        assert sum(own for _, own in opened[: i + 1]) <= held < sum(own for _, own in opened[: i + 1]) + 30_000


# By resident memory, with parts of 250 and 180 MB.

MEMORY = """
import gc, sys
from pathlib import Path
import torch
from limner.pipeline import Pipeline

torch.set_num_threads(1)
folder, dtype, offload, paint = sys.argv[1], sys.argv[2], sys.argv[3] == "True", sys.argv[4] == "True"

def memory(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))

Pipeline.from_pretrained()("a red star", steps=1)
gc.collect()
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
pipe = Pipeline.from_pretrained(folder, dtype=dtype, offload=offload)
if paint:
    pipe("a red star", steps=3)
else:
    print(sum(float(weight.sum()) for part in pipe.model.parts().values() for weight in part.parameters()))
print(memory("VmHWM") - before, memory("VmRSS") - before)
"""


def save_large(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """A tiny folder with a larger T5 and transformer; their sizes in MiB in float32."""
    sd3.save_with_diffusers(folder)
    vocab_size = json.loads((folder / "text_encoder_3/config.json").read_text())["vocab_size"]
    t5 = T5Config(vocab_size, 1024, 64, 2816, 5, 16, feed_forward_proj="gated-gelu")
    transformer = sd3.TINY_TRANSFORMER | {
        "attention_head_dim": 64, "num_attention_heads": 8, "caption_projection_dim": 512, "num_layers": 5,
        "joint_attention_dim": 1024,
    }  # fmt: skip
    parts: dict[str, torch.nn.Module] = {
        "text_encoder_3": T5EncoderModel(t5),
        "transformer": SD3Transformer2DModel(SD3TransformerConfig.from_dict(transformer)),
    }
    for name, part in parts.items():
        save_part(part, folder / name, dtype)
    return {name: size(part) / 2**20 for name, part in parts.items()}


@pytest.mark.full_size
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
@pytest.mark.parametrize("saved", [torch.float32, torch.float16])
def test_the_peak_of_memory(tmp_path: Path, saved: torch.dtype) -> None:
    """In float32: of float16 files, those of the part that is being converted are mapped meanwhile."""
    sizes = save_large(tmp_path, saved)
    largest, total = max(sizes.values()), sum(sizes.values())
    mapped, room = (largest / 2 if saved == torch.float16 else 0), 100  # libraries and activations

    def memory(offload: bool, paint: bool) -> tuple[float, float]:
        """The peak and what is left at the end, in MiB."""
        command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path), "float32", str(offload), str(paint)]
        *_, peak, end = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return float(peak), float(end)

    assert total - room / 2 < memory(offload=False, paint=False)[0] < total + mapped + room
    assert total < memory(offload=False, paint=True)[1]
    peak, end = memory(offload=True, paint=True)
    assert largest < peak < largest + mapped + room < total + mapped
    assert end < room  # of the autoencoder, freed memory returned
