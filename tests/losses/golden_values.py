"""``python -m tests.losses.golden_values``: compute the golden values of the losses again, with 50 digits.

Formulas are written as in the papers, for arbitrary precision, and gradients are numerical derivatives of them: neither
shares code with the project. ``golden_values.json`` holds loss and gradients rounded to float64.

Symbols: log-probs ``pw, pl`` of the policy and ``rw, rl`` of the reference for chosen and rejected, summed,
nats; tokens ``nw, nl``; scores ``sw, sl``; log-ratios ``a = pw - rw``, ``b = pl - rl``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mpmath import diff, exp, log, mp, mpf

VALUES = Path(__file__).with_suffix(".json")
mp.dps = 50


class Inputs(NamedTuple):
    """One pair."""

    pw: Any
    pl: Any
    rw: Any
    rl: Any
    nw: Any
    nl: Any
    sw: Any
    sl: Any

    @property
    def a(self) -> Any:
        return self.pw - self.rw

    @property
    def b(self) -> Any:
        return self.pl - self.rl


# short and long responses, log-ratios of either sign and 0, margins of either sign
PAIRS = [
    Inputs(*map(mpf, numbers))
    for numbers in [
        ("-20", "-31.5", "-20", "-31.5", 9, 14, "0.9", "0.1"),
        ("-20.25", "-31.5", "-22.5", "-30.125", 9, 14, "0.9", "0.1"),
        ("-55.25", "-12.5", "-50.5", "-12.75", 40, 3, "1.5", "-1.5"),
        ("-4.5", "-7.25", "-4.75", "-6.5", 1, 1, "0.3", "0.2"),
        ("-301.5", "-280.25", "-290.5", "-295.75", 200, 150, "8", "2"),
        ("-88.5", "-140.75", "-95.25", "-131.5", 64, 71, "-2.5", "-3"),
    ]
]


def nll_sigmoid(x: Any) -> Any:
    """``-log sigmoid(x)``."""
    return log(1 + exp(-x))


def hinge(x: Any) -> Any:
    return x if x > 0 else mpf(0)


def calibration(p: Inputs, beta: str, weight: str = "1", center: str | None = None, scale: str = "1") -> Any:
    """Squared distances of the log-ratios from ``r / beta``: rewards of +-1/2, or scores less a center."""
    if center is None:
        chosen, rejected = mpf("0.5"), mpf("-0.5")
    else:
        mean = (p.sw + p.sl) / 2 if center == "pair" else mpf(center)
        chosen, rejected = mpf(scale) * (p.sw - mean), mpf(scale) * (p.sl - mean)
    return mpf(weight) * ((p.a - chosen / mpf(beta)) ** 2 + (p.b - rejected / mpf(beta)) ** 2)


def dpo(p: Inputs, beta: str, flip: str = "0") -> Any:
    margin, e = mpf(beta) * (p.a - p.b), mpf(flip)
    return (1 - e) * nll_sigmoid(margin) + e * nll_sigmoid(-margin)


def ipo(p: Inputs, beta: str, *, per_token: bool = True) -> Any:
    gap = p.a / p.nw - p.b / p.nl if per_token else p.a - p.b
    return (gap - 1 / (2 * mpf(beta))) ** 2


def slic(p: Inputs, delta: str, weight: str) -> Any:
    return hinge(mpf(delta) - p.pw + p.pl) - mpf(weight) * p.pw / p.nw


def f_dpo(p: Inputs, beta: str, s: Callable[[Any], Any]) -> Any:
    return nll_sigmoid(mpf(beta) * (s(p.a) - s(p.b)))


def alpha(value: str) -> Callable[[Any], Any]:
    return lambda x: (1 - exp(-mpf(value) * x)) / mpf(value)


def bco(p: Inputs, beta: str) -> Any:
    """The shift is the mean over all pairs, and a constant."""
    shift = mpf(beta) * sum(q.a + q.b for q in PAIRS) / (2 * len(PAIRS))
    return nll_sigmoid(mpf(beta) * p.a - shift) + nll_sigmoid(shift - mpf(beta) * p.b)


def rank(of: Callable[[Inputs], Any], p: Inputs) -> int:
    """Of the pair among all, by ``of``, whose tiny changes do not count."""
    ordered = sorted(range(len(PAIRS)), key=lambda i: of(PAIRS[i]))
    return min(range(len(PAIRS)), key=lambda k: abs(of(PAIRS[ordered[k]]) - of(p)))


def aot(p: Inputs, beta: str) -> Any:
    margin = sorted(q.rw - q.rl for q in PAIRS)[rank(lambda q: q.pw - q.pl, p)]
    return nll_sigmoid(mpf(beta) * (p.pw - p.pl - margin))


def aot_unpaired(p: Inputs, beta: str) -> Any:
    """The pair's own term by its chosen response, and the other pair's term that has its rejected response."""
    lower = sorted(q.b for q in PAIRS)[rank(lambda q: q.a, p)]
    place = rank(lambda q: q.b, p)
    upper, own = sorted(q.a for q in PAIRS)[place], sorted(q.b for q in PAIRS)[place]
    of_other = nll_sigmoid(mpf(beta) * (upper - p.b)) - nll_sigmoid(mpf(beta) * (upper - own))
    return nll_sigmoid(mpf(beta) * (p.a - lower)) + of_other


FORMULAS: dict[str, Callable[[Inputs], Any]] = {
    "dpo beta=0.1": lambda p: dpo(p, "0.1"),
    "dpo beta=0.01 label_smoothing=0.1": lambda p: dpo(p, "0.01", "0.1"),
    "ipo beta=0.1 length_normalize=true": lambda p: ipo(p, "0.1"),
    "ipo beta=0.5 length_normalize=false": lambda p: ipo(p, "0.5", per_token=False),
    "slic delta=10.0 nll_weight=1.0": lambda p: slic(p, "10", "1"),
    "slic delta=1.0 nll_weight=0.25": lambda p: slic(p, "1", "0.25"),
    "cpo beta=0.1 nll_weight=1.0": lambda p: nll_sigmoid(mpf("0.1") * (p.pw - p.pl)) - p.pw / p.nw,
    "cpo beta=0.05 nll_weight=0.0": lambda p: nll_sigmoid(mpf("0.05") * (p.pw - p.pl)),
    "f_dpo beta=0.1 divergence=reverse_kl": lambda p: f_dpo(p, "0.1", lambda x: x),
    "f_dpo beta=0.1 divergence=forward_kl": lambda p: f_dpo(p, "0.1", lambda x: -exp(-x)),
    "f_dpo beta=0.1 divergence=js": lambda p: f_dpo(p, "0.1", lambda x: -nll_sigmoid(x)),
    "f_dpo beta=0.1 divergence=alpha alpha=0.5": lambda p: f_dpo(p, "0.1", alpha("0.5")),
    "f_dpo beta=0.3 divergence=alpha alpha=0.001": lambda p: f_dpo(p, "0.3", alpha("0.001")),
    "rso beta=0.1": lambda p: hinge(1 - mpf("0.1") * (p.a - p.b)),
    "sft": lambda p: -p.pw / p.nw,
    "cal_dpo beta=0.1": lambda p: nll_sigmoid(p.a - p.b) + calibration(p, "0.1"),
    "cal_dpo beta=0.001": lambda p: nll_sigmoid(p.a - p.b) + calibration(p, "0.001"),
    "cal_dpo beta=0.01 calibration_weight=0.5": lambda p: nll_sigmoid(p.a - p.b) + calibration(p, "0.01", "0.5"),
    "cal_dpo beta=0.1 targets=scores": lambda p: nll_sigmoid(p.a - p.b) + calibration(p, "0.1", center="pair"),
    "cal_dpo beta=0.2 targets=scores score_center=0.5 score_scale=2.0": lambda p: (
        nll_sigmoid(p.a - p.b) + calibration(p, "0.2", center="0.5", scale="2")
    ),
    "cal_ipo beta=0.1 length_normalize=true": lambda p: ipo(p, "0.1") + calibration(p, "0.1"),
    # without mismatched responses z = 0
    "kto beta=0.1": lambda p: 1 / (1 + exp(mpf("0.1") * p.a)) + 1 / (1 + exp(-mpf("0.1") * p.b)),
    "kto beta=0.3 desirable_weight=1.5 undesirable_weight=0.5": lambda p: (
        mpf("1.5") / (1 + exp(mpf("0.3") * p.a)) + mpf("0.5") / (1 + exp(-mpf("0.3") * p.b))
    ),
    "bco beta=0.01": lambda p: bco(p, "0.01"),
    "bco beta=0.3": lambda p: bco(p, "0.3"),
    "aot beta=0.01": lambda p: aot(p, "0.01"),
    "aot beta=0.3 variant=unpaired": lambda p: aot_unpaired(p, "0.3"),
    "cal_slic beta=0.1": lambda p: slic(p, "10", "1") + calibration(p, "0.1"),
}


def expected(formula: Callable[[Inputs], Any]) -> dict[str, list[float]]:
    """Loss of each pair, and its derivatives by the policy's log-probs."""
    return {
        "loss": [float(formula(p)) for p in PAIRS],
        "policy_chosen": [float(diff(lambda x, p=p: formula(p._replace(pw=x)), p.pw)) for p in PAIRS],
        "policy_rejected": [float(diff(lambda x, p=p: formula(p._replace(pl=x)), p.pl)) for p in PAIRS],
    }


def main() -> None:
    table = {
        "pairs": [[float(number) for number in p] for p in PAIRS],
        "expected": {setting: expected(formula) for setting, formula in FORMULAS.items()},
    }
    VALUES.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
