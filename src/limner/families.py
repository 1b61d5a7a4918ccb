"""What distinguishes one family of models from another: a row a family."""

from typing import Any, NamedTuple

from limner.errors import unknown
from limner.text.conditioner import Combine, masked_text, no_text
from limner.text.encoder import Reads


class Family(NamedTuple):
    """`network` is the folder of the denoising network, `encoders` what is taken from its text encoders, `combine`
    how their states become one condition, `defaults` how to paint where the folder does not say."""

    network: str
    encoders: tuple[Reads, ...]
    combine: Combine
    defaults: dict[str, Any]


# By the pipeline's name in model_index.json and by what the model is conditioned on.
FAMILIES: dict[tuple[str, str], Family] = {
    ("LimnerPipeline", "text"): Family("denoiser", (Reads(),), masked_text, {"steps": 20, "guidance_scale": 3.0}),
    ("LimnerPipeline", "class"): Family("denoiser", (), no_text, {"steps": 20, "guidance_scale": 3.0}),
    ("LimnerPipeline", "none"): Family("denoiser", (), no_text, {"steps": 20, "guidance_scale": 1.0}),
}


def family(pipeline: str, condition: str) -> Family:
    """The row of a pipeline's name and its condition: text, class or none."""
    names = {name for name, _ in FAMILIES}
    if pipeline not in names:
        raise unknown("family of models", pipeline, names)
    kinds = {kind: row for (name, kind), row in FAMILIES.items() if name == pipeline}
    if condition not in kinds:
        raise unknown(f"condition of a {pipeline}", condition, kinds)
    return kinds[condition]
