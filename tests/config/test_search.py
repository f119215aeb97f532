"""A search in place of a grid: what it is told of, which way is better, and a small one from command to result."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from caldpo.config.search import find_search_problems
from caldpo.config.summary import read_summary
from caldpo.config.tree import read_yaml
from tests.command import train

SEARCH = "somewhere.OptunaSweeper"


@pytest.mark.parametrize(
    ("objective", "direction", "searched", "keys"),
    [
        ("val/loss", "minimize", ["optim.lr"], []),
        ("val/loss", "minimize", ["loss.beta", "optim.lr"], ["objective"]),
        ("loss", "minimize", ["loss"], ["objective"]),
        ("val/terms/calibration", "minimize", ["loss.c"], ["objective"]),
        ("val/rewards/margins", "maximize", ["loss.beta"], ["objective"]),
        ("val/log_ratios/chosen", "maximize", ["loss.beta"], []),
        ("val/rewards/accuracies", "maximize", ["loss.beta"], []),
        ("val/rewards/accuracies", "Direction.maximize", ["loss.beta"], []),
        ("val/rewards/accuracies", "minimize", ["loss.beta"], ["hydra.sweeper.direction"]),
        ("val/loss", "maximize", ["optim.lr"], ["hydra.sweeper.direction"]),
        ("val/loss", "maximize", ["loss.beta"], ["objective", "hydra.sweeper.direction"]),
        ("oracle/kl", "maximize", ["loss.beta"], ["hydra.sweeper.direction"]),
        ("grad_norm", "maximize", ["loss.beta"], []),  # nobody says which way is better
    ],
)
def test_what_a_search_is_told_of(objective: str, direction: str, searched: list[str], keys: list[str]) -> None:
    hydra = {"sweeper": {"_target_": SEARCH, "direction": direction}}
    cfg = OmegaConf.create({"objective": objective, "hydra": hydra})
    assert [problem.key for problem in find_search_problems(cfg, searched)] == keys
    cfg.hydra.sweeper._target_ = "somewhere.BasicSweeper"
    assert list(find_search_problems(cfg, searched)) == [], "a grid compares nothing itself"


GIVEN = ("-m", "hydra/sweeper=search", "model=tabular", "logger=none", "console=line", "export=false")
GIVEN += ("trainer.max_steps=5", "hydra.sweep.dir=out", "optim.lr=tag(log,interval(1e-3,1e-1))")


def test_a_search_for_the_smallest_loss_over_beta_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'search'")
    monkeypatch.chdir(tmp_path)
    train(*GIVEN, fails=2)
    said = capsys.readouterr().err
    assert "objective=val/loss: measures another thing at each value of loss.beta" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_search_and_its_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best trial is the run with the largest accuracy; a run that fails is no trial; more are added later."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'search'")
    monkeypatch.chdir(tmp_path)
    told = ("objective=val/rewards/accuracies", "hydra.sweeper.direction=maximize")
    kept = ("hydra.sweeper.storage=sqlite:///search.db", "hydra.sweeper.study_name=s")
    train(*GIVEN, *told, *kept, "hydra.sweeper.n_trials=3")
    found = read_yaml(Path("out/optimization_results.yaml"))
    runs = {folder: read_summary(folder) for folder in Path("out").iterdir() if folder.is_dir()}
    assert len(runs) == 3
    values = {folder: said["metrics"]["val/rewards/accuracies"] for folder, said in runs.items()}
    assert found["best_value"] == max(values.values())
    chosen = [read_yaml(folder / "config.yaml") for folder, value in values.items() if value == found["best_value"]]
    drawn = [(config["loss"]["beta"], config["optim"]["lr"]) for config in chosen]
    assert (found["best_params"]["loss.beta"], found["best_params"]["optim.lr"]) in drawn
    assert all(1e-3 <= beta <= 1 and 1e-3 <= lr <= 1e-1 for beta, lr in drawn)
    train(*GIVEN, *told, *kept, "hydra.sweeper.n_trials=2", "hydra.sweep.dir=more")
    import optuna

    study = optuna.load_study(study_name="s", storage="sqlite:///search.db")
    assert len(study.trials) == 5
