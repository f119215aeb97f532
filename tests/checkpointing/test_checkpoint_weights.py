"""Frozen weights are dropped from a checkpoint, and restored when it is loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from caldpo.checkpointing.checkpoint_weights import add_frozen, drop_frozen, frozen_names
from tests.helpers.messages import refused


def model(*frozen: str) -> nn.Module:
    made = nn.ModuleDict({"base": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2), "adapter": nn.Linear(2, 1, bias=False)})
    for name, value in made.named_parameters():
        value.requires_grad_(not name.startswith(frozen) if frozen else True)
    return made


def test_all_weights_are_saved_where_all_are_trained() -> None:
    whole = model()
    state = whole.state_dict()
    drop_frozen(state, whole)
    assert frozen_names(whole) == set()
    assert state.keys() == whole.state_dict().keys()  # buffers too: training may change them


def test_the_frozen_base_is_dropped_and_restored() -> None:
    adapted = model("base", "norm")
    state = adapted.state_dict()
    drop_frozen(state, adapted)
    assert list(state) == ["adapter.weight"]
    other = model("base", "norm")
    state["adapter.weight"] = torch.tensor([[5.0, 6.0]])
    add_frozen(state, other)
    assert torch.equal(state["base.weight"], other.state_dict()["base.weight"])
    other.load_state_dict(state, strict=True)
    assert other["adapter"].weight.tolist() == [[5.0, 6.0]]


@pytest.mark.parametrize(
    ("state", "facts"),
    [
        ({}, (1, 0, "adapter.weight")),
        ({"adapter.weight": torch.ones(1, 2), "wing": torch.ones(1)}, (0, 1, "wing")),
    ],
)
def test_another_models_weights_are_refused(state: dict[str, torch.Tensor], facts: tuple[object, ...]) -> None:
    with refused(*facts):
        add_frozen(state, model("base", "norm"))
