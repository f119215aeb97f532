"""W&B: offline without an account, read back from its file; groups, closing and accounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from caldpo.loggers import NoTracker, WandB, account_configured
from tests import wandb_file


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.usefixtures("no_account")
class TestAccount:
    def test_none(self) -> None:
        assert not account_configured()

    def test_key_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        assert account_configured()
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert not account_configured()

    def test_netrc(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "netrc"
        file.write_text("machine wandb.example.org login user password " + "x" * 40 + "\n")
        file.chmod(0o600)
        monkeypatch.setenv("NETRC", str(file))
        assert not account_configured()
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
        assert account_configured()


@pytest.mark.usefixtures("no_account")
def test_offline_runs_of_a_sweep_are_apart_and_complete(tmp_path: Path) -> None:
    """Three runs in one process, as in a sweep: three files, each with its own rows and the shared group."""
    for i in range(3):
        folder = tmp_path / f"run{i}"
        folder.mkdir()
        tracker = WandB()
        (logger,) = tracker.open(folder, f"run{i}", "sweep", {"loss": {"beta": 0.1 * i}, "seed": i})
        for step in range(5):
            logger.log_metrics({"loss": 10.0 * i + step, "rewards/chosen": -step}, step)
        logger.log_metrics({"val/loss": 0.5}, 5)
        logger.log_table("samples", columns=["step", "text"], data=[[0, "good"]], step=5)
        upload = tracker.close()
        assert upload is not None
        assert upload.startswith("wandb sync ")
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        assert Path(upload.removeprefix("wandb sync ")).resolve() == file.parent.resolve()
        wandb_file.wait_until_written(file)
        rows = wandb_file.history(file)
        losses = [(r["trainer/global_step"], r["loss"]) for r in rows if "loss" in r]
        assert losses == [(step, 10.0 * i + step) for step in range(5)]
        assert [r["val/loss"] for r in rows if "val/loss" in r] == [0.5]
        assert any(key.startswith("samples") for row in rows for key in row)
        assert wandb_file.config(file)["seed"] == i
        runs = [r.run for r in wandb_file.records(file) if r.WhichOneof("record_type") == "run"]
        assert {r.run_group for r in runs} == {"sweep"}
        axes = [r.metric for r in wandb_file.records(file) if r.WhichOneof("record_type") == "metric"]
        assert {m.glob_name: m.step_metric for m in axes if m.glob_name} == {"*": "trainer/global_step"}


def test_without_a_tracker_nothing_is_opened(tmp_path: Path) -> None:
    tracker = NoTracker()
    assert tracker.open(tmp_path, "run", None, {}) == []
    assert tracker.close() is None
    assert list(tmp_path.iterdir()) == []
