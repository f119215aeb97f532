"""A reference that follows the policy: when it moves and how far, what stays, what is saved, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.models.adapters import Lora, NoAdapter
from caldpo.reference.auto_reference import Auto
from caldpo.reference.disabled_adapter import Adapter
from caldpo.reference.frozen_model import Frozen
from caldpo.reference.moving_reference import MovingReference, build_reference, check_moving
from caldpo.reference.precomputed import Precomputed
from caldpo.types import ReferenceMove
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_model
from tests.reference.contexts import batch_of, make_context


def built(share: float = 0.6, every: int = 2, source: Any = None) -> tuple[MovingReference, Any, Any]:
    """A moving reference, the policy it follows, one update later, and its context."""
    policy = tiny_model()
    context = make_context(policy)
    reference = build_reference(source or Frozen(), context, ReferenceMove(every, share))
    assert isinstance(reference, MovingReference)
    reference.prepare()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.125)
    return reference, policy, context


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_moves_by_its_share_of_the_policy(share: float) -> None:
    reference, policy, _ = built(share)
    before = weights(reference.moving.model)
    reference.follow(policy, 2)
    for name, value in reference.moving.model.named_parameters():
        expected = share * dict(policy.named_parameters())[name] + (1 - share) * before[name]
        torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-7)
        assert share != 0 or torch.equal(value, before[name])
        assert share != 1 or torch.equal(value, dict(policy.named_parameters())[name])


def test_moves_once_every_so_many_steps() -> None:
    """Not before the first update, and once however many micro-batches a step has."""
    reference, policy, _ = built(every=3)
    moves = []
    for step in range(10):
        for _ in range(2):
            before = weights(reference.moving.model)
            reference.follow(policy, step)
            after = weights(reference.moving.model)
            if any(not torch.equal(before[name], after[name]) for name in before):
                moves.append(step)
    assert moves == [3, 6, 9]


@pytest.mark.parametrize("mode", ["frozen", "auto"])
def test_held_out_pairs_and_samples_keep_the_start(mode: str, tmp_path: Path) -> None:
    source = Frozen() if mode == "frozen" else Auto(cache=str(tmp_path))
    reference, policy, context = built(1.0, source=source)
    start = make_context(tiny_model()).policy
    train, held_out = batch_of(context, "train", [0, 1, 2]), batch_of(context, "test", [0, 1, 2])
    before = [torch.stack(reference.logps(pairs)) for pairs in (train, held_out)]
    reference.follow(policy, 2)
    after = [torch.stack(reference.logps(pairs)) for pairs in (train, held_out)]
    assert not torch.allclose(before[0], after[0], atol=1e-3)
    assert torch.equal(before[1], after[1])
    torch.testing.assert_close(after[0], torch.stack(Frozen().build(make_context(policy)).logps(train)))
    with reference.live() as model:
        assert all(torch.equal(weights(model)[name], value) for name, value in weights(start).items())
    assert reference.facts()["weights"] == Frozen().build(make_context(tiny_model())).facts()["weights"]


def test_its_state_is_restored_to_the_bit() -> None:
    reference, policy, _ = built(every=2)
    reference.follow(policy, 2)
    state = copy.deepcopy(reference.state_dict())
    again, _, _ = built(every=2)
    again.load_state_dict(state)
    assert all(torch.equal(weights(again.moving.model)[n], v) for n, v in weights(reference.moving.model).items())
    again.follow(policy, 2)  # done before it was saved
    assert all(torch.equal(weights(again.moving.model)[n], v) for n, v in weights(reference.moving.model).items())


MOVE = ReferenceMove(2, 0.6)


def test_what_cannot_move_is_refused() -> None:
    check_moving(MOVE, Frozen(), NoAdapter(), shards=False)
    check_moving(MOVE, Auto(), NoAdapter(), shards=False)
    check_moving(None, Precomputed(), Lora(), shards=True)
    with refused("tr_dpo", key="reference", value="precomputed", remedy="reference=frozen"):
        check_moving(MOVE, Precomputed(), NoAdapter(), shards=False)
    with refused("tr_dpo", key="reference", value="adapter", remedy="reference=frozen"):
        check_moving(MOVE, Adapter(), Lora(), shards=False)
    with refused("tr_dpo", key="adapter", remedy="adapter=none"):
        check_moving(MOVE, Frozen(), Lora(), shards=False)
    with refused("tr_dpo", key="trainer.strategy", remedy="trainer=ddp"):
        check_moving(MOVE, Frozen(), NoAdapter(), shards=True)
