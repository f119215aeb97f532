"""Every logged metric is defined once, and every definition is of a logged metric."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate

from caldpo.callbacks.displacement_alarm import CHOSEN, REJECTED, SHARE
from caldpo.config.conf_dir import conf_dir
from caldpo.data.sources.tabular_pairs import TabularPairs
from caldpo.environments.reward_agreement import reward_agreement
from caldpo.environments.tabular_environment import exact_metrics
from caldpo.metric_definitions import (
    BEST_OF_N,
    DEFINITIONS,
    HELD_OUT,
    LOG_RATIO_MARGIN,
    REWARD_UNIT,
    ROLLOUTS,
    SAMPLED,
    SKIPPED_STEPS,
    definition_of,
)
from caldpo.metrics import loss_metrics, pair_metrics
from caldpo.step_metrics import StepMetrics
from caldpo.types import PairLogps
from caldpo.utils.yaml_io import read_yaml
from tests.golden import scenarios as golden


def logged_names() -> set[str]:
    """Names that the product's functions give to what they compute, for all losses."""
    values = [torch.full((3,), -2.0 - i) for i in range(4)] + [torch.full((3,), 5.0)] * 2 + [torch.ones(3)] * 2
    logps = PairLogps(*values)
    names = set(pair_metrics(logps, 0.1))
    losses = [read_yaml(path) for path in (conf_dir() / "loss").glob("*.yaml")]
    losses += [loss | {"divergence": "forward_kl"} for loss in losses if "divergence" in loss]  # clamps
    for loss in losses:
        names |= set(loss_metrics(instantiate(loss)(logps)))
    steps = StepMetrics()
    steps.means.update({"loss": torch.ones(2)}, torch.ones(2))
    steps.close(0, torch.tensor(1.0), 1.0, 0.1)
    names |= set(steps.fetch()[0][1])
    source = TabularPairs(2, 3, 0, 1.0, 1.0, 1, 1, "uniform", None, None, 0)
    table = source.environment.reference()
    oracle = {*reward_agreement([], [], []), *exact_metrics(table, table, source.environment.rewards(), 0.1)}
    return names | {f"oracle/{name}" for name in oracle}


def test_every_logged_metric_is_defined_and_every_definition_is_of_one() -> None:
    names = logged_names()
    assert [name for name in names if definition_of(name) is None or definition_of(HELD_OUT + name) is None] == []
    elsewhere = {*SAMPLED, SKIPPED_STEPS}  # by a callback, which the golden runs below have, and by the module
    elsewhere |= {*ROLLOUTS, *BEST_OF_N}  # held to what is logged by the tests of rollouts and of best-of-n
    assert {definition_of(name) for name in names} | elsewhere == set(DEFINITIONS)
    assert len({metric.name for metric in DEFINITIONS}) == len(DEFINITIONS)


def test_every_column_of_the_golden_runs_is_defined() -> None:
    """Their tables name each recorded column of metrics.csv, and refuse one that is neither recorded nor defined."""
    columns = [*golden.METRICS.values(), *golden.ORACLE.values()]
    assert [name for name in columns if definition_of(name) is None] == []
    assert {metric.name for metric in SAMPLED} <= set(columns)


def test_names_that_others_read() -> None:
    assert all(definition_of(name) for name in (CHOSEN, REJECTED, SHARE))


@pytest.mark.parametrize("metric", [*DEFINITIONS, LOG_RATIO_MARGIN], ids=lambda metric: metric.title)
def test_a_definition_is_whole(metric) -> None:
    assert metric.title
    assert metric.unit
    assert metric.meaning
    assert not metric.meaning.endswith(".")
    assert metric.direction == (metric.better or metric.optimize)


def test_a_held_out_metric_is_the_same_under_another_name() -> None:
    margin = LOG_RATIO_MARGIN.held_out
    assert margin == replace(LOG_RATIO_MARGIN, name="val/log_ratios/chosen", minus="val/log_ratios/rejected")
    finals = {"val/log_ratios/chosen": -1.0, "val/log_ratios/rejected": -3.5, "log_ratios/chosen": 9.0}
    assert margin.final(finals) == 2.5
    assert LOG_RATIO_MARGIN.final(finals) is None, "the rejected side of the training batch was not logged"
    curves = {"val/log_ratios/chosen": {2: 1.0, 1: 0.5, 3: 7.0}, "val/log_ratios/rejected": {1: 0.25, 2: -1.0}}
    assert list(margin.curve(curves).items()) == [(1, 0.25), (2, 2.0)]


def test_rewards_are_in_units_of_reward_beta() -> None:
    scaled = {metric.name for metric in DEFINITIONS if metric.unit == REWARD_UNIT}
    assert scaled == {"rewards/chosen", "rewards/rejected", "rewards/margins"}


@pytest.mark.parametrize("name", ["val/terms/anything", "terms/x", "diagnostics/clamped", "val/diagnostics/y"])
def test_terms_and_diagnostics_of_any_loss_are_defined(name: str) -> None:
    assert definition_of(name).name.startswith(name.removeprefix("val/").partition("/")[0])


@pytest.mark.parametrize("name", ["val/los", "oracle/x", "*", "rewards", "oracle/*", ""])
def test_other_names_have_no_definition(name: str) -> None:
    assert definition_of(name) is None


def test_no_heavy_imports() -> None:
    """Checks of a configuration read the table before anything is loaded."""
    heavy = "{'torch', 'pandas', 'jinja2', 'numpy', 'matplotlib', 'hydra', 'omegaconf', 'rich'}"
    code = f"import sys, caldpo.metric_definitions; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
