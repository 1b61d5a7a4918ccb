"""What a pipeline is asked for: values of any library's types are taken, all else is refused in words."""

import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline

from limner.errors import LimnerError
from limner.pipeline import Pipeline
from limner.settings import CHECKS, Settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return tiny_pipeline(["a red star", "a blue circle"], steps=3)


def test_every_setting_is_checked() -> None:
    assert CHECKS.keys() == Settings.__dataclass_fields__.keys()


def test_numbers_of_any_library_are_taken(pipe: Pipeline) -> None:
    plain = {
        "steps": 3,
        "guidance_scale": 2.0,
        "seed": 7,
        "num_images": 2,
        "width": 12,
        "guidance_interval": (0.5, 9.0),
    }
    other = {
        "steps": np.int64(3), "guidance_scale": np.float32(2), "seed": np.uint8(7), "num_images": torch.tensor(2),
        "width": np.int16(12), "guidance_interval": [Fraction(1, 2), 9],
    }  # fmt: skip
    one, two = pipe.paint("a red star", **plain), pipe.paint("a red star", **other)
    assert one.records == two.records
    assert torch.equal(list(one.steps)[-1].x, list(two.steps)[-1].x)
    assert pipe.paint(("a red star",), seed=[np.int64(7)]).records == pipe.paint("a red star", seed=7).records
    several = pipe.paint("a red star", num_images=2, seed=[7, 9]).records
    for seeds in (np.array([7, 9]), torch.tensor([7, 9]), range(7, 10, 2)):
        assert pipe.paint("a red star", num_images=2, seed=seeds).records == several


@pytest.mark.parametrize(("options", "told"), [({}, True), ({"steps": 1}, False), ({"steps": 3}, False),
                                                ({"shift": 100.0}, False)])  # fmt: skip
def test_two_steps_of_which_one_is_wasted_are_told(pipe: Pipeline, options: dict[str, Any], told: bool) -> None:
    """A flow's grid of two steps has its inner level at a noise of 1/1000."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe.paint("a red star", **{"steps": 2} | options)
    start = "the second of these 2 steps starts at a noise of 0.001 and changes next to nothing; take 1 step"
    assert [str(each.message) for each in caught] == told * [f"{start}, or more than 2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": None}, "prompt must be a text or a list of texts, not None"),
        ({"prompt": 3}, "prompt must be a text or a list of texts, not 3"),
        ({"prompt": []}, "no prompt was given"),
        ({"prompt": ["a red star", None]}, "prompt must be a text, not None"),
        ({"negative_prompt": ["a", "b"]}, r"negative_prompt must be a text, not \['a', 'b'\]"),
        ({"steps": "20"}, "steps must be a whole number, not '20'"),
        ({"steps": 2.0}, "steps must be a whole number, not 2.0"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"width": "8"}, "width must be a whole number, not '8'"),
        ({"num_images": 0}, "the number of pictures must be at least 1, not 0"),
        ({"num_images": 1.5}, "num_images must be a whole number, not 1.5"),
        ({"seed": "7"}, "seed must be a whole number, not '7'"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"seed": -1}, "seed -1 must be a whole number from 0"),
        ({"seed": [1, "2"], "num_images": 2}, "seed must be a whole number, not '2'"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number, not nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be finite, not inf"),
        ({"shift": float("inf")}, "shift must be finite, not inf"),
        ({"shift": 0}, "shift 0: only flow models have a shift, and it must be more than 0"),
        ({"guidance_scale": "high"}, "guidance_scale must be a number, not 'high'"),
        ({"guidance_interval": 3}, "guidance_interval must be two numbers, not 3"),
        ({"guidance_interval": (5, 1)}, "guidance between 5 and 1 is nowhere"),
        (
            {"guidance_interval": (-5, -1)},
            "guidance between -5 and -1 acts at none of the 3 steps, whose noise-to-signal ratios are from 0.001 to",
        ),
        ({"guidance_interval": (0.1, 0.11), "steps": 4}, "guidance between 0.1 and 0.11 acts at none of the 4 steps"),
        ({"eta": 10, "sampler": "ddim"}, "eta must be from 0 to 1, not 10"),
        ({"eta": -1, "sampler": "ddim"}, "eta must be from 0 to 1, not -1"),
        ({"shift": 10**400}, "shift must be a number"),
        ({"sampler": 3}, "sampler must be a text, not 3"),
        ({"truncate": "yes"}, "truncate must be True or False, not 'yes'"),
        ({"rng": "numpy"}, "unknown rng 'numpy'"),
        ({"stepz": 3}, "unknown setting 'stepz'; did you mean 'steps'"),
    ],
)
def test_what_makes_no_sense_is_refused(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        pipe.paint(**{"prompt": "a red star"} | options)


def told(pipe: Pipeline, prompt: str = "a red star", **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe.paint(prompt, **options)
    return [str(each.message) for each in caught]


def test_a_setting_of_none_is_the_default(pipe: Pipeline) -> None:
    nothing = dict.fromkeys(Settings.__dataclass_fields__)
    assert Settings(**nothing) == Settings()
    assert pipe.paint("a red star", **nothing).records == pipe.paint("a red star").records


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": -0.5}, "guidance_scale must be at least 0, not -0.5"),
        ({"shift": 1e-30}, "shift must be from 0.001 to 1000, not 1e-30"),
        ({"shift": 1e30}, r"shift must be from 0.001 to 1000, not 1e\+30"),
        ({"width": 0}, "width must be at least 2, not 0"),
        ({"height": -64}, "height must be at least 2, not -64"),
        ({"variation_seed": -1, "variation_strength": 0.5}, "variation_seed -1 must be a whole number from 0"),
        ({"variation_seed": 2**64, "variation_strength": 0.5}, "variation_seed 18446744073709551616 must be"),
        ({"negative_prompt": "a\0b"}, "negative_prompt holds NUL, which is no character of a text"),
        ({"image": True}, "the image must be a file or a PIL picture, not a bool"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        pipe.paint("a red star", **options)


def test_guidance_that_leaves_the_prompt_or_itself_without_effect_is_told(pipe: Pipeline) -> None:
    plain = "guidance has no effect where the negative prompt is the prompt"
    assert told(pipe, guidance_scale=0) == [
        "with guidance 0 the prompt has no effect, only the negative one; 1 is the plain model"
    ]
    assert told(pipe, negative_prompt="a red star") == [plain]
    assert told(pipe, "", guidance_scale=5) == [plain]
    assert told(pipe, "") == told(pipe, guidance_scale=5) == told(pipe, negative_prompt="red") == []


def test_pasting_that_is_off_without_a_mask_is_told(pipe: Pipeline) -> None:
    assert told(pipe, paste=False) == ["the no paste has no effect with no picture to start from"]
