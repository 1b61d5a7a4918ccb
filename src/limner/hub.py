"""Models by their name on the Hugging Face hub: `owner/name` or `owner/name@revision`, in diffusers' layout.

Their files lie in the hub's own cache (HF_HOME), which diffusers and transformers share.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.files import read_json
from limner.weight_names import choose_weights

INDEX = "model_index.json"
WORD = r"\w(?:[\w.-]{0,94}\w)?"
NAME = re.compile(  # runs/ is where training writes, no owner
    rf"(?!runs/|.*(?:--|\.\.))({WORD}/{WORD})(?<!\.git)(?:@(\w[\w./-]*))?", re.ASCII
)
NEEDLESS = {  # parts of published folders that no picture is painted with, and what they do
    "safety_checker": "it judges finished pictures",
    "feature_extractor": "it prepares pictures for other parts",
    "image_encoder": "it reads pictures given as prompts",
}
WITHOUT_WEIGHTS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "Extractor")  # ends of class names
LOG_IN = "log in with `hf auth login` or set a valid HF_TOKEN"
REASONS = {  # by the name of the exception's class or of the nearest of its bases
    "GatedRepoError": f"{{repo}} is gated: accept its licence at {{endpoint}}/{{repo}}, then {LOG_IN}",
    "RepositoryNotFoundError": f"no repository {{repo}}, or it is private: check the name, or {LOG_IN}",
    "RevisionNotFoundError": "{repo} has no revision {revision}",
    "Refused": f"no access to {{repo}} ({{status}}): accept its licence at {{endpoint}}/{{repo}}, then {LOG_IN}",
    "HfHubHTTPError": "{endpoint} answered {status} for {repo}; try again later",
    "OfflineModeIsEnabled": "{repo} is not in the cache {cache}, and HF_HUB_OFFLINE forbids downloading it",
    "TransportError": "no connection to {endpoint} ({error}): check the network; complete files are kept",
    "UserWarning": "{error} Free some, or set HF_HOME to a folder on a larger disk",
    "OSError": "cannot download {repo} to {cache}: {error}",
    "RuntimeError": "cannot download {repo} to {cache}: {error}",
    **dict.fromkeys(
        ("TooManyRedirects", "LookupError", "TypeError", "AttributeError", "ValueError"),
        "{endpoint} does not answer as the Hugging Face hub does: {error}",
    ),
}


def is_name(text: str) -> bool:
    """Whether `text` has the form of a repository's name, with or without a revision."""
    return NAME.fullmatch(text) is not None


def find(name: str) -> Path:
    """The folder of a model in the cache, as it is there; downloaded if it is not."""
    try:
        return cached(name) or download(name)
    except LimnerError as error:
        hub = f"limner download {name}, from the Hugging Face hub,"
        raise LimnerError(f"there is no folder {name} here, and {hub} fails: {error}") from error


def cached(name: str) -> Path | None:
    """The folder of a model in the cache, without any request; None unless all its weights, pickles or not, are there.

    The weights are the last files that `download` fetches.
    """
    from huggingface_hub import try_to_load_from_cache

    repo, revision = _split(name)
    index = try_to_load_from_cache(repo, INDEX, revision=revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    try:
        needed(read_json(folder / INDEX), (f"{path.parent.name}/{path.name}" for path in folder.glob("*/*")), True)
    except LimnerError:
        return None
    return folder


def download(name: str, allow_pickle: bool = False) -> Path:
    """Fetch the files of a model's newest commit that limner opens and that the cache lacks; returns their folder.

    Raises LimnerError, before any weights are fetched, for a part without weights or with pickles if not allowed.
    """
    repo, revision = _split(name)
    with _explained(repo, revision):
        from huggingface_hub import HfApi, constants, hf_hub_download  # parses HF_ENDPOINT

        timeout: Any = (3, *[constants.HF_HUB_ETAG_TIMEOUT] * 3)  # connect (to each address), read, write, pool
        siblings = HfApi().model_info(repo, revision=revision, timeout=timeout).siblings  # a request without retries
        names = [sibling.rfilename for sibling in siblings or ()]
        if INDEX not in names:
            raise LimnerError(f"{repo} is not a model in diffusers' layout: it has no {INDEX}")
        folder = Path(hf_hub_download(repo, INDEX, revision=revision)).parent
        for file in needed(read_json(folder / INDEX), names, allow_pickle):
            hf_hub_download(repo, file, revision=folder.name)
    return folder


def needed(index: dict[str, Any], names: Iterable[str], allow_pickle: bool) -> list[str]:
    """The files that limner opens among the `names` of a repository: configurations and tokenizers, then weights."""
    inside: dict[str, list[str]] = {}
    for folder, _, name in (name.rpartition("/") for name in names):
        inside.setdefault(folder, []).append(name)
    small, weights = [], []
    for part, entry in (index | {"scheduler": ["", "Scheduler"]}).items():
        if (
            part in ("class_names", *NEEDLESS)
            or not isinstance(entry, list)
            or len(entry) != 2
            or not isinstance(entry[1], str)
        ):
            continue
        present = inside.get(part, [])
        small += [f"{part}/{each}" for each in present if re.fullmatch(r"(?!.*\.index\.).*\.(json|txt|model)", each)]
        if not entry[1].endswith(WITHOUT_WEIGHTS):
            try:
                weights += [f"{part}/{each}" for each in choose_weights(present, allow_pickle)]
            except LimnerError as error:
                raise LimnerError(f"{part}: {error}") from error
    return small + weights


def _split(name: str) -> tuple[str, str | None]:
    """The repository and the revision, None for its main branch."""
    match = NAME.fullmatch(name)
    if match is None:
        raise LimnerError(f"{name!r} is no name of a model on the hub; expected owner/name or owner/name@revision")
    return match[1], match[2]


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Raises LimnerError for what goes wrong between the hub and its cache."""
    from huggingface_hub import constants

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Not enough free disk space")
            yield
    except LimnerError:
        raise
    except Exception as raised:
        error = raised.__cause__ or raised if type(raised).__name__ == "LocalEntryNotFoundError" else raised
        kinds = [each.__name__ for each in type(error).__mro__]
        status = getattr(getattr(error, "response", None), "status_code", None)
        kind = next((kind for kind in kinds if kind in REASONS), None)
        if kind is None:
            raise
        reason = REASONS["Refused" if kind == "HfHubHTTPError" and status in (401, 403) else kind]
        text = getattr(error, "strerror", None) or str(error).strip() or kinds[0]
        places = {"endpoint": constants.ENDPOINT, "cache": constants.HF_HUB_CACHE}
        raise LimnerError(reason.format(repo=repo, revision=revision, status=status, error=text, **places)) from raised
