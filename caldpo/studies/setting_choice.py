"""Choose a setting of an arm from its trials, twice: by what a practitioner can see, and by the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caldpo.studies.measure_definitions import MEASURES
from caldpo.studies.run_store import FINISHED
from caldpo.studies.trial_points import Point

PRACTITIONER, TRUTH = CHOICES = ("practitioner", "truth")
_TRUE = "reward"


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    number: int
    point: Point
    record: Mapping[str, Any]
    scores: Mapping[str, float]  # by choice, higher is better; empty where the run diverged


def scored_trial(number: int, point: Point, record: Mapping[str, Any], practitioner: Sequence[str]) -> Trial:
    """Score a trial on its validation split."""
    if record["status"] != FINISHED:
        return Trial(number, point, record, {})
    seen = float(np.mean([mean_of(record, name) for name in practitioner]))
    scores = {PRACTITIONER: seen, TRUTH: mean_of(record, _TRUE)}
    return Trial(number, point, record, scores if np.isfinite(list(scores.values())).all() else {})


def choose(trials: Sequence[Trial]) -> dict[str, Trial]:
    """Return the best trial by each choice, of equal ones the first; none where all have diverged."""
    scored = [trial for trial in trials if trial.scores]
    return {choice: max(scored, key=lambda t: (t.scores[choice], -t.number)) for choice in CHOICES} if scored else {}


def mean_of(record: Mapping[str, Any], measure: str) -> float:
    """Mean of a measure that a record has by prompt or by pair."""
    return float(np.mean(np.array(record[MEASURES[measure].place][measure], dtype=np.float64)))  # of None: NaN
