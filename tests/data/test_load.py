"""What load_pairs keeps, refuses, drops and reports; and the fate of every row of real and of messy files."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from caldpo.data.data_report import LoadReport, Rejection
from caldpo.data.load import load_pairs, refuse_bad_rows, require_pairs
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.rejected_rows import append_rejection, count_rejections, write_rejections
from caldpo.data.sources.local_files import LocalFiles
from caldpo.errors import CaldpoError
from tests.helpers.messages import names, refused
from tests.helpers.shared import shared


class Rows(PairSource):
    """A source of given values; an Exception stands for a line that could not be read."""

    name = "rows"

    def __init__(self, *values):
        self.values = values

    def rows(self, split):
        for i, value in enumerate(self.values):
            if isinstance(value, Exception):
                yield RawRow(f"{split}[{i}]", None, str(value))
            else:
                yield RawRow(f"{split}[{i}]", value)


def row(prompt="Q", chosen="good", rejected="bad", **scores):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores}


def scored(chosen, rejected, prompt="Q"):
    return row(prompt, score_chosen=chosen, score_rejected=rejected)


def kept(source, **options):
    pairs, report = load_pairs(source, "train", **options)
    assert report.rows == report.kept + len(report.rejections) == len(source.values)
    assert report.kept == len(pairs) == sum(report.formats.values())
    return pairs, report


def test_pairs_keep_order_and_origin():
    pairs, report = kept(Rows(row("A"), scored(2, 1, "B")))
    assert [(p.prompt, p.origin) for p in pairs] == [("A", "train[0]"), ("B", "train[1]")]
    assert report.with_scores == 1
    assert report.rejections == []


def refusal(*reports):
    with pytest.raises(CaldpoError) as caught:
        refuse_bad_rows(reports, "run/rejected_rows.jsonl")
    assert (caught.value.key, caught.value.value) == ("data.on_invalid", "error")
    return str(caught.value)


def test_bad_rows_of_all_splits_are_refused_in_one_message_with_reasons_and_remedy():
    bad = [ValueError("not JSON (x)"), row(chosen=3), row(chosen=""), {"text": "x"}]
    _, train = load_pairs(Rows(row(), *bad), "train.jsonl")
    _, test = load_pairs(Rows(row(), row(), row("R", chosen=4)), "test.jsonl")
    text = refusal(train, test)
    lines = text.splitlines()
    names(lines[0], "5 of 8 rows", key="data.on_invalid", value="error")
    names(lines[1], "train.jsonl", "4 of 5 rows")
    for line, facts in zip(lines[2:6], (("JSON", "x"), ("`chosen`", "number"), ("chosen",), ("text",)), strict=True):
        names(line, *facts)
    assert [line.split(":")[0].strip() for line in lines[2:6]] == [f"train.jsonl[{i}]" for i in range(1, 5)]
    names(lines[6], "test.jsonl", "1 of 3 rows")
    names(lines[7], "test.jsonl[2]", "`chosen`", "number")
    names(lines[8], "2 `chosen`", "1 not JSON")
    names(lines[9], "run/rejected_rows.jsonl")
    names(lines[-1], "data.on_invalid=skip")
    assert "repeat" not in text, "degenerate pairs are no bad rows"


def test_the_message_shows_ten_rows_of_a_split_and_counts_all_by_reason():
    values = [row(chosen=i) for i in range(30)] + [row(chosen=" ")]
    text = refusal(*(load_pairs(Rows(*values), split)[1] for split in ("train", "test")))
    assert text.count("train[") == text.count("test[") == 10
    assert text.count("... and 21 more") == 2
    names(text, "60 `chosen`", "2 the chosen response")


def test_nothing_is_refused_where_no_row_is_bad():
    _, report = load_pairs(Rows(row(), row()), "train")
    refuse_bad_rows([report], "rejected_rows.jsonl")
    require_pairs(report)
    [(reason, count)] = report.counts().items()
    assert count == 1
    names(reason, "repeats")


def test_bad_rows_are_left_out_and_reported():
    pairs, report = kept(Rows(row(), ValueError("not JSON (x)"), row(chosen=3)))
    assert len(pairs) == 1
    line, bad = report.rejections
    assert line == Rejection("train[1]", "line", "not JSON (x)")
    assert (bad.origin, bad.kind) == ("train[2]", "row")
    names(bad.reason, "`chosen`", "number")
    assert report.counts("row") == {bad.reason.partition(" (")[0]: 1}, "counted without what differs by row"
    names(report.summary(), "1 of 3 rows", "1 not JSON")


def test_no_pair_at_all_is_an_error():
    _, report = load_pairs(Rows(row(chosen="bad")), "train")
    with refused("1 row", "0 of 1 row", "chosen", "rejected", "identical", key="train"):
        require_pairs(report)


@pytest.mark.parametrize(
    ("value", "facts"),
    [
        (row(prompt=" \n"), ("prompt", "no text")),
        (row(chosen=" \n\t"), ("chosen response", "no text")),
        (row(rejected=""), ("rejected response", "no text")),
        (row(chosen="\ud83d."), ("surrogate", "U+D83D")),
        (row(prompt="\udfff"), ("surrogate", "U+DFFF")),
    ],
)
def test_unusable_texts(value, facts):
    _, report = kept(Rows(value, row()))
    [bad] = report.rejections
    assert (bad.origin, bad.kind) == ("train[0]", "row")
    names(bad.reason, *facts)


def test_surrogates_in_conversations_and_in_columns_nobody_reads():
    ask, answer = {"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}
    bad = {"prompt": [ask], "chosen": [answer], "rejected": [answer]}
    _, report = kept(Rows(bad, row(note="\ud800"), row(chosen="\x00 and \U0001f600")))
    assert [r.origin for r in report.rejections] == ["train[0]"]


DEGENERATE = [
    (row(chosen="bad"), "identical"),
    (row(chosen="bad \n"), "white space"),
    (scored(1, 1.0, prompt="R"), "equal scores"),
    (row(), "repeats"),
    (row(chosen="good "), "repeats"),
    (row(chosen="bad", rejected="good"), "contradicts"),
]


def test_degenerate_pairs_are_dropped_and_counted():
    pairs, report = kept(Rows(row(), *(value for value, _ in DEGENERATE), row("other")))
    assert [p.prompt for p in pairs] == ["Q", "other"]
    for rejection, (_, fact) in zip(report.rejections, DEGENERATE, strict=True):
        assert rejection.kind == "degenerate"
        names(rejection.reason, fact)


def test_degenerate_pairs_are_kept_and_counted_on_purpose():
    values = [value for value, _ in DEGENERATE]
    pairs, report = kept(Rows(row(), *values), on_degenerate="keep")
    assert len(pairs) == 7
    _, dropped = kept(Rows(row(), *values))
    assert report.degenerate_kept == dict(Counter(r.reason for r in dropped.rejections))
    assert sorted(report.degenerate_kept.values()) == [1, 1, 1, 1, 2]
    names(report.summary(), "2 repeats")


def test_the_same_responses_to_another_prompt_are_no_repetition():
    pairs, _ = kept(Rows(row("A"), row("B"), row("A", "bad", "worse"), row("A", "good", "worse")))
    assert len(pairs) == 4


def test_reversed_scores():
    source = Rows(scored(1, 3, "A"), scored(3, 1, "B"))
    pairs, report = kept(source)
    assert [p.prompt for p in pairs] == ["B"]
    names(report.rejections[0].reason, "score", "data.on_reversed_scores", "1 < 3")
    pairs, report = kept(source, on_reversed_scores="swap")
    assert pairs[0] == PreferencePair("A", "bad", "good", 3.0, 1.0, origin="train[0]")
    assert (report.swapped, pairs[1].chosen) == (1, "good")
    called = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]
    answer, ask = [{"role": "assistant", "content": "b"}], [{"role": "user", "content": "A"}]
    [pair], _ = kept(Rows(row(ask, called, answer, score_chosen=1, score_rejected=3)), on_reversed_scores="swap")
    assert (pair.chosen, pair.chosen_extra) == ("b", None), "what stands beside a text goes with it"
    assert pair.rejected_extra == {"tool_calls": called[0]["tool_calls"]}
    pairs, report = kept(source, on_reversed_scores="keep")
    assert (pairs[0].chosen, pairs[0].score_chosen, report.swapped) == ("good", 1.0, 0)


def test_rows_of_another_task_are_left_out_and_are_no_bad_rows():
    info = {"article": "(CNN) News.", "title": "News", "site": "cnn"}
    article = {"info": info, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
    pairs, report = kept(Rows(row(), article))
    assert len(pairs) == 1
    assert report.rejections[0].kind == "filtered"
    refuse_bad_rows([report], "rejected_rows.jsonl")
    names(report.summary(), "CNN/DailyMail")


def test_write_rejections(tmp_path):
    first = LoadReport("train", rejections=[Rejection("train:1", "line", "not JSON (x)")])
    second = LoadReport("test", rejections=[Rejection("test:2", "row", "`é` is null")])
    path = tmp_path / "rejected_rows.jsonl"
    write_rejections([first, second], path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"split": "train", "origin": "train:1", "kind": "line", "reason": "not JSON (x)"},
        {"split": "test", "origin": "test:2", "kind": "row", "reason": "`é` is null"},
    ]
    append_rejection("train", Rejection("train:9", "row", "`é` is null (here)"), path)
    assert count_rejections(path) == {"`é` is null": 2, "not JSON": 1}
    path.write_text(path.read_text() + "edited\n[]\n{}\n")
    assert count_rejections(path) == {"`é` is null": 2, "not JSON": 1}
    write_rejections([LoadReport("train")], path)
    assert path.read_text() == ""
    assert count_rejections(path) == count_rejections(tmp_path / "none") == {}


# Line 37's responses differ only beyond any length limit: identical once tokenised and cut, decided there.
# The documented choice for each row that allows several: kept, or facts of the reason that rejects it.
POLICY = {
    3: None,
    26: None,
    27: None,
    34: None,
    40: None,
    44: None,
    56: ("rejected response", "score", "data.on_reversed_scores"),
    62: ("key",),
}


def test_every_messy_row_is_kept_or_rejected_as_listed():
    path = shared("data/messy.jsonl")
    expected = {e["line"]: e for e in map(json.loads, shared("data/messy_expected.jsonl").read_text().splitlines())}
    pairs, report = load_pairs(LocalFiles(), str(path))
    number = {origin: int(origin.rsplit(":", 1)[1]) for origin in [p.origin for p in pairs]}
    found = {number[p.origin]: ("kept", "") for p in pairs}
    found |= {int(r.origin.rsplit(":", 1)[1]): (r.kind, r.category) for r in report.rejections}
    kinds = {"survive": "kept", "reject_line": "line", "reject_row": "row", "degenerate": "degenerate"}
    for line, e in expected.items():
        if line in (46, 47):  # blank lines are no rows
            assert line not in found
        elif e["disposition"] == "policy":
            assert found[line][0] == ("kept" if POLICY[line] is None else "row")
            names(found[line][1], *POLICY[line] or ())
        elif line == 37:
            assert found[line][0] == "kept"
        else:
            assert found[line][0] == kinds[e["disposition"]], (line, e["what"], found[line])
    assert len(expected) == len(found) + 2 == 64
    by_line = {int(p.origin.rsplit(":", 1)[1]): p for p in pairs}
    assert by_line[3].prompt == ({"role": "user", "content": "How do I boil an egg?"},)
    assert by_line[22].prompt[0]["role"] == "system"
    assert [m["role"] for m in by_line[23].prompt] == ["user", "assistant", "user"]
    assert by_line[40].chosen == "Speedy \x00 nul."
    assert "\u2028" in by_line[43].chosen
    assert "\x85" in by_line[43].chosen
    assert len(by_line[35].chosen) == 200_000
    assert by_line[34].chosen == " Call it Fig."


def test_real_hh_file():
    """The bad rows of the file, known by number; every other pair joins back to its transcripts."""
    path = shared("data/hh_harmless_test.jsonl.gz")
    pairs, report = load_pairs(LocalFiles(), str(path))
    # rows are numbered from 0, lines from 1
    bad = {int(r.origin.rsplit(":", 1)[1]) - 1: r.category for r in report.rejections}
    different, empty = (1254, 1688, 1950, 1952, 2036), (86, 516, 925, 1103)
    assert sorted(bad) == sorted(different + empty)
    for row in different:
        names(bad[row], "chosen", "rejected", "different prompts")
    for row in empty:
        names(bad[row], "chosen response", "no text")
    assert len(pairs) == 2303
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as f:
        rows = [json.loads(line) for line in f]
    for pair in pairs:
        source = rows[int(pair.origin.rsplit(":", 1)[1]) - 1]
        assert pair.prompt + pair.chosen == source["chosen"]
        assert pair.prompt + pair.rejected == source["rejected"]
        assert pair.prompt.endswith("\n\nAssistant:")


@pytest.mark.parametrize(
    ("name", "rows"),
    [("train_prefs.jsonl.gz", 6000), ("test_prefs.jsonl.gz", 600), ("gsm8k_correctness_pairs.jsonl.gz", 967)],
)
def test_real_ultrafeedback_style_files(name, rows):
    pairs, report = load_pairs(LocalFiles(), str(shared(f"data/{name}")))
    assert len(pairs) == rows
    assert report.formats == {"ultrafeedback": rows}
    assert all(p.score_chosen > p.score_rejected for p in pairs)
