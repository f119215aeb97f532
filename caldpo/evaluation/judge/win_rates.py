"""From verdicts to rates: each pair by both orders, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.judge.length_control import length_controlled
from caldpo.evaluation.judge.pair_comparison import Pair, Question
from caldpo.evaluation.judge.parse_verdict import Verdict
from caldpo.evaluation.suite_result import Measure

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A pair with what was said of it.

    Args:
        place: of its prompt among the prompts.
        pair: what was compared.
        verdicts: of both orders; None where no verdict could be had. Empty where both texts are the same.
    """

    place: int
    pair: Pair
    verdicts: tuple[tuple[Question, Verdict | None], ...]

    @property
    def scores(self) -> list[float]:
        """Of each order that was read: 1 won, 1/2 even, 0 lost."""
        return [question.score(verdict) for question, verdict in self.verdicts if verdict is not None]

    @property
    def score(self) -> float | None:
        """Mean over both orders, 1/2 for equal texts; None where an order is missing: alone it would be biased."""
        if not self.verdicts:
            return 0.5
        return sum(self.scores) / 2 if len(self.scores) == 2 else None


def rates(judged: Sequence[Judged], opponent: str, bootstrap: Bootstrap) -> dict[str, Measure]:
    """All measures.

    Args:
        judged: every pair.
        opponent: what the policy is compared with, in words.
        bootstrap: of the intervals.
    """
    scored = [entry for entry in judged if entry.score is not None]
    return {
        **_winning(scored, opponent, bootstrap),
        "mean_length_difference": Measure(
            **bootstrap.mean([e.pair.length_difference for e in judged], _places(judged)),
            title="length difference",
            unit="characters",
            meaning=f"length of the policy's response less that of {opponent}, mean over pairs",
        ),
        **_of_the_judge(judged, bootstrap),
    }


def _winning(scored: Sequence[Judged], opponent: str, bootstrap: Bootstrap) -> dict[str, Measure]:
    scores = np.array([entry.score for entry in scored], dtype=np.float64)
    differences = np.array([entry.pair.length_difference for entry in scored], dtype=np.float64)
    return {
        "win_rate": Measure(
            **bootstrap.mean(scores, _places(scored)),
            title=f"win rate over {opponent}",
            unit="share of pairs",
            meaning=f"share of prompts on which the judge prefers the policy's response to {opponent}, mean over both"
            " orders of the two; ties count half",
            better="higher",
            main=True,
        ),
        "length_controlled": Measure(
            **bootstrap.of(lambda rows: length_controlled(scores[rows], differences[rows]), _places(scored)),
            title="length-controlled win rate",
            unit="share of pairs",
            meaning="the win rate that a logistic regression of the verdicts on the length difference predicts for"
            " responses of equal length (arXiv 2404.04475, without its term for the instruction)",
            better="higher",
            main=True,
        ),
    }


def _of_the_judge(judged: Sequence[Judged], bootstrap: Bootstrap) -> dict[str, Measure]:
    """How far the judge itself can be believed."""
    asked = [entry for entry in judged if len(entry.scores) == 2]
    read = [(e.place, verdict) for e in judged for _, verdict in e.verdicts if verdict is not None]
    decided = [(place, verdict) for place, verdict in read if verdict != "tie"]
    return {
        "position_bias": Measure(
            **_share([verdict == "A" for _, verdict in decided], [place for place, _ in decided], bootstrap),
            title="verdicts for the first place",
            unit="share of decided verdicts",
            meaning="share of the verdicts other than a tie that name the response shown first; 0.5 is no bias",
        ),
        "consistency": Measure(
            **_share([e.scores[0] == e.scores[1] for e in asked], _places(asked), bootstrap),
            title="consistency between orders",
            unit="share of judged pairs",
            meaning="share of the pairs on which the judge says the same whichever response is shown first",
            better="higher",
        ),
        "ties": Measure(
            **_share([verdict == "tie" for _, verdict in read], [place for place, _ in read], bootstrap),
            title="ties",
            unit="share of verdicts",
            meaning="share of the verdicts that name neither response",
        ),
        "identical": Measure(
            **_share([not e.verdicts for e in judged], _places(judged), bootstrap),
            title="identical responses",
            unit="share of pairs",
            meaning="share of the prompts to which both responses are the same text: even, without asking the judge",
        ),
    }


def _share(held: Sequence[bool], places: Sequence[int], bootstrap: Bootstrap) -> dict[str, Any]:
    return bootstrap.mean(np.asarray(held, dtype=np.float64), places)


def _places(judged: Sequence[Judged]) -> list[int]:
    return [entry.place for entry in judged]
