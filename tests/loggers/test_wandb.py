"""W&B: offline without an account, read back from its file; groups, closing and accounts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import wandb

from caldpo.loggers import NoTracker, WandB
from caldpo.loggers.wandb_account import account_configured
from tests.helpers import wandb_file
from tests.helpers.messages import names, refused


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
        tracker.close()
        upload = tracker.upload
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


class TestSettings:
    """A key wins over W&B's own variable, that over the default."""

    VARIABLES = ("PROJECT", "ENTITY", "NAME", "NOTES", "RUN_GROUP")

    def opened(self, folder: Path, tracker: WandB, group: str | None = None, **config: Any) -> Any:
        assert len(tracker.open(folder, "loss=dpo seed=0 run", group, config)) == 1
        tracker.close()
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        wandb_file.wait_until_written(file)
        return next(r.run for r in wandb_file.records(file) if r.WhichOneof("record_type") == "run")

    @pytest.fixture
    def variables(self, no_account: None, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in self.VARIABLES:
            monkeypatch.setenv(f"WANDB_{name}", f"env-{name.lower()}")
        monkeypatch.setenv("WANDB_TAGS", "one,two")

    @pytest.mark.usefixtures("variables")
    def test_variables_are_heeded(self, tmp_path: Path) -> None:
        run = self.opened(tmp_path, WandB())
        assert (run.project, run.entity, run.display_name) == ("env-project", "env-entity", "env-name")
        assert (run.notes, run.run_group, list(run.tags)) == ("env-notes", "env-run_group", ["one", "two"])

    @pytest.mark.usefixtures("variables")
    def test_keys_win(self, tmp_path: Path) -> None:
        keys = {name: f"key-{name}" for name in ("project", "entity", "name", "group")}
        run = self.opened(tmp_path, WandB(**keys), group="sweep", notes="key-notes", tags=["three"])
        assert (run.project, run.entity, run.run_group) == ("key-project", "key-entity", "key-group")
        assert (run.notes, list(run.tags)) == ("key-notes", ["three"])
        assert run.display_name == "key-name: loss=dpo seed=0 run"  # one of a sweep keeps its own beside it

    @pytest.mark.usefixtures("no_account")
    def test_defaults(self, tmp_path: Path) -> None:
        run = self.opened(tmp_path, WandB(), group="sweep")
        assert (run.project, run.display_name, run.run_group) == ("caldpo", "loss=dpo seed=0 run", "sweep")
        assert (run.notes, list(run.tags)) == ("", [])

    @pytest.mark.usefixtures("no_account")
    @pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true"), (None, "")])
    def test_disabled_opens_nothing(
        self, name: str | None, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        if name is not None:
            monkeypatch.setenv(name, value)
        tracker = WandB(mode="disabled" if name is None else "auto")
        assert tracker.open(tmp_path, "run", None, {}) == []
        tracker.close()
        assert tracker.upload is None
        assert list(tmp_path.iterdir()) == []

    def test_the_name_holds_loss_and_seed(self) -> None:
        from caldpo.run_record import tracked_name

        assert tracked_name(Path("a/train_2026"), "dpo", 3) == "loss=dpo seed=3 train_2026"
        assert tracked_name(Path("a/loss=dpo,seed=3,loss.beta=1"), "dpo", 3) == "loss=dpo,seed=3,loss.beta=1"
        assert tracked_name(Path("a/loss=dpo,seed=31"), "dpo", 3) == "seed=3 loss=dpo,seed=31"


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WANDB_PROJECT", "a/b", "Invalid project name"),
        ("WANDB_TAGS", "x" * 80, "run_tags: "),
        ("WANDB_API_KEY", "short", "API key"),
    ],
)
def test_variables_that_wandb_refuses_are_a_mistake_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with refused("W&B", said, key="logger", value="wandb", remedy="logger=csv"):
        WandB().open(tmp_path, "run", None, {})


@pytest.mark.usefixtures("no_account")
def test_runs_of_a_sweep_are_apart_where_a_variable_names_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Any]] = []

    def begun(self: WandB, run_dir: Path, **arguments: Any) -> Any:
        found.append(arguments)
        return wandb.init(mode="disabled")

    monkeypatch.setattr(WandB, "_init", begun)
    for group in ("sweep", "sweep", None):
        WandB().open(tmp_path, "run", group, {})
    assert "id" not in found[2], "that of WANDB_RUN_ID, where there is one"
    assert found[0]["id"] != found[1]["id"]


def test_without_a_tracker_nothing_is_opened(tmp_path: Path) -> None:
    tracker = NoTracker()
    assert tracker.open(tmp_path, "run", None, {}) == []
    tracker.close()
    assert tracker.upload is None
    assert tracker.add_summary(tmp_path, {"a": 1.0}) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_account")
class TestSummary:
    """Figures that come after training."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """An offline run that has ended, with an account that it did not ask for."""
        folder = tmp_path / "run"
        folder.mkdir()
        tracker = WandB(mode="offline")
        (logger,) = tracker.open(folder, "run", "sweep", {"seed": 0})
        logger.log_metrics({"loss": 2.0}, 0)
        tracker.close()
        return folder

    def files(self, run: Path) -> list[Path]:
        found = list(run.glob("wandb/offline-run-*/*.wandb"))
        for file in found:
            wandb_file.wait_until_written(file)
        return sorted(found, key=wandb_file.started)

    def test_is_added_to_the_run_that_is_there(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        key = "k" * 40
        monkeypatch.setenv("WANDB_API_KEY", key)  # an account alone does not make an offline run an online one
        (first,) = self.files(run)
        monkeypatch.chdir(run.parent)
        # what is logged by W&B's names and by the CSV's
        (run / "metrics.csv").write_text("epoch,loss,step,val/loss\n0,3.0,0,\n0,,0,0.7\n1,2.0,4,\n")
        for value in (0.75, 0.5):  # within a second, as a rule: W&B numbers the second folder
            told = WandB().add_summary(Path("run"), {"evaluation/a/b": value, "evaluation/a/c": float("nan")})
            assert told is not None
            names(told, "W&B", "wandb sync run/wandb")
        later = [file for file in self.files(run) if file != first]
        assert len(later) == 2
        assert [wandb_file.summary(file)["evaluation/a/b"] for file in later] == [0.75, 0.5]
        for file in later:
            assert wandb_file.run_id(file) == wandb_file.run_id(first)
            summary = wandb_file.summary(file)
            assert "evaluation/a/c" not in summary
            # W&B takes this summary in place of that of training
            logged = {"epoch": 1.0, "loss": 2.0, "trainer/global_step": 4.0, "val/loss": 0.7}
            assert {name: summary[name] for name in logged} == logged
            assert wandb_file.history(file) == []
        for path in run.rglob("*"):
            if path.is_file():
                assert key.encode() not in path.read_bytes(), path

    def test_is_added_to_the_newest_of_several(self, run: Path) -> None:
        (first,) = self.files(run)
        for when in ("20200101_000000", "29990101_000000"):
            other = run / "wandb" / f"offline-run-{when}-id{when[:4]}"
            other.mkdir()
            (other / f"run-id{when[:4]}.wandb").write_bytes(b"")
        WandB().add_summary(run, {"a": 1.0})
        (new,) = {*run.glob("wandb/offline-run-*/run-id2999.wandb")} - {other / "run-id2999.wandb"}
        wandb_file.wait_until_written(new)
        assert wandb_file.run_id(new) == "id2999" != wandb_file.run_id(first)

    def test_is_nobodys_without_a_run(self, tmp_path: Path) -> None:
        assert WandB().add_summary(tmp_path, {"a": 1.0}) is None
        (tmp_path / "wandb" / "latest-run").mkdir(parents=True)
        (tmp_path / "wandb" / "latest-run" / "run-x.wandb").write_bytes(b"")
        assert WandB().add_summary(tmp_path, {"a": 1.0}) is None

    def test_asks_for_no_key_on_the_terminal(self, tmp_path: Path) -> None:
        online = tmp_path / "wandb" / "run-20250101_000000-abc"
        online.mkdir(parents=True)
        (online / "run-abc.wandb").write_bytes(b"")
        told = WandB().add_summary(tmp_path, {"a": 1.0})
        assert told is not None
        names(told, "API key")
        assert [path.name for path in (tmp_path / "wandb").iterdir()] == [online.name]

    def test_a_failure_is_told_and_stops_nothing(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import wandb

        def fail(**arguments: object) -> None:
            raise wandb.Error("the service did not start\nat all")

        monkeypatch.setattr(wandb, "init", fail)
        told = WandB().add_summary(run, {"a": 1.0})
        names(told, "W&B", "Error: the service did not start at all")


@pytest.mark.usefixtures("no_account")
def test_online_without_a_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with refused("W&B", key="logger", value="wandb", remedy="logger.wandb.mode=offline"):
        WandB().open(tmp_path, "run", None, {})
