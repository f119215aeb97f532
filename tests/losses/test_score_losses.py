"""ODPO, QRPO and REBEL, which read the pairs' scores."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from caldpo.types import PairLogps
from tests.helpers.messages import refused
from tests.losses.test_losses import PAIRS, Pair, gradients, load, to_logps

BETAS = [1e-3, 0.02, 0.1, 0.5, 1.0, 5.0]


def scored(chosen: float, rejected: float) -> list[Pair]:
    return [Pair(p.pw, p.pl, p.rw, p.rl, p.nw, p.nl, chosen, rejected) for p in PAIRS]


@pytest.mark.parametrize("name", ["odpo", "qrpo", "rebel"])
def test_says_that_it_needs_scores(name: str) -> None:
    loss, logps = load(name), to_logps(PAIRS)
    assert loss.needs_scores
    without = replace(logps, score_chosen=None, score_rejected=None)
    with refused(key="loss", remedy=("score_chosen", "score_rejected")):
        loss(without)


class TestODPO:
    @pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
    def test_is_dpo_where_the_gap_is_one(self, weight: float) -> None:
        logps = to_logps(scored(3.5, 2.5))
        loss, dpo = load("odpo", beta=0.2, offset_weight=weight), load("dpo", beta=0.2)
        torch.testing.assert_close(loss(logps).loss, dpo(logps).loss)

    def test_is_dpo_without_offset(self) -> None:
        logps = to_logps(PAIRS)
        odpo = load("odpo", beta=0.2, offset_weight=0.0)
        torch.testing.assert_close(odpo(logps).loss, load("dpo", beta=0.2)(logps).loss)
        torch.testing.assert_close(gradients(odpo, logps), gradients(load("dpo", beta=0.2), logps))

    def test_is_bradley_terry_with_odds_divided_by_the_gap(self) -> None:
        """``sigmoid(x - w log g)`` is ``e^x / (e^x + g^w)``."""
        loss = load("odpo", beta=0.1, offset_weight=2.0)(to_logps(PAIRS)).loss
        for got, p in zip(loss.tolist(), PAIRS, strict=True):
            odds = math.exp(0.1 * (p.a - p.b))
            assert got == pytest.approx(-math.log(odds / (odds + (p.sw - p.sl) ** 2)))

    def test_a_larger_gap_pushes_harder(self) -> None:
        slopes = [gradients(load("odpo"), to_logps(scored(gap, 0.0)))[0] for gap in (0.1, 1.0, 4.0)]
        assert (slopes[0] > slopes[1]).all()
        assert (slopes[1] > slopes[2]).all()

    def test_a_vanishing_gap_ends_in_no_loss_and_no_gap_and_a_reversed_one_have_none(self) -> None:
        loss = load("odpo")
        near = loss(to_logps(scored(1e-200, 0.0)))
        assert near.loss.max().item() < 1e-180
        assert near.diagnostics["unordered"].tolist() == [0.0] * 4
        for rejected in (0.5, 2.0):
            logps = to_logps(scored(0.5, rejected))
            output = loss(logps)
            assert output.loss.tolist() == [0.0] * 4
            assert output.diagnostics["unordered"].tolist() == [1.0] * 4
            assert not torch.cat(gradients(loss, logps)).any()


class TestQRPO:
    @pytest.mark.parametrize("beta", BETAS)
    def test_the_partition_function_is_an_integral_over_uniform_quantiles(self, beta: float) -> None:
        """``Z = E[exp(q / beta)]``, of 400,000 evenly spaced quantiles, taken without overflow."""
        q = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
        log_z = torch.logsumexp(q / beta, 0) - math.log(len(q))
        assert load("qrpo", beta=beta).beta_log_z == pytest.approx(beta * log_z.item(), rel=1e-6)

    @pytest.mark.parametrize("beta", BETAS)
    def test_the_optimal_policy_has_no_loss_and_sums_to_one(self, beta: float) -> None:
        """``log-ratio = q / beta - log Z``: of a reference uniform over responses with quantiles 0.5/n, 1.5/n, ..."""
        n = 200_000
        q = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        loss = load("qrpo", beta=beta)
        log_ratio = (q - loss.beta_log_z) / beta
        assert torch.logsumexp(log_ratio - math.log(n), 0).item() == pytest.approx(0, abs=1e-4)
        zeros, ones = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
        logps = PairLogps(log_ratio, log_ratio.flip(0), zeros, zeros, ones, ones, q, q.flip(0))
        assert loss(logps).loss.max().item() < 1e-20
        chosen, rejected = loss.implicit_rewards(logps)
        torch.testing.assert_close(chosen, q)
        torch.testing.assert_close(rejected, q.flip(0))

    def test_small_and_large_betas_neither_overflow_nor_cancel(self) -> None:
        """``beta log Z`` falls from 1 to 1/2: ``1 + beta log beta`` at first, ``1/2 + 1/(24 beta)`` in the end."""
        for beta in (1e-300, 1e-6, 9.9e-3):
            assert load("qrpo", beta=beta).beta_log_z == pytest.approx(1 + beta * math.log(beta), rel=1e-15)
        for beta in (1e3, 1e5):
            assert load("qrpo", beta=beta).beta_log_z == pytest.approx(0.5 + 1 / (24 * beta), rel=1e-12)
        assert load("qrpo", beta=1e300).beta_log_z == 0.5
        below, above = (load("qrpo", beta=0.01 * (1 + s * 1e-9)).beta_log_z for s in (-1, 1))
        assert below == pytest.approx(above, abs=1e-10)

    def test_how_far_the_authors_code_is_off(self) -> None:
        """It drops the 1 of ``exp(1 / beta) - 1``."""
        for beta, off in ((0.1, 4.54e-5), (1.0, 0.4587)):
            simplified = beta * (math.log(beta) + 1 / beta)
            assert (simplified - load("qrpo", beta=beta).beta_log_z) / beta == pytest.approx(off, rel=1e-3)

    def test_a_rejected_response_of_a_high_quantile_is_pushed_up(self) -> None:
        """Each by its own score, whatever the label; the pair of a bad chosen one pushes that down."""
        chosen, rejected = gradients(load("qrpo"), to_logps([Pair(-5.0, -5.0, -5.0, -5.0, 3, 3, 0.1, 0.95)]))
        assert chosen.item() > 0 > rejected.item()

    def test_responses_count_one_by_one(self) -> None:
        loss, logps = load("qrpo"), to_logps(PAIRS)
        assert loss.takes_unpaired
        assert not loss.pairwise
        assert loss.score_range == (0.0, 1.0)
        present = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
        some = loss(replace(logps, chosen_present=present, rejected_present=1 - present))
        torch.testing.assert_close(
            some.loss, torch.where(present > 0, loss(logps).terms["chosen"], some.terms["rejected"])
        )
        assert (some.terms["rejected"] * present == 0).all()
