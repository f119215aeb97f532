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
from caldpo.losses.base import PreferenceLoss
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


def sigmoid(x: float) -> float:
    return math.exp(-softplus(-x))


def exo(margin: float, e: float = 1e-3) -> float:
    p = sigmoid(margin)
    return p * math.log(p / (1 - e)) + (1 - p) * math.log((1 - p) / e)


def discopop(margin: float, tau: float = 0.05) -> float:
    share = sigmoid(margin / tau)
    return (1 - share) * softplus(-margin) + share * math.exp(-margin)


def power(m: float, alpha: float = 0.25) -> float:
    return (1 - math.exp(-alpha * m)) / alpha


def odds(m: float) -> float:
    return m - math.log(1 - math.exp(m))


QRPO_SHIFT = 0.1 * math.log(0.1 * (math.exp(10) - 1))  # beta log Z at beta 0.1


@dataclass(frozen=True)
class Row:
    """What is expected of a loss at its yaml's own settings, changed by ``keys``."""

    value: Callable[[Pair], float]
    at_start: float | None  # loss where policy = reference (None: it depends on the log-probs)
    signs: tuple[int, int]  # of the gradient in policy_chosen and policy_rejected at policy = reference
    keys: dict[str, Any] = field(default_factory=dict)
    one_way: bool = True  # no margin is too large: the chosen is never pushed down, nor the rejected up


ROWS: dict[str, Row] = {
    "dpo": Row(lambda p: softplus(-0.1 * (p.a - p.b)), math.log(2), (-1, 1)),
    "ipo": Row(lambda p: (p.a / p.nw - p.b / p.nl - 5) ** 2, 25.0, (-1, 1), one_way=False),
    "slic": Row(lambda p: max(0.0, 10 - p.pw + p.pl) - p.pw / p.nw, None, (-1, 1)),
    "cpo": Row(lambda p: softplus(-0.1 * (p.pw - p.pl)) - p.pw / p.nw, None, (-1, 1)),
    "f_dpo": Row(lambda p: softplus(-0.1 * (js(p.a) - js(p.b))), math.log(2), (-1, 1)),
    "rebel": Row(lambda p: (0.1 * (p.a - p.b) - (p.sw - p.sl)) ** 2, None, (-1, 1), one_way=False),
    "sft": Row(lambda p: -p.pw / p.nw, None, (-1, 0)),
    "rso": Row(lambda p: max(0.0, 1 - 0.1 * (p.a - p.b)), 1.0, (-1, 1)),
    "cal_dpo": Row(lambda p: softplus(p.b - p.a) + calibration(p), math.log(2) + 50, (-1, 1), one_way=False),
    "cal_ipo": Row(lambda p: (p.a / p.nw - p.b / p.nl - 5) ** 2 + calibration(p), 75.0, (-1, 1), one_way=False),
    "cal_slic": Row(lambda p: max(0.0, 10 - p.pw + p.pl) - p.pw / p.nw + calibration(p), None, (-1, 1), one_way=False),
    "sppo": Row(calibration, 50.0, (-1, 1), one_way=False),
    "nca": Row(
        lambda p: softplus(-0.01 * p.a) + softplus(0.01 * p.a) / 2 + softplus(0.01 * p.b) / 2,
        2 * math.log(2),
        (-1, 1),
        one_way=False,
    ),
    "exo": Row(lambda p: exo(0.1 * (p.a - p.b)), -math.log(2) - math.log(1e-3 * 0.999) / 2, (-1, 1), one_way=False),
    "apo_zero": Row(lambda p: 1 - sigmoid(0.1 * p.a) + sigmoid(0.1 * p.b), 1.0, (-1, 1)),
    "apo_down": Row(lambda p: sigmoid(0.1 * p.a) + 1 - sigmoid(0.1 * (p.a - p.b)), 1.0, (0, 1), one_way=False),
    "robust": Row(
        lambda p: (0.9 * softplus(-0.1 * (p.a - p.b)) - 0.1 * softplus(0.1 * (p.a - p.b))) / 0.8,
        math.log(2),
        (-1, 1),
    ),
    "dpop": Row(lambda p: softplus(-0.3 * (p.a - p.b - 50 * max(0.0, -p.a))), math.log(2), (-1, 1)),
    "rpo": Row(lambda p: softplus(-0.1 * (p.a - p.b)) - p.pw / p.nw, None, (-1, 1)),
    "r_dpo": Row(lambda p: softplus(-0.1 * (p.a - p.b) - 0.01 * (p.nw - p.nl)), None, (-1, 1)),
    "dpo_norm": Row(lambda p: softplus(-5 * (p.a / p.nw - p.b / p.nl)), math.log(2), (-1, 1)),
    "dpo_shift": Row(lambda p: softplus(-0.1 * (p.a - 0.95 * p.b)), math.log(2), (-1, 1)),
    "bpo": Row(lambda p: softplus(-0.1 * min(p.a, -0.3 * p.b)), math.log(2), (-1, 1)),
    # the slope at 0 is (1 - ln 2) / (4 tau) - 3/4 > 0: the first step makes the margin smaller
    "discopop": Row(lambda p: discopop(0.05 * (p.a - p.b)), (math.log(2) + 1) / 2, (1, -1), one_way=False),
    "simpo": Row(lambda p: softplus(1 - 2 * (p.pw / p.nw - p.pl / p.nl)), None, (-1, 1)),
    "alpha_po": Row(lambda p: softplus(0.1 - 2.5 * (power(p.pw / p.nw) - power(p.pl / p.nl))), None, (-1, 1)),
    "orpo": Row(lambda p: -p.pw / p.nw + 0.1 * softplus(odds(p.pl / p.nl) - odds(p.pw / p.nw)), None, (-1, 1)),
    "simper": Row(lambda p: -math.exp(p.pw / p.nw) + math.exp(p.pl / p.nl), None, (-1, 1)),
    "chi_po": Row(
        lambda p: softplus(-max(-10, min(10, 0.05 * (p.a + math.exp(p.a) - p.b - math.exp(p.b))))), math.log(2), (-1, 1)
    ),
    "odpo": Row(lambda p: softplus(math.log(p.sw - p.sl) - 0.5 * (p.a - p.b)), None, (-1, 1)),
    "qrpo": Row(
        lambda p: (p.sw - QRPO_SHIFT - 0.1 * p.a) ** 2 + (p.sl - QRPO_SHIFT - 0.1 * p.b) ** 2,
        None,
        (-1, 1),
        one_way=False,
    ),
    "c2_dpo": Row(
        lambda p: softplus(-0.1 * (p.a - p.b)) + 2e-4 * (p.a + p.b) ** 2, math.log(2), (-1, 1), one_way=False
    ),
    # at policy = reference the rejected response is no likelier than under the reference
    "minor_dpo": Row(lambda p: softplus(-0.1 * (p.a - max(0.0, p.b))), math.log(2), (-1, 0)),
    "gpo": Row(lambda p: max(0.0, 1 - 0.1 * (p.a - p.b)) ** 2, 1.0, (-1, 1)),
    "h_dpo": Row(lambda p: softplus(-0.1 * (0.9 * (p.pw - p.pl) - (p.rw - p.rl))), None, (-1, 1)),
}

BATCH: tuple[str, ...] = ("kto", "bco", "aot")  # their values are of the four pairs together
LINEAR = {  # implicit rewards are beta x log-ratio
    *("dpo", "rso", "cal_dpo", "cal_ipo", "cal_slic"),
    *("sppo", "nca", "exo", "apo_zero", "apo_down", "robust", "dpop", "rpo", "dpo_shift", "bpo", "discopop"),
    *("rebel", "odpo", "qrpo", "c2_dpo", "minor_dpo", "gpo", *BATCH),
}

PAIRS = [
    Pair(-20.0, -31.5, -22.0, -30.0, 9, 14, 0.9, 0.1),
    Pair(-55.25, -12.0, -50.0, -12.5, 40, 3, 1.0, 0.0),
    Pair(-4.0, -7.0, -4.5, -6.0, 1, 1, 0.85, 0.7),  # one token each
    Pair(-300.0, -280.0, -290.0, -300.0, 200, 150, 0.95, 0.25),
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
    assert output.terms.keys() <= {"contrast", "calibration", "nll", "constraint", "chosen", "rejected"}


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
    """Policy = reference: the known value, and which way each is pushed: mostly the chosen up and the rejected down."""
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
    extremes(load(name), dtype, one_way=ROWS[name].one_way)


def extremes(loss: torch.nn.Module, dtype: torch.dtype, *, one_way: bool = True) -> None:
    """Finite values and gradients for log-ratios up to 1e4, and never a push in the wrong direction if ``one_way``."""
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
    if one_way:
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
    assert load("ipo", length_normalize=False, beta=0.3).implicit_reward_beta == 0.3
    assert load("rebel", beta=0.3, score_scale=2.0).implicit_reward_beta == pytest.approx(0.15)  # per unit of score


REWARDS: dict[str, Callable[[float, float, int], float]] = {  # of a response's log-prob, its log-ratio and tokens
    "ipo": lambda p, x, n: 0.1 * x / n,
    "cpo": lambda p, x, n: 0.1 * p,
    "f_dpo": lambda p, x, n: 0.1 * js(x),
    "dpo": lambda p, x, n: 0.1 * x,
    "r_dpo": lambda p, x, n: 0.1 * x + 0.01 * n,
    "dpo_norm": lambda p, x, n: 5 * x / n,
    "nca": lambda p, x, n: 0.01 * x,
}


@pytest.mark.parametrize("name", REWARDS)
def test_implicit_rewards(name: str) -> None:
    for got, (p, x, n) in zip(
        load(name).implicit_rewards(to_logps(PAIRS)), (("pw", "a", "nw"), ("pl", "b", "nl")), strict=True
    ):
        assert got.tolist() == pytest.approx([REWARDS[name](*(getattr(q, k) for k in (p, x, n))) for q in PAIRS])


@pytest.mark.parametrize("name", ["dpo", "f_dpo", "ipo", "r_dpo", "dpo_norm", "robust", "exo"])
def test_the_implicit_rewards_are_what_the_loss_compares(name: str) -> None:
    """A pair with another pair's difference of rewards has its loss."""
    loss, logps = load(name), to_logps(PAIRS)
    chosen, rejected = loss.implicit_rewards(logps)
    per_nat = torch.autograd.grad(chosen.sum(), logps.policy_chosen)[0]
    moved = torch.autograd.grad(loss(logps).loss.sum(), logps.policy_chosen)[0]
    assert torch.autograd.grad(rejected.sum(), logps.policy_rejected)[0].gt(0).all()
    gap = (chosen - rejected).detach().requires_grad_()
    of_gap = {
        "dpo": lambda m: torch.nn.functional.softplus(-m),
        "ipo": lambda m: (m / 0.1 - 5) ** 2,
        "robust": lambda m: (0.9 * torch.nn.functional.softplus(-m) - 0.1 * torch.nn.functional.softplus(m)) / 0.8,
        "exo": lambda m: (
            torch.special.entr(torch.sigmoid(m)).neg()
            + torch.special.entr(torch.sigmoid(-m)).neg()
            - torch.sigmoid(m) * math.log(0.999)
            - torch.sigmoid(-m) * math.log(1e-3)
        ),
    }
    expected = of_gap.get(name, of_gap["dpo"])(gap)
    torch.testing.assert_close(loss(logps).loss, expected)
    torch.testing.assert_close(moved, torch.autograd.grad(expected.sum(), gap)[0] * per_nat)


def test_robust_is_unbiased_under_flips() -> None:
    """The mean over flips at rate e is DPO's loss under true labels."""
    flipped = [Pair(p.pl, p.pw, p.rl, p.rw, p.nl, p.nw, p.sl, p.sw) for p in PAIRS]
    loss = load("robust", label_noise=0.2)
    mean = 0.8 * loss(to_logps(PAIRS)).loss + 0.2 * loss(to_logps(flipped)).loss
    torch.testing.assert_close(mean, load("dpo")(to_logps(PAIRS)).loss)


@pytest.mark.parametrize(
    ("name", "keys", "same", "its_keys"),
    [
        ("robust", {"label_noise": 0.0}, "dpo", {}),
        ("dpop", {"penalty_weight": 0.0, "beta": 0.1}, "dpo", {}),
        ("rpo", {"nll_weight": 0.0}, "dpo", {}),
        ("r_dpo", {"length_weight": 0.0}, "dpo", {}),
        ("dpo_shift", {"shift": 1.0}, "dpo", {}),
    ],
)
def test_limits(name: str, keys: dict[str, Any], same: str, its_keys: dict[str, Any]) -> None:
    """Where an own key has no effect, the loss is another one, gradients included."""
    one, other = load(name, **keys), load(same, **its_keys)
    torch.testing.assert_close(one(to_logps(PAIRS)).loss, other(to_logps(PAIRS)).loss)
    for got, wanted in zip(gradients(one, to_logps(PAIRS)), gradients(other, to_logps(PAIRS)), strict=True):
        torch.testing.assert_close(got, wanted)


def test_sppo_is_cal_dpo_without_its_contrast() -> None:
    torch.testing.assert_close(
        load("sppo", beta=0.2)(to_logps(PAIRS)).loss, load("cal_dpo", beta=0.2)(to_logps(PAIRS)).terms["calibration"]
    )


@pytest.mark.parametrize(
    ("name", "keys", "a", "b"),
    [
        ("sppo", {"beta": 0.1}, 5.0, -5.0),
        ("nca", {"beta": 0.1}, math.log(2) / 0.1, None),  # of the chosen alone: sigmoid = 2/3
        ("exo", {"beta": 0.1, "label_noise": 0.1}, math.log(9) / 0.1, 0.0),
    ],
)
def test_fixed_points(name: str, keys: dict[str, Any], a: float, b: float | None) -> None:
    """Where the loss no longer moves the chosen, nor the rejected unless it has no such point."""
    at = to_logps([Pair(a, b or 0.0, 0.0, 0.0, 3, 4, 0, 0)])
    chosen, rejected = gradients(load(name, **keys), at)
    assert chosen.item() == pytest.approx(0, abs=1e-12)
    assert b is None or rejected.item() == pytest.approx(0, abs=1e-12)
    for side, sign in ((0.5, 1), (-0.5, -1)):
        moved = gradients(load(name, **keys), to_logps([Pair(a + side, b or 0.0, 0.0, 0.0, 3, 4, 0, 0)]))[0]
        assert moved.sign().item() == sign


def test_discopop_draws_small_margins_to_the_wrong_side() -> None:
    """At the published settings: a minimum at a - b = -2.38 nats and a maximum at 1.44, with the start between them."""
    for gap, sign in ((-2.39, -1), (-2.37, 1), (0.0, 1), (1.43, 1), (1.45, -1), (30.0, -1)):
        assert gradients(load("discopop"), to_logps([Pair(gap, 0.0, 0.0, 0.0, 3, 4, 0, 0)]))[0].sign() == sign
    start = to_logps([Pair(0.0, 0.0, 0.0, 0.0, 3, 4, 0, 0)])
    for tau, sign in ((0.102, 1), (0.103, -1)):
        assert gradients(load("discopop", tau=tau), start)[0].sign() == sign


def test_r_dpo_pays_for_length() -> None:
    """A chosen response that is longer by as much is pushed up less: its preference is partly its length."""
    short, long = (to_logps([Pair(-9.0, -9.0, -9.0, -9.0, n, 10, 0, 0)]) for n in (10, 30))
    loss = load("r_dpo", length_weight=0.05)
    assert gradients(loss, short)[0].item() < gradients(loss, long)[0].item() < 0


def test_bpo_pushes_the_worse_one_alone() -> None:
    lagging_chosen, lagging_rejected = Pair(1.0, -9.0, 0, 0, 2, 3, 0, 0), Pair(9.0, -1.0, 0, 0, 2, 3, 0, 0)
    chosen, rejected = gradients(load("bpo", k=1.0), to_logps([lagging_chosen, lagging_rejected]))
    assert chosen.tolist()[0] < 0 == chosen.tolist()[1]
    assert rejected.tolist()[1] > 0 == rejected.tolist()[0]


def test_dpop_holds_a_falling_chosen_alone() -> None:
    """Above the reference it is DPO; below it the chosen's slope grows by the penalty."""
    above, below = Pair(1.0, -1.0, 0, 0, 2, 3, 0, 0), Pair(-1.0, -3.0, 0, 0, 2, 3, 0, 0)  # the same margin
    dpo, dpop = load("dpo", beta=0.1), load("dpop", beta=0.1, penalty_weight=5.0)
    assert gradients(dpop, to_logps([above])) == gradients(dpo, to_logps([above]))
    chosen, rejected = gradients(dpop, to_logps([below]))
    assert chosen.item() == pytest.approx(-6 * rejected.item())


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


def test_rebel_is_solved_by_the_rewards_and_does_not_know_which_is_chosen() -> None:
    """0 where beta d = eta (r_w - r_l), for any sign of it; the two sides may change places."""
    solved = [Pair(-20.0 + 5 * r, -30.0, -20.0, -30.0, 5, 6, r, 0.0) for r in (-2.0, 0.0, 3.0)]
    loss = load("rebel", beta=0.4, score_scale=2.0)
    torch.testing.assert_close(loss(to_logps(solved)).loss, torch.zeros(3, dtype=torch.float64))
    swapped = [Pair(p.pl, p.pw, p.rl, p.rw, p.nl, p.nw, p.sl, p.sw) for p in PAIRS]
    torch.testing.assert_close(loss(to_logps(swapped)).loss, loss(to_logps(PAIRS)).loss)
    chosen, rejected = gradients(loss, to_logps(PAIRS))
    there, here = gradients(loss, to_logps(swapped))
    torch.testing.assert_close(torch.stack([here, there]), torch.stack([chosen, rejected]))


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
        ("rebel", {"score_scale": 0.0}, ("score_scale=0.0", "> 0")),
        ("cal_dpo", {"score_scale": 5.0}, ("loss.score_scale=5.0", "loss.targets=scores")),
        ("cal_slic", {"score_center": "pair"}, ("loss.score_center=pair", "loss.targets=scores")),
        ("cal_dpo", {"targets": "score"}, ("targets=score",)),
        ("cal_dpo", {"calibration_weight": -0.5}, ("calibration_weight=-0.5",)),
        ("exo", {"label_noise": 0.0}, ("label_noise=0.0", "> 0")),
        ("robust", {"label_noise": 0.5}, ("label_noise=0.5",)),
        ("bpo", {"k": 1.5}, ("k=1.5",)),
        ("dpo_shift", {"shift": 0.0}, ("shift=0.0", "> 0")),
        ("discopop", {"tau": 2.0}, ("tau=2.0",)),
    ],
)
def test_bad_values_are_named(name: str, keys: dict[str, Any], facts: tuple[str, ...]) -> None:
    with refused(*facts, kind=Exception):
        load(name, **keys)


def test_formula_carries_the_numbers() -> None:
    assert load("cal_dpo", beta=0.05).formula == "-logsigmoid(a - b) + 1 [(a - 10)^2 + (b + 10)^2]"
    assert load("dpo", beta=0.3).formula == "-logsigmoid(0.3 (a - b))"
    for name in ROWS:
        assert type(load(name)).formula is not PreferenceLoss.formula
        assert len(load(name).formula) > 5
