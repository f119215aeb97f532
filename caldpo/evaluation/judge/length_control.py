"""Win rate with the advantage of length taken out, in the manner of AlpacaEval 2.

Dubois, Galambosi, Liang and Hashimoto 2024, Length-Controlled AlpacaEval (arXiv 2404.04475), model the probability of a
win as a logistic function of who answered, of the length difference and of how hard the instruction is, and read it
off at a length difference of zero. Here

    P(win) = sigmoid(a + b tanh(d / sd(d))),    rate = sigmoid(a),

with ``d`` the length of the policy's response less that of the other. Their term for the instruction is left out: it
needs the verdicts on many other models for each prompt, which a data set of one's own does not have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Values = NDArray[np.float64]

RIDGE = 0.01  # weight of b^2/2 beside the summed log-loss: a normal prior of standard deviation 10 on the slope
_LARGEST = 20.0  # of a and b in absolute value: where every pair is won, a has no finite optimum


def length_controlled(scores: Values, differences: Values) -> float:
    """The rate at equal length.

    The log-loss takes scores between 0 and 1 as soft labels. The slope has a ridge penalty of :data:`RIDGE`, without
    which it would be infinite where the longer response always wins; the intercept has none, so that the rate is the
    plain mean where length plays no part.

    Args:
        scores: of each pair: 1 won, 1/2 even, 0 lost, ``(pairs,)``.
        differences: lengths of the policy's responses less those of the others, in any unit, ``(pairs,)``.

    Returns:
        Between 0 and 1; not a number where there are no pairs, or all differ by the same length other than zero.
    """
    if not len(scores):
        return float("nan")
    spread = float(differences.std())
    if spread == 0:
        return float("nan") if differences[0] else float(scores.mean())
    return float(special.expit(fit(scores, np.tanh(differences / spread))[0]))


def fit(scores: Values, feature: Values) -> tuple[float, float]:
    """Intercept and slope of the penalised logistic regression, both in nats of log-odds."""

    def objective(parameters: Values) -> tuple[float, Values]:
        a, b = parameters
        logits = a + b * feature
        loss = np.logaddexp(0.0, logits) - scores * logits
        error = special.expit(logits) - scores
        gradient = np.array([error.sum(), error @ feature + RIDGE * b])
        return (loss.sum() + RIDGE * b * b / 2) / len(scores), gradient / len(scores)

    start = special.logit(np.clip(scores.mean(), 1e-8, 1 - 1e-8))
    found = optimize.minimize(
        objective,
        np.array([start, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-_LARGEST, _LARGEST)] * 2,
        options={"gtol": 1e-9, "ftol": 1e-14},
    )
    return float(found.x[0]), float(found.x[1])
