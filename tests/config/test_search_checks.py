"""A search in place of a grid: what it is told of, which way is better, and a small one from command to result."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from caldpo.config.metric_checks import find_search_problems
from caldpo.config.summary_file import read_summary
from caldpo.utils.yaml_io import read_yaml
from tests.helpers.command import train
from tests.helpers.messages import holds, names

SEARCH = "somewhere.OptunaSweeper"


@pytest.mark.parametrize(
    ("optimized_metric", "direction", "searched", "keys"),
    [
        ("val/loss", "minimize", ["optim.lr"], []),
        ("val/loss", "minimize", ["loss.beta", "optim.lr"], ["optimized_metric"]),
        ("loss", "minimize", ["loss"], ["optimized_metric"]),
        ("val/terms/calibration", "minimize", ["loss.c"], ["optimized_metric"]),
        ("val/rewards/margins", "maximize", ["loss.beta"], []),  # in one unit, whatever the loss's beta
        ("val/rewards/margins", "maximize", ["reward_beta"], ["optimized_metric"]),
        ("val/log_ratios/chosen", "maximize", ["loss.beta"], []),
        ("val/rewards/accuracies", "maximize", ["loss.beta"], []),
        ("val/rewards/accuracies", "Direction.maximize", ["loss.beta"], []),
        ("val/rewards/accuracies", "minimize", ["loss.beta"], ["hydra.sweeper.direction"]),
        ("val/loss", "maximize", ["optim.lr"], ["hydra.sweeper.direction"]),
        ("val/loss", "maximize", ["loss.beta"], ["optimized_metric", "hydra.sweeper.direction"]),
        ("oracle/kl", "maximize", ["loss.beta"], ["hydra.sweeper.direction"]),
        ("grad_norm", "maximize", ["loss.beta"], []),  # nobody says which way is better
    ],
)
def test_what_a_search_is_told_of(optimized_metric: str, direction: str, searched: list[str], keys: list[str]) -> None:
    hydra = {"sweeper": {"_target_": SEARCH, "direction": direction}}
    cfg = OmegaConf.create({"optimized_metric": optimized_metric, "hydra": hydra})
    assert [problem.key for problem in find_search_problems(cfg, searched)] == keys
    cfg.hydra.sweeper._target_ = "somewhere.BasicSweeper"
    assert list(find_search_problems(cfg, searched)) == [], "a grid compares nothing itself"


GIVEN = ("-m", "hydra/sweeper=search", "model=tabular", "logger=none", "console=compact", "export=false")
GIVEN += ("trainer.max_steps=5", "hydra.sweep.dir=out", "optim.lr=tag(log,interval(1e-3,1e-1))")


def test_a_search_for_the_smallest_loss_over_beta_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'search'")
    monkeypatch.chdir(tmp_path)
    train(*GIVEN, fails=2)
    said = capsys.readouterr().err
    names(said, "error: optimized_metric=val/loss:", "loss.beta")
    assert not (tmp_path / "out").exists()


TOLD = ("optimized_metric=val/rewards/accuracies", "hydra.sweeper.direction=maximize")


def runs_of(folder: str) -> dict[Path, float]:
    """The objective of each finished run."""
    said = {run: read_summary(run) for run in Path(folder).iterdir() if run.is_dir()}
    return {run: one["metrics"][TOLD[0].partition("=")[2]] for run, one in said.items() if one["status"] == "finished"}


@pytest.mark.slow
def test_a_search_and_its_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best trial is the run with the largest accuracy; the same command draws the same runs, and then more."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'search'")
    monkeypatch.chdir(tmp_path)
    train(*GIVEN, *TOLD, "hydra.sweeper.n_trials=3")
    found, values = read_yaml(Path("out/optimization_results.yaml")), runs_of("out")
    assert len(values) == 3
    assert found["best_value"] == max(values.values())
    chosen = [read_yaml(folder / "config.yaml") for folder, value in values.items() if value == found["best_value"]]
    drawn = [(config["loss"]["beta"], config["optim"]["lr"]) for config in chosen]
    assert (found["best_params"]["loss.beta"], found["best_params"]["optim.lr"]) in drawn
    assert all(1e-3 <= beta <= 1 and 1e-3 <= lr <= 1e-1 for beta, lr in drawn)
    rows = {run: (run / "metrics.csv").stat().st_mtime_ns for run in values}
    capsys.readouterr()
    train(*GIVEN, *TOLD, "hydra.sweeper.n_trials=4", "resume=auto")
    lines = capsys.readouterr().out.splitlines()
    skipped = {number for line in lines for number in range(4) if holds(line, f"run {number}:") and "finished" in line}
    assert skipped == {0, 1, 2}
    more = runs_of("out")
    assert len(more) == 4
    assert {run: more[run] for run in values} == values
    assert {run: (run / "metrics.csv").stat().st_mtime_ns for run in values} == rows, "finished runs are left alone"
    assert read_yaml(Path("out/optimization_results.yaml"))["best_value"] == max(more.values())


@pytest.mark.slow
def test_a_run_that_fails_is_no_trial_and_a_storage_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'search'")
    monkeypatch.chdir(tmp_path)
    kept = ("hydra.sweeper.storage=sqlite:///search.db", "hydra.sweeper.study_name=s", "optim.lr=choice(0.01,1e30)")
    for seed in (0, 1):
        given = (f"hydra.sweeper.sampler.seed={seed}", f"hydra.sweep.dir=out{seed}", "hydra.sweeper.n_trials=3")
        train(*GIVEN, *TOLD, *kept, *given, fails=1)
    import optuna

    trials = optuna.load_study(study_name="s", storage="sqlite:///search.db").trials
    ended = {state: [t for t in trials if t.state.name == state] for state in ("COMPLETE", "FAIL")}
    assert len(trials) == sum(map(len, ended.values())) == 6
    assert {t.params["optim.lr"] for t in ended["FAIL"]} == {1e30}, "no number came of it"
    assert {t.params["optim.lr"] for t in ended["COMPLETE"]} == {0.01}
    assert sorted(t.value for t in ended["COMPLETE"]) == sorted([*runs_of("out0").values(), *runs_of("out1").values()])
    assert len({t.params["loss.beta"] for t in trials}) == 6, "another seed draws others"
