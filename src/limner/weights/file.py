"""Safetensors files, read with clear errors and written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import LimnerError
from limner.files import write_atomically


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped into memory."""
    if not path.is_file():
        raise LimnerError(f"no weights at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise LimnerError(
            f"{path} is not a whole safetensors file ({error}); it was probably cut short: copy or download it again"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(whole, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read

    try:
        write_atomically(path, write)
    except SafetensorError as error:  # safetensors wraps a full disk in its own error
        raise LimnerError(f"cannot write {path}: {error}") from error
