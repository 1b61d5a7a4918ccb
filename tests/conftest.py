"""What several test files need."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from limner.train.recipe import Recipe


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data that lies beside the checkout; what needs it is skipped where it is absent."""
    folder = Path(os.environ.get("LIMNER_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data, absent here: {folder}")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> "Recipe":
    """A tiny run on pictures whose caption is their colour."""
    from helpers import tiny_recipe

    return tiny_recipe(tmp_path)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: of networks this small, two that share busy cores take ten times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def any_precision() -> Iterator[None]:
    """Accelerate keeps one precision for a process; here a run may choose its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
