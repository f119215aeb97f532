"""The first sentences of the page: what the runs show, and no more than they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from caldpo.config.run_lifecycle import RUNNING
from caldpo.metric_definitions import KL, TRUE_REWARD, WIN_RATE, MetricDefinition
from caldpo.report import shown_metrics
from caldpo.report.escaping import first_of
from caldpo.report.evaluation_results import PREFIX
from caldpo.report.grouping import RunGroup
from caldpo.report.statistics import Estimate, difference_interval, estimate, leader
from caldpo.report.table_cells import spread
from caldpo.utils.text_format import number, with_interval

_ORACLE = tuple(replace(metric, name=f"{PREFIX}/{metric.name}") for metric in (TRUE_REWARD, WIN_RATE))
# What decides, the first that groups have in common: as evaluated, as training logged it, else the accuracy.
_DECIDING = (_ORACLE[0], TRUE_REWARD, _ORACLE[1], WIN_RATE, shown_metrics.ACCURACY)
_NAMED = 5  # settings in a sentence, the others counted
_APART = 2.0  # ratio of KLs from which the reward's cost is to be looked at
_PAIR = ("cal_dpo", "dpo")


def sentences(groups: Sequence[RunGroup], waiting: int = 0) -> list[str]:
    """Say which setting leads by more than the spread over seeds, or that none does, and where the chosen responses
    went. ``groups``: all, also those of which no run finished; ``waiting``: how many runs have not begun.
    """
    measured = [group for group in groups if group.finished]
    metric = _deciding(measured)
    said = [] if metric is None else [_lead(measured, metric), *_pair(measured, metric), *_cost(measured, metric)]
    return [*said, *_chosen(measured), *_unfinished(groups, waiting)]


def _deciding(groups: Sequence[RunGroup]) -> MetricDefinition | None:
    if not groups:
        return None
    counts = {metric: sum(bool(group.finals(metric.final)) for group in groups) for metric in _DECIDING}
    return next((metric for metric, count in counts.items() if count == max(counts.values()) > 0), None)


def _estimates(groups: Sequence[RunGroup], metric: MetricDefinition) -> Mapping[str, Estimate]:
    found = {group.label: estimate(group.finals(metric.final)) for group in groups}
    return {label: value for label, value in found.items() if value is not None and math.isfinite(value.mean)}


def _lead(groups: Sequence[RunGroup], metric: MetricDefinition) -> str:
    """The clear best of the deciding metric, or why there is none."""
    known = _estimates(groups, metric)
    if not known:
        return f"No finished run has a finite {metric.title}."
    top = max(known, key=lambda label: known[label].mean)
    figure = spread(known[top])
    if len(known) == 1:
        return f"{top}: {metric.title} {figure}, {_seeds(known[top].n)}. There is nothing to compare it with."
    if leader(known, "higher") == top:
        return (
            f"{top} has the highest {metric.title} of {len(known)} settings, {figure} ({_seeds(known[top].n)}): by more"
            " than the 95 % interval of its difference to each of the others, not corrected for their number."
        )
    if any(value.n == 1 for value in known.values()):
        why = "where a setting has a single seed, nobody knows how much of a difference is chance"
    else:
        close = [label for label in known if label != top and not _apart(known[top], known[label])]
        why = f"its difference to {first_of(close, _NAMED)} is within the 95 % interval"
    return f"No setting is plainly best by {metric.title}. {top} has the highest mean, {figure}, but {why}."


def _pair(groups: Sequence[RunGroup], metric: MetricDefinition) -> list[str]:
    """Cal-DPO against DPO, where there is one setting of each."""
    of_pair = [[group for group in groups if group.loss == loss] for loss in _PAIR]
    known = _estimates(groups, metric)
    if [len(found) for found in of_pair] != [1, 1] or not all(found[0].label in known for found in of_pair):
        return []
    ours, plain = (known[found[0].label] for found in of_pair)
    difference, width = ours.mean - plain.mean, difference_interval(ours, plain)
    if width is None:
        return []
    ends = with_interval(difference, difference - width, difference + width)
    verdict = "told apart" if _apart(ours, plain) else "not told apart"
    return [f"cal_dpo minus dpo in {metric.title}: {ends}, {verdict} by these seeds."]


def _cost(groups: Sequence[RunGroup], metric: MetricDefinition) -> list[str]:
    """At which KL rewards were reached, where the KLs are far apart."""
    evaluated = metric.name.startswith(PREFIX)
    known = _estimates(groups, replace(KL, name=f"{PREFIX}/{KL.name}") if evaluated else KL)
    kls = [value.mean for value in known.values()]
    if metric is shown_metrics.ACCURACY or len(kls) < 2 or not max(kls) > _APART * max(min(kls), 0.0):
        return []
    low, high = number(min(kls)), number(max(kls))
    return [f"The policies are {low} to {high} nats (KL) from the reference: read the reward against it."]


def _chosen(groups: Sequence[RunGroup]) -> list[str]:
    """Which settings ended with chosen responses less, or more, likely than under the reference, in every seed."""
    below, above = [], []
    for group in groups:
        chosen = group.finals(shown_metrics.CHOSEN.final)
        if chosen and all(value < 0 for value in chosen):
            below.append(group.label)
        elif chosen and all(value > 0 for value in chosen):
            above.append(group.label)
    sides = [(below, "below"), (above, "above")]
    parts = [f"{side} 0 in every seed of {first_of(labels, _NAMED)}" for labels, side in sides if labels]
    return [f"The held-out chosen log-ratio ended {' and '.join(parts)}."] if parts else []


def _unfinished(groups: Sequence[RunGroup], waiting: int) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    training = sum(run.status == RUNNING for run in runs)
    left_out = sum(not run.finished for run in runs) - training
    said = [f"{left_out} of {len(runs)} runs did not finish, and count nowhere."] if left_out else []
    if training:
        said.append(f"{training} of {len(runs)} runs still train: sentences and tables do not count them yet.")
    if waiting:
        said.append(f"{waiting} more {'has' if waiting == 1 else 'have'} not begun.")
    return said


def _apart(one: Estimate, other: Estimate) -> bool:
    width = difference_interval(one, other)
    return width is not None and abs(one.mean - other.mean) > width


def _seeds(count: int) -> str:
    return "a single seed" if count == 1 else f"{count} seeds"
