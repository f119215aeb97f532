"""Rows with one response and a label: parsed, checked, tokenised and batched; for losses that take them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from caldpo.data.batching import MicroBatch
from caldpo.data.columns import Columns
from caldpo.data.data_console import DataReport, print_report
from caldpo.data.data_loading import PairBatches
from caldpo.data.datamodule import PairDataModule
from caldpo.data.formats import detect, formats
from caldpo.data.load import load_pairs
from caldpo.data.pair import PreferencePair, labelled, prompt_key, taken_apart
from caldpo.data.raw_row import Cell, RowError
from caldpo.data.sources.local_files import LocalFiles
from caldpo.losses.declared import losses_taking_unpaired
from tests.data.prepared import TEST, TRAIN, rejected, settings
from tests.data.small import word_tokenizer
from tests.data.test_demonstrations import Rows, chats
from tests.helpers.messages import names, refused

EOS = 2


def unpaired(words: str, labels: str) -> list[dict[str, Any]]:
    """A row for each word, labelled true for +."""
    return [
        {"prompt": f"a {w} ?", "completion": f" yes {w}", "label": label == "+"}
        for w, label in zip(words, labels, strict=True)
    ]


def pairs(rows: Any = TRAIN) -> list[dict[str, Any]]:
    return [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]


def module(tmp_path: Path, train: Any, test: Any = None, **changes: Any) -> tuple[PairDataModule, DataReport]:
    takes = changes.pop("takes_unpaired", True)
    made = PairDataModule(**settings(source=Rows(train=train, test=test or pairs(TEST)), **changes))
    report = made.prepare_pairs(word_tokenizer(), tmp_path, False, "dpo", takes_unpaired=takes)
    return made, report


# ---- parsing


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), (Cell("True"), True), (Cell(" 0 "), False)],
)
def test_labels(value: Any, label: bool) -> None:
    row = {"prompt": "Q", "completion": " a", "label": value}
    pair = formats()[detect(row)].parse(row)
    assert isinstance(pair, PreferencePair)
    assert (pair.label, pair.response, pair.has_chosen, pair.has_rejected) == (label, " a", label, not label)
    assert (pair.chosen, pair.rejected) == ((" a", "") if label else ("", " a"))
    assert not pair.demonstration


@given(value=st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.booleans(), max_size=2))
def test_other_labels_are_refused_and_never_guessed(value: Any) -> None:
    row = {"prompt": "Q", "completion": " a", "label": value}
    if value in (0, 1) and not isinstance(value, str):
        assert formats()["unpaired"].parse(row).label == bool(value)  # type: ignore[union-attr]
        return
    with refused("`label`", kind=RowError):
        formats()["unpaired"].parse(row)


def test_a_column_of_another_name_and_a_table(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("ask,said,thumb\nQ, a,true\nR, b,0\n")
    columns = Columns(prompt="ask", completion="said", label="thumb")
    found, report = load_pairs(LocalFiles(), str(tmp_path / "rows.csv"), columns=columns)
    assert [(p.prompt, p.chosen, p.rejected, p.label) for p in found] == [("Q", " a", "", True), ("R", "", " b", False)]
    assert (report.desirable, report.undesirable, dict(report.unread)) == (1, 1, {})


def test_a_blank_response_is_a_fault_and_the_absent_one_is_none() -> None:
    _, report = load_pairs(Rows(train=[*unpaired("bc", "+-"), {"prompt": "Q", "completion": " ", "label": 0}]), "train")
    assert [r.origin for r in report.rejections] == ["train[2]"]
    names(report.rejections[0].reason, "response", "no text")


def test_the_same_response_labelled_twice() -> None:
    """Alike: it repeats; both ways: a contradiction. The first one stands; another response is no repeat."""
    row = unpaired("b", "+")[0]
    rows = [row, dict(row), row | {"label": False}, row | {"completion": " no"}, row | {"prompt": "z ?"}]
    found, report = load_pairs(Rows(train=rows), "train")
    assert [p.origin for p in found] == ["train[0]", "train[3]", "train[4]"]
    assert [(r.origin, r.kind, r.reason.split()[0]) for r in report.rejections] == [
        ("train[1]", "degenerate", "repeats"),
        ("train[2]", "degenerate", "contradicts"),
    ]
    kept, _ = load_pairs(Rows(train=rows), "train", on_degenerate="keep")
    assert len(kept) == 5


# ---- tokens and batches


@pytest.mark.parametrize("label", [True, False])
def test_tokens_are_those_of_the_response_in_a_pair(tmp_path: Path, label: bool) -> None:
    for row in (unpaired("b", "+")[0], chats("b")[0]):
        data, _ = module(tmp_path, [row | {"label": label}])
        demonstration = PairDataModule(**settings(source=Rows(train=[row | {"label": None}], test=pairs(TEST))))
        demonstration.prepare_pairs(word_tokenizer(), tmp_path, False, "sft", needs_rejected=False)
        (found,), (same,) = data.train_pairs, demonstration.train_pairs
        assert found.label is label
        assert found.prompt_ids == same.prompt_ids
        present, absent = (found.chosen_ids, found.rejected_ids)[:: 1 if label else -1]
        assert (present, absent) == (same.chosen_ids, [EOS])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_batches_say_which_responses_there_are(tmp_path: Path, layout: Any) -> None:
    data, _ = module(tmp_path, unpaired("bcd", "+-+"))
    batch = PairBatches(data.train_pairs, 0, layout, "train").collated(
        MicroBatch((0, 1, 2, 2), (1.0, 1.0, 1.0, 0.0), 3)
    )
    assert batch.chosen_present is not None
    assert batch.rejected_present is not None
    assert batch.chosen_present.tolist() == [1, 0, 1, 1]
    assert batch.rejected_present.tolist() == [0, 1, 0, 0]
    assert batch.response_weights.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
    assert batch.to("cpu").rejected_present is not None
    held_out = PairBatches(data.test_pairs, 0, layout, "test").collated(MicroBatch((0,), (1.0,), 1))
    assert (held_out.chosen_present, held_out.rejected_present) == (None, None)
    assert torch.equal(held_out.response_weights, torch.ones(2, 1))


def test_the_label_is_part_of_what_a_resumed_run_compares(tmp_path: Path) -> None:
    digests = {module(tmp_path, unpaired("bcd", labels))[0].train_pairs.digest() for labels in ("+-+", "+--", "+++")}
    assert len(digests) == 3


def test_tokens_are_cached_with_their_labels(tmp_path: Path) -> None:
    rows = unpaired("bcd", "+-+")
    first, _ = module(tmp_path, rows, cache=str(tmp_path / "cache"))
    again, _ = module(tmp_path, rows, cache=str(tmp_path / "cache"))
    assert list(first.train_pairs) == list(again.train_pairs)
    assert [pair.label for pair in again.train_pairs] == [True, False, True]


# ---- the report


def test_the_report_counts_labels_and_no_absent_response(tmp_path: Path) -> None:
    _, report = module(tmp_path, unpaired("bcde", "+--+"))
    values = report.as_dict()
    assert (values["train"]["desirable"], values["train"]["undesirable"]) == (2, 2)
    assert (values["read"][0]["desirable"], values["read"][0]["undesirable"]) == (2, 2)
    assert values["train"]["lengths"]["rejected"]["median"] == 3, "yes, a letter and EOS: not an EOS alone"
    assert "desirable" not in values["test"]
    console = Console(record=True, width=120, no_color=True)
    print_report(report, console)
    text = console.export_text()
    names(text, "2 desirable", "2 undesirable")
    _, all_good = module(tmp_path, unpaired("bc", "++"))
    assert set(all_good.as_dict()["train"]["lengths"]) == {"prompt", "chosen"}


def test_the_preview_shows_the_response_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    module(tmp_path, unpaired("bc", "+-"), preview_pairs=2)
    shown = capsys.readouterr().out.split("pair 0 (train[0])")[1]
    assert shown.count("<eos>]") == 2
    assert ("rejected" in shown, "chosen" in shown) == (False, False)


# ---- what a loss takes, and what a split may hold


def test_a_loss_that_compares_refuses_them_by_name(tmp_path: Path) -> None:
    rows = unpaired("bc", "+-")
    with refused("2 rows", "train[0]", "data.train", key="loss", value="dpo", remedy=losses_taking_unpaired()):
        module(tmp_path, rows, takes_unpaired=False)
    with refused("test[0]", "data.test", key="loss", value="dpo", remedy=losses_taking_unpaired()):
        module(tmp_path, pairs(), unpaired("bc", "+-"), takes_unpaired=False)
    with refused("dpo", key="data.unpair", value=True, remedy=[*losses_taking_unpaired(), "data.unpair=false"]):
        module(tmp_path, pairs(), takes_unpaired=False, unpair=True)


def test_a_loss_that_takes_them_is_not_offered_in_its_own_place(tmp_path: Path) -> None:
    """With a modifier or rollouts that need pairs the loss is not what to change."""
    made = PairDataModule(**settings(source=Rows(train=unpaired("bc", "+-"), test=pairs(TEST))))
    with refused(key="loss", value="apo_zero", remedy=("rollouts", "modifier=[]")) as refusal:
        made.prepare_pairs(word_tokenizer(), tmp_path, False, "apo_zero", takes_unpaired=False)
    assert "loss=" not in (getattr(refusal.value, "remedy", None) or "")


def test_losses_are_found_by_what_they_declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caldpo.losses import declared

    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/squares.yaml").write_text("_target_: tests.helpers.pointwise.Squares\n")
    (tmp_path / "loss/dpo.yaml").write_text("_target_: caldpo.losses.dpo.DPO\nbeta: 0.1\n")
    monkeypatch.setattr(declared, "conf_dir", lambda: tmp_path)
    assert losses_taking_unpaired() == ["squares"]


def test_both_kinds_in_one_split_are_refused(tmp_path: Path) -> None:
    mixed = [*pairs()[:3], *unpaired("bc", "+-")]
    with refused("train[0]", "train[3]", "2 of 5 rows", key="data.train", remedy="data.unpair=true"):
        module(tmp_path, mixed)
    data, _ = module(tmp_path, mixed, unpair=True)
    assert [pair.label for pair in data.train_pairs] == [True, False] * 4


def test_train_and_test_may_differ_either_way(tmp_path: Path) -> None:
    data, _ = module(tmp_path, unpaired("bc", "+-"))
    assert (data.train_pairs.is_unpaired, data.test_pairs.is_unpaired) == (True, False)
    data, _ = module(tmp_path, pairs(), unpaired("lm", "-+"))
    assert (data.train_pairs.is_unpaired, data.test_pairs.is_unpaired) == (False, True)
    assert len(data.held_out_prompts(2)) == 2


def test_the_response_that_samples_are_compared_with_is_a_desirable_one(tmp_path: Path) -> None:
    test = [row | {"completion": f" {c}", "label": c == "y"} for row in unpaired("lm", "+-") for c in "xy"]
    data, _ = module(tmp_path, pairs(), [*test, unpaired("n", "-")[0]])
    found = data.held_out_prompts(3)
    assert [(one.reference, one.origin) for one in found] == [(" y", "test[0]"), (" y", "test[2]"), ("", "test[4]")]
    assert data.held_out_prompts(1) == found[:1]


def test_responses_to_a_prompt_stay_in_one_split(tmp_path: Path) -> None:
    rows = [row | {"completion": f" {c}"} for row in unpaired("bcdefghij", "+-+-+-+-+") for c in "yz"]
    made = PairDataModule(**settings(source=Rows(train=rows), test=None, test_fraction=0.4))
    made.prepare_pairs(word_tokenizer(), tmp_path, False, "kto", takes_unpaired=True)
    sides = [{tuple(p.prompt_ids) for p in split} for split in (made.train_pairs, made.test_pairs)]
    assert sides[0].isdisjoint(sides[1])
    assert len(made.train_pairs) + len(made.test_pairs) == 18


# ---- pairs taken apart


def test_a_pair_taken_apart_by_hand() -> None:
    pair = PreferencePair("Q", "a", "b", 2.0, 1.0, "f:1", chosen_extra={"x": 1})
    assert taken_apart(pair) == [
        PreferencePair("Q", "a", "", 2.0, None, "f:1 (chosen)", chosen_extra={"x": 1}, label=True),
        PreferencePair("Q", "", "b", None, 1.0, "f:1 (rejected)", label=False),
    ]
    assert taken_apart(labelled(pair, True)) == [labelled(pair, True)]
    assert labelled(PreferencePair("Q", "a", "", demonstration=True), False) == PreferencePair(
        "Q", "", "a", label=False
    )


def test_unpair_gives_two_rows_for_each_pair_in_order(tmp_path: Path) -> None:
    paired, _ = module(tmp_path, pairs())
    apart, report = module(tmp_path, pairs(), unpair=True)
    assert len(apart.train_pairs) == 2 * len(paired.train_pairs)
    for place, pair in enumerate(paired.train_pairs):
        good, bad = apart.train_pairs[2 * place : 2 * place + 2]
        assert (good.prompt_ids, good.chosen_ids, good.rejected_ids) == (pair.prompt_ids, pair.chosen_ids, [EOS])
        assert (bad.prompt_ids, bad.chosen_ids, bad.rejected_ids) == (pair.prompt_ids, [EOS], pair.rejected_ids)
        assert (good.label, bad.label) == (True, False)
        assert (good.origin, bad.origin) == (f"{pair.origin} (chosen)", f"{pair.origin} (rejected)")
    assert list(apart.test_pairs) == list(paired.test_pairs), "held-out pairs stay pairs: accuracy needs both"
    assert any("data.unpair" in note for note in report.notes)


def test_the_same_pairs_are_drawn_before_they_are_taken_apart(tmp_path: Path) -> None:
    paired, _ = module(tmp_path, pairs(), max_train_pairs=4)
    apart, _ = module(tmp_path, pairs(), max_train_pairs=4, unpair=True)
    assert {p.origin.split(" (")[0] for p in apart.train_pairs} == {p.origin for p in paired.train_pairs}
    assert len(apart.train_pairs) == 8


def test_held_out_pairs_cut_from_the_same_file_share_no_prompt(tmp_path: Path) -> None:
    made = PairDataModule(**settings(source=Rows(train=pairs()), test=None, test_fraction=0.4, unpair=True))
    made.prepare_pairs(word_tokenizer(), tmp_path, False, "kto", takes_unpaired=True)
    assert not made.test_pairs.is_unpaired
    trained = {tuple(p.prompt_ids) for p in made.train_pairs}
    assert all(prompt_key(p.prompt) for p in made.test_sources)
    assert trained.isdisjoint(tuple(p.prompt_ids) for p in made.test_pairs)


# ---- streams


def test_a_stream_has_the_same_rows(tmp_path: Path) -> None:
    for rows, changes in ((unpaired("bcdef", "+-+-+"), {}), (pairs(), {"unpair": True})):
        whole, _ = module(tmp_path, rows, **changes)
        data, _ = module(tmp_path, rows, streaming=True, shuffle_buffer=1, **changes)
        assert data.stream is not None
        found = [data.stream[i] for i in range(len(whole.train_pairs))]
        assert found == list(whole.train_pairs)


def test_a_stream_refuses_rows_of_the_other_kind_as_they_come(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"a {a} {b} ?", "completion": " yes", "label": True}
        for a in "bcdefghijklmnopq"
        for b in "bcdefghijklmnopq"
    ]
    assert len(rows) == 256
    late = {"prompt": "z ?", "chosen": " yes", "rejected": " no"}
    data, _ = module(tmp_path, [*rows, late], streaming=True, shuffle_buffer=1)
    assert data.stream is not None
    with refused("train[256]", "unpaired", key="data.on_invalid"):
        [data.stream[i] for i in range(257)]
    data, _ = module(tmp_path, [*rows, late], streaming=True, shuffle_buffer=1, on_invalid="skip")
    assert data.stream is not None
    [data.stream[i] for i in range(257)]
    assert [row["origin"] for row in rejected(tmp_path)] == ["train[256]"]
