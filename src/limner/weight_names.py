"""Which files of a part's folder hold its weights, by their names alone."""

import re
from collections.abc import Iterable

from limner.errors import LimnerError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of diffusers; transformers' safetensors and pickles
VARIANTS = ("", ".fp16", ".bf16")
PICKLES = ("bin", "ckpt")
MAX_LISTED = 8  # files named in an error


def choose_weights(names: Iterable[str], allow_pickle: bool = False) -> list[str]:
    """The files that hold the weights among the `names` in a part's folder: one file, or an index and its shards.

    The first that is there of: full precision, the fp16 variant, the bf16 variant; of each, one file before shards.
    safetensors before pickles, and pickles only if allowed. Raises LimnerError if there are none.
    """
    present = set(names)
    for extension in ("safetensors", *PICKLES) if allow_pickle else ("safetensors",):
        for variant in VARIANTS:
            for find in (_single, _sharded):
                for stem in STEMS:
                    if found := find(present, stem, variant, extension):
                        return found
    listed = sorted(present)[:MAX_LISTED] + (["..."] if len(present) > MAX_LISTED else [])
    if not allow_pickle and (pickles := _pickles(present)):
        raise LimnerError(
            f"the weights are pickles ({pickles[0]}), which can run programs: refused without "
            "allow_pickle=True (generate, inspect model and download: --allow-pickle)"
        )
    broken = any(re.search(r"\.index\.|-\d{5}-of-\d{5}", name) for name in present)
    why = "no complete set of shards with their index" if broken else "no weights"
    raise LimnerError(f"{why} in {', '.join(listed) or 'an empty folder'}")


def _pickles(present: set[str]) -> list[str]:
    """The files that hold the weights if pickles are allowed; empty if there are none."""
    try:
        return choose_weights(present, allow_pickle=True)
    except LimnerError:
        return []


def _single(present: set[str], stem: str, variant: str, extension: str) -> list[str]:
    """The one file of all weights, such as model.fp16.safetensors; empty if absent."""
    name = f"{stem}{variant}.{extension}"
    return [name] if name in present else []


def _sharded(present: set[str], stem: str, variant: str, extension: str) -> list[str]:
    """The index and all its shards; empty if one is absent.

    A variant is named before the number (model.fp16-00001-of-00002.safetensors), in old files of diffusers after it.
    """
    indices = (f"{stem}.{extension}.index{variant}.json", f"{stem}.{extension}{variant}.index.json")
    numbers, v, end = r"-(\d{5})-of-(\d{5})", re.escape(variant), rf"\.{extension}"
    for pattern in (f"{stem}{v}{numbers}{end}", f"{stem}{numbers}{v}{end}"):
        matches = sorted((match for name in present if (match := re.fullmatch(pattern, name))), key=lambda m: m[0])
        totals = {int(match[2]) for match in matches}
        index = next((name for name in indices if name in present), None)
        if index is not None and matches and len(matches) == sum(totals):
            return [index, *(match[0] for match in matches)]
    return []
