"""Generation parameters in AUTOMATIC1111's PNG text format: enough to reproduce a picture."""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version

from limner.schedulers import Schedule
from limner.settings import Settings

NEGATIVE = re.compile(r"(?<!\s)\s++(?=Negative prompt:)")  # linear in the white space
FIRST_NEGATIVE = re.compile(r"^\s*+N(?=egative prompt:)")


def settings_entries(
    settings: Settings, schedule: Schedule, scale: float, size: tuple[int, int], model: str, precision: str
) -> dict[str, object]:
    """Every setting that changes the picture, under its name in the text; None where it is the default. `size` is
    (width, height); "Seed" is a placeholder, to be set for each picture."""
    interval = settings.guidance_interval
    return {
        "Steps": len(schedule.grid) - 1,
        "Sampler": schedule.sampler,
        "Schedule type": settings.schedule,
        "CFG scale": scale,
        "Seed": None,
        "Size": f"{size[0]}x{size[1]}",
        "Model": model,
        "Eta": settings.eta,
        "Shift": settings.shift,
        "CFG rescale": settings.guidance_rescale or None,
        "CFG interval": None if interval is None else f"{_number(interval[0])}-{_number(interval[1])}",
        "Denoising strength": settings.strength,
        "Extend": settings.extend,
        "Feather": settings.feather if settings.feather or settings.extend else None,
        "Paste": None if settings.paste else "off",
        "Variation seed strength": settings.variation_strength,
        "Truncate": settings.truncate or None,
        "RNG": None if settings.rng == "keyed" else settings.rng,
        "Precision": None if precision == "float32" else precision,
        "Version": f"limner {version('limner')}",
    }


def parameters_text(prompt: str, negative_prompt: str, entries: Mapping[str, object]) -> str:
    """The prompt, the negative prompt, then "Steps: 20, Sampler: euler, ...". Values with a comma, a colon, a quote or
    a newline are quoted as JSON; None values are omitted, and what is no character, as in a file's name, is escaped."""
    # White space of any kind is the same to a tokenizer; a line of the prompt that begins so would be split off.
    prompt, negative_prompt = (NEGATIVE.sub(" ", text) for text in (prompt, negative_prompt))
    prompt = FIRST_NEGATIVE.sub("n", prompt)  # would be taken for the negative one; tokenizers lower its case
    lines = [prompt, *([f"Negative prompt: {negative_prompt}"] if negative_prompt else [])]
    text = "\n".join([*lines, ", ".join(f"{name}: {_quoted(v)}" for name, v in entries.items() if v is not None)])
    return text.encode("utf-8", "backslashreplace").decode()


def _quoted(value: object) -> str:
    text = _number(value) if isinstance(value, float) else str(value)
    plain = text == text.strip() and not any(sign in text for sign in ',:"\n')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    """The shortest decimal that parses to the same float."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
