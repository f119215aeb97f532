"""One unit for ``rewards/*`` of all runs that are compared: ``reward_beta`` x log-ratio, in nats, summed over tokens.

Runs may have logged them with several ``reward_beta``, as earlier versions did, which took each loss's own beta. The
conversion is exact, since an implicit reward is linear in the log-ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from caldpo.report.run_files import Run

REWARD_BETA = 0.1  # of conf/train.yaml: what runs are converted to that have not one reward_beta in common
NAMES = tuple(
    f"{prefix}rewards/{name}" for prefix in ("", "val/") for name in ("chosen", "rejected", "margins")
)  # accuracies are no rewards
Values = TypeVar("Values")


def in_one_unit(runs: Sequence[Run]) -> list[Run]:
    """The runs with their rewards in one unit; what was converted or left out is in their notes."""
    known = {run.reward_beta for run in runs if run.reward_beta is not None and _has_rewards(run)}
    if len(known) < 2 and not any(run.reward_beta is None and _has_rewards(run) for run in runs if known):
        return list(runs)
    unit = known.pop() if len(known) == 1 else REWARD_BETA
    return [_converted(run, unit) if _has_rewards(run) else run for run in runs]


def _has_rewards(run: Run) -> bool:
    return any(name in run.final or name in run.curves for name in NAMES)


def _converted(run: Run, unit: float) -> Run:
    if run.reward_beta == unit:
        return run
    if run.reward_beta is None:
        note = "its reward_beta is not known, and with it not the unit of its rewards: they are left out"
        return replace(
            run, curves=_without(run.curves), final=_without(run.final), notes=(*run.notes, note), reward_beta=unit
        )
    factor = unit / run.reward_beta
    curves = {
        name: {step: value * factor for step, value in curve.items()} if name in NAMES else curve
        for name, curve in run.curves.items()
    }
    final = {name: value * factor if name in NAMES else value for name, value in run.final.items()}
    note = f"rewards/* were logged with reward_beta {run.reward_beta:g} and are converted to {unit:g}"
    return replace(run, curves=curves, final=final, notes=(*run.notes, note), reward_beta=unit)


def _without(values: Mapping[str, Values]) -> dict[str, Values]:
    return {name: value for name, value in values.items() if name not in NAMES}
