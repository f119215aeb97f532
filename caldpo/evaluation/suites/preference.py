"""Held-out pairs: does the policy prefer what people preferred, by how much, and is it as sure as it should be?"""

from __future__ import annotations

import csv
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from caldpo.config.bounds import PositiveInt, Share
from caldpo.config.signatures import validated
from caldpo.data.true_rewards import wins
from caldpo.environments.reward_agreement import agreement_of_centred, centred, rank_correlation
from caldpo.evaluation.bootstrap import Bootstrap, Rows
from caldpo.evaluation.calibration_error import calibration_error, expected_error, reliability_curve
from caldpo.evaluation.consistency_checks import logged_otherwise
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.suite_base import Suite
from caldpo.evaluation.suite_result import Measure, Result
from caldpo.metric_definitions import REWARD_UNIT
from caldpo.report.comparison_facts import OWN_BETA
from caldpo.utils.atomic_io import atomic_text

PAIRS = "preference_pairs.csv"  # a row per pair, beside the results
Values = NDArray[np.float64]


@validated
@dataclass(frozen=True, kw_only=True)
class Preference(Suite):
    """Accuracy, margin, calibration and length bias of the implicit reward ``reward_beta log(pi/pi_ref)``.

    Where the run's loss has an implicit reward by its own derivation, calibration and slope are told at its own beta,
    too, under names of their own.

    Args:
        bins: of the reliability curve, of equal width.
        resamples: bootstrap draws of whole prompts.
        confidence: of the intervals.
    """

    name: ClassVar[str] = "preference"
    needs_reference: ClassVar[bool] = True

    bins: PositiveInt = 10
    resamples: PositiveInt = 1000
    confidence: Share = 0.95

    def check_subject(self, subject: EvaluatedPolicy) -> None:
        self.require_rejected(subject)

    def run(self, subject: EvaluatedPolicy) -> Result:
        chosen, rejected = subject.log_ratios
        lengths = np.array([[len(p.chosen_ids), len(p.rejected_ids)] for p in subject.pairs], dtype=np.float64).T
        bootstrap = Bootstrap(self.resamples, self.confidence, subject.settings.seed)
        margins = subject.reward_beta * (chosen - rejected)
        measures = _agreement_with_people(margins, chosen, rejected, bootstrap, subject.prompts, self.bins)
        measures |= _length_bias(margins, lengths[0] - lengths[1], bootstrap, subject.prompts)
        own = subject.own_reward_beta
        if own is not None:
            measures |= _own_calibration(own, chosen - rejected, bootstrap, subject.prompts, self.bins)
        scores = subject.scores
        if scores is not None:
            measures |= _true_rewards(subject.reward_beta, subject.log_ratios, scores, bootstrap, subject.prompts)
            if own is not None:
                measures |= _own_slope(own / subject.reward_beta, measures["slope"])
        self._write_pairs(subject, lengths, scores)
        return Result(
            measures=measures,
            examples=len(chosen),
            details={
                "prompts": len(set(subject.prompts)),
                "reward_beta": subject.reward_beta,
                OWN_BETA: own,
                "reliability": reliability_curve(margins, self.bins),
                "confidence": self.confidence,
            },
            notes=logged_otherwise(subject, float(chosen.mean())),
        )

    def _write_pairs(self, subject: EvaluatedPolicy, lengths: Values, scores: Values | None) -> None:
        """What the measures are made of, pair by pair, for figures of one's own."""
        columns: dict[str, Sequence[Any]] = {
            "origin": [pair.origin for pair in subject.pairs],
            "log_ratio_chosen": subject.log_ratios[0],
            "log_ratio_rejected": subject.log_ratios[1],
            "tokens_chosen": lengths[0].astype(int),
            "tokens_rejected": lengths[1].astype(int),
        }
        if scores is not None:
            columns |= {"score_chosen": scores[0], "score_rejected": scores[1]}
        with atomic_text(subject.folder / PAIRS) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _agreement_with_people(
    margins: Values, chosen: Values, rejected: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable], bins: int
) -> dict[str, Measure]:
    def error(rows: Rows) -> float:
        return calibration_error(margins[rows], bins)

    by_chance = expected_error(margins, bins, bootstrap.seed)
    return {
        "accuracy": Measure(
            **bootstrap.mean(wins(margins), prompts),
            title="accuracy",
            unit="share of pairs",
            meaning="share of held-out pairs whose chosen response has the higher implicit reward, ties counted half",
            better="higher",
            main=True,
        ),
        "margin": Measure(
            **bootstrap.mean(margins, prompts),
            title="reward margin",
            unit=REWARD_UNIT,
            meaning="implicit reward of the chosen less that of the rejected response, mean over pairs; reward_beta is"
            " one for all losses",
            main=True,
        ),
        "log_ratio_chosen": Measure(
            **bootstrap.mean(chosen, prompts),
            title="chosen log-ratio",
            unit="nats",
            meaning="log pi(chosen) - log pi_ref(chosen), summed over the response's tokens, mean over pairs",
        ),
        "log_ratio_rejected": Measure(
            **bootstrap.mean(rejected, prompts),
            title="rejected log-ratio",
            unit="nats",
            meaning="the same of the rejected response",
        ),
        "calibration_error": Measure(
            **bootstrap.of(error, prompts),
            title="calibration error",
            unit="probability",
            meaning="mean distance between the preference probability that the policy claims, sigmoid(reward margin)"
            " in units of reward_beta, and the share of pairs that bear it out, over bins of the claimed probability;"
            f" never 0 with few pairs: see the error by chance beside it ({by_chance:.3f} here)",
            better="lower",
            main=True,
        ),
        "calibration_error_by_chance": Measure(
            value=by_chance,
            n=len(margins),
            title="calibration error by chance",
            unit="probability",
            meaning="what the calibration error would be on average if every claimed probability were true: a policy"
            " with no more than this is as calibrated as so many pairs can show",
        ),
    }


def _own_calibration(
    beta: float, log_ratio_margins: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable], bins: int
) -> dict[str, Measure]:
    """The calibration error of what the loss itself claims: ``sigmoid(beta (a - b))`` at its own beta."""
    margins = beta * log_ratio_margins
    by_chance = expected_error(margins, bins, bootstrap.seed)
    return {
        "calibration_error_own_beta": Measure(
            **bootstrap.of(lambda rows: calibration_error(margins[rows], bins), prompts),
            title="calibration error at own beta",
            unit="probability",
            meaning="the calibration error of the probability that the loss's own derivation claims, sigmoid(beta x"
            f" log-ratio margin) with beta = {beta:g} ({by_chance:.3f} by chance); for losses whose implicit reward is"
            " a multiple of the log-ratio",
            better="lower",
            main=True,
        )
    }


def _own_slope(factor: float, slope: Measure) -> dict[str, Measure]:
    """The slope in units of the loss's own beta: it is linear in the unit."""
    low, high = (None if end is None else factor * end for end in (slope.low, slope.high))
    own = replace(slope, value=factor * slope.value, low=low, high=high, title="slope at own beta", main=False)
    return {"slope_own_beta": replace(own, meaning=f"the slope in units of the loss's own beta: {factor:g} times it")}


def _length_bias(
    margins: Values, difference: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable]
) -> dict[str, Measure]:
    """Accuracy by which response is longer, beside what length alone would get."""

    def correlation(rows: Rows) -> float:
        return rank_correlation(margins[rows], difference[rows])

    def among(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        return bootstrap.mean(wins(margins[chosen]), [p for p, kept in zip(prompts, chosen, strict=True) if kept])

    measures = {
        f"accuracy_{side}": Measure(
            **among(chosen),
            title=f"accuracy, chosen {side}",
            unit="share of pairs",
            meaning=f"accuracy among the pairs whose chosen response is {side} (in tokens) than the rejected one",
            better="higher",
            main=True,
        )
        for side, chosen in (("longer", difference > 0), ("shorter", difference < 0))
    }
    measures["accuracy_of_length"] = Measure(
        **bootstrap.mean(wins(difference), prompts),
        title="accuracy of length alone",
        unit="share of pairs",
        meaning="what always preferring the longer response would get on the same pairs: a baseline, not the policy's",
        main=True,
    )
    measures["length_correlation"] = Measure(
        **bootstrap.of(correlation, prompts),
        title="margin and length",
        unit="Spearman, -1 to 1",
        meaning="rank correlation of the reward margin with how much longer the chosen response is",
    )
    return measures


def _true_rewards(
    beta: float, log_ratios: Values, scores: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable]
) -> dict[str, Measure]:
    """Implicit against true rewards of all responses, both centred within each prompt."""
    both = [*prompts, *prompts]
    true, implicit, compared = centred(beta * log_ratios.ravel(), scores.ravel(), both)
    true, implicit = true[compared], implicit[compared]
    clusters = [prompt for prompt, kept in zip(both, compared, strict=True) if kept]
    found = agreement_of_centred(true, implicit)
    squares = (true * implicit, true * true, implicit * implicit)
    drawn = {
        "slope": bootstrap.of_sums(lambda xy, xx, yy: xy / xx, squares, clusters),
        "pearson": bootstrap.of_sums(lambda xy, xx, yy: xy / np.sqrt(xx * yy), squares, clusters),
        "spearman": bootstrap.of(lambda rows: rank_correlation(true[rows], implicit[rows]), clusters),
        "error": bootstrap.mean(np.abs(implicit - true), clusters),
    }
    gap = scores[0] - scores[1]
    right = wins(np.sign(gap) * np.sign(log_ratios[0] - log_ratios[1]))
    told = [prompt for prompt, differs in zip(prompts, gap != 0, strict=True) if differs]
    words: dict[str, dict[str, Any]] = {
        "slope": {
            "title": "slope on true reward",
            "unit": "implicit per true reward",
            "meaning": "slope of implicit (reward_beta x log-ratio) on true rewards of held-out responses, both centred"
            " within each prompt; 1 is the true scale, less is compressed",
            "main": True,
        },
        "pearson": {
            "title": "Pearson r",
            "unit": "-1 to 1",
            "meaning": "correlation of implicit with true rewards, centred likewise",
            "better": "higher",
            "main": True,
        },
        "spearman": {
            "title": "Spearman rho",
            "unit": "-1 to 1",
            "meaning": "rank correlation of the same",
            "better": "higher",
        },
        "error": {
            "title": "reward error",
            "unit": "data's units",
            "meaning": "mean absolute difference of implicit and true rewards, centred likewise",
            "better": "lower",
        },
    }
    measures = {name: Measure(**drawn[name] | {"value": found[name]}, **words[name]) for name in words}
    measures["accuracy_of_truth"] = Measure(
        **bootstrap.mean(right[gap != 0], told),
        title="accuracy against true reward",
        unit="share of pairs",
        meaning="share of pairs in which the implicit reward ranks the responses as their true rewards do, whatever"
        " the label",
        better="higher",
    )
    return measures
