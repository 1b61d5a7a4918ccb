"""Reading and writing safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import LimnerError
from limner.files import write_atomically

# Diagnoses of files that are not safetensors, by their first bytes.
FILE_SIGNATURES = {
    b"version https://git-lfs": "it is a git-LFS pointer, not the weights themselves: fetch them with `git lfs pull`",
    b"<": "it is a web page, not weights: the address is not that of a file, or needs a login",
    b"PK": "it is a zip archive, as torch.save writes: a pickle, which limner does not open; save it as safetensors",
    b"\x80": "it is a pickle, which can run programs and which limner does not open; save it as safetensors",
    b"GGUF": "it is a GGUF file, which limner does not read; take the safetensors of the same model",
    b"\x1f\x8b": "it is packed with gzip: unpack it",
    b"{": "it is JSON, not weights: an index of shards, or a server's answer",
}
CUT_SHORT = "it was probably cut short: copy or download it again"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped. Raises LimnerError, with a diagnosis, for any other file."""
    if not path.is_file():
        others = sorted(file.name for file in path.parent.glob("*") if file.suffix not in (".json", ".txt"))
        raise LimnerError(f"no weights at {path}" + (f"; its folder holds {', '.join(others[:8])}" if others else ""))
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise LimnerError(f"{path} is not a valid safetensors file ({error}): {_diagnosis(path)}") from error


def _diagnosis(path: Path) -> str:
    """What an invalid safetensors file probably is, from its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return str(error.strerror or error)
    if not start:
        return "it is empty"
    if start[8:9] == b"{":  # a safetensors header after its 8-byte length, whose bytes may look like a pickle
        return CUT_SHORT
    return next((what for first, what in FILE_SIGNATURES.items() if start.lstrip().startswith(first)), CUT_SHORT)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(contiguous, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors creates files with mode 0600

    try:
        write_atomically(path, write)
    except SafetensorError as error:  # e.g. a full disk
        raise LimnerError(f"cannot write {path}: {error}") from error
