"""Model folders and training runs on disk: where they are, and what a model_index.json says."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.files import check_range, check_types, from_entries

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Defaults:
    """How a model paints unless it is told otherwise; None where its family decides."""

    steps: int | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, ("steps",), 1)


@dataclass(frozen=True)
class Index:
    """What limner reads in a model_index.json: the pipeline's name, its parts as (library, class) by folder, the names
    of classes (empty where it is not conditioned on one), and defaults."""

    pipeline: str
    parts: dict[str, tuple[str, str]]
    class_names: tuple[str, ...]
    defaults: Defaults

    def class_of(self, folder: str, missing: str) -> str:
        """The class of the part in `folder`; `missing` where the index does not say."""
        return self.parts.get(folder, ("", missing))[1]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Index":
        pipeline, names, defaults = (
            content.get(key, missing) for key, missing in (("_class_name", ""), ("class_names", []), ("defaults", {}))
        )
        if not isinstance(pipeline, str):
            raise LimnerError(f"_class_name must be a text, not {pipeline!r:.60}")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
            raise LimnerError(f"class_names must be a list of different names, not {names!r:.60}")
        if not isinstance(defaults, dict):
            raise LimnerError(f"defaults must be an object of names and values, not {defaults!r:.60}")
        parts: dict[str, tuple[str, str]] = {}
        for folder, part in content.items():
            if folder in ("class_names", "defaults") or folder.startswith("_") or part in (None, [None, None]):
                continue  # diffusers writes nulls for what is left out
            if not isinstance(part, list):
                continue  # a setting of the pipeline, as requires_safety_checker
            if len(part) != 2 or not all(isinstance(each, str) for each in part):
                raise LimnerError(f"{folder} must be a library and a class, as ['limner', 'DiT'], not {part!r:.60}")
            parts[folder] = (part[0], part[1])
        return cls(pipeline, parts, tuple(names), from_entries(Defaults, defaults, "how to paint (defaults)"))


def find_model(source: str | Path | None) -> Path:
    """The folder with the model_index.json: `source` itself, or the newest checkpoint of a training run; the shipped
    model for None and "shipped"."""
    folder = PRETRAINED if source in (None, "shipped") else Path(source)
    if (folder / "model_index.json").is_file():
        return folder
    if not folder.exists():
        raise LimnerError(f"no model at {folder}: give a model folder or a training run, or leave --model out")
    found = checkpoints(folder)
    if not found:
        raise LimnerError(f"{folder} is not a model: it holds neither model_index.json nor a checkpoint-<step> folder")
    return found[-1][1]


def find_autoencoder(source: str | Path) -> Path:
    """The vae/ of a model folder, of a training run's newest checkpoint that has one, or of the shipped model."""
    root = PRETRAINED if source == "shipped" else Path(source)
    candidates = [root, *(checkpoint for _, checkpoint in reversed(checkpoints(root)))]
    found = next((each / "vae" for each in candidates if (each / "vae/config.json").is_file()), None)
    if found is None:
        raise LimnerError(
            f"no autoencoder at {source}: expected a folder with vae/config.json, or a run that trains one"
        )
    return found


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The (step, folder) of every checkpoint-<step> folder of a training run, the newest last."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in run.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match)
