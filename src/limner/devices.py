"""Devices and dtypes by name, "auto" included."""

import ctypes
import sys
from collections.abc import Iterable

import torch

from limner.errors import LimnerError, unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
MAX_REASON = 60  # characters of torch's reason that are repeated
# Parameters of mallopt(3), in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def find_device(name: str | torch.device) -> torch.device:
    """The device called `name`; "auto" is cuda, else mps, else cpu. Raises LimnerError for one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).splitlines()[0]
        why = f" ({reason})" if len(reason) <= MAX_REASON else ""  # torch may list its operators and backends
        raise LimnerError(f"device {str(name)!r:.60} cannot be used here{why}; try --device cpu") from error
    return device


def keep_freed_memory() -> None:
    """Let glibc hand the memory of one layer's output to the next: blocks up to 64 MiB are not returned to the system.

    A step of Stable Diffusion at 512x512 spends a tenth of its time on fresh pages without it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # Older versions take at most 32 MiB. Either option ends malloc's own adjustment, so the second needs the first.
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, 2**26 + 1) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 3 * 2**26)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # torch 2.10 and later
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if any(capabilities.get(each) for each in BF16_INSTRUCTIONS) else torch.float32
    return torch.float32


def dtypes_of(text: str | torch.dtype, auto: torch.dtype, parts: Iterable[str]) -> dict[str, torch.dtype]:
    """The dtype of each part: one for all, torch's or its name ("bfloat16"; "auto" is `auto`), then exceptions
    ("auto,vae=float32").

    Raises LimnerError for an unknown dtype or part.
    """
    known = DTYPES | {"auto": auto}
    dtypes = dict.fromkeys(parts, auto)
    for entry in str(text).removeprefix("torch.").split(","):
        name, equals, value = entry.strip().rpartition("=")
        if value not in known:
            raise unknown("dtype", value, known)
        if equals and name not in dtypes:
            raise unknown("part", name, dtypes)
        dtypes |= dict.fromkeys([name] if equals else dtypes, known[value])
    return dtypes
