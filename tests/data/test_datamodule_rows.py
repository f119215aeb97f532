"""Rows that stop a run, pairs that are dropped, and where both are reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from caldpo.data.sources.local_files import LocalFiles
from caldpo.errors import CaldpoError
from tests.data.prepared import TEST, TRAIN, Conversations, prepared, rejected
from tests.data.small import RowsSource, ids, word_tokenizer
from tests.helpers.messages import names, refused
from tests.helpers.shared import shared


def test_truncated_and_dropped_pairs_are_counted_in_report_file_and_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ("a b c d e", " f g h", " i"),
        ("a b", " f g h i j k", " l"),
        ("b", " f g h i j k", " f g h i j l m"),  # the same first 5 tokens, all there is room for
    ]
    source = RowsSource(train=rows, test=TEST)
    module, report = prepared(tmp_path, source=source, max_length=6, max_prompt_length=2)
    assert report["train"]["truncated"] == {"prompt": 1, "chosen": 2, "rejected": 1}
    assert report["train"]["identical_after_truncation"] == 1
    others = ("boundary_merges", "eos_stripped", "eos_appended")
    assert [report["train"][name] for name in others] == [0, 0, 0]
    assert len(module.train_pairs) == report["train"]["pairs"] == 2
    assert report["read"][0]["kept"] == 3  # what was read is one account, what came of it another
    [(reason, count)] = report["train"]["dropped"].items()
    assert count == 1
    names(reason, "chosen", "rejected", "same tokens", "truncated")
    assert rejected(tmp_path) == [{"split": "train", "origin": "train:3", "kind": "degenerate", "reason": reason}]
    names(capsys.readouterr().out, "1 prompt, 2 chosen, 1 rejected")
    kept, _ = prepared(tmp_path, source=source, max_length=6, max_prompt_length=2, on_degenerate="keep")
    assert len(kept.train_pairs) == 3


def test_prompts_in_both_splits(tmp_path: Path) -> None:
    source = RowsSource(train=[*TRAIN, ("Z  b ?", " e", " f")], test=TEST)
    with refused(
        "1 prompt",
        "train:11",
        "test:1",
        key="data.on_shared_prompts",
        value="error",
        remedy=("data.on_shared_prompts=drop_train", "data.test=null"),
    ):
        prepared(tmp_path, source=source)
    module, report = prepared(tmp_path, source=source, on_shared_prompts="drop_train")
    assert len(module.train_pairs) == report["train"]["pairs"] == 10
    [(reason, count)] = report["train"]["dropped"].items()
    assert count == 1
    names(reason, "test split", "prompt")
    assert [(r["origin"], r["reason"]) for r in rejected(tmp_path)] == [("train:11", reason)]
    assert len(prepared(tmp_path, source=source, on_shared_prompts="keep")[0].train_pairs) == 11
    with refused(
        "3 training pairs", key="data.on_shared_prompts", value="drop_train", remedy=("data.train", "data.test")
    ):
        prepared(tmp_path, source=RowsSource(train=TEST, test=TEST), on_shared_prompts="drop_train")


def test_scores_outside_the_range_that_a_loss_reads_them_in_are_refused(tmp_path: Path) -> None:
    fitting = {"train": [(*row, 1.0, 0.0) for row in TRAIN], "test": [(*row, 0.75, 0.5) for row in TEST]}
    module, _ = prepared(tmp_path, source=RowsSource(**fitting), needs_scores=True, score_range=(0.0, 1.0))
    assert len(module.train_pairs) == 10
    remedy = ("data.source.scores=quantiles", "quantile", "loss.targets=scores")
    for split, bad in (("train", (0.5, -0.1)), ("test", (1.5, 0.5))):
        rows = {**fitting, split: [*fitting[split], ("c", " d", " e", *bad)]}
        where = f"{split}:{len(rows[split])}"
        with refused("cal_dpo", where, "0 to 1", f"{len(rows[split])} pairs", key="loss", remedy=remedy):
            prepared(tmp_path, source=RowsSource(**rows), needs_scores=True, score_range=(0.0, 1.0))
        prepared(tmp_path, source=RowsSource(**rows), needs_scores=True)


def test_a_loss_with_score_targets_needs_scores_in_every_row(tmp_path: Path) -> None:
    scored = [(*row, 2.0, 1.0) for row in TRAIN]
    scores: dict[str, Any] = {"key": "loss", "value": "cal_dpo"}
    scores["remedy"] = ("loss.targets=fixed", "score_chosen", "score_rejected")
    with refused("cal_dpo", "10 of 10 pairs", "train:1", **scores):
        prepared(tmp_path, needs_scores=True)
    with refused("cal_dpo", "1 of 11 pairs", "train:11", **scores):
        prepared(tmp_path, source=RowsSource(train=[*scored, ("c", " d", " e")], test=TEST), needs_scores=True)
    with refused("cal_dpo", "3 of 3 pairs", "test:1", **scores):
        prepared(tmp_path, source=RowsSource(train=scored, test=TEST), needs_scores=True)
    source = RowsSource(train=scored, test=[(*row, 2.0, 1.0) for row in TEST])
    module, _ = prepared(tmp_path, source=source, needs_scores=True)
    module.plan_steps("padded", accumulation=1, world_size=1, max_epochs=1, max_steps=None)
    batch = next(iter(module.train_dataloader()))
    assert batch.score_chosen.tolist() == [2.0] * 8


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    source = Conversations(train=TRAIN, test=TEST)
    tokenizer = word_tokenizer(template=None)
    with refused("conversations", "policy's tokenizer", key="data.chat_template", remedy="data.chat_template=FILE"):
        prepared(tmp_path, tokenizer, source=source)
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content + ' : ' }}{% endfor %}")
    module, report = prepared(tmp_path, tokenizer, source=source, chat_template=str(file))
    assert module.train_pairs[0].prompt_ids == ids(tokenizer, "a b ? :")
    assert tokenizer.chat_template == file.read_text()  # generation and export go on with it
    assert report["prompts"] == str(file)
    names(prepared(tmp_path, word_tokenizer(), source=source)[1]["prompts"], "tokenizer", "chat template")


def test_conversations_the_template_refuses(tmp_path: Path) -> None:
    source = Conversations(train=TRAIN, test=TEST)
    tokenizer = word_tokenizer(
        template="{{ raise_exception('no c') if 'c' in messages[0].content }}"
        "{% for m in messages %}{{ m.content + ' ' + eos_token + ' ' }}{% endfor %}"
    )
    with refused("1 pair", "train:2", "no c", key="train", remedy=("data.chat_template=FILE", "data.on_invalid=skip")):
        prepared(tmp_path, tokenizer, source=source)
    module, report = prepared(tmp_path, tokenizer, source=source, on_invalid="skip")
    assert len(module.train_pairs) == report["train"]["pairs"] == 9
    [(reason, count)] = report["test"]["dropped"].items()
    assert count == 1
    names(reason, "chat template")
    assert [r["origin"] for r in rejected(tmp_path)] == ["train:2", "test:2"]
    refuses_all = word_tokenizer(template="{{ raise_exception('never') }}")
    with refused("no pair", "10 pairs", "never", key="train", remedy="data.chat_template=FILE"):
        prepared(tmp_path, refuses_all, source=source, on_invalid="skip")


def test_all_bad_rows_of_both_files_are_reported_in_one_error(tmp_path: Path) -> None:
    """One attempt shows everything: the message counts it, the file lists it."""
    expected = [json.loads(line) for line in shared("data/messy_expected.jsonl").read_text().splitlines()]
    # Two of the rows that may go either way are refused: reversed scores, and a key that stands twice.
    bad_lines = {e["line"] for e in expected if e["disposition"] in ("reject_line", "reject_row")} | {56, 62}
    train, test = str(shared("data/messy.jsonl")), tmp_path / "bad_test.jsonl"
    good = {"prompt": "a", "chosen": " yes", "rejected": " no"}
    test.write_text("".join(f"{line}\n" for line in (json.dumps(good), "no JSON", json.dumps(good | {"chosen": 3}))))
    files: dict[str, Any] = {"source": LocalFiles(), "train": train, "test": str(test)}
    with pytest.raises(CaldpoError) as caught:
        prepared(tmp_path, **files)
    message, rows = str(caught.value), rejected(tmp_path)
    assert (caught.value.key, caught.value.value) == ("data.on_invalid", "error")
    count = len(bad_lines) + 2
    names(message, f"{count} of 65 rows", tmp_path / "rejected_rows.jsonl")  # 64 lines less two blank ones, and 3
    lines = message.splitlines()
    for file, fraction, *facts in ((train, f"{len(bad_lines)} of 62", "`rejected`"), (test, "2 of 3", "not JSON")):
        (place,) = (i for i, line in enumerate(lines) if f"{fraction} rows" in line)
        names(lines[place], file)
        names(lines[place + 1], f"{file}:2", *facts)
    (by_reason,) = (line for line in lines if re.search(r"; \d+ ", line))
    assert sum(int(n) for n in re.findall(r"(?:: |; )(\d+) ", by_reason)) == count
    bad = {r["origin"] for r in rows if r["kind"] in ("line", "row")}
    assert bad == {f"{train}:{line}" for line in bad_lines} | {f"{test}:2", f"{test}:3"}
    assert {r["split"] for r in rows} == {train, str(test)}
    # What is listed when they are left out is the same.
    prepared(tmp_path, **files, on_invalid="skip")
    assert [r for r in rejected(tmp_path) if r["kind"] in ("line", "row")] == [
        r for r in rows if r["kind"] in ("line", "row")
    ]


def test_a_split_without_pairs_stops_after_the_list_is_written(tmp_path: Path) -> None:
    source = RowsSource(train=TRAIN, test=[("a", " b", " b")])
    with refused("1 row", "chosen", "rejected", "identical", key="test"):
        prepared(tmp_path, source=source, on_invalid="skip")
    [row] = rejected(tmp_path)
    assert row["origin"] == "test:1"
    names(row["reason"], "chosen", "rejected", "identical")


@pytest.mark.parametrize("key", ["train", "test"])
def test_a_missing_file_is_named_with_its_key_and_similar_names(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "a", "chosen": " b", "rejected": " c"}
    Path("pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(CaldpoError) as caught:
        prepared(tmp_path, source=LocalFiles(), **({"train": "pairs.jsonl"} | {key: "pair.jsonl"}))
    names(caught, "pairs.jsonl", key=f"data.{key}", value="pair.jsonl")
