"""Commits of the hub that a run begins with are those that it resumes with, if branches move."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from caldpo.data.datamodule import PairDataModule
from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.models import hub_model
from caldpo.models.hub_model import HubModel
from caldpo.resume.pins import DATA_COMMIT, MODEL_COMMIT, pin, pin_model
from tests.helpers.messages import names

OLD, NEW = "a" * 40, "b" * 40
EMBEDDED: Any = SimpleNamespace(repository=lambda: None)


def test_a_resumed_run_loads_the_commit_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = {"main": OLD}
    monkeypatch.setattr(hub_model, "commit_of", lambda path, revision: branch.get(revision or "main", revision))
    source = HubModel("some/model")
    assert pin_model(source, {}) == OLD
    assert source.revision == OLD
    branch["main"] = NEW
    resumed = HubModel("some/model")
    assert pin_model(resumed, {MODEL_COMMIT: OLD}) == OLD
    assert resumed.revision == OLD
    names(capsys.readouterr().out, "some/model", "main", OLD, NEW)
    assert pin_model(EMBEDDED, {MODEL_COMMIT: OLD}) is None  # it has no repository


def test_a_resumed_run_reads_the_commit_of_its_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def pinned(commit: str | None, recorded: dict[str, Any]) -> tuple[str | None, str | None]:
        source = HubDataset("some/pairs", revision="main")
        monkeypatch.setattr(HubDataset, "commit", lambda self: commit)
        data = PairDataModule.__new__(PairDataModule)
        data.source, data.now = source, datetime(2024, 2, 29)
        entry = pin(EMBEDDED, data, recorded).get(DATA_COMMIT)
        assert isinstance(data.source, HubDataset)
        return entry, data.source.revision

    assert pinned(OLD, {}) == (OLD, OLD)
    assert pinned(NEW, {DATA_COMMIT: OLD}) == (OLD, OLD)
    assert pinned(None, {}) == (None, "main")  # a folder
