"""A quarter of a minute of what ``python -m tests.helpers.soak`` does for half an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.soak import soak

pytestmark = pytest.mark.slow


def test_saving_again_and_again_costs_neither_memory_nor_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may waver by 5% in so short a time; every step is in metrics.csv once, over a stop and a resume."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory and open files of another process are read from /proc")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = soak(tmp_path, 14.0, "logger=csv", "callbacks.samples.prompts=1", "data.max_test_pairs=32")
    assert found.codes == [143, 143]
    assert found.saves > 4
    assert found.gaps == []
    assert len(found.left) == 2
    first, last = found.thirds("memory")
    assert last < 1.05 * first
    first, last = found.thirds("handles")  # medians: while it saves, some more are open
    assert last <= first + 2
