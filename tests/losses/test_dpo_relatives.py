"""chi-PO, C2-DPO, Minor DPO, GPO and H-DPO: where each is DPO or another loss, and where it departs."""

from __future__ import annotations

import math

import pytest
import torch

from caldpo.losses.search_space import Choices, Range
from tests.losses.test_length_normalised import agree
from tests.losses.test_losses import PAIRS, Pair, gradients, load, to_logps

UP = [Pair(p.pw, p.rl + 2.0, p.rw, p.rl, p.nw, p.nl, p.sw, p.sl) for p in PAIRS]  # rejected above the reference
DOWN = [Pair(p.pw, p.rl - 2.0, p.rw, p.rl, p.nw, p.nl, p.sw, p.sl) for p in PAIRS]


def near_reference(a: float, b: float) -> list[Pair]:
    return [Pair(-20.0 + a, -30.0 + b, -20.0, -30.0, 5, 6, 1, 0)]


class TestChiPO:
    def test_the_first_step_is_dpo_at_twice_the_beta(self) -> None:
        start = to_logps(near_reference(0.0, 0.0))
        for mine, theirs in zip(
            gradients(load("chi_po", beta=0.05), start), gradients(load("dpo", beta=0.1), start), strict=True
        ):
            torch.testing.assert_close(mine, theirs)

    @pytest.mark.parametrize("x", [-30.0, -2.0, 0.0, 1.5, 4.0])
    def test_the_slope_grows_with_the_ratio(self, x: float) -> None:
        """``d reward / d log-ratio = beta (1 + exp(x))``: KL's beta far below the reference, more and more above it."""
        logps = to_logps(near_reference(x, 0.0))
        chosen, _ = load("chi_po", beta=0.05).implicit_rewards(logps)
        (slope,) = torch.autograd.grad(chosen.sum(), logps.policy_chosen)
        assert slope.item() == pytest.approx(0.05 * (1 + math.exp(x)))

    def test_is_dpo_where_ratios_vanish(self) -> None:
        far = [Pair(p.rw - 60.0, p.rl - 90.0, p.rw, p.rl, p.nw, p.nl, p.sw, p.sl) for p in PAIRS]
        agree(load("chi_po", beta=0.05), load("dpo", beta=0.05), far)

    def test_the_optimum_of_its_divergence_has_its_rewards(self) -> None:
        """What maximises ``E[r] - beta E_ref[z^2 / 2 + z log z]`` has r as its rewards, less a constant."""
        reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        reward, beta = torch.tensor([0.1, 0.9, 0.3], dtype=torch.float64), 0.7
        weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-13, line_search_fn="strong_wolfe")

        def negative() -> torch.Tensor:
            optimizer.zero_grad()
            policy = weights.softmax(0)
            z = policy / reference
            value = beta * (reference * (z**2 / 2 + z * z.log())).sum() - (policy * reward).sum()
            value.backward()
            return value

        optimizer.step(negative)
        log_ratio = (weights.softmax(0).log() - reference.log()).detach()
        logps = to_logps([Pair(x, x, 0.0, 0.0, 1, 1, 1, 0) for x in log_ratio.tolist()])
        rewards, _ = load("chi_po", beta=beta).implicit_rewards(logps)
        torch.testing.assert_close((rewards - rewards[0]).detach(), reward - reward[0], rtol=1e-3, atol=1e-4)

    def test_a_clipped_margin_has_no_gradient(self) -> None:
        wild = to_logps([*near_reference(8.0, 0.0), *near_reference(0.0, 8.0), *near_reference(1.0, 0.0)])
        clipped, free = load("chi_po", clip=4.0), load("chi_po", clip=None)
        output = clipped(wild)
        assert output.diagnostics["clipped"].tolist() == [1.0, 1.0, 0.0]
        assert output.loss[:2].tolist() == pytest.approx([math.log1p(math.exp(-4)), math.log1p(math.exp(4))])
        for slope, unclipped in zip(gradients(clipped, wild), gradients(free, wild), strict=True):
            assert not slope[:2].any()
            assert slope[2] == unclipped[2]
            assert unclipped.all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("clip", [None, 10.0])
    def test_counts_what_it_clamps_and_stays_finite(self, clip: float | None, dtype: torch.dtype) -> None:
        logps = to_logps([*near_reference(100.0, 0.0), *near_reference(0.0, 1e4), *near_reference(3.0, 0.0)], dtype)
        loss = load("chi_po", clip=clip)
        output = loss(logps)
        assert output.diagnostics["clamped"].tolist() == [1.0, 1.0, 0.0]
        for values in (output.loss, *gradients(loss, logps)):
            assert values.isfinite().all()
            assert values.double().square().sum() < 1e38


class TestC2DPO:
    def test_without_constraint_is_dpo(self) -> None:
        agree(load("c2_dpo", constraint_weight=0.0), load("dpo"), PAIRS)

    def test_opposite_log_ratios_cost_nothing_and_a_common_fall_does(self) -> None:
        logps = to_logps([*near_reference(3.0, -3.0), *near_reference(-4.0, -7.0)])
        assert load("c2_dpo", constraint_weight=0.5)(logps).terms["constraint"].tolist() == pytest.approx([0.0, 60.5])

    def test_a_strong_constraint_raises_what_falls_together(self) -> None:
        chosen, rejected = gradients(load("c2_dpo", constraint_weight=1.0), to_logps(near_reference(-4.0, -7.0)))
        assert chosen.item() < 0
        assert rejected.item() < 0


class TestMinorDPO:
    def test_is_dpo_where_the_rejected_is_above_the_reference(self) -> None:
        agree(load("minor_dpo", beta=0.3), load("dpo", beta=0.3), UP)

    def test_leaves_the_rejected_alone_below_it(self) -> None:
        loss, logps = load("minor_dpo", beta=0.3), to_logps(DOWN)
        expected = [math.log1p(math.exp(-0.3 * p.a)) for p in DOWN]
        assert loss(logps).loss.tolist() == pytest.approx(expected)
        chosen, rejected = gradients(loss, logps)
        assert (chosen < 0).all()
        assert not rejected.any()


class TestGPO:
    def test_its_members_are_the_losses_that_it_unifies(self) -> None:
        agree(load("gpo", function="logistic", beta=0.2), load("dpo", beta=0.2), PAIRS, rtol=0, atol=0)
        agree(load("gpo", function="hinge", beta=0.2), load("rso", beta=0.2), PAIRS, rtol=0, atol=0)
        ipo = load("ipo", beta=0.1, length_normalize=False)  # (d - 5)^2, of which this is beta^2
        squared = load("gpo", function="squared", beta=0.2)
        torch.testing.assert_close(squared(to_logps(PAIRS)).loss, 0.04 * ipo(to_logps(PAIRS)).loss)

    @pytest.mark.parametrize(
        ("function", "derivative"),
        [
            ("logistic", -0.5),
            ("exponential", -1.0),
            ("truncated_quadratic", -2.0),
            ("savage", -0.25),
            ("squared", -2.0),
        ],
    )
    def test_its_slope_at_the_start(self, function: str, derivative: float) -> None:
        """f'(0) beta, the paper's condition that f' is below 0 there."""
        chosen, rejected = gradients(load("gpo", function=function, beta=0.3), to_logps(near_reference(0.0, 0.0)))
        assert chosen.item() == pytest.approx(0.3 * derivative)
        assert rejected.item() == pytest.approx(-0.3 * derivative)

    def test_what_ends_where(self) -> None:
        """Beyond a margin of 1 the truncated quadratic rests, the squared one pulls back; savage never exceeds 1."""
        won, lost = to_logps(near_reference(30.0, 0.0)), to_logps(near_reference(-1e3, 0.0))
        assert gradients(load("gpo", function="truncated_quadratic"), won)[0].item() == 0
        assert gradients(load("gpo", function="squared"), won)[0].item() > 0
        assert load("gpo", function="savage")(lost).loss.item() == pytest.approx(1.0)
        assert abs(gradients(load("gpo", function="savage"), lost)[0].item()) < 1e-9

    @pytest.mark.parametrize("function", ["logistic", "exponential", "truncated_quadratic", "savage", "hinge"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_is_finite_and_never_pushes_the_wrong_way(self, function: str, dtype: torch.dtype) -> None:
        grid = [-1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4]
        logps = to_logps([Pair(-2e4 + a, -2e4 + b, -2e4, -2e4, 10, 10, 1, 0) for a in grid for b in grid], dtype)
        loss = load("gpo", function=function)
        chosen, rejected = gradients(loss, logps)
        assert loss(logps).loss.isfinite().all()
        assert chosen.double().square().sum().isfinite()
        assert (chosen <= 0).all()
        assert (rejected >= 0).all()

    def test_the_exponential_counts_what_it_clamps(self) -> None:
        pairs = [*near_reference(-1e3, 0.0), *near_reference(-1.0, 0.0)]
        logps = to_logps(pairs, torch.float32)
        assert load("gpo", function="exponential")(logps).diagnostics["clamped"].tolist() == [1.0, 0.0]
        assert load("gpo", function="savage")(logps).diagnostics == {}


class TestHDPO:
    def test_at_alpha_one_is_dpo(self) -> None:
        agree(load("h_dpo", alpha=1.0, beta=0.3), load("dpo", beta=0.3), PAIRS, rtol=0, atol=0)

    @pytest.mark.parametrize("alpha", [0.8, 1.25])
    def test_its_optimum_has_its_rewards(self, alpha: float) -> None:
        """Policies ``reference^(1/alpha) exp(r / (alpha beta)) / Z`` over four responses, sharper for alpha below 1."""
        reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
        reward, beta = torch.tensor([0.2, 1.0, -0.4, 0.6], dtype=torch.float64), 0.5
        policy = ((reference + reward / beta) / alpha).log_softmax(0)
        chosen, others = torch.arange(4), torch.arange(4).roll(1)
        columns = (policy[chosen], policy[others], reference[chosen], reference[others])
        pairs = [Pair(*row, 1, 1, 1, 0) for row in torch.stack(columns, dim=1).tolist()]
        loss, logps = load("h_dpo", alpha=alpha, beta=beta), to_logps(pairs)
        rewards, of_others = (r.detach() for r in loss.implicit_rewards(logps))
        torch.testing.assert_close(rewards - rewards[0], reward - reward[0])
        torch.testing.assert_close(of_others, rewards[others])
        expected = torch.nn.functional.softplus(reward[others] - reward[chosen])  # Bradley-Terry on the rewards
        torch.testing.assert_close(loss(logps).loss.detach(), expected)
        of_dpo = (reference + reward / beta).log_softmax(0)
        entropy, dpo_entropy = (-(p.exp() * p).sum() for p in (policy, of_dpo))
        assert (entropy < dpo_entropy) == (alpha < 1)

    def test_reward_per_nat_is_its_beta_at_alpha_one_only(self) -> None:
        assert load("h_dpo", alpha=1.0, beta=0.3).implicit_reward_beta == 0.3
        assert load("h_dpo", alpha=0.9, beta=0.3).implicit_reward_beta is None


@pytest.mark.parametrize(
    "name", ["chi_po", "odpo", "c2_dpo", "minor_dpo", "gpo", "h_dpo", "qrpo", "simpo", "alpha_po", "orpo"]
)
def test_every_searched_key_is_its_own_and_takes_the_ends(name: str) -> None:
    loss = load(name)
    for key, space in loss.search_space.items():
        ends = (space.low, space.high) if isinstance(space, Range) else space.values
        for value in ends:
            load(name, **{key: value})
        default = getattr(loss, key)
        assert default in ends if isinstance(space, Choices) else space.low <= default <= space.high
        assert space.source
