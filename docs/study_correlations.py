"""Print what README and docs quote from study/ beside its tables: ``python docs/study_correlations.py``.

Rank correlations over losses, what tuning gains, how well the practitioner's score finds the truth, pointwise against
other losses, and the power that five seeds on each side have.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pandas as pd
from scipy import optimize, stats

from caldpo.studies.setting_choice import PRACTITIONER, TRUTH

FOLDER = Path(__file__).with_name("study")
BESIDE = ("chosen_log_ratio", "displaced", "accuracy", "kl")


def is_pairwise(loss: str) -> bool:
    """Read what the loss declares."""
    module = importlib.import_module(f"caldpo.losses.{loss}")
    return bool(
        next(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__).pairwise
    )


def of_condition(condition: str, trials: pd.DataFrame) -> None:
    """Print the figures of a condition."""
    means = pd.read_csv(FOLDER / f"{condition}.csv")
    losses = means[(means["choice"] == PRACTITIONER) & (means["kind"] == "loss")].set_index("row")
    for measure in BESIDE:
        print(f"{condition}: reward with {measure} {stats.spearmanr(losses['reward'], losses[measure])[0]:+.2f}")
    pairwise = losses.index.map(is_pairwise)
    groups = losses["reward"].groupby(pairwise).mean()
    print(f"{condition}: mean reward, pointwise {groups[False]:.2f}, others {groups[True]:.2f}")
    score = f"score_{TRUTH}"
    first = trials[trials["trial"] == 0].set_index("row")[score]
    best = trials[trials["chosen_by"].fillna("").str.contains(TRUTH)].set_index("row")[score]
    print(f"{condition}: gain of tuning {(best - first).mean():.2f}, DPO {first['dpo']:.2f} to {best['dpo']:.2f}")
    scores = trials.dropna(subset=[score, f"score_{PRACTITIONER}"]).groupby("row")
    found = [stats.spearmanr(rows[f"score_{PRACTITIONER}"], rows[score])[0] for _, rows in scores]
    print(f"{condition}: the practitioner's score with the truth, mean over rows {pd.Series(found).mean():.2f}")


def power(effect: float, level: float, seeds: int = 5) -> float:
    """Probability that a two-sided t test of ``seeds`` on each side finds ``effect`` standard deviations."""
    freedom, centre = 2 * seeds - 2, effect * (seeds / 2) ** 0.5
    limit = stats.t.ppf(1 - level / 2, freedom)
    return float(1 - stats.nct.cdf(limit, freedom, centre) + stats.nct.cdf(-limit, freedom, centre))


def main() -> None:
    """Print all."""
    trials = pd.read_csv(FOLDER / "trials.csv")
    for condition, found in trials.groupby("condition", sort=False):
        of_condition(str(condition), found)
    rewards = [
        table[table["choice"] == PRACTITIONER].set_index("row").query("kind == 'loss'")["reward"]
        for table in (pd.read_csv(FOLDER / f"{name}.csv") for name in trials["condition"].unique())
    ]
    both = pd.concat(rewards, axis=1, join="inner")
    print("between the conditions: {:.2f} (p = {:.2f})".format(*stats.spearmanr(*both.to_numpy().T)))
    published = pd.read_csv(FOLDER / "published.csv").pivot_table(index="loss", columns="setting", values="value")
    ours = published[[name for name in published if name.startswith("GSM8K")]].dropna()
    print(
        "oxRL at its two sizes: {:.2f} (p = {:.2f}), {} losses".format(*stats.spearmanr(*ours.to_numpy().T), len(ours))
    )
    for level in (0.05, 0.05 / 19):
        effect = optimize.brentq(lambda d, level=level: power(d, level) - 0.8, 0.1, 4)
        print(f"level {level:.4f}: d = 0.8 found with probability {power(0.8, level):.2f}; 80 % at d = {effect:.1f}")


if __name__ == "__main__":
    main()
