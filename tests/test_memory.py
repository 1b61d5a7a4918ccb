"""Memory of a run: what a step takes it gives back."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_recipe, trainer

pytestmark = pytest.mark.usefixtures("one_thread")
STATM = Path("/proc/self/statm")


@pytest.mark.skipif(not STATM.is_file(), reason="the memory of a process is not known on this system")
def test_memory_is_flat_over_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps 80 and 240 neither resident memory nor the number of tensors grows."""
    run = trainer(replace(tiny_recipe(tmp_path), steps=240, save_every=0, log_every=50, schedule="constant"))
    step, seen = run.train_step, []

    def counted(*arguments: Any) -> Any:
        seen.append(int(STATM.read_text().split()[1]) * 4096)
        return step(*arguments)

    monkeypatch.setattr(run, "train_step", counted)
    run.run()
    gc.collect()
    assert len(seen) == 240
    assert max(seen[200:]) - max(seen[80:120]) < 4 * 2**20
