"""How often a command composes and checks its configurations: counts, which unlike seconds are the same everywhere.

Passes of the reference over the pairs are counted in ``tests/reference/test_sweep.py``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from caldpo.config import preflight
from caldpo.config.hydra_session import hydra_session
from tests.helpers.command import train

COMPOSED, CHECKED = "composed", "checked"


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Compositions by Hydra's loader, and checks of a run's configuration."""
    counted: Counter[str] = Counter()
    monkeypatch.chdir(tmp_path)

    def count(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    with hydra_session("train") as session:
        loader = type(session.loader)
    count(loader, "load_configuration", COMPOSED)
    count(preflight, "find_problems", CHECKED)
    return counted


def test_a_run_is_composed_to_be_checked_and_to_be_run(counts: Counter[str]) -> None:
    train("experiment=tabular", "dry_run=true", "hydra.run.dir=run")
    assert counts[COMPOSED] <= 2
    assert counts[CHECKED] == 1


def test_a_sweep_composes_each_run_at_most_thrice_and_checks_it_once(counts: Counter[str]) -> None:
    """And the sweep as a whole at most twice."""
    train("-m", "experiment=tabular", "dry_run=true", "loss=dpo", "seed=0,1,2", "hydra.sweep.dir=sweep")
    assert counts[COMPOSED] <= 2 + 3 * 3
    assert counts[CHECKED] == 3
