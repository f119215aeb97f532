"""A precomputed reference that is another model than the policy's start."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.data.collate import collate
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.reference import precomputed
from caldpo.reference.frozen_model import Frozen, FrozenReference
from tests.helpers.messages import refused
from tests.helpers.tiny import VOCABULARY, tiny_model, tiny_pairs
from tests.reference.contexts import TEST, TRAIN, CountedEngine, batch_of, make_context, prepared, same


@pytest.fixture
def other(tmp_path: Path) -> str:
    tiny_model(seed=5).save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


def test_it_is_loaded_for_the_work_and_released(
    other: str, tmp_path: Path, passes: CountedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    real = precomputed.load_other

    def load(*arguments: Any) -> Any:
        model = real(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(precomputed, "load_other", load)
    context = make_context()
    reference = prepared(tmp_path / "cache", context, path=other, distinct=True)
    gc.collect()
    assert [model() for model in loaded] == [None]
    batch = batch_of(context, "test", range(TEST))
    same(reference.logps(batch), Frozen(path=other).build(context).logps(batch))
    with reference.live() as model:
        assert torch.equal(next(model.parameters()), next(tiny_model(seed=5).parameters()))


def test_it_is_another_key_than_the_policys_own(other: str, tmp_path: Path, passes: CountedEngine) -> None:
    context = make_context()
    prepared(tmp_path / "cache", context)
    prepared(tmp_path / "cache", context, path=other)
    assert passes.pairs("train") == 2 * TRAIN
    prepared(tmp_path / "cache", make_context(tiny_model(seed=5)))  # these weights, by whatever name
    assert passes.pairs("train") == 2 * TRAIN


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_it_takes_the_batches_of_the_policy_or_is_refused(layout: str, tmp_path: Path) -> None:
    """A policy that takes packed rows, and a reference whose attention window is shorter than the pairs."""
    config = AutoConfig.for_model(
        "mistral",
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=4,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "windowed")
    tiny_model(seed=5).save_pretrained(tmp_path / "other")
    context = make_context()
    if layout == "packed":
        use_packed_attention(context.policy)
        pairs = [pair for split in context.splits.values() for pair in split[:]]
        longest = max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
        facts, place = ("MistralForCausalLM", "packed", "sliding_window", 4, longest), tmp_path / "windowed"
        with refused(*facts, key="reference.path", value=place, remedy="layout=padded"):
            Frozen(path=str(place)).build(context)
    else:
        Frozen(path=str(tmp_path / "windowed")).build(context)
    rows = [context.splits["test"][row] for row in (0, 1, 2)]
    batch = collate(rows, 0, layout=layout, split="train")
    expected = FrozenReference(tiny_model(seed=5)).logps(collate(rows, 0))
    same(Frozen(path=str(tmp_path / "other")).build(context).logps(batch), expected)


def test_weights_loaded_once_more_take_the_batches_of_the_policy(tmp_path: Path) -> None:
    policy = tiny_model()
    use_packed_attention(policy)
    reference = prepared(tmp_path, make_context(policy, reload=tiny_model))
    rows = tiny_pairs(3, seed=9)
    same(reference.logps(collate(rows, 0, layout="packed")), FrozenReference(tiny_model()).logps(collate(rows, 0)))
