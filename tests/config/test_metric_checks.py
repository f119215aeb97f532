"""The names a run will log are known before it starts: those below are compared with what losses and runs do log."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from caldpo import metric_definitions
from caldpo import training_command as run_module
from caldpo.config.conf_dir import conf_dir
from caldpo.config.metric_checks import find_metric_problems, find_monitor_problems
from caldpo.data.sources.tabular_pairs import TabularPairs
from caldpo.environments.tabular_environment import exact_metrics
from caldpo.metrics import loss_metrics, pair_metrics
from caldpo.step_metrics import StepMetrics
from caldpo.types import PairLogps
from tests.helpers.messages import names

LOSSES = sorted(path.stem for path in (conf_dir() / "loss").iterdir())


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", list(overrides))


def problems(*overrides: str) -> str | None:
    """Messages about ``optimized_metric``; None where it is accepted."""
    return problems_of(config(*overrides))


def problems_of(cfg: DictConfig, objective: str | None = None) -> str | None:
    """Messages about ``objective``, or the one in ``cfg``; None where it is accepted."""
    cfg.optimized_metric = objective or cfg.optimized_metric
    yielded = list(find_metric_problems(cfg))
    assert all(problem.key == "optimized_metric" for problem in yielded)
    return "; ".join(f"{problem.message} | {problem.remedy}" for problem in yielded) or None


def measured(loss: DictConfig, with_reference: bool) -> set[str]:
    """Names that a step of training, or an evaluation, has for pairs."""
    values = [torch.full((3,), -2.0 - i) for i in range(4)] + [torch.full((3,), 5.0)] * 2 + [torch.ones(3)] * 2
    if not with_reference:
        values[2:4] = [None, None]  # type: ignore[list-item]
    logps = PairLogps(*values)
    return set(loss_metrics(instantiate(loss)(logps)) | pair_metrics(logps, 0.1))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_name_that_a_loss_logs_is_accepted_and_no_other(loss: str) -> None:
    cfg = config(f"loss={loss}")
    held_out = measured(cfg.loss, True)
    training = measured(cfg.loss, instantiate(cfg.loss).needs_reference)
    others = {f"{kind}/{name}" for kind in ("terms", "diagnostics") for name in ("nll", "calibration", "clamped", "x")}
    others |= {"log_ratios/chosen", "displacement"}
    for name in [f"val/{name}" for name in held_out] + [*training]:
        assert problems_of(cfg, name) is None
    for name in [f"val/{name}" for name in others - held_out] + [*(others - training)]:
        assert problems_of(cfg, name), name


def test_names_of_a_step() -> None:
    log = StepMetrics()
    log.means.update({"loss": torch.ones(2)}, torch.ones(2))
    log.close(0, torch.tensor(1.0), 1.0, 0.1)
    ((_, row),) = log.fetch()
    assert {"loss", *(metric.name for metric in metric_definitions.STEP_METRICS)} == set(row)
    cfg = config()
    assert all(problems_of(cfg, name) is None for name in row)


def test_names_of_the_exact_optimum() -> None:
    source = TabularPairs(2, 3, 0, 1.0, 1.0, 1, 1, "uniform", None, None, 0)
    table = source.environment.reference()
    metrics = exact_metrics(table, table, source.environment.rewards(), 0.1)
    assert [metric.name for metric in metric_definitions.EXACT] == [f"oracle/{name}" for name in metrics]


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (["optimized_metric=val/los"], ["did you mean val/loss?"]),
        (["optimized_metric=val/terms/calibrate"], ["did you mean val/terms/calibration?"]),
        (["optimized_metric=oracle/wins"], ["oracle/error, oracle/kl"]),
        (["optimized_metric=oracle/kl_to_optimum"], ["oracle/win_rate"]),  # the reviews have no known optimum
        (["optimized_metric=oracle/kl", "callbacks.oracle.prompts=0"], ["callbacks.oracle.prompts"]),
        (["optimized_metric=oracle/kl", "~callbacks.oracle"], ["off"]),
        (["optimized_metric=oracle/kl", "data=local", "data.train=a"], ["reward", "data"]),
        (["optimized_metric=rewards/margins", "loss=cpo"], ["reference", "val/rewards/margins"]),
    ],
)
def test_what_will_not_be_logged_is_refused_with_the_reason(overrides: list[str], facts: list[str]) -> None:
    messages = problems(*overrides)
    assert messages is not None
    names(messages, *facts)


def test_what_the_data_knows_is_accepted() -> None:
    assert problems("optimized_metric=oracle/win_rate") is None
    assert problems("optimized_metric=oracle/kl_to_optimum", "model=tabular") is None
    own = ["data=local", "data.train=a", "data.source._target_=somewhere.Own", "optimized_metric=oracle/mine"]
    assert problems(*own) is None  # a source outside the package may have an optimum of its own


@pytest.mark.parametrize("console", ["full", "compact"])
def test_a_searching_sweeper_gets_it(console: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else was measured; and nothing where a run did not come to measure it."""
    place = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)))
    monkeypatch.setattr(run_module.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(run_module.HydraConfig, "get", lambda: place)
    monkeypatch.setattr(run_module, "print_line", lambda *_: None)
    cfg = config("optimized_metric=val/logps/chosen", f"console={console}")
    for metrics, value in (({"val/loss": 1.0, "val/logps/chosen": -2.5}, -2.5), ({"val/loss": 1.0}, None)):
        monkeypatch.setattr(run_module, "train_run", lambda *_, found=metrics: {"metrics": found})
        assert run_module.run(cfg) == value


@pytest.mark.parametrize("loss", ["dpo", "cal_dpo", "orpo", "f_dpo"])
def test_a_watched_metric_is_one_that_evaluations_measure(loss: str) -> None:
    cfg = config(f"loss={loss}")
    held_out = {f"val/{name}" for name in measured(cfg.loss, True)}
    for name in held_out:
        cfg.callbacks.checkpoint.monitor, cfg.callbacks.checkpoint.mode = name, "auto"
        found = [problem.key for problem in find_monitor_problems(cfg)]
        definition = metric_definitions.definition_of(name)
        assert definition is not None
        assert found == ([] if definition.direction else ["callbacks.checkpoint.mode"]), name
    for name in ("loss", "lr", "oracle/reward", "val/terms/nothing", "val/los"):
        cfg.callbacks.checkpoint.monitor = name
        (problem,) = find_monitor_problems(cfg)
        assert (problem.key, problem.value) == ("callbacks.checkpoint.monitor", name)
        names(problem.remedy, "val/loss", "val/rewards/accuracies")


def test_a_watched_metric_is_watched_in_its_better_direction() -> None:
    cfg = config("callbacks=early_stopping")
    assert list(find_monitor_problems(cfg)) == []
    cfg.callbacks.early_stopping.monitor = "val/rewards/accuracies"
    found = {problem.key: problem.remedy for problem in find_monitor_problems(cfg)}
    assert set(found) == {"callbacks.early_stopping.mode", "callbacks.checkpoint.mode"}, "the checkpoint follows"
    names(found["callbacks.early_stopping.mode"], "max")
    cfg.callbacks.early_stopping.mode = "max"
    assert list(find_monitor_problems(cfg)) == []
    assert list(find_monitor_problems(config("callbacks=study"))) == []
