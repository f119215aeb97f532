"""Measure accuracy, margin, calibration and length bias of the implicit reward on held-out pairs."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from caldpo import metric_definitions as metric
from caldpo.config.bounds import PositiveInt, Share
from caldpo.config.signatures import validated
from caldpo.environments.reward_agreement import agreement_of_centred, centred, rank_correlation, wins
from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.calibration_error import calibration_error, expected_error, reliability_curve
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_provenance import log_ratio_notes
from caldpo.evaluation.suite_base import Measure, Result, Suite
from caldpo.utils.atomic_io import atomic_text

PAIRS = "preference_pairs.csv"  # one row per pair, beside the results
Values = NDArray[np.float64]


@validated
@dataclass(frozen=True, kw_only=True)
class Preference(Suite):
    """Accuracy, margin, calibration and length bias of the implicit reward ``reward_beta log(pi/pi_ref)``.

    Where the run's loss has an implicit reward by its own derivation, calibration error and slope are also measured at
    its own beta, as ``calibration_error_own_beta`` and ``slope_own_beta``.
    """

    name: ClassVar[str] = "preference"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    bins: PositiveInt = 10
    resamples: PositiveInt = 1000
    confidence: Share = 0.95

    def run(self, policy: EvaluatedPolicy) -> Result:
        (chosen, rejected), prompts = policy.log_ratios, policy.prompts
        lengths = np.array([[len(p.chosen_ids), len(p.rejected_ids)] for p in policy.pairs], dtype=np.float64).T
        bootstrap = Bootstrap(self.resamples, self.confidence, policy.settings.seed)
        margins = policy.reward_beta * (chosen - rejected)
        measures = {
            "accuracy": Measure(**bootstrap.mean(wins(margins), prompts), **metric.ACCURACY.measure_fields, main=True),
            "margin": Measure(**bootstrap.mean(margins, prompts), **metric.REWARD_MARGIN.measure_fields, main=True),
            "log_ratio_chosen": Measure(**bootstrap.mean(chosen, prompts), **metric.CHOSEN_LOG_RATIO.measure_fields),
            "log_ratio_rejected": Measure(
                **bootstrap.mean(rejected, prompts), **metric.REJECTED_LOG_RATIO.measure_fields
            ),
        }
        measures |= self._calibration(margins, bootstrap, prompts)
        measures |= _length_bias(margins, lengths[0] - lengths[1], bootstrap, prompts)
        own_beta = policy.target.implicit_reward_beta
        if own_beta is not None:
            measures["calibration_error_own_beta"] = self._own_calibration(
                own_beta, chosen - rejected, bootstrap, prompts
            )
        scores = policy.scores
        if scores is not None:
            measures |= _true_reward_measures(policy.reward_beta, policy.log_ratios, scores, bootstrap, prompts)
            if own_beta is not None:
                measures["slope_own_beta"] = _own_slope(own_beta / policy.reward_beta, measures["slope"])
        self._write_pairs(policy, lengths, scores)
        return Result(
            measures=measures,
            examples=len(chosen),
            details={
                "prompts": len(set(prompts)),
                "reward_beta": policy.reward_beta,
                "implicit_reward_beta": own_beta,
                "reliability": reliability_curve(margins, self.bins),
                "confidence": self.confidence,
            },
            notes=log_ratio_notes(policy, float(chosen.mean())),
        )

    def _calibration(self, margins: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable]) -> dict[str, Measure]:
        by_chance = expected_error(margins, self.bins, bootstrap.seed)
        return {
            "calibration_error": Measure(
                **bootstrap.of(lambda rows: calibration_error(margins[rows], self.bins), prompts),
                title="calibration error",
                unit="probability",
                meaning="mean distance between the claimed preference probability, sigmoid(reward margin) in units of"
                " reward_beta, and the share of pairs in which it comes true, over bins of the claimed probability;"
                f" never 0 with few pairs: see the error by chance beside it ({by_chance:.3f} here)",
                better="lower",
                main=True,
            ),
            "calibration_error_by_chance": Measure(
                value=by_chance,
                n=len(margins),
                title="calibration error by chance",
                unit="probability",
                meaning="mean calibration error of a perfectly calibrated policy on this many pairs: an error no larger"
                " than this shows no miscalibration",
            ),
        }

    def _own_calibration(
        self, beta: float, log_ratio_margins: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable]
    ) -> Measure:
        """Measure the calibration error of the loss's own claim: ``sigmoid(beta (a - b))`` at its own beta."""
        error = self._calibration(beta * log_ratio_margins, bootstrap, prompts)
        by_chance = error["calibration_error_by_chance"].value
        return replace(
            error["calibration_error"],
            title="calibration error at own beta",
            meaning="the calibration error of the probability that the loss's own derivation claims, sigmoid(beta x"
            f" log-ratio margin) with beta = {beta:g} ({by_chance:.3f} by chance); for losses whose implicit reward is"
            " a multiple of the log-ratio",
        )

    def _write_pairs(self, policy: EvaluatedPolicy, lengths: Values, scores: Values | None) -> None:
        """Write log-ratios, lengths and scores pair by pair, for a reader's own figures."""
        columns: dict[str, Sequence[Any]] = {
            "origin": [pair.origin for pair in policy.pairs],
            "log_ratio_chosen": policy.log_ratios[0],
            "log_ratio_rejected": policy.log_ratios[1],
            "tokens_chosen": lengths[0].astype(int),
            "tokens_rejected": lengths[1].astype(int),
        }
        if scores is not None:
            columns |= {"score_chosen": scores[0], "score_rejected": scores[1]}
        with atomic_text(policy.folder / PAIRS) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _own_slope(factor: float, slope: Measure) -> Measure:
    """Scale the slope to the loss's own beta, in which it is linear."""
    low, high = (None if end is None else factor * end for end in (slope.low, slope.high))
    own = replace(slope, value=factor * slope.value, low=low, high=high, title="slope at own beta", main=False)
    return replace(own, meaning=f"the slope in units of the loss's own beta: {factor:g} times it")


def _length_bias(
    margins: Values, difference: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable]
) -> dict[str, Measure]:
    """Measure accuracy by which response is longer, next to the accuracy of length alone."""
    measures = {
        f"accuracy_{side}": Measure(
            **bootstrap.mean(wins(margins[mask]), list(compress(prompts, mask))),
            title=f"accuracy, chosen {side}",
            unit="share of pairs",
            meaning=f"accuracy among the pairs whose chosen response is {side} (in tokens) than the rejected one",
            better="higher",
            main=True,
        )
        for side, mask in (("longer", difference > 0), ("shorter", difference < 0))
    }
    measures["accuracy_of_length"] = Measure(
        **bootstrap.mean(wins(difference), prompts),
        title="accuracy of length alone",
        unit="share of pairs",
        meaning="accuracy of always preferring the longer response on the same pairs: a baseline, not the policy's",
        main=True,
    )
    measures["length_correlation"] = Measure(
        **bootstrap.of(lambda rows: rank_correlation(margins[rows], difference[rows]), prompts),
        title="margin and length",
        unit="Spearman, -1 to 1",
        meaning="rank correlation of the reward margin with how much longer the chosen response is",
    )
    return measures


def _true_reward_measures(
    beta: float, log_ratios: Values, scores: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable]
) -> dict[str, Measure]:
    """Compare implicit with true rewards of all responses, both centred within each prompt."""
    of_responses = [*prompts, *prompts]
    true, implicit, compared = centred(beta * log_ratios.ravel(), scores.ravel(), of_responses)
    true, implicit = true[compared], implicit[compared]
    clusters = list(compress(of_responses, compared))
    values = agreement_of_centred(true, implicit)
    squares = (true * implicit, true * true, implicit * implicit)
    intervals = {
        "slope": (metric.SLOPE, bootstrap.of_sums(lambda xy, xx, yy: xy / xx, squares, clusters)),
        "pearson": (metric.PEARSON, bootstrap.of_sums(lambda xy, xx, yy: xy / np.sqrt(xx * yy), squares, clusters)),
        "spearman": (
            metric.SPEARMAN,
            bootstrap.of(lambda rows: rank_correlation(true[rows], implicit[rows]), clusters),
        ),
        "error": (metric.REWARD_ERROR, bootstrap.mean(np.abs(implicit - true), clusters)),
    }
    measures = {
        name: Measure(
            **interval | {"value": values[name]}, **definition.measure_fields, main=name in ("slope", "pearson")
        )
        for name, (definition, interval) in intervals.items()
    }
    gap = scores[0] - scores[1]
    ranked_right = wins(np.sign(gap) * np.sign(log_ratios[0] - log_ratios[1]))
    measures["accuracy_of_truth"] = Measure(
        **bootstrap.mean(ranked_right[gap != 0], list(compress(prompts, gap != 0))),
        title="accuracy against true reward",
        unit="share of pairs",
        meaning="share of pairs in which the implicit reward ranks the responses as their true rewards do, whatever"
        " the label",
        better="higher",
    )
    return measures
