"""TensorBoard, MLflow and Trackio, each read back from its own files by its own reader; without a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caldpo.loggers import MLflow, TensorBoard, Tracker, Trackers, Trackio
from caldpo.metrics_file import RowWriter, iter_rows
from tests.helpers.messages import names, refused

CONFIG = {"loss_name": "dpo", "loss": {"beta": 0.25}, "seed": 3, "tags": ["a", "b"], "notes": "why <b>"}
ROWS = [({"loss": 0.7}, 0), ({"val/loss": 0.6, "val/log_ratios/chosen": -1.5}, 0), ({"loss": 0.5}, 1)]
CURVES = {"loss": [(0, 0.7), (1, 0.5)], "val/loss": [(0, 0.6)], "val/log_ratios/chosen": [(0, -1.5)]}
NAME = "loss=dpo seed=3 run"
Read = Callable[[Path], "dict[str, Any]"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, with no settings of the machine."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep" / "run"
    folder.mkdir(parents=True)
    return folder


def tensorboard_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def store() -> str:
    """MLflow's address of the database in the current folder."""
    return f"sqlite:///{Path.cwd()}/mlflow.db"


def mlflow_runs() -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store())
    experiment = client.get_experiment_by_name("caldpo")
    return list(client.search_runs([experiment.experiment_id]))


def mlflow_curves() -> dict[str, list[tuple[int, float]]]:
    from mlflow.tracking import MlflowClient

    client, (found,) = MlflowClient(store()), mlflow_runs()
    return {
        key: [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, key)]
        for key in found.data.metrics
    }


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trackio reads its variable once, when it is imported."""
    pytest.importorskip("trackio", reason="the [trackio] extra is not installed")
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return tmp_path / "trackio"


def trackio_runs() -> list[tuple[Any, list[dict[str, Any]]]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(trackio.Api().runs("caldpo"))
    return [(found, SQLiteStorage.get_logs("caldpo", found.name, run_id=found.id)) for found in runs]


def trackio_curves() -> dict[str, list[tuple[int, float]]]:
    ((_, rows),) = trackio_runs()
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                curves.setdefault(key, []).append((row["step"], value))
    return curves


def track(tracker: Tracker, run: Path, *, group: str | None = "sweep", earlier: Any = None, rows: Any = ROWS) -> None:
    """A run from end to end, with Lightning's call at the end of each loop."""
    (logger,) = tracker.open(run, NAME, group, CONFIG, earlier)
    for metrics, step in rows:
        logger.log_metrics(metrics, step)
        logger.finalize("success")
    logger.log_table("samples", columns=["step", "sample"], data=[[0, "a | b\n<s>"]], step=0)  # type: ignore[attr-defined]
    tracker.summarize({"run/steps": 2.0, "run/wall_seconds": 1.5, "run/start_difference": math.nan})
    tracker.close()


def close_to(curves: dict[str, list[tuple[int, float]]], expected: dict[str, list[tuple[int, float]]]) -> bool:
    """Whether the curves hold the expected ones, to the float32 of TensorBoard's files."""
    return all(
        [step for step, _ in curves[name]] == [step for step, _ in points]
        and [value for _, value in curves[name]] == pytest.approx([value for _, value in points])
        for name, points in expected.items()
    )


class TestTensorBoard:
    def test_curves_samples_and_hyperparameters(self, run: Path) -> None:
        tracker = TensorBoard()
        track(tracker, run)
        assert close_to(tensorboard_scalars(run), CURVES)
        assert "run/start_difference" not in tensorboard_scalars(run)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (folder,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
        assert folder.relative_to(run).as_posix() == "tensorboard/loss=dpo seed=3"  # what the run's folder does not say
        events = EventAccumulator(str(folder))
        events.Reload()
        (text,) = (e.tensor_proto.string_val[0].decode() for e in events.Tensors("samples/text_summary"))
        assert text.splitlines()[-1] == "| 0 | a &#124; b &lt;s&gt; |"
        hparams = events.PluginTagToContent("hparams")
        assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= hparams.keys()
        assert b"loss/beta" in hparams["_hparams_/session_start_info"]
        assert tracker.view == "tensorboard --logdir sweep"

    def test_a_resumed_run_has_each_row_once(self, run: Path) -> None:
        track(TensorBoard(), run, rows=[*ROWS, ({"loss": 9.0}, 2)])  # the last is cut off by the resume
        writer = RowWriter(run / "metrics.csv")
        for metrics, step in ROWS:
            writer.write(metrics, step)
        track(TensorBoard(), run, earlier=iter_rows(run / "metrics.csv"), rows=[({"loss": 0.25}, 2)])
        assert close_to(tensorboard_scalars(run), {**CURVES, "loss": [*CURVES["loss"], (2, 0.25)]})

    def test_an_evaluation_is_added(self, run: Path) -> None:
        assert TensorBoard().add_summary(run, {"evaluation/a/b": 0.5}) is None
        assert not (run / "tensorboard").exists(), "there was no run"
        track(TensorBoard(), run)
        assert TensorBoard().add_summary(run, {"evaluation/a/b": 0.5}) is None
        assert tensorboard_scalars(run)["evaluation/a/b"] == [(0, 0.5)]


class TestMLflow:
    def test_curves_parameters_tags_and_samples(self, run: Path) -> None:
        tracker = MLflow()
        track(tracker, run)
        (found,) = mlflow_runs()
        assert close_to(mlflow_curves(), CURVES)
        assert (found.info.run_name, found.info.status) == (NAME, "FINISHED")
        assert (found.data.params["loss/beta"], found.data.params["seed"]) == ("0.25", "3")
        tags = found.data.tags
        assert (tags["sweep"], tags["tags"], tags["mlflow.note.content"]) == ("sweep", "a, b", "why <b>")
        assert str(Path.cwd()) not in str({key: tag for key, tag in tags.items() if key != "mlflow.log-model.history"})
        assert found.data.metrics["run/wall_seconds"] == 1.5
        assert "run/start_difference" not in found.data.metrics
        from mlflow.tracking import MlflowClient

        table = MlflowClient(store()).download_artifacts(found.info.run_id, "samples.json")
        assert "a | b\\n<s>" in Path(table).read_text()
        assert "sqlite:///mlflow.db" in str(tracker.view)

    def test_a_failed_run_says_so(self, run: Path) -> None:
        tracker = MLflow()
        tracker.open(run, NAME, None, CONFIG)
        tracker.close(failed=True)
        (found,) = mlflow_runs()
        assert found.info.status == "FAILED"
        assert "sweep" not in found.data.tags

    def test_a_resumed_run_has_each_row_once(self, run: Path) -> None:
        track(MLflow(), run, rows=[*ROWS, ({"loss": 9.0}, 2)])
        earlier = [{"step": "0", "loss": "0.7", "val/loss": ""}, {"step": "1", "loss": "0.5", "val/loss": ""}]
        track(MLflow(), run, earlier=earlier, rows=[({"loss": 0.25}, 2)])
        assert mlflow_curves()["loss"] == [(0, 0.7), (1, 0.5), (2, 0.25)]  # of the one that is not deleted
        assert MLflow().add_summary(run, {"evaluation/a/b": 0.5}) is None
        assert mlflow_curves()["evaluation/a/b"] == [(0, 0.5)]

    def test_keys_win_over_variables(self, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/theirs.db")
        track(MLflow(experiment="caldpo", tracking_uri=store(), name="mine"), run)
        (found,) = mlflow_runs()
        assert found.info.run_name == f"mine: {NAME}"  # one of a sweep keeps its own beside it
        assert not (tmp_path / "theirs.db").exists()

    def test_a_store_that_is_none_is_a_mistake_to_mend(self, run: Path) -> None:
        with refused("MLflow", key="logger", value="mlflow", remedy="logger.mlflow"):
            MLflow(tracking_uri="nonsense://x").open(run, NAME, None, CONFIG)


class TestTrackio:
    def test_curves_configuration_group_and_samples(self, run: Path, trackio_folder: Path) -> None:
        tracker = Trackio()
        track(tracker, run)
        curves = trackio_curves()
        assert close_to(curves, CURVES)
        assert curves["samples"][0][1]["_value"] == [{"step": 0, "sample": "a | b\n<s>"}]
        ((found, _),) = trackio_runs()
        assert (found.name, found.config["loss"], found.config["_Group"]) == (NAME, {"beta": 0.25}, "sweep")
        assert list(trackio_folder.glob("caldpo.db"))
        assert tracker.view == "trackio show --project caldpo"

    def test_a_resumed_run_has_each_row_once_and_others_of_its_name_stay(
        self, run: Path, trackio_folder: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "sweep2" / "run"
        other.mkdir(parents=True)
        track(Trackio(), other, rows=[({"loss": 5.0}, 0)])
        track(Trackio(), run, rows=[*ROWS, ({"loss": 9.0}, 2)])
        earlier = [{"step": "0", "loss": "0.7"}, {"step": "1", "loss": "0.5"}]
        track(Trackio(), run, earlier=earlier, rows=[({"loss": 0.25}, 2)])
        losses = [[row["loss"] for row in rows if "loss" in row] for _, rows in trackio_runs()]
        assert sorted(losses) == [[0.7, 0.5, 0.25], [5.0]]

    def test_an_evaluation_is_added_to_its_own_run(self, run: Path, trackio_folder: Path) -> None:
        track(Trackio(), run)
        assert Trackio().add_summary(run, {"evaluation/a/b": 0.5}) is None
        ((found, rows),) = trackio_runs()
        assert [row["evaluation/a/b"] for row in rows if "evaluation/a/b" in row] == [0.5]
        assert (found.config["loss"], found.config["_Group"]) == ({"beta": 0.25}, "sweep")


@pytest.mark.parametrize(
    ("tracker", "package", "option"),
    [(TensorBoard, "tensorboard", "tensorboard"), (MLflow, "mlflow", "mlflow"), (Trackio, "trackio", "trackio")],
)
def test_what_is_not_installed_names_its_extra(
    tracker: type[Tracker], package: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused("not installed", key="logger", value=option, remedy=f"caldpo[{option}]"):
        Trackers({option: tracker()}).check()


def test_several_at_once_are_each_told(run: Path) -> None:
    trackers = Trackers({"tensorboard": TensorBoard(), "mlflow": MLflow()})
    earlier = iter([{"step": "0", "loss": "0.7"}])  # read once
    loggers = trackers.open(run, NAME, "sweep", CONFIG, earlier)
    for logger in loggers:
        logger.log_metrics({"loss": 0.5}, 1)
    trackers.close()
    assert len(loggers) == len(trackers.views) == 2
    assert close_to(tensorboard_scalars(run), {"loss": CURVES["loss"]})
    assert close_to(mlflow_curves(), {"loss": CURVES["loss"]})
    assert trackers.add_summary(run, {"evaluation/a/b": 0.5}) is None
    assert tensorboard_scalars(run)["evaluation/a/b"] == mlflow_curves()["evaluation/a/b"] == [(0, 0.5)]


def test_one_that_fails_to_close_leaves_no_other_open(run: Path) -> None:
    closed = []

    class Broken(Tracker):
        def close(self, *, failed: bool = False) -> None:
            raise OSError("the disk is full")

    class Other(Tracker):
        def close(self, *, failed: bool = False) -> None:
            closed.append(failed)

    trackers = Trackers({"broken": Broken(), "other": Other()})
    with pytest.raises(OSError, match="disk"):
        trackers.close()
    trackers.close(failed=True)  # the run's own error is the one to tell
    assert closed == [False, True]


def test_what_is_no_tracker_is_named() -> None:
    with refused(key="logger.own._target_", remedy="Tracker"):
        Trackers({"own": object()})  # type: ignore[dict-item]


def test_a_run_that_is_gone_is_told_and_stops_nothing(run: Path) -> None:
    track(MLflow(), run)
    (run / "mlflow.json").write_text('{"run_id": "0123"}')
    names(MLflow().add_summary(run, {"a": 1.0}), "MLflow")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/", "sqlite:////tmp/elsewhere.db", None])
def test_a_foreign_run_does_not_say_where_its_figures_go(uri: str | None, run: Path) -> None:
    """Nor is a database made that this folder does not have."""
    (run / "mlflow.json").write_text('{"run_id": "0123"}')
    names(MLflow(tracking_uri=uri).add_summary(run, {"a": 1.0}), "MLFLOW_TRACKING_URI", uri or "sqlite:///mlflow.db")
    assert list(Path.cwd().glob("*.db")) == []


def test_a_link_out_of_a_foreign_run_is_not_followed(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "events.out.tfevents.1").write_bytes(b"")
    (run / "tensorboard").symlink_to(elsewhere)
    assert TensorBoard().add_summary(run, {"a": 1.0}) is None
    assert [path.name for path in elsewhere.iterdir()] == ["events.out.tfevents.1"]
