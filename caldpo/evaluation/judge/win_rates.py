"""Compute win rates from verdicts, each pair by both orders, also with the advantage of length removed.

Dubois, Galambosi, Liang and Hashimoto 2024, Length-Controlled AlpacaEval (arXiv 2404.04475), model the probability of a
win as a logistic function of who answered, of the length difference and of how hard the instruction is, and read it
off at a length difference of zero. Here

    P(win) = sigmoid(a + b tanh(d / sd(d))),    rate = sigmoid(a),

with ``d`` the length of the policy's response minus that of the other. Their term for the instruction is left out: it
needs the verdicts on many other models for each prompt, which a data set of one's own does not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.judge.pair_comparison import JudgedPair
from caldpo.evaluation.suite_base import Measure

Values = NDArray[np.float64]

RIDGE = 0.01  # weight of b^2/2 beside the summed log-loss: a normal prior of standard deviation 10 on the slope
_LARGEST = 20.0  # of a and b in absolute value: where every pair is won, a has no finite optimum


def rate_measures(judged: Sequence[JudgedPair], opponent: str, bootstrap: Bootstrap) -> dict[str, Measure]:
    """Compute all measures of a judged evaluation; ``opponent`` names the policy's in words."""
    scored = [entry for entry in judged if entry.score is not None]
    return {
        **_win_rates(scored, opponent, bootstrap),
        "mean_length_difference": Measure(
            **bootstrap.mean([entry.pair.length_difference for entry in judged], _prompts(judged)),
            title="length difference",
            unit="characters",
            meaning=f"length of the policy's response minus that of {opponent}, mean over pairs",
        ),
        **_judge_reliability(judged, bootstrap),
    }


def length_controlled(scores: Values, differences: Values) -> float:
    """Predict the win rate at equal length.

    The log-loss takes scores between 0 and 1 as soft labels. The slope has a ridge penalty of :data:`RIDGE`, without
    which it would be infinite where the longer response always wins; the intercept has none, so that the rate is the
    plain mean where length plays no part. NaN without pairs, or where all differ by the same length other than zero.

    Args:
        scores: of each pair: 1 won, 1/2 tie, 0 lost, ``(pairs,)``.
        differences: lengths of the policy's responses minus those of the others, in any unit, ``(pairs,)``.
    """
    if not len(scores):
        return float("nan")
    spread = float(differences.std())
    if spread == 0:
        return float("nan") if differences[0] else float(scores.mean())
    return float(special.expit(fit(scores, np.tanh(differences / spread))[0]))


def fit(scores: Values, feature: Values) -> tuple[float, float]:
    """Fit intercept and slope of the penalised logistic regression, both in nats of log-odds."""

    def objective(parameters: Values) -> tuple[float, Values]:
        a, b = parameters
        logits = a + b * feature
        loss = np.logaddexp(0.0, logits) - scores * logits
        error = special.expit(logits) - scores
        gradient = np.array([error.sum(), error @ feature + RIDGE * b])
        return (loss.sum() + RIDGE * b * b / 2) / len(scores), gradient / len(scores)

    start = special.logit(np.clip(scores.mean(), 1e-8, 1 - 1e-8))
    optimum = optimize.minimize(
        objective,
        np.array([start, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-_LARGEST, _LARGEST)] * 2,
        options={"gtol": 1e-9, "ftol": 1e-14},
    )
    return float(optimum.x[0]), float(optimum.x[1])


def _win_rates(scored: Sequence[JudgedPair], opponent: str, bootstrap: Bootstrap) -> dict[str, Measure]:
    scores = np.array([entry.score for entry in scored], dtype=np.float64)
    differences = np.array([entry.pair.length_difference for entry in scored], dtype=np.float64)
    return {
        "win_rate": Measure(
            **bootstrap.mean(scores, _prompts(scored)),
            title=f"win rate over {opponent}",
            unit="share of pairs",
            meaning=f"share of prompts on which the judge prefers the policy's response to {opponent}, mean over both"
            " orders of the two; ties count half",
            better="higher",
            main=True,
        ),
        "length_controlled": Measure(
            **bootstrap.of(lambda rows: length_controlled(scores[rows], differences[rows]), _prompts(scored)),
            title="length-controlled win rate",
            unit="share of pairs",
            meaning="the win rate that a logistic regression of the verdicts on the length difference predicts for"
            " responses of equal length (arXiv 2404.04475, without its term for the instruction)",
            better="higher",
            main=True,
        ),
    }


def _judge_reliability(judged: Sequence[JudgedPair], bootstrap: Bootstrap) -> dict[str, Measure]:
    complete = [entry for entry in judged if len(entry.scores) == 2]
    verdicts = [(e.prompt_index, verdict) for e in judged for _, verdict in e.verdicts if verdict is not None]
    decided = [(prompt, verdict) for prompt, verdict in verdicts if verdict != "tie"]
    return {
        "position_bias": Measure(
            **bootstrap.mean([verdict == "A" for _, verdict in decided], [prompt for prompt, _ in decided]),
            title="verdicts for the first place",
            unit="share of decided verdicts",
            meaning="share of the verdicts other than a tie that name the response shown first; 0.5 is no bias",
        ),
        "consistency": Measure(
            **bootstrap.mean([e.scores[0] == e.scores[1] for e in complete], _prompts(complete)),
            title="consistency between orders",
            unit="share of judged pairs",
            meaning="share of the pairs with the same verdict whichever response is shown first",
            better="higher",
        ),
        "ties": Measure(
            **bootstrap.mean([verdict == "tie" for _, verdict in verdicts], [prompt for prompt, _ in verdicts]),
            title="ties",
            unit="share of verdicts",
            meaning="share of the verdicts that name neither response",
        ),
        "identical": Measure(
            **bootstrap.mean([not e.verdicts for e in judged], _prompts(judged)),
            title="identical responses",
            unit="share of pairs",
            meaning="share of the prompts to which both responses are the same text: a tie, without asking the judge",
        ),
    }


def _prompts(judged: Sequence[JudgedPair]) -> list[int]:
    return [entry.prompt_index for entry in judged]
