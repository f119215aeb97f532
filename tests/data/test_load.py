"""What load_pairs keeps, refuses, drops and reports; and the fate of every row of real and of messy files."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from caldpo.data.load import LoadReport, Rejection, load_pairs, write_rejections
from caldpo.data.pair import PreferencePair
from caldpo.data.rows import RawRow
from caldpo.data.sources.files import LocalFiles
from caldpo.errors import CaldpoError
from tests.shared import shared


class Rows:
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


def test_error_lists_all_bad_rows_with_reasons_and_remedy():
    bad = [ValueError("not JSON (x)"), row(chosen=3), row(chosen=""), {"text": "x"}]
    with pytest.raises(CaldpoError) as caught:
        load_pairs(Rows(row(), *bad), "train.jsonl")
    text = str(caught.value)
    assert "4 of 5 rows cannot be used" in text
    for fragment in (
        "train.jsonl[1]: not JSON (x)",
        "[2]: `chosen` is not text (but a number)",
        "[3]: the chosen",
    ):
        assert fragment in text
    assert "data.on_invalid=skip" in text


def test_error_shows_twenty_rows_and_counts_all_by_reason():
    values = [row(chosen=i) for i in range(30)] + [row(chosen=" ")]
    with pytest.raises(CaldpoError) as caught:
        load_pairs(Rows(*values), "train")
    assert str(caught.value).count("train[") == 20
    assert "... and 11 more" in str(caught.value)
    assert "30 `chosen` is not text; 1 the chosen response has no text" in str(caught.value)


def test_skip_reports_them_instead():
    pairs, report = kept(Rows(row(), ValueError("not JSON (x)"), row(chosen=3)), on_invalid="skip")
    assert len(pairs) == 1
    assert report.rejections == [
        Rejection("train[1]", "line", "not JSON (x)"),
        Rejection("train[2]", "row", "`chosen` is not text (but a number)"),
    ]
    assert report.counts("row") == {"`chosen` is not text": 1}
    assert "1 of 3 rows kept" in report.summary()
    assert "unreadable lines: 1 not JSON" in report.summary()


@pytest.mark.parametrize("on_invalid", ["error", "skip"])
def test_no_pair_at_all_is_an_error(on_invalid):
    with pytest.raises(CaldpoError, match=r"none of its 1 rows(.|\n)*1 chosen and rejected are identical"):
        load_pairs(Rows(row(chosen="bad")), "train", on_invalid=on_invalid)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (row(prompt=" \n"), "the prompt has no text"),
        (row(chosen=" \n\t"), "the chosen response has no text"),
        (row(rejected=""), "the rejected response has no text"),
        (row(chosen="\ud83d."), "text with a lone surrogate (U+D83D)"),
        (row(prompt="\udfff"), "text with a lone surrogate (U+DFFF)"),
    ],
)
def test_unusable_texts(value, reason):
    _, report = kept(Rows(value, row()), on_invalid="skip")
    assert report.rejections == [Rejection("train[0]", "row", reason)]


def test_surrogates_in_conversations_and_in_columns_nobody_reads():
    ask, answer = {"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}
    bad = {"prompt": [ask], "chosen": [answer], "rejected": [answer]}
    _, report = kept(Rows(bad, row(note="\ud800"), row(chosen="\x00 and \U0001f600")), on_invalid="skip")
    assert [r.origin for r in report.rejections] == ["train[0]"]


DEGENERATE = [
    (row(chosen="bad"), "chosen and rejected are identical"),
    (row(chosen="bad \n"), "chosen and rejected differ in surrounding white space alone"),
    (scored(1, 1.0, prompt="R"), "equal scores, so no preference"),
    (row(), "repeats an earlier pair"),
    (row(chosen="good "), "repeats an earlier pair"),
    (row(chosen="bad", rejected="good"), "contradicts an earlier pair"),
]


def test_degenerate_pairs_are_dropped_and_counted_even_under_error():
    pairs, report = kept(Rows(row(), *(value for value, _ in DEGENERATE), row("other")), on_invalid="error")
    assert [p.prompt for p in pairs] == ["Q", "other"]
    assert [(r.kind, r.reason) for r in report.rejections] == [("degenerate", reason) for _, reason in DEGENERATE]


def test_degenerate_pairs_are_kept_and_counted_on_purpose():
    values = [value for value, _ in DEGENERATE]
    pairs, report = kept(Rows(row(), *values), on_degenerate="keep")
    assert len(pairs) == 7
    assert report.degenerate_kept == dict(Counter(reason for _, reason in DEGENERATE))
    assert "degenerate pairs kept: 2 repeats an earlier pair" in report.summary()


def test_the_same_responses_to_another_prompt_are_no_repetition():
    pairs, _ = kept(Rows(row("A"), row("B"), row("A", "bad", "worse"), row("A", "good", "worse")))
    assert len(pairs) == 4


def test_reversed_scores():
    source = Rows(scored(1, 3, "A"), scored(3, 1, "B"))
    with pytest.raises(CaldpoError, match=r"higher score, see data.on_reversed_scores \(1 < 3\)"):
        load_pairs(source, "train")
    pairs, report = kept(source, on_invalid="skip")
    assert [p.prompt for p in pairs] == ["B"]
    pairs, report = kept(source, on_reversed_scores="swap")
    assert pairs[0] == PreferencePair("A", "bad", "good", 3.0, 1.0, origin="train[0]")
    assert (report.swapped, pairs[1].chosen) == (1, "good")
    pairs, report = kept(source, on_reversed_scores="keep")
    assert (pairs[0].chosen, pairs[0].score_chosen, report.swapped) == ("good", 1.0, 0)


def test_rows_of_another_task_are_left_out_under_error():
    info = {"article": "(CNN) News.", "title": "News", "site": "cnn"}
    article = {"info": info, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
    pairs, report = kept(Rows(row(), article), on_invalid="error")
    assert len(pairs) == 1
    assert report.rejections[0].kind == "filtered"
    assert "rows of another task left out: 1 a CNN/DailyMail article" in report.summary()


def test_write_rejections(tmp_path):
    first = LoadReport("train", rejections=[Rejection("train:1", "line", "not JSON (x)")])
    second = LoadReport("test", rejections=[Rejection("test:2", "row", "`é` is null")])
    path = tmp_path / "rejected_rows.jsonl"
    assert write_rejections([first, second], path) == 2
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"split": "train", "origin": "train:1", "kind": "line", "reason": "not JSON (x)"},
        {"split": "test", "origin": "test:2", "kind": "row", "reason": "`é` is null"},
    ]
    assert write_rejections(LoadReport("train"), path) == 0
    assert path.read_text() == ""


# Line 37's responses differ only beyond any length limit: identical once tokenised and cut, decided there.
# The documented choice for each row that allows several: kept, or the reason that rejects it.
POLICY = {
    3: None,
    26: None,
    27: None,
    34: None,
    40: None,
    44: None,
    56: "the rejected response has the higher score, see data.on_reversed_scores",
    62: "a key stands twice in an object",
}


def test_every_messy_row_meets_its_disposition():
    path = shared("data/messy.jsonl")
    expected = {e["line"]: e for e in map(json.loads, shared("data/messy_expected.jsonl").read_text().splitlines())}
    pairs, report = load_pairs(LocalFiles(), str(path), on_invalid="skip")
    number = {origin: int(origin.rsplit(":", 1)[1]) for origin in [p.origin for p in pairs]}
    found = {number[p.origin]: ("kept", "") for p in pairs}
    found |= {int(r.origin.rsplit(":", 1)[1]): (r.kind, r.category) for r in report.rejections}
    kinds = {"survive": "kept", "reject_line": "line", "reject_row": "row", "degenerate": "degenerate"}
    for line, e in expected.items():
        if line in (46, 47):  # blank lines are no rows
            assert line not in found
        elif e["disposition"] == "policy":
            assert found[line] == (("kept", "") if POLICY[line] is None else ("row", POLICY[line]))
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


def test_messy_file_stops_by_default_with_file_and_line():
    path = shared("data/messy.jsonl")
    with pytest.raises(CaldpoError) as caught:
        load_pairs(LocalFiles(), str(path))
    assert "38 of 62 rows cannot be used" in str(caught.value)
    assert f"{path}:2: column `rejected` is missing" in str(caught.value)


def test_real_hh_file():
    """The bad rows of the file, known by number; every other pair joins back to its transcripts."""
    path = shared("data/hh_harmless_test.jsonl.gz")
    pairs, report = load_pairs(LocalFiles(), str(path), on_invalid="skip")
    # rows are numbered from 0, lines from 1
    bad = {int(r.origin.rsplit(":", 1)[1]) - 1: r.category for r in report.rejections}
    prompts, empty = "chosen and rejected answer different prompts", "the chosen response has no text"
    assert bad == dict.fromkeys((1254, 1688, 1950, 1952, 2036), prompts) | dict.fromkeys((86, 516, 925, 1103), empty)
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
