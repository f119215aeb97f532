"""Precomputed log-probs are those of a frozen model in any batch, and are computed once."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.reference.fingerprint import MANIFEST
from caldpo.reference.frozen_model import Frozen
from caldpo.reference.precomputed import Precomputed
from caldpo.types import PairBatch
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model, tiny_pairs
from tests.reference.contexts import TEST, TRAIN, CountedEngine, batch_of, make_context, prepared, rewrite, same

CHANGED = r"\b(weights|tokens|autocast|dtype)\b"  # what a message names of stored values of another key


@pytest.mark.parametrize("split", ["train", "test"])
def test_values_are_those_of_a_frozen_model_in_any_order(split: str, tmp_path: Path, passes: CountedEngine) -> None:
    context = make_context()
    reference, frozen = prepared(tmp_path, context), Frozen().build(context)
    rows = list(range(len(context.splits[split])))
    orders = [rows, rows[::-1], random.Random(3).sample(rows, len(rows)), [4], [2, 2, 6]]
    for order in orders:
        batch = batch_of(context, split, order)
        same(reference.logps(batch), frozen.logps(batch))
    filler = batch_of(context, split, [3, 0, 0], filler=2)
    same(reference.logps(filler), frozen.logps(filler))
    assert not reference.logps(filler)[0].requires_grad


def test_it_is_a_reference_that_training_does_not_move(tmp_path: Path, passes: CountedEngine) -> None:
    context = make_context()
    reference = prepared(tmp_path, context)
    batch = batch_of(context, "train", [0, 1, 2])
    before = torch.stack(reference.logps(batch)).clone()
    with torch.no_grad():
        for parameter in context.policy.parameters():
            parameter.mul_(1.5)
    reference.prepare()  # as Lightning's next loop asks
    assert torch.equal(torch.stack(reference.logps(batch)), before)
    generated = replace_split(batch, "")  # pairs of no split go through the weights of the start, loaded once more
    same(reference.logps(generated), before)
    with reference.live() as one, reference.live() as two:
        assert one is two
        assert one is not context.policy
        assert not one.training


def replace_split(batch: PairBatch, split: str) -> PairBatch:
    other = copy.copy(batch)
    other.split = split
    return other


def test_no_second_model_is_made_until_one_is_asked_for(tmp_path: Path, passes: CountedEngine) -> None:
    loads: list[int] = []
    policy = tiny_model()
    start = copy.deepcopy(policy)
    context = make_context(policy, reload=lambda: loads.append(1) or copy.deepcopy(start))
    policy.train()
    reference = prepared(tmp_path, context)
    assert policy.training  # as it was
    assert all(p.requires_grad for p in policy.parameters())
    reference.logps(batch_of(context, "test", [0]))
    assert loads == []
    for _ in range(2):
        with reference.live():
            pass
    assert loads == [1]


def test_a_split_that_nobody_asked_for_is_answered_live(tmp_path: Path, passes: CountedEngine) -> None:
    context = make_context(needed_splits=("test",))
    reference = prepared(tmp_path, context)
    assert [p.name.split("-")[0] for p in tmp_path.iterdir()] == ["test"]
    assert (passes.pairs("train"), passes.pairs("test")) == (0, TEST)
    batch = batch_of(context, "train", [5, 1])
    actual = reference.logps(batch)
    assert passes.pairs("train") == 2
    same(actual, Frozen().build(context).logps(batch))


def test_everything_is_computed_once(tmp_path: Path, passes: CountedEngine) -> None:
    context = make_context()
    prepared(tmp_path, context)
    assert (passes.pairs("train"), passes.pairs("test")) == (TRAIN, TEST)
    passes.calls.clear()
    again = prepared(tmp_path, context)
    assert passes.calls == []
    again = prepared(tmp_path, context, spot_check=4)
    assert (passes.pairs("train"), passes.pairs("test")) == (4, 4)
    batch = batch_of(context, "train", range(TRAIN))
    same(again.logps(batch), Frozen().build(context).logps(batch))


def one_weight(context: Any) -> Any:
    policy = copy.deepcopy(context.policy)
    with torch.no_grad():
        last = list(policy.parameters())[-1].view(-1)
        last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))
    return make_context(policy)


def one_token(context: Any) -> Any:
    pairs = context.splits["train"][:]
    changed = replace(pairs[-1], rejected_ids=[5, *pairs[-1].rejected_ids[1:]])
    assert changed != pairs[-1]
    return make_context(context.policy, train=[*pairs[:-1], changed])


def one_boundary(context: Any) -> Any:
    """The same tokens in the same order, one of which moves from the prompt to the response."""
    pairs = context.splits["train"][:]
    last = next(p for p in reversed(pairs) if len(p.prompt_ids) > 1)
    moved = replace(last, prompt_ids=last.prompt_ids[:-1], chosen_ids=[last.prompt_ids[-1], *last.chosen_ids])
    return make_context(context.policy, train=[moved if p is last else p for p in pairs])


def half_precision(context: Any) -> Any:
    return make_context(context.policy, precision=lambda: torch.autocast("cpu", torch.bfloat16))


def other_dtype(context: Any) -> Any:
    return make_context(copy.deepcopy(context.policy).double())


@pytest.mark.parametrize(
    ("change", "named", "test_too"),
    [
        (one_weight, "weights", True),
        (one_token, "tokens", False),
        (one_boundary, "tokens", False),
        (half_precision, "autocast", True),
        (other_dtype, "weights, dtype", True),
    ],
)
def test_anything_that_would_change_them_computes_them_again(
    change: Callable[[Any], Any],
    named: str,
    test_too: bool,
    tmp_path: Path,
    passes: CountedEngine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = make_context()
    prepared(tmp_path, first)
    assert not re.search(CHANGED, capsys.readouterr().out)
    passes.calls.clear()
    context = change(first)
    reference = prepared(tmp_path, context)
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if "train pairs" in line)
    names(line, f"{TRAIN} train pairs", named)
    assert re.findall(CHANGED, line) == named.split(", ")
    assert (passes.pairs("train"), passes.pairs("test")) == (TRAIN, TEST if test_too else 0)
    batch = batch_of(context, "train", range(TRAIN))
    with context.precision():
        live = Frozen().build(context).logps(batch)
    same(reference.logps(batch), live, rel=2e-2 if change is half_precision else 1e-5)


def test_double_precision_is_stored_in_full(tmp_path: Path, passes: CountedEngine) -> None:
    context = make_context(tiny_model(dtype=torch.float64))
    batch = batch_of(context, "train", range(TRAIN))
    for _ in range(2):  # computed, then read
        actual = prepared(tmp_path, context).logps(batch)
        expected = Frozen().build(context).logps(batch)
        assert actual[0].dtype == torch.float64
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-12)


def test_half_precision_weights_are_summed_in_float32(tmp_path: Path, passes: CountedEngine) -> None:
    context = make_context(tiny_model(dtype=torch.bfloat16))
    reference = prepared(tmp_path, context)
    assert (reference.dtype, reference.rounding) == (torch.bfloat16, 2e-3)
    batch = batch_of(context, "train", range(TRAIN))
    assert reference.logps(batch)[0].dtype == torch.float32
    same(reference.logps(batch), Frozen().build(context).logps(batch), rel=2e-2)


def test_intact_but_wrong_values_are_computed_again(
    tmp_path: Path, passes: CountedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_context()
    prepared(tmp_path, context)
    rewrite(tmp_path, "train", lambda values: values + 0.5)
    passes.calls.clear()
    reference = prepared(tmp_path, context, spot_check=3)
    output = capsys.readouterr().out
    names(output, *tmp_path.glob("train-*"), "3 pairs", "0.5 nats", "again")
    assert passes.pairs("train") == 3 + TRAIN
    batch = batch_of(context, "train", range(TRAIN))
    same(reference.logps(batch), Frozen().build(context).logps(batch))
    passes.calls.clear()
    prepared(tmp_path, context, spot_check=3)
    assert (passes.pairs("train"), passes.pairs("test")) == (3, 3)


@pytest.mark.parametrize("kind", ["weights", "autocast"])
def test_half_precision_hides_no_wrong_values(
    kind: str, tmp_path: Path, passes: CountedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundredth and a half is far more than rounding; values just computed pass in other batches."""
    precision: Any = {"precision": lambda: torch.autocast("cpu", torch.bfloat16)} if kind == "autocast" else {}
    policy = tiny_model(dtype=torch.bfloat16 if kind == "weights" else torch.float32)
    context = make_context(policy, **precision)
    for attempt in range(2):
        prepared(tmp_path, context, spot_check=TRAIN)
        assert not re.search("nats|again", capsys.readouterr().out), attempt
    rewrite(tmp_path, "train", lambda values: values * 0.985)
    prepared(tmp_path, context, spot_check=8)
    names(capsys.readouterr().out, *tmp_path.glob("train-*"), "8 pairs", "nats", "again")


def test_other_libraries_are_another_key(
    tmp_path: Path, passes: CountedEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_context()
    prepared(tmp_path, context)
    monkeypatch.setattr("caldpo.reference.fingerprint.version", lambda name: f"{name} of tomorrow")
    prepared(tmp_path, context)
    names(capsys.readouterr().out, "torch, transformers")


def test_what_is_read_and_what_is_computed_is_said(
    tmp_path: Path, passes: CountedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_context(needed_splits=("train",))
    prepared(tmp_path, context)
    (folder,) = tmp_path.iterdir()
    (folder / "part-00001.safetensors").unlink()
    capsys.readouterr()
    prepared(tmp_path, context)
    names(capsys.readouterr().out, "15 train pairs", folder, 8)
    prepared(tmp_path, context)
    names(capsys.readouterr().out, f"{TRAIN} train pairs", folder)


def test_rounding_is_no_reason_to_compute_again(tmp_path: Path, passes: CountedEngine) -> None:
    context = make_context()
    prepared(tmp_path, context)
    rewrite(tmp_path, "train", lambda values: values * (1 + 1e-5))
    passes.calls.clear()
    prepared(tmp_path, context, spot_check=TRAIN)
    assert passes.pairs("train") == TRAIN


def test_a_weight_that_is_no_number_is_named_by_its_pair(tmp_path: Path, passes: CountedEngine) -> None:
    policy = tiny_model()
    pairs = [replace(p, prompt_ids=[4], chosen_ids=[5, 2], rejected_ids=[6, 2]) for p in tiny_pairs(3)]
    pairs[1] = replace(pairs[1], prompt_ids=[9])
    with torch.no_grad():
        policy.get_input_embeddings().weight[9] = float("nan")
    with refused("log-prob", "train", "t:1", remedy="float16"):
        prepared(tmp_path, make_context(policy, train=pairs))


def test_weights_that_changed_under_the_run_are_refused(tmp_path: Path, passes: CountedEngine) -> None:
    reference = prepared(tmp_path, make_context(reload=lambda: tiny_model(seed=8)))
    with refused("weights", key="reference", value="precomputed", remedy="reference=frozen"), reference.live():
        pass


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for attempt in (lambda cache: Precomputed(cache=str(cache)).check(), lambda cache: prepared(cache, make_context())):
        with refused("cannot be written", key="reference.cache", value=tmp_path / "file" / "cache", remedy="folder"):
            attempt(tmp_path / "file" / "cache")
    Precomputed(cache=str(tmp_path / "new" / "cache")).check()
    assert not (tmp_path / "new").exists()


def test_the_manifest_says_what_the_values_are_of(tmp_path: Path) -> None:
    import json

    prepared(tmp_path, make_context())
    (path,) = tmp_path.glob(f"test-*/{MANIFEST}")
    output = json.loads(path.read_text())
    assert output["from"] == {"tokenizer": "tiny"}
    assert output["determined by"]["model class"] == "LlamaForCausalLM"
    assert (output["determined by"]["dtype"], output["determined by"]["autocast"]) == ("torch.float32", "off")
