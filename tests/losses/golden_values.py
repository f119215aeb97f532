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


def exo(p: Inputs, beta: str, flip: str) -> Any:
    """KL divergence of two Bernoulli distributions."""
    win, e = 1 / (1 + exp(-mpf(beta) * (p.a - p.b))), mpf(flip)
    return win * log(win / (1 - e)) + (1 - win) * log((1 - win) / e)


def discopop(p: Inputs, beta: str, tau: str) -> Any:
    margin = mpf(beta) * (p.a - p.b)
    share = 1 / (1 + exp(-margin / mpf(tau)))
    return (1 - share) * nll_sigmoid(margin) + share * exp(-margin)


def robust(p: Inputs, beta: str, flip: str) -> Any:
    margin, e = mpf(beta) * (p.a - p.b), mpf(flip)
    return ((1 - e) * nll_sigmoid(margin) - e * nll_sigmoid(-margin)) / (1 - 2 * e)


def nca(p: Inputs, beta: str) -> Any:
    chosen, rejected = mpf(beta) * p.a, mpf(beta) * p.b
    return nll_sigmoid(chosen) + (nll_sigmoid(-chosen) + nll_sigmoid(-rejected)) / 2


def apo_zero(p: Inputs, beta: str) -> Any:
    return 1 - 1 / (1 + exp(-mpf(beta) * p.a)) + 1 / (1 + exp(-mpf(beta) * p.b))


def apo_down(p: Inputs, beta: str) -> Any:
    return 1 / (1 + exp(-mpf(beta) * p.a)) + 1 - 1 / (1 + exp(-mpf(beta) * (p.a - p.b)))


def dpop(p: Inputs, beta: str, weight: str) -> Any:
    return nll_sigmoid(mpf(beta) * (p.a - p.b - mpf(weight) * hinge(-p.a)))


def bpo(p: Inputs, beta: str, k: str) -> Any:
    return nll_sigmoid(mpf(beta) * min(p.a, -mpf(k) * p.b))


def r_dpo(p: Inputs, beta: str, weight: str) -> Any:
    return nll_sigmoid(mpf(beta) * (p.a - p.b) + mpf(weight) * (p.nw - p.nl))


def per_token(p: Inputs, beta: str, gamma: str, reward: Callable[[Any], Any] = lambda m: m) -> Any:
    """SimPO, and AlphaPO with its reward."""
    return nll_sigmoid(mpf(beta) * (reward(p.pw / p.nw) - reward(p.pl / p.nl)) - mpf(gamma))


def orpo(p: Inputs, weight: str) -> Any:
    odds_w, odds_l = (exp(m) / (1 - exp(m)) for m in (p.pw / p.nw, p.pl / p.nl))
    return -p.pw / p.nw + mpf(weight) * nll_sigmoid(log(odds_w / odds_l))


def chi_po(p: Inputs, beta: str, clip: str | None) -> Any:
    z_w, z_l = exp(p.a), exp(p.b)
    margin = mpf(beta) * (z_w + log(z_w) - z_l - log(z_l))
    return nll_sigmoid(margin if clip is None else max(-mpf(clip), min(mpf(clip), margin)))


def qrpo(p: Inputs, beta: str) -> Any:
    shift = mpf(beta) * log(mpf(beta) * (exp(1 / mpf(beta)) - 1))
    return (p.sw - shift - mpf(beta) * p.a) ** 2 + (p.sl - shift - mpf(beta) * p.b) ** 2


def gpo(p: Inputs, beta: str, f: Callable[[Any], Any]) -> Any:
    return f(mpf(beta) * (p.a - p.b))


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
    "rebel beta=0.1 score_scale=1.0": lambda p: (mpf("0.1") * (p.a - p.b) - (p.sw - p.sl)) ** 2,
    "rebel beta=0.02 score_scale=2.5": lambda p: (mpf("0.02") * (p.a - p.b) - mpf("2.5") * (p.sw - p.sl)) ** 2,
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
    "sppo beta=0.1": lambda p: calibration(p, "0.1"),
    "sppo beta=0.001": lambda p: calibration(p, "0.001"),
    "nca beta=0.01": lambda p: nca(p, "0.01"),
    "nca beta=0.5": lambda p: nca(p, "0.5"),
    "exo beta=0.1 label_noise=0.001": lambda p: exo(p, "0.1", "0.001"),
    "exo beta=0.5 label_noise=0.2": lambda p: exo(p, "0.5", "0.2"),
    "apo_zero beta=0.1": lambda p: apo_zero(p, "0.1"),
    "apo_down beta=0.1": lambda p: apo_down(p, "0.1"),
    "robust beta=0.1 label_noise=0.1": lambda p: robust(p, "0.1", "0.1"),
    "dpop beta=0.3 penalty_weight=50.0": lambda p: dpop(p, "0.3", "50"),
    "dpop beta=0.05 penalty_weight=0.5": lambda p: dpop(p, "0.05", "0.5"),
    "rpo beta=0.1 nll_weight=1.0": lambda p: dpo(p, "0.1") - p.pw / p.nw,
    "r_dpo beta=0.1 length_weight=0.01": lambda p: r_dpo(p, "0.1", "0.01"),
    "dpo_norm beta=5.0": lambda p: nll_sigmoid(5 * (p.a / p.nw - p.b / p.nl)),
    "dpo_shift beta=0.1 shift=0.95": lambda p: nll_sigmoid(mpf("0.1") * (p.a - mpf("0.95") * p.b)),
    "bpo beta=0.1 k=0.3": lambda p: bpo(p, "0.1", "0.3"),
    "bpo beta=0.2 k=1.0": lambda p: bpo(p, "0.2", "1"),
    "discopop beta=0.05 tau=0.05": lambda p: discopop(p, "0.05", "0.05"),
    "discopop beta=0.2 tau=1.0": lambda p: discopop(p, "0.2", "1"),
    "simpo beta=2.0 gamma=1.0": lambda p: per_token(p, "2", "1"),
    "simpo beta=10.0 gamma=3.0": lambda p: per_token(p, "10", "3"),
    "alpha_po beta=2.5 gamma=0.1 alpha=0.25": lambda p: per_token(p, "2.5", "0.1", alpha("0.25")),
    "alpha_po beta=2.0 gamma=1.0 alpha=-0.5": lambda p: per_token(p, "2", "1", alpha("-0.5")),
    "orpo odds_weight=0.1": lambda p: orpo(p, "0.1"),
    "orpo odds_weight=1.0": lambda p: orpo(p, "1"),
    "simper": lambda p: -exp(p.pw / p.nw) + exp(p.pl / p.nl),
    "chi_po beta=0.05 clip=10.0": lambda p: chi_po(p, "0.05", "10"),
    "chi_po beta=0.1 clip=null": lambda p: chi_po(p, "0.1", None),
    "odpo beta=0.5 offset_weight=1.0": lambda p: nll_sigmoid(mpf("0.5") * (p.a - p.b) - log(p.sw - p.sl)),
    "odpo beta=0.05 offset_weight=0.5": lambda p: nll_sigmoid(mpf("0.05") * (p.a - p.b) - log(p.sw - p.sl) / 2),
    "qrpo beta=0.1": lambda p: qrpo(p, "0.1"),
    "qrpo beta=0.001": lambda p: qrpo(p, "0.001"),
    "qrpo beta=3.0": lambda p: qrpo(p, "3"),
    "c2_dpo beta=0.1 constraint_weight=2.0e-4": lambda p: dpo(p, "0.1") + mpf("2e-4") * (p.a + p.b) ** 2,
    "minor_dpo beta=0.1": lambda p: nll_sigmoid(mpf("0.1") * (p.a - hinge(p.b))),
    "gpo beta=0.1 function=exponential": lambda p: gpo(p, "0.1", lambda x: exp(-x)),
    "gpo beta=0.1 function=truncated_quadratic": lambda p: gpo(p, "0.1", lambda x: hinge(1 - x) ** 2),
    "gpo beta=0.1 function=savage": lambda p: gpo(p, "0.1", lambda x: 1 / (1 + exp(x)) ** 2),
    "gpo beta=0.1 function=squared": lambda p: gpo(p, "0.1", lambda x: (x - 1) ** 2),
    "h_dpo beta=0.1 alpha=0.9": lambda p: nll_sigmoid(mpf("0.1") * (mpf("0.9") * (p.pw - p.pl) - (p.rw - p.rl))),
    "h_dpo beta=0.01 alpha=1.2": lambda p: nll_sigmoid(mpf("0.01") * (mpf("1.2") * (p.pw - p.pl) - (p.rw - p.rl))),
}

# whose kink is at policy = reference: dpop's slope there is that above, minor_dpo's that below, without a push
KINKS = {"dpop beta=0.3 penalty_weight=50.0": 1, "dpop beta=0.05 penalty_weight=0.5": 1, "minor_dpo beta=0.1": -1}


def expected(formula: Callable[[Inputs], Any], direction: int = 0) -> dict[str, list[float]]:
    """Loss of each pair, and its derivatives by the policy's log-probs; direction 1: from above, -1: from below."""

    def slopes(name: str) -> list[float]:
        at = [(p, getattr(p, name)) for p in PAIRS]
        return [float(diff(lambda x, p=p: formula(p._replace(**{name: x})), y, direction=direction)) for p, y in at]

    losses = [float(formula(p)) for p in PAIRS]
    return {"loss": losses, "policy_chosen": slopes("pw"), "policy_rejected": slopes("pl")}


def main() -> None:
    table = {
        "pairs": [[float(number) for number in p] for p in PAIRS],
        "expected": {setting: expected(formula, KINKS.get(setting, 0)) for setting, formula in FORMULAS.items()},
    }
    VALUES.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
