"""The measures of a study: where a run's record has them, their units, and which direction is plainly better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StudyMeasure:
    """One measure of a run."""

    place: Literal["by_prompt", "by_pair", "scalars", "frontier"]  # in the record
    title: str
    unit: str
    better: Literal["higher", "lower"] | None = None
    is_share: bool = False  # between 0 and 1
    is_seen: bool = False  # by a person who does not know the true reward


MEASURES: dict[str, StudyMeasure] = {
    "reward": StudyMeasure("by_prompt", "true reward", "standard deviations of the data's responses", "higher"),
    "reward_at_kl": StudyMeasure("frontier", "true reward at the matched KL", "as true reward", "higher"),
    "win_rate": StudyMeasure("by_prompt", "win rate over the reference, true", "share of prompts", "higher", True),
    "judge_win_rate": StudyMeasure(
        "by_prompt", "win rate over the reference by a judge that errs", "share of prompts", "higher", True, True
    ),
    "kl": StudyMeasure("by_prompt", "KL(policy || reference)", "nats per response"),
    "reverse_kl": StudyMeasure("by_prompt", "KL(reference || policy)", "nats per response"),
    "accuracy": StudyMeasure("by_pair", "accuracy on labels", "share of pairs", "higher", True, True),
    "accuracy_of_truth": StudyMeasure("by_pair", "accuracy on true rewards", "share of pairs", "higher", True),
    "slope": StudyMeasure("scalars", "slope of implicit on true reward", "1 is calibrated"),
    "calibration_error": StudyMeasure("scalars", "expected calibration error", "probability", "lower"),
    "brier": StudyMeasure("by_pair", "Brier score of pair probabilities", "squared probability", "lower"),
    "chosen_log_ratio": StudyMeasure("by_pair", "log-ratio of chosen responses", "nats per response"),
    "rejected_log_ratio": StudyMeasure("by_pair", "log-ratio of rejected responses", "nats per response"),
    "displaced": StudyMeasure("by_pair", "chosen responses below the reference", "share of pairs", "lower", True),
    "length": StudyMeasure("by_prompt", "length of samples", "tokens"),
    "entropy": StudyMeasure("by_prompt", "entropy of the policy", "nats per response"),
    "distinct_1": StudyMeasure("scalars", "distinct tokens of samples", "share"),
    "distinct_2": StudyMeasure("scalars", "distinct pairs of tokens of samples", "share"),
    # where the optimum is known
    "exact_reward": StudyMeasure("scalars", "expected true reward, exact", "as true reward", "higher"),
    "objective": StudyMeasure("scalars", "E[r] - beta KL, exact", "as true reward"),
    "objective_optimum": StudyMeasure("scalars", "its largest value", "as true reward"),
    "regret": StudyMeasure("scalars", "how far the objective falls short of it", "as true reward", "lower"),
    "kl_to_optimum": StudyMeasure("scalars", "KL(policy || optimum), exact", "nats", "lower"),
    "kl_from_optimum": StudyMeasure("scalars", "KL(optimum || policy), exact", "nats", "lower"),
}
