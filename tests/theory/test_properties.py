"""Measured properties against what is known by arithmetic."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from caldpo.environments.tabular_environment import kl_divergence, optimum
from caldpo.losses.cal_dpo import CalDPO
from caldpo.losses.dpo import DPO
from caldpo.losses.ipo import IPO
from caldpo.losses.qrpo import QRPO
from caldpo.losses.sft import SFT
from caldpo.properties import main
from caldpo.theory.labelled_table import ROWS_PER_PROMPT, paired_rows, single_rows
from caldpo.theory.measured_properties import NAMES, measure, nearest_tilt, quantiles, reward_slope
from caldpo.theory.table_fit import fit, minimise

REWARDS = torch.tensor([[0.0, 1.0, -0.5], [0.3, -2.0, 0.7]], dtype=torch.float64)
REFERENCE = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.0, -0.4]], dtype=torch.float64).log_softmax(1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_pairs_come_in_bradley_terry_proportions() -> None:
    rows = paired_rows(REWARDS, 2.0)
    for x, (first, second) in ((0, (1, 2)), (1, (1, 0))):
        of_prompt = rows.prompt == x
        forward = (of_prompt & (rows.chosen == first) & (rows.rejected == second)).sum().item()
        backward = (of_prompt & (rows.chosen == second) & (rows.rejected == first)).sum().item()
        assert (forward + backward) == pytest.approx(ROWS_PER_PROMPT / 3, abs=2)
        wanted = sigmoid(2 * (REWARDS[x, first] - REWARDS[x, second]).item())
        assert forward / (forward + backward) == pytest.approx(wanted, abs=2e-3)


def test_without_noise_the_better_response_is_always_the_chosen_one() -> None:
    rows = paired_rows(REWARDS, None)
    assert (REWARDS[rows.prompt, rows.chosen] > REWARDS[rows.prompt, rows.rejected]).all()
    assert len(rows.prompt) == 2 * ROWS_PER_PROMPT


def test_single_rows_have_one_response_and_its_label() -> None:
    rows = single_rows(REWARDS, 1.0)
    assert rows.chosen_present is not None
    assert rows.rejected_present is not None
    assert (rows.chosen_present + rows.rejected_present == 1).all()
    of_one = (rows.prompt == 1) & (rows.chosen == 1)
    assert rows.chosen_present[of_one].mean().item() == pytest.approx(sigmoid(-2.0), abs=2e-3)


def test_dpo_recovers_the_optimum() -> None:
    policy = fit(DPO(beta=1.0), paired_rows(REWARDS, 1.0), REFERENCE, REWARDS, steps=1200).policy
    assert kl_divergence(policy, optimum(REFERENCE, REWARDS, 1.0)) < 1e-4
    assert reward_slope(DPO(beta=1.0), policy, REFERENCE, REWARDS) == pytest.approx(1.0, abs=5e-3)
    tau, distance = nearest_tilt(policy, REFERENCE, REWARDS)
    assert tau == pytest.approx(1.0, abs=0.01)
    assert distance < 1e-5


def test_dpo_at_another_beta_recovers_another_tilt() -> None:
    policy = fit(DPO(beta=0.5), paired_rows(REWARDS, 1.0), REFERENCE, REWARDS, steps=600).policy
    assert nearest_tilt(policy, REFERENCE, REWARDS)[0] == pytest.approx(0.5, abs=0.01)


def test_ipo_of_two_responses_stops_at_its_own_gap() -> None:
    """With two responses and labels p : 1 - p the squared gap's mean is least at ``(2 p - 1) / (2 beta)``."""
    rewards, reference = torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1, 2).double().log_softmax(1)
    policy = fit(IPO(beta=0.25), paired_rows(rewards, 1.0), reference, rewards, steps=400).policy
    gap = (policy - reference)[0, 0] - (policy - reference)[0, 1]
    assert gap.item() == pytest.approx((2 * sigmoid(1.0) - 1) / 0.5, abs=5e-3)


def test_cal_dpo_of_two_responses_has_no_slope_at_its_fixed_point() -> None:
    rewards, reference = torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1, 2).double().log_softmax(1)
    policy = fit(CalDPO(beta=0.5), paired_rows(rewards, None), reference, rewards, steps=600).policy
    p = policy[0, 0].exp().item()

    def value(p: float) -> float:
        a, b = math.log(2 * p), math.log(2 * (1 - p))
        return math.log1p(math.exp(b - a)) + (a - 1) ** 2 + (b + 1) ** 2

    assert (value(p + 1e-4) - value(p - 1e-4)) / 2e-4 == pytest.approx(0, abs=2e-2)
    assert value(p) < min(value(p - 0.02), value(p + 0.02))


def test_minimise_stays_within_its_directions() -> None:
    basis = torch.tensor([[[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    best = optimum(REFERENCE, REWARDS, 1.0)
    found = minimise(lambda policy: (best.exp() * (best - policy)).sum(), REFERENCE, 300, basis)
    torch.testing.assert_close(found[1], REFERENCE[1])
    moved = (found - REFERENCE)[0]
    assert (moved[0] + moved[1] - 2 * moved[2]).item() == pytest.approx(0, abs=1e-9)


def test_what_is_measured_of_dpo_and_sft() -> None:
    dpo = measure(DPO(beta=1.0), steps=250)
    assert dpo.rejected_gradient == pytest.approx(0.5)
    assert dpo.rejected_share == pytest.approx(0.5)
    assert dpo.gap_growth > 1.5
    assert dpo.shift_pairs == 0
    assert dpo.shift_single is None
    sft = measure(SFT(), steps=250)
    assert (sft.rejected_gradient, sft.rejected_share, sft.slope) == (0, 0, None)
    # likelihood covers: nearer to the least KL(pi* || pi) than DPO is, relative to the other way
    assert sft.covering / sft.seeking < dpo.covering / dpo.seeking


def test_the_command_writes_a_row_for_each_loss(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    main(["losses=[dpo,ipo]", "steps=5", f"output={tmp_path / 'tables'}"])
    table = pd.read_csv(tmp_path / "tables" / "properties.csv")
    assert table["loss"].tolist() == ["dpo", "ipo"]
    assert set(NAMES) < set(table.columns)
    page = (tmp_path / "tables" / "properties.md").read_text()
    assert page.count("\n| `") == 2
    assert page in capsys.readouterr().out


def test_an_unknown_loss_is_refused_with_the_nearest_name(capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match="2"):
        main(["losses=[dpoo]"])
    assert "did you mean dpo?" in capsys.readouterr().err


def test_quantiles_are_the_references_share_of_no_better_responses() -> None:
    found = quantiles(REFERENCE, REWARDS)
    probability = REFERENCE.exp()
    assert found[0, 1].item() == pytest.approx(1.0)  # the best
    assert found[0, 2].item() == pytest.approx(probability[0, 2].item())  # the worst
    assert found[1, 0].item() == pytest.approx((probability[1, 0] + probability[1, 1]).item())


def test_qrpo_recovers_the_optimum_of_its_quantiles() -> None:
    """Continuous quantiles are assumed by its log Z; a table's are few, so it comes near only."""
    measured = measure(QRPO(beta=1.0), steps=300)
    assert measured.kl_to_tilt < 0.05
    assert measured.gap_growth == pytest.approx(1, abs=0.1)


def test_kto_sees_mismatched_responses() -> None:
    rows = paired_rows(REWARDS, 1.0)
    mixed = rows.mismatched()
    assert torch.equal(mixed.prompt, rows.prompt)
    assert torch.equal(mixed.chosen[:ROWS_PER_PROMPT], rows.chosen[-ROWS_PER_PROMPT:])
