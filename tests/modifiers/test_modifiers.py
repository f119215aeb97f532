"""Each modifier against plain arithmetic, where it changes nothing, its gradient, and its order among others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from caldpo.config.conf_dir import conf_dir
from caldpo.errors import CaldpoError
from caldpo.types import StepStatistics
from tests.helpers.messages import refused
from tests.losses.test_losses import PAIRS, Pair, gradients, load, softplus, to_logps
from tests.modifiers.made import LOSSES, MODIFIERS, make, modifier, same

BETA = 0.1  # of conf/loss/dpo.yaml
NUMBERS = torch.float64


def dpo(p: Pair, beta: float = BETA, margin: float = 0.0) -> float:
    return softplus(margin - beta * (p.a - p.b))


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=NUMBERS)


def wpo(p: Pair) -> float:
    return math.exp(p.pw / p.nw + p.pl / p.nl)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


EXPECTED: dict[str, tuple[dict[str, Any], Any]] = {
    "wpo": ({}, lambda p: wpo(p) * dpo(p)),
    "focal": ({"gamma": 2.0}, lambda p: sigmoid(BETA * (p.a - p.b)) ** 2 * dpo(p)),
    "nll": ({"weight": 0.3}, lambda p: dpo(p) - 0.3 * p.pw / p.nw),
    "score_margin": ({"scale": 0.7}, lambda p: dpo(p, margin=0.7 * (p.sw - p.sl))),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_value_by_plain_arithmetic(name: str) -> None:
    keys, expected = EXPECTED[name]
    output = make("dpo", **{name: keys})(to_logps(PAIRS))
    same(output.loss.detach(), column([expected(p) for p in PAIRS]))
    same(sum(output.terms.values()), output.loss)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("focal", {"gamma": 0.0}),
        ("nll", {"weight": 0.0}),
        ("score_margin", {"scale": 0.0}),
        ("adaptive_beta", {"alpha": 0.0}),
        ("gap_filter", {"share": 0.0}),
        ("ld_dpo", {"alpha": 1.0}),
        ("sampo", {}),  # the log-probs are summed before
        ("tr_dpo", {"share": 0.0}),
    ],
)
@pytest.mark.parametrize("loss", ["dpo", "rso"])
def test_changes_nothing_at_its_limit(name: str, keys: dict[str, Any], loss: str) -> None:
    changed, bare = make(loss, **{name: keys}), load(loss)
    assert torch.equal(changed(to_logps(PAIRS)).loss, bare(to_logps(PAIRS)).loss)
    for one, other in zip(gradients(changed, to_logps(PAIRS)), gradients(bare, to_logps(PAIRS)), strict=True):
        same(one, other)


def test_no_modifiers_are_the_loss_itself() -> None:
    loss = load("dpo")
    assert make(loss) is loss


# ---- pair weights


def test_weights_of_wpo_have_no_gradient() -> None:
    """The gradient is DPO's own times the weight."""
    weight = column([wpo(p) for p in PAIRS])
    for one, plain in zip(
        gradients(make("dpo", wpo={}), to_logps(PAIRS)), gradients(load("dpo"), to_logps(PAIRS)), strict=True
    ):
        same(one, weight * plain)


def test_likely_pairs_weigh_more_and_none_more_than_one() -> None:
    likely, unlikely, certain = (Pair(p, p, -9.0, -9.0, 5, 5, 0, 0) for p in (-1.0, -30.0, 0.0))
    diagnostics = make("dpo", wpo={})(to_logps([likely, unlikely, certain])).diagnostics["wpo_weight"]
    assert diagnostics.tolist() == pytest.approx([math.exp(-0.4), math.exp(-12.0), 1.0])


def test_focal_weighs_misranked_pairs_less() -> None:
    right, wrong = Pair(-1.0, -20.0, -10.0, -10.0, 5, 5, 0, 0), Pair(-20.0, -1.0, -10.0, -10.0, 5, 5, 0, 0)
    weights = make("dpo", focal={"gamma": 0.5})(to_logps([right, wrong])).diagnostics["focal_weight"]
    assert weights[0] > math.sqrt(0.5) > weights[1]


@pytest.mark.parametrize("gamma", [0.05, 1.0])
def test_gradient_of_focal(gamma: float) -> None:
    """With the weight's gradient ``p^gamma (1 + gamma log p)`` times DPO's, detached ``p^gamma`` times it."""
    p = column([sigmoid(BETA * (x.a - x.b)) for x in PAIRS])
    plain = gradients(load("dpo"), to_logps(PAIRS))
    for detach, factor in ((False, p**gamma * (1 + gamma * p.log())), (True, p**gamma)):
        loss = make("dpo", focal={"gamma": gamma, "detach": detach})
        for one, other in zip(gradients(loss, to_logps(PAIRS)), plain, strict=True):
            same(one, factor * other)


# ---- the step's pairs


def test_dr_dpo_is_the_soft_minimum_of_the_step() -> None:
    """Mean and gradient over the step are the objective's, whatever the groups in which pairs are computed."""
    b = 0.2
    losses = [dpo(p) for p in PAIRS]
    mean = sum(math.exp(-x / b) for x in losses) / len(losses)
    output = make("dpo", dr_dpo={"beta_prime": b})(to_logps(PAIRS))
    assert output.loss.mean().item() == pytest.approx(-b * math.log(mean), rel=1e-12)
    same(sum(output.terms.values()), output.loss)
    logps = to_logps(PAIRS)
    objective = -b * torch.exp(-load("dpo")(logps).loss / b).mean().log()
    expected = torch.autograd.grad(objective, (logps.policy_chosen, logps.policy_rejected))
    for one, other in zip(gradients(make("dpo", dr_dpo={"beta_prime": b}), to_logps(PAIRS)), expected, strict=True):
        same(one / len(PAIRS), other)


@pytest.mark.parametrize("beta_prime", [1e6, 1e300])
def test_dr_dpo_with_a_large_beta_prime_is_the_mean(beta_prime: float) -> None:
    loss, bare = make("dpo", dr_dpo={"beta_prime": beta_prime}), load("dpo")
    expected = bare(to_logps(PAIRS)).loss.mean().item()
    assert loss(to_logps(PAIRS)).loss.mean().item() == pytest.approx(expected, rel=1e-5)
    for one, other in zip(gradients(loss, to_logps(PAIRS)), gradients(bare, to_logps(PAIRS)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_dr_dpo_counts_a_wrong_label_less() -> None:
    weight = make("dpo", dr_dpo={"beta_prime": 0.5})(to_logps(PAIRS)).diagnostics["dr_dpo_weight"]
    assert weight.argmin() == max(range(len(PAIRS)), key=lambda i: dpo(PAIRS[i]))
    assert weight.sum().item() == pytest.approx(len(PAIRS))


def gap(p: Pair) -> float:
    return p.a - p.b


def observe(loss: Any, pairs: list[Pair], **keys: Any) -> StepStatistics:
    """Observe a step, and write what it leaves into the buffers, as training does."""
    with torch.no_grad():
        found = loss.observe(to_logps(pairs), **keys)
    for name, value in found.state.items():
        loss.get_buffer(name).copy_(value)
    return found


MILD = [Pair(p, -3.0, -3.0, -3.0, 4, 4, 0, 0) for p in (-2.0, -3.5, -2.5, -3.0, -1.0)]


def test_adaptive_beta_follows_the_running_mean_over_steps() -> None:
    """Two steps: ``M0`` takes a tenth of each step's mean, its own included, from 0."""
    loss, m0 = make("dpo", adaptive_beta={"alpha": 0.6}), 0.0
    for pairs in (MILD, MILD[:3]):
        m = sum(map(gap, pairs)) / len(pairs)
        m0 = 0.9 * m0 + 0.1 * m
        beta = BETA * (1 + 0.6 * (m - m0))
        found = observe(loss, pairs)
        assert found.per_pair["beta_factor"].tolist() == pytest.approx([beta / BETA] * len(pairs))
        logps = to_logps(pairs)
        output = loss(replace(logps, of_step=found.per_pair))
        assert output.loss.tolist() == pytest.approx([dpo(p, beta) for p in pairs], rel=1e-12)
        scaled = gradients(lambda x, s=found.per_pair: loss(replace(x, of_step=s)), to_logps(pairs))
        for one, other in zip(scaled, gradients(load("dpo", beta=beta), to_logps(pairs)), strict=True):
            same(one, other)
    assert loss.loss.beta == BETA


def test_beta_stays_above_a_thousandth() -> None:
    far = [Pair(-900.0, -3.0, -3.0, -3.0, 4, 4, 0, 0)]
    assert make("dpo", adaptive_beta={})(to_logps(far)).diagnostics["adaptive_beta"].item() * BETA == pytest.approx(
        1e-3
    )


@pytest.mark.parametrize("name", ["adaptive_beta", "gap_filter"])
def test_held_out_pairs_have_the_loss_itself(name: str) -> None:
    loss = make("dpo", **{name: {}})
    found = observe(loss, MILD, training=False)
    assert found.state == {}
    assert all(torch.equal(value, torch.ones_like(value)) for value in found.per_pair.values())


def test_gap_filter_keeps_its_share_of_the_step() -> None:
    """Eight of ten; the mean over all, of losses that are 0 or raised, is that over those that are kept."""
    pairs = MILD * 2
    loss = make("dpo", gap_filter={"share": 0.2})
    weight = observe(loss, pairs).per_pair["kept"]
    kept = [i for i in range(10) if weight[i] > 0]
    assert len(kept) == 8
    assert make("dpo", gap_filter={"share": 0.2})(to_logps(pairs)).loss.mean().item() == pytest.approx(
        sum(dpo(pairs[i]) for i in kept) / 8, rel=1e-12
    )


def test_gap_filter_keeps_a_whole_share_whatever_the_rounding() -> None:
    """``10 (1 - 0.8)`` is just below 2 in floating point, and 20 (1 - 0.9) as well."""
    for count, share in ((10, 0.8), (20, 0.9), (10, 0.3), (3, 0.9)):
        weight = observe(make("dpo", gap_filter={"share": share}), (MILD * 4)[:count]).per_pair["kept"]
        assert (weight > 0).sum().item() == max(1, count * round(10 - 10 * share) // 10), (count, share)


def test_gap_filter_leaves_out_outliers_and_draws_anew() -> None:
    pairs = [*MILD * 4, Pair(-300.0, -3.0, -3.0, -3.0, 4, 4, 0, 0)]
    loss, sets = make("dpo", gap_filter={"share": 0.3}), []
    for _ in range(30):
        sets.append(observe(loss, pairs).per_pair["kept"])
    assert all(kept[-1] == 0 for kept in sets[1:])
    assert len({tuple(kept.tolist()) for kept in sets}) > 20
    again = make("dpo", gap_filter={"share": 0.3})
    for kept in sets:
        assert torch.equal(observe(again, pairs).per_pair["kept"], kept)
    assert not torch.equal(observe(make("dpo", gap_filter={"seed": 1}), pairs).per_pair["kept"], sets[0])


def test_a_step_that_is_not_finite_leaves_the_averages_alone() -> None:
    loss = make("dpo", adaptive_beta={}, gap_filter={})
    observe(loss, MILD)
    before = {name: value.clone() for name, value in loss.named_buffers()}
    observe(loss, [*MILD, Pair(math.nan, -3.0, -3.0, -3.0, 4, 4, 0, 0)])
    for name, value in loss.named_buffers():
        assert "average" not in name or torch.equal(value, before[name])


def test_averages_stay_in_their_own_dtype() -> None:
    loss = make("dpo", adaptive_beta={}, gap_filter={}).to(torch.bfloat16)
    assert {str(value.dtype) for value in loss.buffers()} == {"torch.float64", "torch.int64"}


def test_each_buffer_is_saved_once() -> None:
    loss = make("dpo", adaptive_beta={}, gap_filter={}, wpo={})
    assert sorted(loss.state_dict()) == [
        "modifiers.adaptive_beta.average.deviation",
        "modifiers.adaptive_beta.average.mean",
        "modifiers.gap_filter.average.deviation",
        "modifiers.gap_filter.average.mean",
        "modifiers.gap_filter.steps",
    ]


def test_beta_is_of_the_pairs_that_are_kept() -> None:
    loss = make("dpo", adaptive_beta={"alpha": 0.6}, gap_filter={"share": 0.4})
    found = observe(loss, MILD).per_pair
    kept = [gap(p) for p, weight in zip(MILD, found["kept"].tolist(), strict=True) if weight]
    m0 = 0.1 * sum(map(gap, MILD)) / len(MILD)
    assert len(kept) == 3
    assert found["beta_factor"][0].item() == pytest.approx(1 + 0.6 * (sum(kept) / 3 - m0), rel=1e-12)


# ---- several at once


def test_the_order_is_that_of_the_places_not_of_the_names() -> None:
    """Shift, loss, pair weights, objective of the step, added term."""
    keys: dict[str, dict[str, Any]] = {
        "nll": {"weight": 0.5},
        "dr_dpo": {"beta_prime": 0.3},
        "wpo": {},
        "score_margin": {"scale": 0.7},
    }
    weighed = [wpo(p) * dpo(p, margin=0.7 * (p.sw - p.sl)) for p in PAIRS]
    objective = -0.3 * math.log(sum(math.exp(-x / 0.3) for x in weighed) / len(weighed))
    expected = column([objective - 0.5 * p.pw / p.nw for p in PAIRS])
    one, other = make("dpo", **keys), make("dpo", **dict(reversed(keys.items())))
    same(one(to_logps(PAIRS)).loss.detach(), expected)
    assert torch.equal(other(to_logps(PAIRS)).loss, one(to_logps(PAIRS)).loss)
    assert one.formula == other.formula


def test_the_formula_has_every_number() -> None:
    formula = make("dpo", nll={"weight": 0.25}, wpo={}, tr_dpo={"every": 64}, ld_dpo={"alpha": 0.75}).formula
    for fact in ("-logsigmoid(0.1 (a - b))", "0.25", "64", "0.6", "0.75", "p_w/n_w + p_l/n_l"):
        assert fact in formula


@pytest.mark.parametrize(
    "names", [("ld_dpo", "sampo"), ("gap_filter", "dr_dpo")], ids=["two token weights", "two choices of pairs"]
)
def test_two_of_a_kind_are_refused(names: tuple[str, ...]) -> None:
    with refused(*names, key="modifier"):
        make("dpo", **{name: {} for name in names})


def test_needs_are_those_of_the_loss_and_of_its_modifiers() -> None:
    plain, scored = make("cpo", wpo={}), make("dpo", score_margin={})
    assert (plain.needs_reference, plain.needs_scores, plain.depends_on_batch) == (False, False, False)
    assert (scored.needs_reference, scored.needs_scores) == (True, True)
    assert make("dpo", dr_dpo={}).depends_on_batch
    assert make("dpo", sampo={}).weighs_tokens
    assert make("qrpo", nll={}).score_range == (0.0, 1.0)
    assert make("dpo", tr_dpo={"mode": "replace"}).reference_move.share == 1
    assert make("dpo", wpo={}).implicit_reward_beta == BETA
    assert make("dpo", wpo={}).unmodified.formula == load("dpo").formula


def test_replacing_takes_no_share() -> None:
    with refused("modifier.tr_dpo.share=0.5", "mode=mix", kind=Exception):  # Hydra's, around the project's own
        modifier("tr_dpo", mode="replace", share=0.5)


# ---- every modifier with every loss


def test_every_yaml_names_its_own_modifier() -> None:
    for name in MODIFIERS:
        text = (conf_dir() / "modifier" / f"{name}.yaml").read_text()
        assert text.startswith(f"# @package modifier.{name}\n")
        assert modifier(name).name == name


STEP = 1e-6


@pytest.mark.parametrize("name", MODIFIERS)
@pytest.mark.parametrize("loss_name", LOSSES)
def test_each_loss_is_modified_or_refused_by_name(loss_name: str, name: str) -> None:
    """Where it works the gradient is the derivative of the value, weights without a gradient held fixed."""
    bare = load(loss_name)
    try:
        loss = make(bare, **{name: {}})
    except CaldpoError:
        with refused(type(bare).__name__, key="modifier", value=name) as refusal:
            make(bare, **{name: {}})
        assert refusal.value.remedy
        return
    assert bare.formula in loss.formula
    logps = to_logps(PAIRS)
    output = loss(logps)
    torch.testing.assert_close(sum(output.terms.values()), output.loss, rtol=1e-9, atol=1e-9)
    if loss.depends_on_batch:
        return  # statistics of a step are held fixed; each has its own test
    factor = output.diagnostics.get(f"{name}_weight", torch.ones(4)).detach() if name == "wpo" else torch.ones(4)
    judged = bare if name == "wpo" else loss
    for actual, side in zip(gradients(loss, logps), ("pw", "pl"), strict=True):
        for i, pair in enumerate(PAIRS):
            moved = [Pair(**{**vars(pair), side: getattr(pair, side) + s * STEP}) for s in (1, -1)]
            up, down = (judged(to_logps([m])).loss.item() for m in moved)
            slope = factor[i].item() * (up - down) / (2 * STEP)
            assert actual[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", MODIFIERS)
def test_each_modifier_works_with_dpo(name: str) -> None:
    make("dpo", **{name: {}})


def test_beta_dpo_is_for_losses_whose_beta_multiplies_the_log_ratios() -> None:
    """IPO's beta is a target, that of the calibrated losses too; QRPO's is in its log Z; SLiC has none."""
    for name in ("ipo", "cal_dpo", "slic", "f_dpo", "qrpo"):
        with refused(key="modifier", value="adaptive_beta"):
            make(name, adaptive_beta={})
    make(load("f_dpo", divergence="reverse_kl"), adaptive_beta={})


def test_a_margin_is_not_for_losses_that_read_a_log_ratio_by_itself() -> None:
    with refused("CalDPO", key="modifier", value="score_margin"):
        make("cal_dpo", score_margin={})


def test_a_second_nll_is_refused_with_the_key_of_the_first() -> None:
    with refused("CPO", key="modifier", value="nll", remedy="loss.nll_weight"):
        make("cpo", nll={})


@pytest.mark.parametrize("alignment", ["greedy", "sampled"])
def test_weights_of_wpo_relative_to_the_policys_own_tokens(alignment: str) -> None:
    """Eq. 4 and 5, clamped at 1 as in the authors' repository; the gradient is DPO's own times the weight."""
    own = {
        "chosen_alignment": column([-3.0, -60.0, -1.0, -20.0]),
        "rejected_alignment": column([-9.0, -13.0, -8.0, -2.0]),
    }
    weights = [
        min(1.0, math.exp((p.pw - c) / p.nw + (p.pl - r) / p.nl))
        for p, c, r in zip(PAIRS, own["chosen_alignment"].tolist(), own["rejected_alignment"].tolist(), strict=True)
    ]
    assert max(weights) == 1
    loss = make("dpo", wpo={"alignment": alignment})
    assert loss.alignment == alignment
    same(
        loss(replace(to_logps(PAIRS), **own)).loss.detach(),
        column([w * dpo(p) for w, p in zip(weights, PAIRS, strict=True)]),
    )
    plain = gradients(load("dpo"), to_logps(PAIRS))
    for one, other in zip(gradients(lambda x: loss(replace(x, **own)), to_logps(PAIRS)), plain, strict=True):
        same(one, column(weights) * other)
    with pytest.raises(ValueError, match="own tokens"):
        loss(to_logps(PAIRS))
