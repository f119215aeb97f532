"""SimPO, AlphaPO, ORPO and SimPER: limits computed another way, the edges of probability, what they call a reward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.losses.test_losses import PAIRS, Pair, gradients, load, softplus, to_logps

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
NAMES = ["simpo", "alpha_po", "orpo", "simper"]
SAME_LENGTH = [Pair(-20.0, -31.5, -22.0, -30.0, 8, 8, 1, 0), Pair(-9.0, -4.0, -5.0, -5.0, 8, 8, 1, 0)]


def agree(one: torch.nn.Module, other: torch.nn.Module, pairs: list[Pair], **tolerance: Any) -> None:
    """Losses and gradients are equal."""
    logps = to_logps(pairs)
    torch.testing.assert_close(one(logps).loss, other(logps).loss, **tolerance)
    for mine, theirs in zip(gradients(one, logps), gradients(other, logps), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def test_simpo_without_margin_is_cpo_of_equal_lengths() -> None:
    """``beta p / n`` is CPO's ``(beta / n) p``, without its likelihood."""
    agree(load("simpo", beta=2.0, gamma=0.0), load("cpo", beta=2.0 / 8, nll_weight=0.0), SAME_LENGTH)


@pytest.mark.parametrize("alpha", [0.0, 1e-12, -1e-12, 5e-324])
def test_alpha_po_at_alpha_zero_is_simpo(alpha: float) -> None:
    keys = {"beta": 3.0, "gamma": 0.7}
    agree(load("alpha_po", alpha=alpha, **keys), load("simpo", **keys), PAIRS, rtol=1e-10, atol=1e-12)


def test_alpha_po_at_alpha_one_reads_perplexities() -> None:
    """``r(m) = 1 - exp(-m)``: the contrast is of perplexities, ``sigmoid(beta (ppl_l - ppl_w) - gamma)``."""
    loss = load("alpha_po", alpha=1.0, beta=2.0, gamma=0.5)(to_logps(PAIRS)).loss
    for got, p in zip(loss.tolist(), PAIRS, strict=True):
        gap = math.exp(-p.pl / p.nl) - math.exp(-p.pw / p.nw)
        assert got == pytest.approx(-math.log(1 / (1 + math.exp(0.5 - 2 * gap))), rel=1e-9)


def test_alpha_po_at_alpha_minus_one_is_simper_inside_a_sigmoid() -> None:
    loss = load("alpha_po", alpha=-1.0, beta=1.0, gamma=0.0)(to_logps(PAIRS)).loss
    inverse_perplexities = load("simper")(to_logps(PAIRS)).loss
    torch.testing.assert_close(loss, torch.nn.functional.softplus(inverse_perplexities))


def test_alpha_po_counts_what_it_clamps() -> None:
    pairs = [Pair(-400.0, -4.0, -4.0, -4.0, 1, 1, 1, 0), PAIRS[0]]
    assert load("alpha_po")(to_logps(pairs, torch.float32)).diagnostics["clamped"].tolist() == [1.0, 0.0]


def test_the_length_of_a_response_alone_changes_nothing() -> None:
    """A response repeated has twice the log-prob and twice the tokens."""
    longer = [Pair(2 * p.pw, 3 * p.pl, p.rw, p.rl, 2 * p.nw, 3 * p.nl, p.sw, p.sl) for p in PAIRS]
    for name in NAMES:
        loss = load(name)
        assert loss.length_normalised
        torch.testing.assert_close(loss(to_logps(longer)).loss, loss(to_logps(PAIRS)).loss)


def test_orpo_without_odds_is_sft_and_with_them_cross_entropy_of_odds() -> None:
    agree(load("orpo", odds_weight=0.0), load("sft"), PAIRS)
    contrast = load("orpo", odds_weight=1.0)(to_logps(PAIRS)).terms["contrast"]
    for got, p in zip(contrast.tolist(), PAIRS, strict=True):
        q_w, q_l = math.exp(p.pw / p.nw), math.exp(p.pl / p.nl)
        win, lose = q_w * (1 - q_l), q_l * (1 - q_w)  # one of the two is right, given that it is one alone
        assert got == pytest.approx(-math.log(win / (win + lose)), rel=1e-9)


@pytest.mark.parametrize("m", [-1e-140, -1e-30, -1e-17, -1e-9, -1e-3, -0.7, -3.0, -40.0, -800.0])
def test_orpo_is_exact_down_to_a_probability_of_almost_one(m: float) -> None:
    """Near 0, log(1 - exp(m)) is ``log(-m) + m/2``, of which ``1 - exp(m)`` itself would keep no digit."""
    log_odds = m - (math.log(-m) + m / 2 if m > -1e-8 else math.log(-math.expm1(m)))
    half = -math.log(2.0)  # of odds 1
    logps = to_logps([Pair(m, half, half, half, 1, 1, 1, 0)])
    loss = load("orpo", odds_weight=1.0)
    assert loss(logps).terms["contrast"].item() == pytest.approx(softplus(-log_odds), rel=1e-12)
    by_odds = -1 / (1 + math.exp(log_odds)) / -math.expm1(m)  # d lo / dm = 1 / (1 - exp(m))
    assert gradients(loss, logps)[0].item() == pytest.approx(by_odds - 1, rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("pw", "pl"), [(0.0, -3.0), (-3.0, 0.0), (0.0, 0.0), (1e-3, 1e-3)])
def test_orpo_of_single_tokens_with_probability_one(pw: float, pl: float, dtype: torch.dtype) -> None:
    """Odds are infinite, or rounding has put the log-prob above 0; values and gradients stay finite and sane."""
    logps = to_logps([Pair(pw, pl, -1.0, -1.0, 1, 1, 1, 0)], dtype)
    loss = load("orpo", odds_weight=1.0)
    contrast = loss(logps).terms["contrast"].item()
    chosen, rejected = gradients(loss, logps)
    assert torch.cat([chosen, rejected]).isfinite().all()
    assert torch.cat([chosen, rejected]).double().square().isfinite().all()
    assert chosen.item() <= -1  # of the likelihood
    assert rejected.item() >= 0
    assert contrast == pytest.approx({True: math.log(2), False: contrast}[pw == pl], rel=1e-2)
    assert contrast < 1e-3 if pw > pl else contrast > 0.5


def test_simper_is_bounded_and_each_response_by_itself() -> None:
    pairs = [*PAIRS, Pair(0.0, -1e4, -1.0, -1.0, 1, 1, 1, 0), Pair(-1e4, 0.0, -1.0, -1.0, 1, 1, 1, 0)]
    loss = load("simper")
    assert not loss.pairwise
    output = loss(to_logps(pairs))
    assert output.loss.min().item() == -1
    assert output.loss.max().item() == 1
    changed = [Pair(p.pw, -5.0, p.rw, p.rl, p.nw, p.nl, p.sw, p.sl) for p in pairs]
    assert torch.equal(gradients(loss, to_logps(changed))[0], gradients(loss, to_logps(pairs))[0])
    assert load("simpo").pairwise
    assert load("orpo").pairwise


def test_rewards_of_their_own_theory() -> None:
    logps, (a, b) = to_logps(PAIRS), zip(*((p.pw / p.nw, p.pl / p.nl) for p in PAIRS), strict=True)
    chosen, rejected = load("simpo", beta=3.0).implicit_rewards(logps)
    assert chosen.tolist() == pytest.approx([3 * m for m in a])
    assert rejected.tolist() == pytest.approx([3 * m for m in b])
    chosen, rejected = load("alpha_po", beta=3.0, alpha=0.5).implicit_rewards(logps)
    assert chosen.tolist() == pytest.approx([6 * (1 - math.exp(-m / 2)) for m in a])
    assert rejected.tolist() == pytest.approx([6 * (1 - math.exp(-m / 2)) for m in b])
    for name in ("orpo", "simper"):
        assert load(name).implicit_rewards(logps) is None


@pytest.mark.parametrize("name", ["simpo", "alpha_po"])
def test_the_margin_is_a_difference_of_their_rewards(name: str) -> None:
    loss, logps = load(name, gamma=0.3), to_logps(PAIRS)
    chosen, rejected = loss.implicit_rewards(logps)
    torch.testing.assert_close(loss(logps).loss, torch.nn.functional.softplus(0.3 - (chosen - rejected)))
