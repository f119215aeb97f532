"""Reward models: where they read, what they compute and how they are fitted, each held to plain code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.losses.dpo import DPO
from caldpo.optim import AdamW, Schedule
from caldpo.reference.frozen_model import FrozenReference
from caldpo.rollouts.reward_model import LogRatioReward, ScalarHeadReward, last_places
from caldpo.rollouts.reward_model_fit import RewardModelFit, accuracy, require_rewards
from caldpo.rollouts.reward_model_rollouts import FittedReward
from caldpo.types import PairBatch, PairLogps
from tests.helpers.messages import refused
from tests.helpers.tiny import batch_of, tiny_model, tiny_pairs

KEYS: dict[str, Any] = {"max_new_tokens": 4, "seed": 0, "steps": 1, "lr": None, "standardize": False, "beta": None}


def batches(pairs: list[TokenizedPair]) -> list[PairBatch]:
    return [batch_of(pairs), collate(pairs, pad_id=0, layout="packed")]


def test_the_place_of_each_responses_last_token() -> None:
    """Told apart by a last token of its own, in both layouts; also of a response of one token."""
    pairs = [
        TokenizedPair(p.prompt_ids, [*p.chosen_ids[:-1], 40 - i], [*p.rejected_ids[:-1], 30 - i], None, None, i, "")
        for i, p in enumerate(tiny_pairs(8, longest=4))
    ]
    assert 1 in {len(ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)}
    for batch in batches(pairs):
        ends = batch.input_ids.flatten()[last_places(batch)].tolist()
        assert ends == [40 - i for i in range(8)] + [30 - i for i in range(8)]


def test_the_scalar_head_reads_the_last_hidden_state() -> None:
    """0 before it is trained; then the head's product with what transformers returns for each response alone."""
    model, pairs = ScalarHeadReward(tiny_model()), tiny_pairs(5)
    assert all(not side.any() for side in model(batch_of(pairs)))
    torch.nn.init.normal_(model.head.weight)
    chosen, rejected = model(batch_of(pairs))
    for i, pair in enumerate(pairs):
        for got, ids in ((chosen, pair.chosen_ids), (rejected, pair.rejected_ids)):
            tokens = torch.tensor([pair.prompt_ids + ids])
            hidden = model.policy(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0, -1]
            torch.testing.assert_close(got[i], model.head.weight[0] @ hidden, rtol=1e-4, atol=1e-5)
    (chosen - rejected).sum().backward()
    assert all(p.grad is not None for name, p in model.policy.named_parameters() if "lm_head" not in name)


def test_the_log_ratio_is_dpos_implicit_reward_and_its_fit_is_dpo() -> None:
    """The step's loss is the mean of DPO's over the pairs, so that its gradient is, too."""
    batch, beta = batch_of(tiny_pairs(6)), 0.7
    reference = FrozenReference(tiny_model(seed=0))
    model = LogRatioReward(tiny_model(seed=1), reference, beta)
    fit = RewardModelFit(model, AdamW(Schedule("constant"), lr=1e-3))
    fit._trainer = SimpleNamespace(accumulate_grad_batches=1)  # type: ignore[assignment]
    loss = fit.training_step(batch, 0)
    own, fixed = LogRatioReward(tiny_model(seed=1), reference, 1.0)._engine(batch), reference.logps(batch)
    expected = DPO(beta=beta)(PairLogps(*own, *fixed, *batch.lengths())).loss.mean()
    torch.testing.assert_close(loss, expected)
    chosen, rejected = model(batch)
    torch.testing.assert_close(chosen, beta * (own[0] - fixed[0]))
    torch.testing.assert_close(rejected, beta * (own[1] - fixed[1]))


@pytest.mark.parametrize("kind", [ScalarHeadReward, lambda p: LogRatioReward(p, FrozenReference(tiny_model()), 1.0)])
def test_a_fit_finds_what_is_preferred(kind: Any) -> None:
    """Responses with w5 over those without, also in pairs it has not seen."""

    def pairs(seed: int, count: int) -> list[TokenizedPair]:
        made = tiny_pairs(count, seed=seed)
        plain = [[8 if t == 9 else t for t in p.rejected_ids] for p in made]
        return [
            TokenizedPair(p.prompt_ids, [9, 9, 9, *p.chosen_ids], ids, None, None, i, "")
            for i, (p, ids) in enumerate(zip(made, plain, strict=True))
        ]

    model = kind(tiny_model())
    fit = RewardModelFit(model, AdamW(Schedule("constant"), lr=1e-2))
    fit._trainer = SimpleNamespace(accumulate_grad_batches=1)  # type: ignore[assignment]
    optimizer, batch, held_out = torch.optim.AdamW(model.parameters(), lr=1e-2), batch_of(pairs(1, 128)), pairs(2, 32)
    for _ in range(40):
        optimizer.zero_grad()
        fit.training_step(batch, 0).backward()
        optimizer.step()
    with torch.no_grad():
        assert accuracy(*model(batch_of(held_out))) > 0.9


def test_accuracy_counts_ties_half() -> None:
    assert accuracy(torch.tensor([1.0, 0.0, 2.0, -1.0]), torch.tensor([0.0, 0.0, 3.0, -2.0])) == 0.625


def test_a_reward_model_that_diverged_is_refused() -> None:
    """Its samples would be paired in the order they were drawn."""
    with refused(key="rollouts", remedy="rollouts.lr"):
        require_rewards(torch.tensor([1.0, float("nan")]))
    require_rewards(torch.tensor([1.0, 1.0]))


def test_a_beta_belongs_to_log_ratios() -> None:
    with refused(key="rollouts.beta", value="0.5", remedy="leave it out"):
        FittedReward(**{**KEYS, "kind": "scalar_head", "beta": 0.5})


def test_a_table_has_no_body_for_a_scalar_head(tmp_path: Path) -> None:
    from tests.environments.test_tabular_model import policy

    made = FittedReward(**{**KEYS, "kind": "scalar_head"})
    with refused("TabularLM", key="rollouts.kind", remedy="rollouts.kind=log_ratio"):
        made._untrained(SimpleNamespace(policy=policy()))  # type: ignore[arg-type]
