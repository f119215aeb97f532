"""Likelihood displacement: which responses became less likely while the margin between them grew, and what else moved.

Razin et al. 2024 (arXiv 2410.08847); Pal et al. 2024 (arXiv 2402.13228) saw it where responses share most tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from caldpo.config.bounds import PositiveInt, Share
from caldpo.config.signatures import validated
from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.suite_base import Suite
from caldpo.evaluation.suite_result import Measure, Result
from caldpo.evaluation.text_drift import Drift, measure_drift, read_texts

LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
Values = NDArray[np.float64]


@validated
@dataclass(frozen=True, kw_only=True)
class Displacement(Suite):
    """Distribution of the log-ratios of held-out responses, by length, and drift on unrelated text.

    Args:
        length_bins: of about equally many pairs, by the mean length of a pair's responses.
        unrelated: ``auto``, ``none`` or a file; see :func:`caldpo.evaluation.text_drift.measure_drift`.
        max_text_tokens: of an unrelated text that are looked at.
        resamples: bootstrap draws of whole prompts.
        confidence: of the intervals.
    """

    name: ClassVar[str] = "displacement"
    needs_reference: ClassVar[bool] = True

    length_bins: PositiveInt = 4
    unrelated: str = "auto"
    max_text_tokens: PositiveInt = 256
    resamples: PositiveInt = 1000
    confidence: Share = 0.95

    def check(self) -> None:
        if self.unrelated not in ("auto", "none"):
            read_texts(self.unrelated)

    def check_subject(self, subject: EvaluatedPolicy) -> None:
        self.require_rejected(subject)

    def run(self, subject: EvaluatedPolicy) -> Result:
        chosen, rejected = subject.log_ratios
        tokens = np.array([[len(p.chosen_ids), len(p.rejected_ids)] for p in subject.pairs], dtype=np.float64).T
        bootstrap = Bootstrap(self.resamples, self.confidence, subject.settings.seed)
        measures = _moved(chosen, rejected, tokens, bootstrap, subject.prompts)
        drift = measure_drift(subject, self.unrelated, self.max_text_tokens)
        if drift is not None:
            measures |= _drifted(drift, bootstrap)
        quantiles = {
            name: np.quantile(values, LEVELS).tolist() for name, values in (("chosen", chosen), ("rejected", rejected))
        }
        return Result(
            measures=measures,
            examples=len(chosen),
            details={
                "log_ratios": {"levels": list(LEVELS), **quantiles},
                "by_length": by_length(chosen, rejected, tokens.mean(axis=0), self.length_bins),
                "unrelated": None if drift is None else drift.said,
                "confidence": self.confidence,
            },
        )


def by_length(chosen: Values, rejected: Values, lengths: Values, bins: int) -> list[dict[str, Any]]:
    """Shares of pairs whose responses became less likely, in bins of about equally many pairs by length.

    Args:
        chosen: log-ratios, nats, ``(pairs,)``.
        rejected: the same of the rejected responses.
        lengths: of each pair, in tokens. Pairs of one length are in one bin.
        bins: at most; fewer where lengths repeat.

    Returns:
        ``low`` and ``high`` length of the bin's pairs, ``count`` of pairs, ``chosen_fell`` and ``both_fell`` as shares,
        ``chosen`` the mean chosen log-ratio.
    """
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    place = np.searchsorted(edges, lengths, side="left")
    found = []
    for i in np.unique(place):
        here = place == i
        found.append(
            {
                "low": float(lengths[here].min()),
                "high": float(lengths[here].max()),
                "count": int(here.sum()),
                "chosen_fell": float((chosen[here] < 0).mean()),
                "both_fell": float(((chosen[here] < 0) & (rejected[here] < 0)).mean()),
                "chosen": float(chosen[here].mean()),
            }
        )
    return found


def _moved(
    chosen: Values, rejected: Values, tokens: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable]
) -> dict[str, Measure]:
    def per_token(total: Any, count: Any) -> Any:
        return total / count

    return {
        "chosen_fell": Measure(
            **bootstrap.mean(chosen < 0, prompts),
            title="chosen fell",
            unit="share of pairs",
            meaning="share of held-out pairs whose chosen response became less likely than under the reference",
            main=True,
        ),
        "both_fell": Measure(
            **bootstrap.mean((chosen < 0) & (rejected < 0), prompts),
            title="both fell",
            unit="share of pairs",
            meaning="share of pairs of which both responses became less likely: something else became likelier",
            main=True,
        ),
        "rejected_fell": Measure(
            **bootstrap.mean(rejected < 0, prompts),
            title="rejected fell",
            unit="share of pairs",
            meaning="share of pairs whose rejected response became less likely than under the reference",
        ),
        "chosen_per_token": Measure(
            **bootstrap.of_sums(per_token, (chosen, tokens[0]), prompts),
            title="chosen log-ratio per token",
            unit="nats per token",
            meaning="log-ratio of all chosen responses together, by their tokens",
            main=True,
        ),
        "rejected_per_token": Measure(
            **bootstrap.of_sums(per_token, (rejected, tokens[1]), prompts),
            title="rejected log-ratio per token",
            unit="nats per token",
            meaning="the same of the rejected responses",
        ),
    }


def _drifted(drift: Drift, bootstrap: Bootstrap) -> dict[str, Measure]:
    texts = range(len(drift.ratios))  # each its own cluster
    return {
        "drift": Measure(
            **bootstrap.of_sums(lambda total, count: total / count, (drift.ratios, drift.tokens), texts),
            title=drift.title,
            unit="nats per token",
            meaning=f"log-ratio policy/reference, per token, of text that no loss was computed on: {drift.said}",
            main=True,
        ),
        "drift_size": Measure(
            **bootstrap.mean(np.abs(drift.ratios) / drift.tokens, texts),
            title="size of that drift",
            unit="nats per token",
            meaning="mean absolute log-ratio per token of the same texts, each counted once",
        ),
    }
