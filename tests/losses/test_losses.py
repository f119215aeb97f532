"""Every loss: value by plain arithmetic, gradient signs, the start of training, and extreme inputs.

Adding a loss adds one row to ``ROWS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.types import PairLogps
from tests.helpers.messages import refused


@dataclass(frozen=True)
class Pair:
    """One pair in plain numbers: log-probs of policy and reference, token counts, scores."""

    pw: float
    pl: float
    rw: float
    rl: float
    nw: int
    nl: int
    sw: float
    sl: float

    @property
    def a(self) -> float:
        return self.pw - self.rw

    @property
    def b(self) -> float:
        return self.pl - self.rl


def softplus(x: float) -> float:
    """``-log sigmoid(-x)`` by scalar arithmetic."""
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def calibration(p: Pair, beta: float = 0.1) -> float:
    return (p.a - 0.5 / beta) ** 2 + (p.b + 0.5 / beta) ** 2


def js(x: float) -> float:
    return -softplus(-x)


@dataclass(frozen=True)
class Row:
    """What is expected of a loss at its yaml's own settings, changed by ``keys``."""

    value: Callable[[Pair], float]
    at_start: float | None  # loss where policy = reference (None: it depends on the log-probs)
    signs: tuple[int, int]  # of the gradient in policy_chosen and policy_rejected at policy = reference
    keys: dict[str, Any] = field(default_factory=dict)


ROWS: dict[str, Row] = {
    "dpo": Row(lambda p: softplus(-0.1 * (p.a - p.b)), math.log(2), (-1, 1)),
    "ipo": Row(lambda p: (p.a / p.nw - p.b / p.nl - 5) ** 2, 25.0, (-1, 1)),
    "slic": Row(lambda p: max(0.0, 10 - p.pw + p.pl) - p.pw / p.nw, None, (-1, 1)),
    "cpo": Row(lambda p: softplus(-0.1 * (p.pw - p.pl)) - p.pw / p.nw, None, (-1, 1)),
    "f_dpo": Row(lambda p: softplus(-0.1 * (js(p.a) - js(p.b))), math.log(2), (-1, 1)),
    "sft": Row(lambda p: -p.pw / p.nw, None, (-1, 0)),
    "rso": Row(lambda p: max(0.0, 1 - 0.1 * (p.a - p.b)), 1.0, (-1, 1)),
    "cal_dpo": Row(lambda p: softplus(p.b - p.a) + calibration(p), math.log(2) + 50, (-1, 1)),
    "cal_ipo": Row(lambda p: (p.a / p.nw - p.b / p.nl - 5) ** 2 + calibration(p), 75.0, (-1, 1)),
    "cal_slic": Row(lambda p: max(0.0, 10 - p.pw + p.pl) - p.pw / p.nw + calibration(p), None, (-1, 1)),
}

BATCH: tuple[str, ...] = ("kto", "bco", "aot")  # their values are of the four pairs together
LINEAR = {"dpo", "rso", "cal_dpo", "cal_ipo", "cal_slic"} | {*BATCH}  # implicit rewards are beta x log-ratio

PAIRS = [
    Pair(-20.0, -31.5, -22.0, -30.0, 9, 14, 0.9, 0.1),
    Pair(-55.25, -12.0, -50.0, -12.5, 40, 3, 1.5, -1.5),
    Pair(-4.0, -7.0, -4.5, -6.0, 1, 1, 0.3, 0.2),  # one token each
    Pair(-300.0, -280.0, -290.0, -300.0, 200, 150, 8.0, 2.0),
]

SHIFT = 0.01 * sum(p.a + p.b for p in PAIRS) / 8
MARGINS = sorted(p.pw - p.pl for p in PAIRS), sorted(p.rw - p.rl for p in PAIRS)


def same_rank(p: Pair) -> float:
    """The reference's margin of the rank that the policy's has."""
    nearest = min(MARGINS[0], key=lambda margin: abs(margin - (p.pw - p.pl)))
    return MARGINS[1][MARGINS[0].index(nearest)]


ROWS |= {
    # without mismatched responses: z = 0
    "kto": Row(lambda p: 1 / (1 + math.exp(0.1 * p.a)) + 1 / (1 + math.exp(-0.1 * p.b)), 1.0, (-1, 1)),
    "bco": Row(lambda p: softplus(SHIFT - 0.01 * p.a) + softplus(0.01 * p.b - SHIFT), 2 * math.log(2), (-1, 1)),
    "aot": Row(lambda p: softplus(-0.01 * (p.pw - p.pl - same_rank(p))), math.log(2), (-1, 1)),
}


def load(name: str, **keys: Any) -> torch.nn.Module:
    config = OmegaConf.load(conf_dir() / "loss" / f"{name}.yaml")
    return instantiate(OmegaConf.merge(config, keys))


def to_logps(pairs: list[Pair], dtype: torch.dtype = torch.float64) -> PairLogps:
    def column(name: str) -> torch.Tensor:
        return torch.tensor([getattr(p, name) for p in pairs], dtype=dtype)

    return PairLogps(
        column("pw").requires_grad_(),
        column("pl").requires_grad_(),
        column("rw"),
        column("rl"),
        column("nw"),
        column("nl"),
        column("sw"),
        column("sl"),
    )


def gradients(loss: torch.nn.Module, logps: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = (logps.policy_chosen, logps.policy_rejected)
    actual = torch.autograd.grad(loss(logps).loss.sum(), inputs, allow_unused=True)
    return tuple(torch.zeros_like(i) if g is None else g for g, i in zip(actual, inputs, strict=True))


def test_every_yaml_has_a_row() -> None:
    yamls = {file.stem for file in Path(conf_dir() / "loss").glob("*.yaml")}
    assert yamls <= set(ROWS), f"no row in ROWS for: {', '.join(sorted(yamls - set(ROWS)))}"
    assert set(ROWS) <= yamls, f"no yaml in conf/loss for the rows of: {', '.join(sorted(set(ROWS) - yamls))}"


@pytest.mark.parametrize("name", ROWS)
def test_value_and_terms(name: str) -> None:
    row = ROWS[name]
    output = load(name, **row.keys)(to_logps(PAIRS))
    expected = torch.tensor([row.value(p) for p in PAIRS], dtype=torch.float64)
    torch.testing.assert_close(output.loss.detach(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(output.terms.values()), output.loss, rtol=1e-12, atol=1e-12)
    assert output.terms.keys() <= {"contrast", "calibration", "nll", "chosen", "rejected"}


@pytest.mark.parametrize("name", ROWS)
def test_gradient_by_finite_differences(name: str) -> None:
    loss, step = load(name), 1e-6
    for actual, field_name in zip(gradients(loss, to_logps(PAIRS)), ("pw", "pl"), strict=True):
        for i, pair in enumerate(PAIRS):
            up, down = (
                ROWS[name].value(Pair(**{**vars(pair), field_name: getattr(pair, field_name) + s * step}))
                for s in (1, -1)
            )
            assert actual[i].item() == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_start_of_training(name: str) -> None:
    """Policy = reference: the known value, the chosen is pushed up and the rejected down."""
    row = ROWS[name]
    pairs = [Pair(p.rw, p.rl, p.rw, p.rl, p.nw, p.nl, p.sw, p.sl) for p in PAIRS]
    # keep SLiC's hinge active whatever the log-probs
    loss = load(name, **row.keys, **({"delta": 1000.0} if "slic" in name else {}))
    logps = to_logps(pairs)
    if row.at_start is not None:
        torch.testing.assert_close(loss(logps).loss, torch.full((4,), row.at_start, dtype=torch.float64))
    for gradient, sign in zip(gradients(loss, logps), row.signs, strict=True):
        assert (gradient.sign() == sign).all()


@pytest.mark.parametrize("name", ROWS)
def test_needs_match_what_is_read(name: str) -> None:
    """A loss that says it needs no reference computes the same without one."""
    loss, logps = load(name), to_logps(PAIRS)
    without = PairLogps(
        logps.policy_chosen, logps.policy_rejected, None, None, logps.chosen_tokens, logps.rejected_tokens
    )
    if loss.needs_reference:
        with refused("reference", "log-probs", kind=ValueError):
            loss(without)
    else:
        assert torch.equal(loss(without).loss, loss(logps).loss)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_f_dpo_is_finite_everywhere(divergence: str, dtype: torch.dtype) -> None:
    extremes(load("f_dpo", divergence=divergence, alpha=0.5 if divergence == "alpha" else None), dtype)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_finite_for_huge_log_ratios(name: str, dtype: torch.dtype) -> None:
    extremes(load(name), dtype)


def extremes(loss: torch.nn.Module, dtype: torch.dtype) -> None:
    """Finite values and gradients for log-ratios up to 1e4, and never a push in the wrong direction."""
    grid = [-1e4, -1e3, -100.0, -1.0, 0.0, 1.0, 100.0, 1e3, 1e4]
    pairs = [Pair(-2e4 + a, -2e4 + b, -2e4, -2e4, 10, 10, 1.0, 0.0) for a in grid for b in grid]
    logps = to_logps(pairs, dtype)
    output = loss(logps)
    assert output.loss.isfinite().all()
    assert output.loss.dtype == dtype
    chosen, rejected = gradients(loss, logps)
    for gradient in (chosen, rejected):
        assert gradient.isfinite().all()
        assert gradient.double().square().sum().isfinite()
    if "calibration" not in output.terms and "contrast" in output.terms and "(a/n_w" not in loss.formula:
        assert (chosen <= 0).all()
        assert (rejected >= 0).all()


def test_float32_agrees_with_float64() -> None:
    for name in ROWS:
        single = load(name)(to_logps(PAIRS, torch.float32)).loss
        torch.testing.assert_close(single.double(), load(name)(to_logps(PAIRS)).loss, rtol=2e-5, atol=1e-5)


def test_f_dpo_limits_of_alpha() -> None:
    """alpha 1 is forward KL; alpha to 0 is reverse KL, which is DPO."""
    logps = to_logps(PAIRS)
    forward = load("f_dpo", divergence="forward_kl")(logps).loss
    torch.testing.assert_close(load("f_dpo", divergence="alpha", alpha=1.0)(logps).loss, forward)
    dpo = load("dpo")(logps).loss
    torch.testing.assert_close(load("f_dpo", divergence="reverse_kl")(logps).loss, dpo)
    near = load("f_dpo", divergence="alpha", alpha=1e-7)(logps).loss
    torch.testing.assert_close(near, dpo, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [5e-324, 1e-320, 1e-46, 1e-40, 1e-20, 1e-9])
def test_f_dpo_with_a_vanishing_alpha_is_reverse_kl(alpha: float, dtype: torch.dtype) -> None:
    """s(x) = x (1 - alpha x / 2 + ...), so that at these alphas the two are the same to the last digits."""
    logps = to_logps(PAIRS, dtype)
    near, dpo = load("f_dpo", divergence="alpha", alpha=alpha), load("f_dpo", divergence="reverse_kl")
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps + 1e3 * alpha, "atol": 0.0}
    torch.testing.assert_close(near(logps).loss, dpo(logps).loss, **tolerance)
    for got, wanted in zip(gradients(near, logps), gradients(dpo, logps), strict=True):
        torch.testing.assert_close(got, wanted, **tolerance)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0, 1e8])
def test_f_dpo_at_log_ratios_around_zero(alpha: float) -> None:
    """Held to math.expm1 in float64, also where x itself is as small as a rounding error."""
    loss = load("f_dpo", divergence="alpha", alpha=alpha, beta=1.0)
    for a in (0.0, 1e-30, -1e-17, 1e-9, -1e-9 / alpha, 0.5 / alpha):
        pair = to_logps([Pair(a, 0.0, 0.0, 0.0, 1, 1, 0, 0)])
        wanted = math.log1p(math.exp(math.expm1(-alpha * a) / alpha))
        assert loss(pair).loss.item() == pytest.approx(wanted, rel=1e-12)
        assert gradients(loss, pair)[0].item() == pytest.approx(
            -math.exp(-alpha * a) / (1 + math.exp(-math.expm1(-alpha * a) / alpha)), rel=1e-7
        )


def test_the_implicit_reward_of_each_loss() -> None:
    """As its own derivation has it; None where that is no multiple of the summed log-ratio."""
    keys = {name: OmegaConf.load(conf_dir() / "loss" / f"{name}.yaml") for name in ROWS}
    own = {name: load(name, **({"beta": 0.3} if "beta" in keys[name] else {})) for name in ROWS}
    assert {name: loss.implicit_reward_beta for name, loss in own.items()} == {
        name: 0.3 if name in LINEAR else None for name in ROWS
    }
    assert load("f_dpo", divergence="reverse_kl", beta=0.3).implicit_reward_beta == 0.3


def test_f_dpo_counts_what_it_clamps() -> None:
    pairs = [Pair(-1100.0, -100.0, -100.0, -100.0, 1, 1, 0, 0), PAIRS[0]]
    output = load("f_dpo", divergence="forward_kl")(to_logps(pairs, torch.float32))
    assert output.diagnostics["clamped"].tolist() == [1.0, 0.0]
    assert load("f_dpo", divergence="js")(to_logps(pairs)).diagnostics == {}


@pytest.mark.parametrize(("beta", "value"), [(0.1, 50.6931), (0.01, 5000.693), (0.001, 500000.693)])
def test_cal_dpo_at_the_start(beta: float, value: float) -> None:
    """ln 2 + 1/(2 beta^2), gradient -(1/2 + 1/beta) in a and its opposite in b."""
    start = [Pair(-20.0, -30.0, -20.0, -30.0, 5, 6, 0, 0)]
    loss = load("cal_dpo", beta=beta)
    assert loss(to_logps(start)).loss.item() == pytest.approx(value, rel=1e-6)
    chosen, rejected = gradients(loss, to_logps(start))
    assert chosen.item() == pytest.approx(-(0.5 + 1 / beta))
    assert rejected.item() == pytest.approx(0.5 + 1 / beta)


def test_cal_dpo_pulls_an_overshooting_chosen_back() -> None:
    """Beyond 1/(2 beta) the calibration pushes down what the contrast alone would push up for ever."""
    over = to_logps([Pair(-10.0, -50.0, -30.0, -30.0, 5, 5, 0, 0)])  # a = 20, b = -20, targets +-5
    chosen, rejected = gradients(load("cal_dpo"), over)
    assert chosen.item() > 0 > rejected.item()


@pytest.mark.parametrize("name", ["cal_dpo", "cal_ipo", "cal_slic"])
class TestScoreTargets:
    def test_scores_one_apart_are_the_paper_targets(self, name: str) -> None:
        pairs = [Pair(p.pw, p.pl, p.rw, p.rl, p.nw, p.nl, 4.5, 3.5) for p in PAIRS]
        half, scores = load(name), load(name, targets="scores")
        torch.testing.assert_close(scores(to_logps(pairs)).loss, half(to_logps(pairs)).loss)

    def test_centre_and_scale(self, name: str) -> None:
        loss = load(name, targets="scores", score_center=0.5, score_scale=2.0, beta=0.2)
        term = loss(to_logps(PAIRS)).terms["calibration"]
        for got, p in zip(term.tolist(), PAIRS, strict=True):
            chosen, rejected = (2.0 * (s - 0.5) / 0.2 for s in (p.sw, p.sl))
            assert got == pytest.approx((p.a - chosen) ** 2 + (p.b - rejected) ** 2)

    def test_says_that_it_needs_scores(self, name: str) -> None:
        assert not load(name).needs_scores
        loss = load(name, targets="scores")
        assert loss.needs_scores
        logps = to_logps(PAIRS)
        without = PairLogps(*(getattr(logps, n) for n in PairLogps.__dataclass_fields__ if not n.startswith("score_")))
        with refused(key="loss.targets", value="scores", remedy=("loss.targets=fixed", "score_chosen")):
            loss(without)


@pytest.mark.parametrize(
    ("name", "keys", "facts"),
    [
        ("dpo", {"beta": 0.0}, ("beta=0.0", "> 0")),
        ("dpo", {"beta": float("nan")}, ("beta=nan", "> 0")),
        ("dpo", {"label_smoothing": 0.5}, ("label_smoothing=0.5",)),
        ("slic", {"delta": -1.0}, ("delta=-1.0", ">= 0")),
        ("f_dpo", {"divergence": "kl"}, ("divergence=kl", "reverse_kl, forward_kl, js, alpha")),
        ("f_dpo", {"alpha": 0.0}, ("alpha=0.0",)),
        ("f_dpo", {"divergence": "alpha", "alpha": 1e308}, ("alpha=1e+308",)),
        ("f_dpo", {"divergence": "alpha"}, ("loss.alpha=None",)),
        ("f_dpo", {"divergence": "js", "alpha": 0.9}, ("loss.alpha=0.9",)),
        ("cal_dpo", {"score_scale": 5.0}, ("loss.score_scale=5.0", "loss.targets=scores")),
        ("cal_slic", {"score_center": "pair"}, ("loss.score_center=pair", "loss.targets=scores")),
        ("cal_dpo", {"targets": "score"}, ("targets=score",)),
        ("cal_dpo", {"calibration_weight": -0.5}, ("calibration_weight=-0.5",)),
    ],
)
def test_bad_values_are_named(name: str, keys: dict[str, Any], facts: tuple[str, ...]) -> None:
    with refused(*facts, kind=Exception):
        load(name, **keys)


def test_formula_carries_the_numbers() -> None:
    assert load("cal_dpo", beta=0.05).formula == "-logsigmoid(a - b) + 1 [(a - 10)^2 + (b + 10)^2]"
    assert load("dpo", beta=0.3).formula == "-logsigmoid(0.3 (a - b))"
    for name in ROWS:
        assert len(load(name).formula) > 5
