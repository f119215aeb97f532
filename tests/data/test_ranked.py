"""Rows of several responses: which pairs each rule makes of them, by hand; how they are numbered, split and counted."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.load import load_pairs
from caldpo.data.pair import prompt_key
from caldpo.data.ranked import RankedResponses, pairs_by_rule
from caldpo.data.raw_row import RowError
from caldpo.data.sources.local_files import LocalFiles
from caldpo.data.split import split_by_prompt
from caldpo.errors import CaldpoError
from tests.data.prepared import prepared, rejected
from tests.data.test_demonstrations import Rows
from tests.helpers.messages import names, refused

RULES = ("best_worst", "all", "adjacent")


def texts(quality: list[float], rule: Any, scored: bool = False) -> list[tuple[str, str]]:
    """Chosen and rejected of each pair of responses a, b, c, ... of this quality."""
    row = RankedResponses("p", [chr(97 + i) for i in range(len(quality))], quality, scored)
    return [(pair.chosen, pair.rejected) for pair in pairs_by_rule(row, rule)[0]]


@pytest.mark.parametrize(
    ("quality", "rule", "pairs", "ties", "unused"),
    [
        ([1, 3, 2], "best_worst", "ba", 0, 1),
        ([1, 3, 2], "all", "bc ba ca", 0, 0),
        ([1, 3, 2], "adjacent", "bc ca", 0, 0),
        ([2, 2, 1, 1], "best_worst", "ac", 0, 2),  # of tied ones the first listed
        ([2, 2, 1, 1], "all", "ac ad bc bd", 2, 0),
        ([2, 2, 1, 1], "adjacent", "bc", 2, 2),
        ([1, 0, 0], "best_worst", "ab", 0, 1),  # a chosen and two rejected responses
        ([1, 0, 0], "all", "ab ac", 1, 0),
        ([1, 0, 0], "adjacent", "ab", 1, 1),
        ([5, 6], "all", "ba", 0, 0),
    ],
)
def test_rules_by_hand(quality: list[float], rule: Any, pairs: str, ties: int, unused: int) -> None:
    assert texts(quality, rule) == [tuple(both) for both in pairs.split()]
    row = RankedResponses("p", [str(i) for i in range(len(quality))], quality)
    counts = pairs_by_rule(row, rule)[1]
    assert (counts.ties, counts.unused) == (ties, unused)


@given(quality=st.lists(st.integers(0, 3), min_size=2, max_size=6), rule=st.sampled_from(RULES))
def test_what_every_rule_keeps(quality: list[int], rule: Any) -> None:
    """The chosen is better, no pair comes twice, all rules agree on pairs of ``all``, and ties are all that is left."""
    if len(set(quality)) == 1:
        with pytest.raises(RowError) as caught:
            texts(quality, rule)
        assert caught.value.kind == "degenerate"
        return
    pairs = texts(quality, rule)
    worth = {chr(97 + i): value for i, value in enumerate(quality)}
    assert pairs
    assert all(worth[chosen] > worth[worse] for chosen, worse in pairs)
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) <= set(texts(quality, "all"))
    different = sum(a != b for a, b in combinations(quality, 2))
    assert len(texts(quality, "all")) == different
    best_worst = texts(quality, "best_worst")
    assert [(worth[a], worth[b]) for a, b in best_worst] == [(max(quality), min(quality))]


def test_scores_are_carried_and_places_in_a_ranking_are_not() -> None:
    for scored in (True, False):
        row = RankedResponses("p", ["a", "b"], [0.5, 2.0], scored)
        (pair,), _ = pairs_by_rule(row, "all")
        assert (pair.score_chosen, pair.score_rejected) == ((2.0, 0.5) if scored else (None, None))


def ranked(prompt: str, *scores: float) -> dict[str, Any]:
    return {
        "prompt": f"a {prompt} ?",
        "responses": [f" yes {c}" for c in "bcdef"[: len(scores)]],
        "scores": list(scores),
    }


def test_origins_name_the_row_and_the_pair() -> None:
    source = Rows(train=[ranked("b", 1, 2, 3), ranked("c", 1, 2)])
    pairs, report = load_pairs(source, "train", ranked="all")
    assert pairs.origins() == ["train[0] (1 of 3)", "train[0] (2 of 3)", "train[0] (3 of 3)", "train[1]"]
    assert [(p.chosen, p.rejected, p.score_chosen, p.score_rejected) for p in pairs][:3] == [
        (" yes d", " yes c", 3, 2),
        (" yes d", " yes b", 3, 1),
        (" yes c", " yes b", 2, 1),
    ]
    assert (report.rows, report.kept, report.ranked_rows, report.ranked_pairs, report.with_scores) == (2, 4, 2, 4, 4)
    assert [p.origin for p in load_pairs(source, "train")[0]] == ["train[0]", "train[1]"], "best_worst by default"


def test_counts_and_rejections() -> None:
    """A row without preference, a blank response among others, an identical pair: each is accounted for."""
    rows = [ranked("b", 1, 1, 2), ranked("c", 1, 1), ranked("d", 1, 2, 3), ranked("e", 1, 2)]
    rows[2]["responses"][1] = "  "
    rows[3]["responses"][1] = rows[3]["responses"][0]
    pairs, report = load_pairs(Rows(train=rows), "train", ranked="all")
    assert [(r.origin, r.kind) for r in report.rejections] == [
        ("train[1]", "degenerate"),
        ("train[2] (1 of 3)", "row"),
        ("train[2] (3 of 3)", "row"),
        ("train[3]", "degenerate"),
    ]
    assert report.kept == len(pairs) == 3
    assert (report.rows, report.ranked_rows, report.ranked_pairs, report.ties) == (4, 3, 6, 1)
    assert report.rows - report.ranked_rows + report.ranked_pairs == report.kept + len(report.rejections)
    names(report.summary(), "data.ranked", 6, 3)


def test_a_block_of_rows_may_give_more_pairs_than_a_block_holds(tmp_path: Path) -> None:
    """Texts are packed 256 pairs at a time; here 300 rows make 3,000."""
    words = "bcdefghijklmnopqrstu"
    rows = [ranked(f"{a} {b}", 5, 4, 3, 2, 1) for a in words for b in words][:300]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, report = load_pairs(LocalFiles(), str(file), ranked="all")
    assert report.kept == len(pairs) == 3000
    for place in (0, 9, 10, 2559, 2560, 2999):
        number, inner = divmod(place, 10)
        assert pairs[place].prompt == rows[number]["prompt"]
        assert pairs[place].origin == f"{file}:{number + 1} ({inner + 1} of 10)"
        chosen, worse = list(combinations(rows[number]["responses"], 2))[inner]
        assert (pairs[place].chosen, pairs[place].rejected) == (chosen, worse)
    train, test = split_by_prompt(pairs, 0.3, 0)
    assert not {prompt_key(p.prompt) for p in train} & {prompt_key(p.prompt) for p in test}
    assert len(train) % 10 == len(test) % 10 == 0, "the pairs of a row stay together"


def test_a_run_makes_its_pairs_by_the_key(tmp_path: Path) -> None:
    rows = [ranked(word, 3, 2, 1) for word in "bcdefg"]
    source = Rows(train=rows[:4], test=rows[4:])
    for rule, count in (("best_worst", 1), ("all", 3), ("adjacent", 2)):
        module, report = prepared(tmp_path, source=source, ranked=rule)
        assert len(module.train_pairs) == 4 * count
        assert len(module.test_pairs) == 2 * count
        assert report["read"][0]["ranked_pairs"] == 4 * count
        assert module.train_pairs.has_scores
    streamed, _ = prepared(tmp_path, source=source, ranked="all", streaming=True, shuffle_buffer=1)
    module, _ = prepared(tmp_path, source=source, ranked="all")
    assert streamed.stream is not None
    found = [streamed.stream[i] for i in range(12)]
    assert [(p.origin, p.chosen_ids, p.rejected_ids) for p in found] == [
        (p.origin, p.chosen_ids, p.rejected_ids) for p in module.train_pairs
    ]
    assert rejected(tmp_path) == []


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": "Q", "responses": ["a", "b"]}, ("scores", "ranks")),
        ({"prompt": "Q", "responses": ["a", "b"], "scores": [1]}, ("`scores`", "1 for 2")),
        ({"prompt": "Q", "responses": ["a", "b"], "scores": [1, "2"]}, ("`scores`", "text")),
        ({"prompt": "Q", "responses": [], "scores": []}, ("`responses`", "empty")),
        ({"prompt": "Q", "responses": ["a"], "scores": [1]}, ("single",)),
        ({"prompt": "Q", "responses": "a", "scores": [1]}, ("`responses`", "list")),
        ({"prompt": "Q", "answers": ["a", "b"]}, ("`answers`", "`rank`")),
        ({"instruction": "Q", "completions": [{"response": "a"}]}, ("`completions`", "`overall_score`")),
        ({"prompt": "Q", "rejected": ["a", "b"]}, ("`chosen`",)),
        (
            {"prompt": "Q", "chosen": "c", "rejected": ["a"], "score_chosen": 1, "score_rejected": [2]},
            ("rejected", "higher score"),
        ),
    ],
)
def test_rows_that_rank_nothing(row: dict[str, Any], facts: tuple[str, ...]) -> None:
    _, report = load_pairs(Rows(train=[row]), "train")
    (found,) = report.rejections
    assert found.kind == "row"
    names(found.reason, *facts)


def test_columns_with_other_names() -> None:
    from caldpo.data.columns import Columns

    distilabel = {"instruction": "Q", "generations": [" a", " b"], "ratings": [1, 5]}
    for row, columns in (
        (distilabel, None),
        ({"query": "Q", "responses": [" a", " b"], "rank": [2, 1]}, None),
        ({"prompt": "Q", "texts": [" a", " b"], "votes": [0, 9]}, Columns(responses="texts", scores="votes")),
    ):
        pairs, report = load_pairs(Rows(train=[row]), "train", columns=columns)
        assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [("Q", " b", " a")]
        assert not report.unread


def test_a_rule_that_there_is_none(tmp_path: Path) -> None:
    with refused("best_worst", "adjacent", key="ranked", value="worst", kind=CaldpoError):
        prepared(tmp_path, ranked="worst")
