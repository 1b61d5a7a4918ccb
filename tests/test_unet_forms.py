"""The UNet unconditional, by class and by masked text, and in training: against diffusers on the same weights, and what
must hold without a reference."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sd import OLD_ATTENTION, ours, stir
from torch import Tensor

from limner.errors import LimnerError
from limner.model import Model
from limner.nets.network import Network, take
from limner.nets.unet import UNet2DConditionModel, UNet2DModel
from limner.nets.unet_config import UNET2D_FIXED, UNet2DConfig, UNetBaseConfig, UNetConfig
from limner.pipeline import Pipeline
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.conditioner import Classes, Conditioner, Nothing, Text, masked_text
from limner.text.encoder import Reads, TextEncoder
from limner.text.tokenizer import Tokenizer
from limner.weights.parts import open_part, save_part

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {"-": "{}Block2D", "a": "Attn{}Block2D", "x": "CrossAttn{}Block2D"}


def blocks(down: str, up: str = "") -> dict[str, tuple[str, ...]]:
    """The blocks of the levels from full resolution down: plain -, with self-attention a, with cross-attention x."""
    return {
        "down_block_types": tuple(KINDS[kind].format("Down") for kind in down),
        "up_block_types": tuple(KINDS[kind].format("Up") for kind in (up or down)[::-1]),
    }


SMALL: dict[str, Any] = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4}
HO: dict[str, Any] = {
    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
LABELS = UNet2DConfig(**SMALL, **blocks("-a"), block_out_channels=(8, 16), num_class_embeds=4)
TEXT = UNetConfig(
    **SMALL, **blocks("x-"), in_channels=3, out_channels=3, block_out_channels=(8, 16), cross_attention_dim=16,
    attention_head_dim=2,
)  # fmt: skip
CASES: dict[str, UNetBaseConfig] = {
    "as Ho et al. 2020": UNet2DConfig(
        **SMALL | HO | {"layers_per_block": 2}, **blocks("-a-"), block_out_channels=(8, 16, 16),
    ),
    "heads, and attention at every level but the first": UNet2DConfig(
        **SMALL, **blocks("-aa"), block_out_channels=(8, 16, 24),
    ),
    "attention on the way up alone": UNet2DConfig(
        **SMALL, **blocks("--", up="a-"), block_out_channels=(16, 8), attention_head_dim=4, norm_eps=1e-2,
    ),
    "no attention in the middle": UNet2DConfig(
        **SMALL, **blocks("a-"), block_out_channels=(8, 12), add_attention=False, downsample_padding=0,
    ),
    "one grey level": UNet2DConfig(**SMALL, **blocks("a"), block_out_channels=(8,), in_channels=1, out_channels=1),
    "by class": LABELS,
    "by text": TEXT,
    "by text, as Ho et al. in the rest": replace(TEXT, freq_shift=1, flip_sin_to_cos=False, downsample_padding=0),
}  # fmt: skip
THEIR_NAMES = {"text": "encoder_hidden_states", "mask": "encoder_attention_mask", "labels": "class_labels"}
NETWORKS = {UNet2DConfig: UNet2DModel, UNetConfig: UNet2DConditionModel}
# google/ddpm-cifar10-32 and google/ddpm-celebahq-256 as they were published.
CIFAR = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256], "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
CELEBA = CIFAR | {
    "block_out_channels": [128, 128, 256, 256, 512, 512], "sample_size": 256,
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and theirs.isfinite().all()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def fill(net: Any) -> Any:
    """Weights of a trained network: those that training starts at zero among them."""
    torch.manual_seed(0)
    for weight in net.parameters():
        if weight.ndim > 1:
            torch.nn.init.xavier_uniform_(weight)
    stir(net)
    return net.eval()


def tiny(config: UNetBaseConfig) -> Any:
    return fill(NETWORKS[type(config)](config)).requires_grad_(False)


def theirs_like(net: Any) -> Any:
    """diffusers' network with the same weights, under the same names."""
    import diffusers

    reference = getattr(diffusers, type(net).__name__).from_config(net.config.to_dict())
    reference.load_state_dict(net.state_dict(), strict=True)
    return reference.eval()


@cache
def both(name: str) -> tuple[Any, Any]:
    net = fill(NETWORKS[type(CASES[name])](CASES[name])).double()
    return theirs_like(net).double(), net


def condition_of(config: UNetBaseConfig) -> dict[str, Tensor]:
    """The condition of two pictures."""
    if isinstance(config, UNetConfig):
        return {"text": noise(2, 6, 16, seed=1), "mask": torch.arange(6) < torch.tensor([[6], [2]])}
    return {"labels": torch.tensor([3, 1])} if getattr(config, "num_class_embeds", None) else {}


def outputs(name: str, height: int = 8, width: int = 8) -> list[tuple[Any, Tensor, Tensor]]:
    """diffusers' network and ours, each with the picture that it is given and its output, in float64."""
    reference, net = both(name)
    x, t = noise(2, net.config.in_channels, height, width).double(), torch.tensor([981.0, 20.5])
    condition = {key: part.double() if key == "text" else part for key, part in condition_of(net.config).items()}
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs = reference(one, t, **{THEIR_NAMES[key]: part for key, part in condition.items()}).sample
    return [(reference, one, theirs), (net, other, net(other, t, **net.prepare(condition)))]


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_diffusers(name: str) -> None:
    (reference, one, theirs), (net, other, got) = outputs(name)
    for row in range(2):
        assert error(got[row], theirs[row]) < 1e-5
    weight = noise(*theirs.shape, seed=2)
    for module, output in ((reference, theirs), (net, got)):
        module.zero_grad()
        (output * weight).sum().backward()
    assert error(other.grad, one.grad) < 1e-5
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    assert len(gradients) == len(list(net.parameters()))
    scale = max(gradient.abs().max() for gradient in gradients.values())
    for key, p in net.named_parameters():
        # That of a bias before a normalisation may be nothing but rounding.
        assert (p.grad - gradients[key]).abs().max() < 1e-5 * max(gradients[key].abs().max(), 1e-6 * scale), key


@pytest.mark.parity
@pytest.mark.parametrize("name", ["as Ho et al. 2020", "by class", "by text"])
def test_dropout_is_diffusers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """The same values are dropped in both, whatever the layout of x in memory."""
        return x * (noise(*x.shape, seed=x.numel()) > 0) / (1 - p) if training and p else x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    net = fill(NETWORKS[type(CASES[name])](replace(CASES[name], dropout=0.5)))
    reference, x, t = theirs_like(net), noise(2, 3, 8, 8), torch.tensor([981.0, 20.5])
    condition = condition_of(net.config)
    found = []
    for training in (True, False):
        theirs = reference.train(training)(x, t, **{THEIR_NAMES[key]: part for key, part in condition.items()}).sample
        found.append(net.train(training)(x, t, **net.prepare(condition)))
        assert error(found[-1], theirs) < 1e-5
    assert error(*found) > 1e-2


def test_dropout_acts_in_training_alone() -> None:
    net, same = (fill(UNet2DModel(replace(LABELS, dropout=p))) for p in (0.5, 0.0))
    x, t, labels = noise(2, 3, 8, 8), torch.tensor([981.0, 20.5]), torch.tensor([3, 1])
    expected = same.train()(x, t, labels)
    assert torch.equal(net(x, t, labels), expected)
    one, other = (net.train()(x, t, labels) for _ in range(2))
    assert error(one, expected) > 1e-2 and error(other, one) > 1e-2


@pytest.mark.parametrize("config", [LABELS, TEXT], ids=["by class", "by text"])
def test_every_residual_block_has_the_dropout(config: Any) -> None:
    net = NETWORKS[type(config)](replace(config, dropout=0.3))
    resnets = [resnet for block in net.blocks for resnet in block.resnets]
    assert len(resnets) == 8 and {resnet.dropout for resnet in resnets} == {0.3}


@pytest.mark.parity
def test_older_names_of_the_attention_open(tmp_path: Path) -> None:
    net = tiny(LABELS)
    save_part(net, tmp_path)
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    for new, was in OLD_ATTENTION.items():
        tensors = {key.replace(f".{new}.", f".{was}."): tensor for key, tensor in tensors.items()}
    assert sum(".proj_attn." in key for key in tensors) == 8
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    opened = open_part(tmp_path, "UNet2DModel", Network)
    assert all(torch.equal(weight, opened.state_dict()[key]) for key, weight in net.state_dict().items())


@pytest.mark.parametrize("config", [CASES["as Ho et al. 2020"], LABELS, TEXT], ids=["Ho", "class", "text"])
@pytest.mark.parametrize(("height", "width"), [(13, 9), (1, 2), (7, 16)])
def test_any_sides_and_a_picture_of_a_batch_is_the_picture_alone(config: Any, height: int, width: int) -> None:
    net, x, t = tiny(config), noise(2, 3, height, width), torch.tensor([981.0, 20.5])
    prepared = net.prepare(condition_of(config))
    together = net(x, t, **prepared)
    for row in range(2):
        rows = slice(row, row + 1)
        assert error(net(x[rows], t[rows], **take(prepared, rows)), together[rows]) < 1e-5


def test_labels_and_times_reach_their_own_picture_alone() -> None:
    net, x, t = tiny(LABELS), noise(2, 3, 8, 8), torch.tensor([981.0, 20.5])
    labels = torch.tensor([2, 1])
    before = net(x, t, labels)
    for after in (net(x, t, torch.tensor([2, 0])), net(x, torch.tensor([981.0, 30.0]), labels)):
        assert torch.equal(after[0], before[0]) and error(after[1], before[1]) > 1e-3


def test_the_null_class_is_no_label() -> None:
    net, x, t = tiny(LABELS), noise(2, 3, 8, 8), torch.tensor([981.0, 20.5])
    labels = Classes(["a", "b", "c"])(["c", None])["labels"]
    assert net.null_class == labels[1] == 3
    assert torch.equal(net(x, t)[1], net(x, t, **net.prepare({"labels": labels}))[1])
    with pytest.raises(LimnerError, match="only a UNet with num_class_embeds takes labels"):
        tiny(replace(LABELS, num_class_embeds=None))(x, t, labels)


def test_bfloat16_is_near_float32() -> None:
    net, x, t = tiny(LABELS), noise(2, 3, 8, 8), torch.tensor([981.0, 20.5])
    exact = net(x, t)
    rounded = net.bfloat16()(x.bfloat16(), t)
    assert rounded.dtype == torch.bfloat16 and 0 < (rounded.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    ("config", "text_width", "classes", "message"),
    [
        (LABELS, 0, 3, None),
        (LABELS, 0, 4, "num_class_embeds has 3 classes beside the null class, but there are 4 class names"),
        (LABELS, 0, 0, "num_class_embeds has 3 classes beside the null class, but there are 0 class names"),
        (replace(LABELS, num_class_embeds=None), 0, 0, None),
        (replace(LABELS, num_class_embeds=None), 0, 3, "has 0 classes beside the null class"),
        (replace(LABELS, num_class_embeds=None), 16, 0, "a UNet2DModel takes no text; a UNet2DConditionModel does"),
        (replace(LABELS, out_channels=6), 0, 3, "the UNet takes 3 channels and gives 6"),
    ],
)
def test_a_conditioner_that_does_not_fit(config: Any, text_width: int, classes: int, message: str | None) -> None:
    problem = UNet2DModel(config).misfit(text_width, classes)
    assert problem is None if message is None else message in str(problem)


# Training from nothing


@pytest.mark.parametrize("config", [LABELS, TEXT], ids=["by class", "by text"])
def test_residual_branches_and_the_output_start_at_zero(config: Any) -> None:
    net = NETWORKS[type(config)](config)
    zeros = {name for name, weight in net.named_parameters() if not name.endswith("bias") and not weight.any()}
    last = ("conv2.weight", "conv_out.weight", "to_out.0.weight" if config == LABELS else "proj_out.weight")
    inside = "transformer_blocks"  # of which the branch's last layer is not
    assert zeros == {name for name, _ in net.named_parameters() if name.endswith(last) and inside not in name}
    assert len(zeros) == 8 + 4 + 1
    assert all(not weight.any() for name, weight in net.named_parameters() if name.endswith("bias"))
    weight = net.conv_in.weight
    bound = (6 / (weight[0].numel() + weight.shape[0] * 9)) ** 0.5
    assert 0.9 * bound < weight.abs().max() <= bound
    prepared = net.prepare(condition_of(config))
    assert not net(noise(2, 3, 8, 8), torch.zeros(2), **prepared).any()


def test_every_weight_is_trained_after_three_steps() -> None:
    net = UNet2DModel(LABELS)
    start = {name: weight.clone() for name, weight in net.state_dict().items()}
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(3):
        adam.zero_grad()
        output = net(noise(4, 3, 8, 8, seed=step), torch.linspace(0, 999, 4), torch.arange(4))
        (output - noise(4, 3, 8, 8, seed=9)).square().mean().backward()
        adam.step()
    assert not [name for name, weight in net.state_dict().items() if torch.equal(weight, start[name])]


# Folders


def encoder() -> TextEncoder:
    tokenizer = Tokenizer.train(["a red star", "a blue circle on the left"], vocab_size=540, length=16)
    transformer = CLIPTextModel(CLIPTextConfig(tokenizer.vocab_size, 16, 32, 1, 2, 16, eos_token_id=tokenizer.end))
    return TextEncoder(tokenizer, transformer, Reads())


def model_of(kind: str) -> Model:
    torch.manual_seed(1)
    conditioner: Conditioner
    conditioner, config = {
        "text": lambda: (Text([encoder()], masked_text), TEXT),
        "class": lambda: (Classes(["a", "b", "c"]), LABELS),
        "none": lambda: (Nothing(), replace(LABELS, num_class_embeds=None)),
    }[kind]()
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "linear"}
    return Model(tiny(config), conditioner.eval().requires_grad_(False), scheduler, defaults={"steps": 3})


@pytest.mark.parametrize(("kind", "prompts"), [("text", ["a red star", ""]), ("class", ["b", "c"]), ("none", ["", ""])])
def test_a_model_opens_as_it_was_saved(kind: str, prompts: list[str], tmp_path: Path) -> None:
    model = model_of(kind)
    model.save(tmp_path)
    opened = Model.open(tmp_path)
    assert type(opened.network) is type(model.network) and opened.network.config == model.network.config
    assert json.loads((tmp_path / "model_index.json").read_text())["denoiser"][0] == "diffusers"
    options = {"rng": "keyed"} | ({} if kind == "none" else {"guidance_scale": 2.0})
    before, after = (ours(Pipeline(each), prompts, seed=[1, 2], **options) for each in (model, opened))
    assert torch.equal(before, after)
    # Each beside the other is what it is alone: the shorter text is padded, and the padding masked.
    for row, prompt in enumerate(prompts):
        assert error(ours(Pipeline(opened), [prompt], seed=[row + 1], **options)[0], before[row]) < 1e-5
    if kind != "none":
        other = ours(Pipeline(opened), prompts[:1] * 2, seed=[1, 2], **options)
        assert error(other[1], before[1]) > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize(("name", "options"), [("DDPM", {}), ("DDIM", {"use_clipped_model_output": True})])
def test_diffusers_unconditional_pipelines(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    import diffusers

    kind, scheduler = getattr(diffusers, f"{name}Pipeline"), getattr(diffusers, f"{name}Scheduler")
    reference = theirs_like(tiny(CASES["as Ho et al. 2020"]))
    saved = kind(unet=reference, scheduler=scheduler(beta_schedule="linear", clip_sample=True))
    saved.save_pretrained(tmp_path / "theirs")
    model = Model.open(tmp_path / "theirs")
    assert (model.size, model.channels, model.pipeline) == (8, 3, f"{name}Pipeline")
    assert model.defaults == {"steps": {"DDPM": 1000, "DDIM": 50}[name], "guidance_scale": 1.0}
    got = ours(Pipeline(model), ["", ""], steps=4)
    model.save(tmp_path / "ours")
    again = kind.from_pretrained(tmp_path / "ours")
    for pipe in (saved, again):
        pipe.set_progress_bar_config(disable=True)
        draw = torch.Generator().manual_seed(3)
        theirs = pipe(batch_size=2, num_inference_steps=4, generator=draw, output_type="np", **options).images
        assert (got - torch.as_tensor(theirs).movedim(-1, 1)).abs().max() < 1e-4


# Configurations


@pytest.mark.parity
@pytest.mark.parametrize(("published", "count"), [(CIFAR, 35_746_307), (CELEBA, 113_673_219)], ids=["cifar", "celeba"])
def test_a_published_network_has_diffusers_names_and_shapes(published: dict[str, Any], count: int) -> None:
    import diffusers

    with torch.device("meta"):
        net = UNet2DModel(UNet2DConfig.from_dict(published))
        theirs = diffusers.UNet2DModel.from_config(published)
        got = diffusers.UNet2DModel.from_config(net.config.to_dict()).config
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert {name: weight.shape for name, weight in net.state_dict().items()} == shapes
    assert sum(shape.numel() for shape in shapes.values()) == count
    about = ("_use_default_values", "_diffusers_version")
    assert {k: v for k, v in got.items() if k not in about} == {
        k: v for k, v in theirs.config.items() if k not in about
    }


@pytest.mark.parity
def test_missing_fields_take_diffusers_defaults() -> None:
    import diffusers

    with torch.device("meta"):
        config = dict(diffusers.UNet2DModel(sample_size=32).config)
    assert UNet2DConfig.from_dict({}) == UNet2DConfig() == UNet2DConfig.from_dict(config)


@pytest.mark.parametrize("config", [each for each in CASES.values() if isinstance(each, UNet2DConfig)])
def test_a_configuration_is_read_as_it_was_written(config: UNet2DConfig) -> None:
    assert UNet2DConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", UNET2D_FIXED)
def test_an_option_that_the_network_does_not_have_is_refused(name: str) -> None:
    usual = UNET2D_FIXED[name][0]
    other = {bool: not usual, str: "other", int: 7}.get(type(usual), "text")
    with pytest.raises(LimnerError, match=f"a UNet with {name} {other!r} is not supported, only {usual!r}$"):
        UNet2DConfig.from_dict(CIFAR | {name: other})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 4}, "unknown down_block_types 'CrossAttnDownBlock2D'"),
        ({"up_block_types": ["AttnUpBlock"] * 4}, "unknown up_block_types 'AttnUpBlock'; did you mean 'AttnUpBlock2D'"),
        ({"up_block_types": []}, "up_block_types names 0 levels, block_out_channels 4"),
        ({"attention_head_dim": 24}, "block_out_channels 256 must be divisible by attention_head_dim 24"),
        ({"attention_head_dim": 0}, "attention_head_dim must be at least 1, not 0"),
        ({"attention_head_dim": [8] * 4}, "attention_head_dim must be a whole number or null"),
        ({"num_class_embeds": 0}, "num_class_embeds must be at least 1, not 0"),
        ({"downsample_padding": 2}, "downsample_padding must be at most 1, not 2"),
        ({"freq_shift": -1}, "freq_shift must be at least 0, not -1"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, not 1.0"),
        ({"norm_num_groups": 24}, "block_out_channels 128 must be divisible by norm_num_groups 24"),
        ({"norm_num_groups": 1, "block_out_channels": [5, 8, 8, 8]}, "must be even and at least 4, not 5"),
        ({"sample_size": None}, "sample_size must be a whole number, not None"),
    ],
)
def test_entries_that_cannot_be_used(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        UNet2DConfig.from_dict(CIFAR | entries)


def test_heads_are_checked_where_there_is_attention_alone() -> None:
    entries = {**SMALL, "block_out_channels": (8, 16), "attention_head_dim": 16, **blocks("-a")}
    assert UNet2DConfig(**entries).levels[1].heads == 1
    with pytest.raises(LimnerError, match="block_out_channels 8 must be divisible by attention_head_dim 16"):
        UNet2DConfig(**entries | blocks("-a", up="aa"))
    narrow = {**entries, **blocks("--"), "attention_head_dim": 12}
    assert UNet2DConfig(**narrow, add_attention=False)
    with pytest.raises(LimnerError, match="block_out_channels 16 must be divisible by attention_head_dim 12"):
        UNet2DConfig(**narrow)
