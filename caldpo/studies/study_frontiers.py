"""Reward against KL along training: the path of each row of a study, as a table."""

from __future__ import annotations

import pandas as pd

from caldpo.studies.run_store import FINISHED
from caldpo.studies.study_results import StudyResults

COLUMNS = ("condition", "row", "choice", "step", "kl", "reward", "seeds")


def frontiers(results: StudyResults) -> pd.DataFrame:
    """One row per row of the study, choice and evaluation: means over its finished seeds.

    ``kl`` in nats per response, ``reward`` as the true reward; NaN where a seed's is not finite.
    """
    found = []
    for result in results.arms:
        for choice, records in result.finals.items():
            points = pd.DataFrame([p for r in records if r["status"] == FINISHED for p in r["frontier"]])
            if points.empty:
                continue
            steps = points.groupby("step", sort=True)
            means = steps[["kl", "reward"]].agg(lambda values: values.mean(skipna=False)).assign(seeds=steps.size())
            name = {"condition": result.arm.condition, "row": result.row, "choice": choice}
            found.append(means.reset_index().assign(**name))
    return pd.concat(found, ignore_index=True)[list(COLUMNS)] if found else pd.DataFrame(columns=list(COLUMNS))
