"""Columns under the names that published sets use, under named ones, and those that nobody reads."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import caldpo.data.formats as package
from caldpo.data.columns import Columns
from caldpo.data.data_report import LoadReport
from caldpo.data.formats import formats
from caldpo.data.load import load_pairs
from caldpo.data.pair import PreferencePair
from caldpo.data.sources.local_files import LocalFiles
from tests.data.format_rows import assistant, system, user
from tests.data.prepared import prepared
from tests.data.test_demonstrations import Rows
from tests.helpers.messages import names, refused

Q = (user("Why?"),)
BOTH = {"chosen": "Because.", "rejected": "No."}
TURNS = {"chosen": [assistant("Because.")], "rejected": [assistant("No.")]}


def load(*rows: dict[str, Any], **options: Any) -> tuple[list[PreferencePair], LoadReport]:
    """The pairs and the report of rows in memory."""
    return load_pairs(Rows(train=list(rows)), "train", **options)


def only(row: dict[str, Any], **columns: Any) -> PreferencePair:
    """The pair of one row, without its origin."""
    pairs, report = load(row, columns=Columns(**columns), demonstrations=True)
    assert pairs, report.rejections
    return pairs[0]


def reason(row: dict[str, Any], **columns: Any) -> str:
    """Why a row gives no pair."""
    _, report = load(row, columns=Columns(**columns), demonstrations=True)
    [rejection] = report.rejections
    assert rejection.kind == "row"
    return rejection.reason


def saved(tmp_path: Path, text: str, name: str = "pairs.csv") -> tuple[list[PreferencePair], LoadReport]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return load_pairs(LocalFiles(), str(tmp_path / name))


@pytest.mark.parametrize(
    ("row", "prompt", "scores"),
    [
        ({"question": "Why?", **BOTH}, "Why?", None),
        ({"query": "Why?", **BOTH}, "Why?", None),
        ({"input": "Why?", **BOTH}, "Why?", None),
        ({"instruction": "Answer.", "input": "Why?", **BOTH}, "Answer.\n\nWhy?", None),
        ({"instruction": "Answer.", "input": "", **BOTH}, "Answer.", None),
        ({"system": "Be brief.", "question": "Why?", **BOTH}, (system("Be brief."), *Q), None),
        ({"system": "", "question": "Why?", **BOTH}, Q, None),  # one form for the whole set
        ({"system": "Be brief.", "prompt": list(Q), **TURNS}, (system("Be brief."), *Q), None),
        ({"prompt": "Why?", **TURNS}, Q, None),
        ({"prompt": "Why?", "chosen": assistant("Because."), "rejected": {"content": "No."}}, Q, None),
        ({"question": "Why?", "chosen": [*Q, assistant("Because.")], "rejected": [*Q, assistant("No.")]}, Q, None),
        ({"messages": list(Q), **TURNS}, Q, None),
        (
            {
                "conversations": [{"from": "human", "value": "Why?"}],
                "chosen": {"from": "gpt", "value": "Because."},
                "rejected": {"from": "gpt", "value": "No."},
            },
            Q,
            None,
        ),
        ({"prompt": "Why?", **BOTH, "chosen-rating": 5, "rejected-rating": 2}, "Why?", (5.0, 2.0)),
        ({"prompt": "Why?", **BOTH, "chosen_score": 5, "rejected_score": 2}, "Why?", (5.0, 2.0)),
        ({"prompt": "Why?", **BOTH, "chosen_score": 5}, "Why?", None),
        ({"prompt": "Why?", **BOTH, "score_chosen": None, "score_rejected": None}, "Why?", None),
    ],
)
def test_usual_names(row: dict[str, Any], prompt: Any, scores: tuple[float, float] | None) -> None:
    pair = only(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "Because.", "No.")
    assert (pair.score_chosen, pair.score_rejected) == (scores or (None, None))


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"messages": [user("Why?"), assistant("Because.")]},
        {"system": "", "instruction": "Why?", "input": "", "output": "Because."},
    ],
)
def test_usual_names_of_demonstrations(row: dict[str, Any]) -> None:
    pair = only(row)
    assert (pair.prompt, pair.chosen, pair.demonstration) == (Q, "Because.", True)


def test_named_columns(tmp_path: Path) -> None:
    row = {"ask": "Why?", "more": "Tell.", "good": "Because.", "bad": "No.", "g": 2, "b": 1, "prompt": "another"}
    roles = {"prompt": ["more", "ask"], "chosen": "good", "rejected": "bad", "score_chosen": "g", "score_rejected": "b"}
    pairs, report = load(row, columns=Columns(**roles))
    assert [(p.prompt, p.chosen, p.rejected, p.score_chosen) for p in pairs] == [
        ("Tell.\n\nWhy?", "Because.", "No.", 2)
    ]
    assert report.unread == {"prompt": 1}
    names(reason(row, prompt="asked"), "`asked`", "missing", "data.columns.prompt")
    text = "ask,good,bad,g,b\nWhy?,Because.,No.,2,1\n"
    (tmp_path / "a.csv").write_text(text)
    pairs, _ = load_pairs(LocalFiles(), str(tmp_path / "a.csv"), columns=Columns(**{**roles, "prompt": "ask"}))
    assert [(p.prompt, p.chosen, p.score_chosen) for p in pairs] == [("Why?", "Because.", 2.0)]
    with refused("`asked`", "data.columns.prompt", key=tmp_path / "a.csv", remedy="ask, good, bad, g, b"):
        load_pairs(LocalFiles(), str(tmp_path / "a.csv"), columns=Columns(prompt="asked"))


def test_unread_columns_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"a {w} ?", "chosen": " yes", "rejected": " no", "model": "x", "id": w} for w in "bcde"]
    rows[0]["id"] = None
    _, report = prepared(tmp_path, source=Rows(train=rows, test=[{**rows[1], "prompt": "z ?"}]))
    assert [read["unread"] for read in report["read"]] == [{"id": 3, "model": 4}, {"id": 1, "model": 1}]
    names(capsys.readouterr().out, "id (3 rows)", "model (4 rows)")
    _, report = load(rows[1], columns=Columns(ignored=["id"]))
    assert report.unread == {"model": 1}


@pytest.mark.parametrize("column", ["images", "audio", "tool_calls", "history", "context"])
def test_an_unread_column_that_changes_the_meaning_refuses_the_row(column: str) -> None:
    row = {"prompt": "Why?", **BOTH, column: ["x"]}
    names(reason(row), f"`{column}`", "data.columns.ignored")
    assert only(row, ignored=[column]).prompt == "Why?"
    assert only({**row, column: []}).prompt == "Why?"


@pytest.mark.parametrize("name", ["prompt", "question", "instruction"])
def test_a_null_prompt_is_never_made_up(name: str, tmp_path: Path) -> None:
    both = {"chosen": "The answer is yes", "rejected": "The answer is no"}
    names(reason({name: None, **both}), "`prompt`", "null")
    whole = [{name: "Why?", **both}, {name: None, **both}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole), tmp_path / "a.parquet")
    pairs, report = load_pairs(LocalFiles(), str(tmp_path / "a.parquet"))
    assert len(pairs) == 1
    names(report.rejections[0].reason, "`prompt`", "null")
    pairs, report = saved(tmp_path, f"{name},chosen,rejected\nWhy?,The answer is yes,It is no\n,The answer is yes,No\n")
    assert len(pairs) == 1
    names(report.rejections[0].reason, "`prompt`", "null")


def test_an_implicit_prompt_is_used_and_counted_where_no_column_could_be_it() -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green.", "source": "a set of skies", "id": "a b"}
    pairs, report = load(row)
    assert pairs[0].prompt == "The sky is"
    assert [count for remark, count in report.remarks.items() if "prompt" in remark and "beginning" in remark] == [1]
    names(reason({**row, "problem": "What is the sky?"}), "`problem`", "data.columns.prompt=problem")
    assert only({**row, "problem": "What is it?"}, prompt="problem").prompt == "What is it?"
    assert only({**row, "problem": "What is it?"}, ignored=["problem"]).prompt == "The sky is"
    either = reason({**row, "question": "a", "instruction": "b"})
    names(either, "`question`", "`instruction`", "data.columns.prompt")
    for asked in (list(Q), {"from": "human", "value": "Why?"}, ["Why is it?", "So."]):
        names(reason({**row, "trajectory": asked}), "`trajectory`", "data.columns.prompt=trajectory")
    assert only({**row, "scores": [1.0, 2.0], "order": ["a", "b"], "metadata": {"a b": "c d"}}).prompt == "The sky is"


@pytest.mark.parametrize("name", ["prompt", "messages"])
def test_texts_that_answer_messages_are_turns(name: str) -> None:
    pair = only({name: list(Q), **BOTH})
    assert (pair.prompt, pair.chosen, pair.rejected) == (Q, "Because.", "No.")
    assert only({"prompt": list(Q), "completion": "Because."}).prompt == Q
    assert only({"turns": list(Q), **BOTH}, prompt="turns").prompt == Q
    encoded = json.dumps([assistant("Because.")])
    names(reason({name: list(Q), **BOTH, "chosen": encoded}), "`chosen`")
    whole = {"messages": [*Q, assistant("Because.")], "chosen": "It is blue.", "rejected": "It is red."}
    names(reason(whole), "`messages`", "data.columns.prompt=messages")


def test_one_column_has_one_role() -> None:
    for roles in ({"prompt": ["ask", "good"], "chosen": "good"}, {"chosen": "good", "rejected": "good"}):
        first, second = roles
        with refused(f"data.columns.{first}", key=f"data.columns.{second}", value="good"):
            Columns(**roles)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("ask", "空は何色ですか"),  # no spaces between words
        ("dialog", [user("What is the sky?")]),
        ("turns", ["What is the sky?", "I see it."]),
        ("model_prompt", "What is the sky?"),
    ],
)
def test_possible_prompts_have_any_script_and_shape(column: str, value: Any) -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green.", "prompt_id": "a b", "tags": ["a b"]}
    names(reason({**row, column: value}), f"`{column}`", f"data.columns.prompt={column}")
    assert only({**row, column: value}, ignored=[column]).prompt == "The sky is"


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_encoded_conversations_are_decoded_in_tables_and_refused_in_json(write: Any, tmp_path: Path) -> None:
    sides = {name: write([user("Why?"), assistant(text)]) for name, text in BOTH.items()}
    cells = ",".join('"' + cell.replace('"', '""') + '"' for cell in ("Why?", *sides.values()))
    pairs, report = saved(tmp_path, f"prompt,chosen,rejected\n{cells}\n")
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [(Q, "Because.", "No.")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "Why?", **sides}]), tmp_path / "a.parquet")
    assert [replace(p, origin="") for p in load_pairs(LocalFiles(), str(tmp_path / "a.parquet"))[0]] == [
        replace(p, origin="") for p in pairs
    ]
    named = Columns(chosen="good", rejected="bad")
    (tmp_path / "b.csv").write_text(f"prompt,good,bad\n{cells}\n")
    assert load_pairs(LocalFiles(), str(tmp_path / "b.csv"), columns=named)[0][0].chosen == "Because."
    names(reason({"prompt": "Why?", **sides}), "`chosen`", "conversation", "text")
    one = {name: write(assistant(text)) for name, text in BOTH.items()}
    names(reason({"prompt": "Why?", **one}), "`chosen`", "conversation", "text")
    broken = cells.replace("}, {", "}\n {")  # as numpy writes a list of objects
    pairs, report = saved(tmp_path, f"prompt,chosen,rejected\n{broken}\n")
    assert not pairs
    names(report.rejections[0].reason, "`chosen`", "conversation", "text")
    broken = cells.replace('"[', '"array([').replace(']"', '], dtype=object)"')  # as pandas does
    pairs, report = saved(tmp_path, f"prompt,chosen,rejected\n{broken}\n")
    assert not pairs
    names(report.rejections[0].reason, "`chosen`", "conversation", "text")
    assert only({"prompt": "JSON?", "chosen": '{"role": "admin"}', "rejected": "[{}]"}).chosen == '{"role": "admin"}'


def test_a_prompt_that_its_responses_repeat_is_cut_or_refused() -> None:
    asked = "\n\nHuman: a?\n\nAssistant:"
    pairs, report = load({"prompt": asked, "chosen": f"{asked} b", "rejected": f"{asked.strip()} c"})
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [(asked, " b", " c")]
    [(remark, count)] = report.remarks.items()
    assert count == 1
    names(remark, "prompt", "cut", "responses")
    long = "Name a colour of the sky.\n"
    assert only({"prompt": long, "chosen": f"{long}Blue.", "rejected": f"{long}Red."}).chosen == "Blue."
    assert only({"prompt": long, "completion": f"{long}Blue."}).chosen == "Blue."
    assert only({"prompt": long, "chosen": f"{long}Blue.", "rejected": "Red."}).chosen == f"{long}Blue."
    names(reason({"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi!"}), "response", "begins", "prompt")
    assert only({"prompt": "Do", "completion": "Done."}).chosen == "Done."
    whole = {"prompt": list(Q), "chosen": [*Q, assistant("Because.")], "rejected": [*Q, assistant("No.")]}
    pairs, report = load(whole)
    assert [(p.prompt, p.chosen) for p in pairs] == [(Q, "Because.")]
    [(remark, count)] = report.remarks.items()
    assert count == 1
    names(remark, "prompt", "cut", "responses")


def test_a_formats_own_rating_column_is_a_number_in_csv_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's new format reads its own columns, and a message names those."""
    (tmp_path / "starred.py").write_text(
        "from caldpo.data.formats._fields import scores, text\n"
        "from caldpo.data.pair import PreferencePair\n"
        "COLUMNS = ('q', 'good', 'bad', 'good_stars', 'bad_stars')\n"
        "def matches(row): return 'good_stars' in row\n"
        "def parse(row):\n"
        "    both = scores(row, 'good_stars', 'bad_stars')\n"
        "    return PreferencePair(text(row, 'q'), text(row, 'good'), text(row, 'bad'), *both)\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    formats.cache_clear()
    try:
        header = "q,good,bad,good_stars,bad_stars\n"
        pairs, report = saved(tmp_path, f"{header}Why?,Because.,No.,5,2.5\nWhy?,So.,Nope.,many,2\n")
        assert [(p.chosen, p.score_chosen, p.score_rejected) for p in pairs] == [("Because.", 5.0, 2.5)]
        names(report.rejections[0].reason, "`good_stars`", "number", "text")
    finally:
        sys.modules.pop("caldpo.data.formats.starred", None)
        formats.cache_clear()
