"""A count of what references compute."""

from __future__ import annotations

import pytest

from caldpo.reference import frozen_model as resident
from caldpo.reference import logprob_store as store
from caldpo.reference import precomputed as cached
from tests.reference.contexts import CountedEngine


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> CountedEngine:
    """Counts the pairs that go through cached and resident references; parts have eight pairs."""
    engine = CountedEngine(cached.LogprobEngine)
    monkeypatch.setattr(cached, "LogprobEngine", engine)
    monkeypatch.setattr(resident, "LogprobEngine", engine)
    monkeypatch.setattr(store, "PAIRS_PER_PART", 8)
    return engine
