"""Safetensors files, read with clear errors and written atomically."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import LimnerError
from limner.files import write_atomically

# What a file that is not safetensors may be, by its first letters, and what to do about it.
OTHERS = {
    b"version https://git-lfs": "it is a git-LFS pointer, not the weights themselves: fetch them with `git lfs pull`",
    b"<": "it is a web page, not weights: the address gave no file, or wanted a login",
    b"PK": "it is a zip archive, as torch.save writes: a pickle, which limner does not open; save it as safetensors",
    b"\x80": "it is a pickle, which can run programs and which limner does not open; save it as safetensors",
    b"GGUF": "it is a GGUF file, which limner does not read; take the safetensors of the same model",
    b"\x1f\x8b": "it is packed with gzip: unpack it",
    b"{": "it is JSON, not weights: an index of shards, or a server's answer",
}
CUT_SHORT = "it was probably cut short: copy or download it again"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped into memory. Raises LimnerError that says what the file is instead."""
    if not path.is_file():
        others = sorted(file.name for file in path.parent.glob("*") if file.suffix not in (".json", ".txt"))
        raise LimnerError(f"no weights at {path}" + (f"; its folder holds {', '.join(others[:8])}" if others else ""))
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise LimnerError(f"{path} is not a whole safetensors file ({error}): {_what_it_is(path)}") from error


def _what_it_is(path: Path) -> str:
    """A guess, from the first bytes, at what a file is that safetensors could not read."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return str(error.strerror or error)
    if not start:
        return "it is empty"
    if start[8:9] == b"{":  # safetensors: eight bytes of length, then the header; the length may begin like a pickle
        return CUT_SHORT
    return next((what for first, what in OTHERS.items() if start.lstrip().startswith(first)), CUT_SHORT)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(whole, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read

    try:
        write_atomically(path, write)
    except SafetensorError as error:  # safetensors wraps a full disk in its own error
        raise LimnerError(f"cannot write {path}: {error}") from error
