"""Where settings stand between true reward and KL: at the end, over checkpoints, and over several beta."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from caldpo import metric_definitions as m
from caldpo.metric_definitions import MetricDefinition
from caldpo.report.evaluation_measures import PREFIX, details, evaluated
from caldpo.report.grouping import Setting
from caldpo.report.statistics import LARGEST, Estimate, band, estimate

SUITE = "oracle"
_FOLLOWS_BETA = ("loss.beta", "reward_beta")


@dataclass(frozen=True)
class Place:
    """One setting between KL and reward.

    Attributes:
        kl: of the final policy to the reference, nats per sequence.
        reward: true reward of its samples.
        evaluated: by the suite; else as training logged it.
        references: the reference's reward, one per seed.
        path: KL and reward over checkpoints, mean over seeds, shape ``(2, checkpoints)``; empty where unknown.
    """

    kl: Estimate
    reward: Estimate
    evaluated: bool
    references: Sequence[float]
    path: NDArray[np.float64]


def place(setting: Setting) -> Place | None:
    """By the suite where the setting was evaluated, else by what training logged; None where neither knows both.

    Nor is there a place for what is not finite.
    """
    return _place(setting, measured=True) or _place(setting, measured=False)


def frontiers(settings: Sequence[Setting]) -> list[list[int]]:
    """Places in ``settings`` of those that differ in ``loss.beta`` alone, two or more, in groups."""
    groups: dict[str, list[int]] = {}
    for index, setting in enumerate(settings):
        if beta(setting) is None:
            continue
        others = {key: value for key, value in setting.config.items() if key not in _FOLLOWS_BETA}
        groups.setdefault(json.dumps([setting.loss, others], sort_keys=True, default=str), []).append(index)
    return [group for group in groups.values() if len({beta(settings[i]) for i in group}) > 1]


def beta(setting: Setting) -> float | None:
    """The loss's beta."""
    return setting.runs[0].number("loss.beta")


def _place(setting: Setting, *, measured: bool) -> Place | None:
    kl, reward, reference = (
        estimated_by(metric) if measured else metric for metric in (m.KL, m.TRUE_REWARD, m.REFERENCE_REWARD)
    )
    x, y = estimate(setting.finals(kl.final)), estimate(setting.finals(reward.final))
    if x is None or y is None or not max(abs(x.mean), abs(y.mean)) <= LARGEST:
        return None
    return Place(x, y, measured, setting.finals(reference.final), _path(setting) if measured else np.empty((2, 0)))


def estimated_by(metric: MetricDefinition) -> MetricDefinition:
    """A figure of training as the suite measures it: ``evaluation/oracle/kl`` for ``oracle/kl``."""
    return replace(metric, name=f"{PREFIX}/{metric.name}")


def _path(setting: Setting) -> NDArray[np.float64]:
    """Over the checkpoints that every evaluated seed has."""
    runs = [details(run, SUITE).get("points") or () for run in evaluated(setting, SUITE)]
    known = [[point for point in points if _is_known(point)] for points in runs]
    means = [band([{p["step"]: p[name] for p in points} for points in known], "range") for name in ("kl", "reward")]
    return np.array([found.mean for found in means if found is not None]).reshape(2, -1)


def _is_known(point: Mapping[str, object]) -> bool:
    return all(point.get(name) is not None for name in ("step", "kl", "reward"))
