"""Locating model folders, autoencoders and checkpoints on disk; parsing model_index.json."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner import hub
from limner.errors import LimnerError
from limner.files import check_range, check_types, expand, from_entries

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Defaults:
    """A model's default sampling settings; None falls back to those of its family."""

    steps: int | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, ("steps",), 1)
        check_range(self, ("guidance_scale",), 0)


@dataclass(frozen=True)
class Index:
    """A parsed model_index.json: the pipeline's class name, its parts as {folder: (library, class)}, the class names
    (empty unless class-conditional), the default settings, and the parts that are said to be absent (nulls)."""

    pipeline: str
    parts: dict[str, tuple[str, str]]
    class_names: tuple[str, ...]
    defaults: Defaults
    absent: frozenset[str] = frozenset()

    def class_of(self, folder: str, default: str) -> str:
        """The class of the part in `folder`, or `default` if the index does not list it."""
        return self.parts.get(folder, ("", default))[1]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Index":
        pipeline, names = content.get("_class_name", ""), content.get("class_names", [])
        defaults = content.get("defaults", {})
        if not isinstance(pipeline, str):
            raise LimnerError(f"_class_name must be a text, not {pipeline!r:.60}")
        if not isinstance(names, list) or not all(map(_is_text, names)) or len(set(names)) < len(names):
            raise LimnerError(f"class_names must be a list of different names, not {names!r:.60}")
        if not isinstance(defaults, dict):
            raise LimnerError(f"defaults must be an object of names and values, not {defaults!r:.60}")
        parts: dict[str, tuple[str, str]] = {}
        absent = frozenset(folder for folder, part in content.items() if part == [None, None])
        for folder, part in content.items():
            if folder == "class_names" or folder.startswith("_") or not isinstance(part, list) or part == [None, None]:
                continue  # a pipeline setting such as requires_safety_checker, or diffusers' nulls for an absent part
            if len(part) != 2 or not all(isinstance(each, str) for each in part):
                raise LimnerError(f"{folder} must be a library and a class, as ['limner', 'DiT'], not {part!r:.60}")
            if not re.fullmatch(r"\w+", folder):
                raise LimnerError(f"{folder!r:.60} cannot be the folder of a part: expected letters, digits and _")
            parts[folder] = (part[0], part[1])
        return cls(pipeline, parts, tuple(names), from_entries(Defaults, defaults, "how to paint (defaults)"), absent)


def _is_text(value: Any) -> bool:
    """Whether `value` is a text of whole characters, without lone surrogates."""
    return isinstance(value, str) and not re.search(r"[\ud800-\udfff]", value)


def find_model(source: str | Path | None) -> Path:
    """The folder with the model_index.json: `source` itself, the newest checkpoint of a training run, or a model of
    the hub; the shipped model for None and "shipped"."""
    if source == "" or "://" in str(source):
        raise LimnerError(f"no model at {str(source)!r}: give a folder, or owner/name of a model of the hub")
    folder = _folder(source)
    if (folder / "model_index.json").is_file():
        return folder
    if not folder.exists():
        raise LimnerError(f"no model at {folder}: give a model folder or a training run, or leave --model out")
    if folder.is_file():
        raise LimnerError(
            f"{folder} is a single file; limner opens folders in diffusers' layout, not such checkpoints yet"
        )
    saved = checkpoints(folder)
    if not saved:
        raise LimnerError(f"{folder} is not a model: it holds neither model_index.json nor a checkpoint-<step> folder")
    if not (saved[-1][1] / "model_index.json").is_file():
        raise LimnerError(
            f"{folder} is not the run of a model: train one with it (--autoencoder or --text.pretrained {folder})"
        )
    return saved[-1][1]


def find_part(source: str | Path, part: str) -> Path | None:
    """The model folder that has `part`, such as vae: `source`, its newest checkpoint that does, a model of the hub or
    the shipped model; None where there is none."""
    root = _folder(source)
    candidates = [root, *(checkpoint for _, checkpoint in reversed(checkpoints(root)))]
    return next((folder for folder in candidates if (folder / part).is_dir()), None)


def _folder(source: str | Path | None) -> Path:
    """The folder that `source` names: a path, else a model of the hub, in its cache; the shipped model for None."""
    folder = PRETRAINED if source in (None, "shipped") else expand(source)
    return hub.find(str(source)) if hub.is_name(str(source)) and not folder.exists() else folder


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint-<step> folder of a training run, in order of step."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in run.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match)
