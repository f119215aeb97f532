"""Count what references compute."""

from __future__ import annotations

import pytest

from caldpo.reference import frozen_model, logprob_store, precomputed
from tests.reference.contexts import CountedEngine


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> CountedEngine:
    """Count the pairs that go through precomputed and frozen references; parts have eight pairs."""
    engine = CountedEngine(precomputed.LogprobEngine)
    monkeypatch.setattr(precomputed, "LogprobEngine", engine)
    monkeypatch.setattr(frozen_model, "LogprobEngine", engine)
    monkeypatch.setattr(logprob_store, "PAIRS_PER_PART", 8)
    return engine
