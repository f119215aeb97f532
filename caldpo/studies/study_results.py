"""The results of a study as tables: trials, runs, means, differences to the baseline, ranks. From records alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from caldpo.studies.measure_definitions import MEASURES
from caldpo.studies.run_store import FINISHED
from caldpo.studies.setting_choice import CHOICES, PRACTITIONER, TRUTH, Trial
from caldpo.studies.study_plan import Arm, LeftOut
from caldpo.studies.study_settings import BASELINE, StudySettings
from caldpo.studies.study_statistics import (
    Ranking,
    Values,
    detectable_difference,
    holm,
    interval,
    paired_difference,
    probability_of_best,
    ranking,
    reward_at_kl,
)

TESTED = ("reward", "win_rate", "reward_at_kl")  # measures whose differences are tested
LEVEL = 0.05
Record = Mapping[str, Any]


@dataclass(frozen=True)
class ArmResult:
    """An arm whose runs have all ended."""

    arm: Arm
    trials: list[Trial]
    chosen: Mapping[str, Trial]  # by choice; empty where nothing is tuned
    finals: Mapping[str, Sequence[Record]]  # by choice, in the order of the seeds; empty where every trial diverged

    @property
    def row(self) -> str:
        return self.arm.row

    def values(self, choice: str, measure: str, matched_kl: float) -> Values:
        """A measure of the runs of a choice, ``(seeds, prompts)``; NaN for a seed that has none.

        Where the seeds' splits differ in size, as repeated prompts may, each has as many as the smallest.
        """
        rows = [_values_of(record, measure, matched_kl) for record in self.finals[choice]]
        size = min((len(row) for row in rows if len(row)), default=1)
        return np.stack([row[:size] if len(row) else np.full(size, np.nan) for row in rows])

    def diverged(self, choice: str) -> int:
        """Count the runs of a choice that met values which were not finite."""
        return sum(record["status"] != FINISHED for record in self.finals[choice])


@dataclass(frozen=True)
class StudyResults:
    """All that a report tells."""

    settings: StudySettings
    arms: Sequence[ArmResult]
    left_out: Sequence[LeftOut] = ()
    unfinished: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = field(default_factory=list)

    @property
    def conditions(self) -> list[str]:
        """Those with any row that has runs."""
        return list(dict.fromkeys(result.arm.condition for result in self.arms if result.finals))

    @property
    def without_setting(self) -> list[tuple[str, str]]:
        """Condition and row where every trial met values that were not finite."""
        return [result.arm.name for result in self.arms if not result.finals]

    def under(self, condition: str, choice: str) -> dict[str, ArmResult]:
        """Rows of a condition that have runs by a choice."""
        return {r.row: r for r in self.arms if r.arm.condition == condition and choice in r.finals}

    @cached_property
    def records(self) -> list[Record]:
        """All records, each once."""
        found: dict[str, Record] = {}
        for result in self.arms:
            for record in [*(t.record for t in result.trials), *(r for rs in result.finals.values() for r in rs)]:
                found["\n".join(sorted(record["overrides"]))] = record
        return list(found.values())

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial."""
        return pd.DataFrame(
            [
                {
                    "condition": result.arm.condition,
                    "row": result.row,
                    "trial": trial.number,
                    "setting": _setting(trial.point),
                    "status": trial.record["status"],
                    **{f"score_{choice}": trial.scores.get(choice, np.nan) for choice in CHOICES},
                    "chosen_by": " ".join(c for c, best in result.chosen.items() if best.number == trial.number),
                    "cpu_seconds": trial.record["cpu_seconds"],
                }
                for result in self.arms
                for trial in result.trials
            ]
        )

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run with a fresh seed and choice; equal where both choices took the same setting."""
        rows = []
        for result in self.arms:
            for choice, records in result.finals.items():
                means = {m: self._by_seed(result, choice, m) for m in MEASURES}
                for number, record in enumerate(records):
                    rows.append(
                        {
                            "condition": result.arm.condition,
                            "row": result.row,
                            "choice": choice,
                            "seed": number,
                            "status": record["status"],
                            **{measure: values[number] for measure, values in means.items()},
                            "cpu_seconds": record["cpu_seconds"],
                            "overrides": " ".join(record["overrides"]),
                        }
                    )
        return pd.DataFrame(rows)

    def means(self, condition: str) -> pd.DataFrame:
        """One row per row of the study and choice: mean and 95 % interval of each measure, the highest reward first."""
        rows = []
        for choice in CHOICES:
            results = self.under(condition, choice)
            best = self._probability_of_best(results, choice)
            for name, result in results.items():
                cells: dict[str, Any] = {
                    "row": name,
                    "kind": "loss" if result.arm.is_loss else "beside",
                    "choice": choice,
                    "setting": _setting(result.chosen[choice].point) if result.chosen else "as it is",
                    "seeds": len(result.finals[choice]) - result.diverged(choice),
                    "probability_best": best.get(name, np.nan),
                }
                for measure in MEASURES:
                    values = _complete(self._values(result, choice, measure))
                    low, high = interval(values, self.settings.resamples) if len(values) > 1 else (np.nan, np.nan)
                    mean = float(values.mean()) if len(values) else np.nan
                    cells |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
                cells["reward_at_kl_seeds"] = len(_complete(self._values(result, choice, "reward_at_kl")))
                rows.append(cells)
        table = pd.DataFrame(rows)
        order = {choice: place for place, choice in enumerate(CHOICES)}
        by = [table["choice"].map(order), -table["reward"]]
        return table.iloc[np.lexsort(by[::-1])].reset_index(drop=True)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Paired differences to the baseline; Holm's correction over the rows of a condition, choice and measure."""
        rows = []
        for condition in self.conditions:
            for choice in CHOICES:
                results = self.under(condition, choice)
                if BASELINE in results:
                    pairs = [(r, results[BASELINE]) for name, r in results.items() if name != BASELINE]
                    for measure in TESTED:
                        rows += self._compared(pairs, (choice, choice), measure)
        return pd.DataFrame(rows)

    @cached_property
    def choice_effects(self) -> pd.DataFrame:
        """True reward of the setting chosen by the truth minus that of the practitioner's, row by row."""
        rows = []
        for condition in self.conditions:
            tuned = [r for r in self.under(condition, TRUTH).values() if r.chosen]
            pairs = [(result, result) for result in tuned]
            compared = self._compared(pairs, (TRUTH, PRACTITIONER), "reward")
            for result, cells in zip(tuned, compared, strict=True):
                same = result.chosen[TRUTH].number == result.chosen[PRACTITIONER].number
                rows.append({**cells, "same_setting": same})
        return pd.DataFrame(rows).drop(columns=["choice", "versus"], errors="ignore")

    def leader(self, condition: str, choice: str) -> tuple[str, list[str]] | None:
        """The loss of the highest mean true reward, and the losses that it is not shown to be ahead of.

        Of those whose runs were all finite. Rows beside the losses may have seen the truth.
        """
        results = {name: r for name, r in self.under(condition, choice).items() if r.arm.is_loss}
        means = {name: self._by_seed(r, choice, "reward").mean() for name, r in results.items()}
        means = {name: mean for name, mean in means.items() if np.isfinite(mean)}
        if len(means) < 2:
            return None
        first = max(means, key=lambda name: means[name])
        pairs = [(results[name], results[first]) for name in means if name != first]
        rows = self._compared(pairs, (choice, choice), "reward")
        return first, [cells["row"] for cells in rows if not (cells["significant"] and cells["difference"] < 0)]

    def ranks(self, choice: str) -> Ranking | None:
        """Average ranks of the losses by true reward, over conditions and seeds; a run that diverged ranks last."""
        blocks: dict[str, list[float]] = {}
        for condition in self.conditions:
            for result in self.arms:
                if result.arm.is_loss and result.arm.condition == condition:
                    by_seed = np.full(self.settings.seeds, np.nan)
                    if choice in result.finals:  # else every trial diverged
                        by_seed = self._by_seed(result, choice, "reward")
                    values = np.where(np.isfinite(by_seed), by_seed, -np.inf).tolist()
                    blocks.setdefault(result.row, []).extend(values)
        longest = max(map(len, blocks.values()), default=0)
        return ranking({name: values for name, values in blocks.items() if len(values) == longest})

    def _compared(
        self, pairs: Sequence[tuple[ArmResult, ArmResult]], choices: tuple[str, str], measure: str
    ) -> list[dict[str, Any]]:
        """Compare rows and their baselines: differences, p-values with Holm's correction, what so many seeds can show.

        Seeds that one of the two has no value for are left out. Where that is since a run diverged, the seeds that are
        left flatter its row, which is then not called the higher one.
        """
        found = []
        for other, baseline in pairs:
            row, base = (self._values(r, c, measure) for r, c in zip((other, baseline), choices, strict=True))
            if row.shape[1] != base.shape[1]:  # other prompts: the seeds alone are paired
                row, base = (values.mean(axis=1, keepdims=True) for values in (row, base))
            both = np.isfinite(row).all(axis=1) & np.isfinite(base).all(axis=1)
            cells: dict[str, Any] = {
                "condition": other.arm.condition,
                "choice": choices[0],
                "row": other.row,
                "measure": measure,
                "versus": baseline.row,
            }
            names = ("difference", "low", "high", "p", "sd", "seeds")
            of_nothing = (*[np.nan] * 5, int(both.sum()))
            if both.sum() > 1:
                d = paired_difference(row[both], base[both], self.settings.resamples)
                of_nothing = (d.mean, d.low, d.high, d.p, d.sd, d.seeds)
            found.append(cells | dict(zip(names, of_nothing, strict=True)))
        adjusted = holm([cells["p"] for cells in found])
        for (other, baseline), cells, p in zip(pairs, found, adjusted, strict=True):
            higher = (other, choices[0]) if cells["difference"] > 0 else (baseline, choices[1])
            cells |= {
                "p_holm": p,
                "significant": bool(p < LEVEL) and not higher[0].diverged(higher[1]),
                "detectable": detectable_difference(cells["sd"], cells["seeds"], LEVEL),
                "detectable_corrected": detectable_difference(cells["sd"], cells["seeds"], LEVEL / len(found)),
            }
        return found

    def _values(self, result: ArmResult, choice: str, measure: str) -> Values:
        return result.values(choice, measure, self.settings.matched_kl)

    def _by_seed(self, result: ArmResult, choice: str, measure: str) -> Values:
        means: Values = self._values(result, choice, measure).mean(axis=1)
        return means

    def _probability_of_best(self, results: Mapping[str, ArmResult], choice: str) -> dict[str, float]:
        """Among the losses: rows beside them may have seen the truth."""
        losses = {name: result for name, result in results.items() if result.arm.is_loss}
        values = {name: self._values(result, choice, "reward") for name, result in losses.items()}
        size = min((v.shape[1] for v in values.values()), default=0)
        whole = {name: v[:, :size] for name, v in values.items() if np.isfinite(v).all()}
        return probability_of_best(whole, self.settings.resamples) if len(whole) > 1 else {}


def _complete(values: Values) -> Values:
    """Leave out the seeds that have no value."""
    whole: Values = values[np.isfinite(values).all(axis=1)]
    return whole


def _values_of(record: Record, measure: str, matched_kl: float) -> Values:
    """One run's values of a measure, ``(prompts,)`` or a single one; empty where it has none."""
    if record["status"] != FINISHED:
        return np.empty(0)
    place = MEASURES[measure].place
    found = [reward_at_kl(record["frontier"], matched_kl)] if place == "frontier" else record[place].get(measure, [])
    return np.atleast_1d(np.array(found, dtype=np.float64))  # None: NaN


def _setting(point: Mapping[str, Any]) -> str:
    """Write a setting as it stands on a command line."""
    return " ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in point.items())
