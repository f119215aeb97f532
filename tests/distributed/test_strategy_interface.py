"""Every strategy of a run fulfils one interface."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from caldpo.distributed.deepspeed_strategy import ZeroStrategy
from caldpo.distributed.fsdp_strategy import FsdpStrategy
from caldpo.distributed.step_gradients import LocalGradients
from caldpo.distributed.strategy_interface import PolicyStrategy, policy_strategy
from tests.helpers.tiny import tiny_model


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy(torch.device("cpu")), DDPStrategy()], ids=["one", "ddp"])
def test_lightnings_own_strategies_replicate_the_policy(strategy: Strategy) -> None:
    replicated = policy_strategy(strategy)
    assert type(replicated) is PolicyStrategy
    assert not replicated.shards_weights
    policy = tiny_model()
    parameters = list(policy.parameters())
    replicated.shard(policy)
    assert all(after is before for after, before in zip(policy.parameters(), parameters, strict=True))
    assert isinstance(replicated.gradients(policy), LocalGradients)


def test_sharding_strategies_are_their_own_interface() -> None:
    assert issubclass(ZeroStrategy, PolicyStrategy)
    strategy = FsdpStrategy(2)
    assert policy_strategy(strategy) is strategy
    assert isinstance(strategy.gradients(tiny_model()), LocalGradients)
