"""Devices and dtypes by name, on machines that this one is not."""

from types import SimpleNamespace

import pytest
import torch

from limner.devices import DTYPES, dtypes_of, fast_dtype, find_device, keep_freed_memory
from limner.errors import LimnerError

PARTS = ("unet", "vae", "text_encoder")


@pytest.mark.parametrize(
    ("cuda", "mps", "found"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_fastest_device_that_is_here(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, found: str
) -> None:
    tried: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda size, device: tried.append(device))
    assert find_device("auto") == torch.device(found)
    assert tried == [torch.device(found)]
    assert find_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["toaster", "", "cuda:x", "cuda:99", "vulkan", "xla"])
def test_a_device_that_is_not_here_is_named(name: str) -> None:
    with pytest.raises(LimnerError, match=f"^device '{name}' cannot be used here.*; try --device cpu$") as refused:
        find_device(name)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 150


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_is_fast_in_bfloat16_where_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fast_dtype(torch.device("cpu")) == dtype


def test_a_cpu_that_torch_does_not_describe_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fast_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_is_fast_in_bfloat16_where_it_need_not_emulate_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert fast_dtype(torch.device("cuda")) == dtype
    assert fast_dtype(torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("text", "unet", "vae"),
    [
        ("float16", "float16", "float16"),
        ("auto", "bfloat16", "bfloat16"),
        ("auto,vae=float32", "bfloat16", "float32"),
        ("float32,vae=auto", "float32", "bfloat16"),
        ("float32, vae=float16, unet=bfloat16", "bfloat16", "float16"),
        ("vae=float32", "bfloat16", "float32"),  # auto, but for one part
    ],
)
def test_one_dtype_for_all_parts_and_exceptions(text: str, unet: str, vae: str) -> None:
    dtypes = dtypes_of(text, torch.bfloat16, PARTS)
    assert list(dtypes) == list(PARTS)
    assert (dtypes["unet"], dtypes["vae"]) == (DTYPES[unet], DTYPES[vae])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bf16", "unknown dtype 'bf16'"),
        ("", "unknown dtype ''. Known: auto, bfloat16, float16, float32"),
        ("float64", "unknown dtype 'float64'; did you mean 'float16'"),
        ("auto,", "unknown dtype ''"),
        ("auto,vae", "unknown dtype 'vae'"),
        ("auto,vae=", "unknown dtype ''"),
        ("auto,vea=float32", "unknown part 'vea'; did you mean 'vae'"),
        ("auto,=float32", "unknown part ''. Known: text_encoder, unet, vae"),
        ("auto,vae==float32", "unknown part 'vae='; did you mean 'vae'"),
    ],
)
def test_an_unknown_dtype_or_part_is_named(text: str, message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        dtypes_of(text, torch.float32, PARTS)


def test_this_machine_answers() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert fast_dtype(torch.device("cpu")) in DTYPES.values()


@pytest.mark.parametrize(
    ("most", "set_to"),
    [
        (2**40, {-3: 2**26 + 1, -1: 3 * 2**26}),  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        (2**25, {-3: 2**25, -1: 3 * 2**26}),  # before glibc 2.35
        (0, {}),
    ],
)
def test_freed_memory_is_kept_where_malloc_takes_that_option(
    monkeypatch: pytest.MonkeyPatch, most: int, set_to: dict[int, int]
) -> None:
    options: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        if option == -3 and value > most:
            return 0
        options[option] = value
        return 1

    library = SimpleNamespace(mallopt=mallopt)
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("sys.platform", "linux")
    keep_freed_memory()
    assert options == set_to
    del library.mallopt  # as in musl
    keep_freed_memory()
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", None)
    keep_freed_memory()
