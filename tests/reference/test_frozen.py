"""The frozen reference: its weights, its dtype, and its cache of held-out log-probs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.reference.frozen_model import Frozen, FrozenReference
from tests.helpers.messages import refused
from tests.helpers.tiny import VOCABULARY, tiny_batch, tiny_model
from tests.reference.contexts import batch_of, make_context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in the hub's format."""
    path = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(path)
    return path


def test_is_a_copy_that_training_does_not_move() -> None:
    policy = tiny_model()
    reference = Frozen().build(make_context(policy))
    batch = tiny_batch()
    before = reference.logps(batch)[0]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(reference.logps(batch)[0], before)
    assert not reference.model.training


def test_the_held_out_pairs_alone_are_remembered() -> None:
    """Two numbers for each pair that comes back at every evaluation, nothing for training pairs."""
    context = make_context()
    reference, calls = FrozenReference(tiny_model()), []
    held_out, training = batch_of(context, "test", [0, 1, 2]), batch_of(context, "train", [0, 1, 2])
    reference.logps(held_out)
    reference.logps(training)
    reference.model.register_forward_hook(lambda *_: calls.append(1))
    first, again = reference.logps(held_out), reference.logps(held_out)
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert calls == []
    other_order = reference.logps(batch_of(context, "test", [2, 1, 0]))
    torch.testing.assert_close(other_order[0].flip(0), first[0])
    assert len(calls) == 1
    for _ in range(2):
        reference.logps(training)
    assert len(calls) == 3


def test_dtype_is_the_policys_or_the_asked(folder: Path) -> None:
    half = make_context(tiny_model(dtype=torch.bfloat16))
    assert Frozen(dtype="float32").build(half).dtype == torch.float32
    assert Frozen().build(half).dtype == torch.bfloat16
    assert Frozen(path=str(folder)).build(half).dtype == torch.bfloat16
    assert half.policy.dtype == torch.bfloat16


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    other.save_pretrained(tmp_path)
    with refused("7 tokens", VOCABULARY, key="reference.path", value=tmp_path, remedy="tokenizer"):
        Frozen(path=str(tmp_path)).build(make_context())


def test_a_missing_reference_is_named_before_anything_loads() -> None:
    with refused(key="reference.path", value="./nowhere"):
        Frozen(path="./nowhere").check()
    Frozen().check()


def test_another_model_has_to_be_named() -> None:
    with refused(key="reference.distinct", value=True, remedy="reference.path"):
        Frozen(distinct=True)


def test_another_model(folder: Path) -> None:
    spec = Frozen(path=str(folder))
    actual = spec.build(make_context(tiny_model(seed=3))).logps(tiny_batch())
    torch.testing.assert_close(actual, Frozen().build(make_context()).logps(tiny_batch()))
    assert str(folder) in spec.identity("x")
    with refused(key="reference.path", value="./nowhere"):
        Frozen(path="./nowhere").build(make_context())
