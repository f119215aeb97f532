"""Set the study beside published comparisons: ``python docs/published.py`` writes study/published_beside.csv.

Prints, for each published setting and each condition of the study, Spearman's rank correlation over the losses that
both have, and in how many the sign of the difference to DPO is the same.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from caldpo.studies.setting_choice import PRACTITIONER
from caldpo.studies.study_settings import BASELINE

FOLDER = Path(__file__).with_name("study")
MEASURE = "reward"


def differences(folder: Path = FOLDER) -> pd.DataFrame:
    """Differences to DPO, a row per published figure, beside those of the study's conditions."""
    published = pd.read_csv(folder / "published.csv", dtype={"source": str})
    of_dpo = published[published["loss"] == BASELINE].set_index("setting")["value"]
    published["difference"] = published["value"] - published["setting"].map(of_dpo)
    ours = pd.read_csv(folder / "differences.csv")
    ours = ours[(ours["choice"] == PRACTITIONER) & (ours["measure"] == MEASURE)]
    for condition, found in ours.groupby("condition", sort=False):
        found = found.set_index("row")
        published[condition] = published["loss"].map(found["difference"])
        published[f"{condition} significant"] = published["loss"].map(found["significant"])
    return published[published["loss"] != BASELINE]


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation and equal signs for each published setting and condition."""
    conditions = [name for name in table if f"{name} significant" in table]
    rows = []
    for (source, setting), found in table.groupby(["source", "setting"], sort=False):
        for condition in conditions:
            both = found.dropna(subset=[condition])
            rho, p = spearmanr(both["difference"], both[condition])
            signs = int((both["difference"] * both[condition] > 0).sum())
            rows.append([source, setting, condition, len(both), round(rho, 2), round(p, 2), signs])
    return pd.DataFrame(rows, columns=["source", "setting", "condition", "losses", "rho", "p", "same sign"])


def main() -> None:
    """Write the table and print the correlations."""
    table = differences()
    table.round(4).to_csv(FOLDER / "published_beside.csv", index=False)
    print(correlations(table).to_string(index=False))


if __name__ == "__main__":
    main()
