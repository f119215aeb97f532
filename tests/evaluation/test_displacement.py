"""What fell, by length, and drift on text that no pair is about: by hand, and sequence by sequence."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldpo.evaluation.suites.displacement import PLAIN, Displacement, by_length, read_texts
from tests.callbacks.oracle_data import naive_logprob
from tests.evaluation.runs import evaluate, inside, reference_model, result, value
from tests.helpers.messages import names, refused


@pytest.fixture(scope="module")
def results(trained: Path) -> dict:
    texts = trained.parent / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with inside(trained.parent):
        evaluate("run", "suite=displacement", "displacement.unrelated=texts.jsonl", "displacement.resamples=100")
    return result(trained, "displacement")


TEXTS = ["w30 w31 w32", "w5 w9", "w12 w13 w14 w15 w16 w17", "w3"]


def test_shares_of_what_fell(results: dict, naive: dict) -> None:
    a, b = naive["a"], naive["b"]
    assert value(results, "chosen_fell") == pytest.approx(np.mean(a < 0))
    assert value(results, "rejected_fell") == pytest.approx(np.mean(b < 0))
    assert value(results, "both_fell") == pytest.approx(np.mean((a < 0) & (b < 0)))
    assert value(results, "chosen_per_token") == pytest.approx(a.sum() / naive["n_w"].sum(), rel=1e-3)
    assert value(results, "rejected_per_token") == pytest.approx(b.sum() / naive["n_l"].sum(), rel=1e-3)


def test_quantiles(results: dict, naive: dict) -> None:
    quantiles = results["details"]["log_ratios"]
    assert quantiles["levels"][4] == 0.5
    assert quantiles["chosen"][4] == pytest.approx(np.median(naive["a"]), rel=1e-3, abs=1e-3)
    assert quantiles["rejected"][1] == pytest.approx(np.quantile(naive["b"], 0.05), rel=1e-3, abs=1e-3)


def test_drift_is_the_log_ratio_per_token_of_other_text(trained: Path, results: dict) -> None:
    """All tokens but a text's first; the text of a single token says nothing."""
    tokenizer = AutoTokenizer.from_pretrained(trained / "policy")
    policy = AutoModelForCausalLM.from_pretrained(trained / "policy").double()
    with inside(trained.parent):
        reference = reference_model().double()
    ids = [tokenizer(text).input_ids for text in TEXTS[:3]]
    ratios = [naive_logprob(policy, t[:1], t[1:]) - naive_logprob(reference, t[:1], t[1:]) for t in ids]
    tokens = [len(t) - 1 for t in ids]
    assert value(results, "drift") == pytest.approx(sum(ratios) / sum(tokens), rel=1e-3)
    sizes = [abs(r) / n for r, n in zip(ratios, tokens, strict=True)]
    assert value(results, "drift_size") == pytest.approx(np.mean(sizes), rel=1e-3)
    names(results["details"]["unrelated"], 4, "texts.jsonl")
    names(results["measures"]["drift"]["title"], "unrelated")


def test_where_plain_text_is_unknown_the_prompts_stand_in(trained: Path, tmp_path: Path) -> None:
    with inside(trained.parent):
        evaluate("run", "suite=displacement", "displacement.resamples=10", f"output={tmp_path}")
    written = json.loads((tmp_path / "evaluation" / "displacement.json").read_text())
    names(written["details"]["unrelated"], "held-out prompts")
    names(written["measures"]["drift"]["title"], "held-out prompts")
    assert written["measures"]["drift"]["n"] == 20


def test_without_unrelated_text_there_is_no_drift(trained: Path, tmp_path: Path) -> None:
    with inside(trained.parent):
        evaluate("run", "suite=displacement", "displacement.unrelated=none", f"output={tmp_path}")
    written = json.loads((tmp_path / "evaluation" / "displacement.json").read_text())
    assert "drift" not in written["measures"]


def test_a_file_that_is_not_there_is_answered_before_anything_loads(trained: Path, capsys) -> None:
    with inside(trained.parent):
        evaluate("run", "suite=displacement", "displacement.unrelated=nowhere.txt", fails=1)
    names(capsys.readouterr().err, "displacement.unrelated=nowhere.txt:", "No such file")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("", ["texts.jsonl", "text"]),
        ('{"text": "a"}\n\n{"txt": "b"}\n', ["texts.jsonl:3:", '"text"']),
        ("no json", ["texts.jsonl:1:"]),
    ],
)
def test_texts_that_are_none(content: str, facts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(content)
    with refused(*facts):
        Displacement(unrelated=str(file)).check()


def test_the_plain_sentences_that_come_with_the_project() -> None:
    texts = read_texts(str(PLAIN))
    assert len(texts) == len(set(texts)) == 32
    assert min(map(len, texts)) > 30


def test_bins_by_length_hold_all_pairs_once() -> None:
    lengths = np.array([1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8], dtype=float)
    chosen = np.array([-1, -1, 1, 1, 1, -1, 1, 1, 1, 1, -1, -1], dtype=float)
    rejected = np.where(np.arange(12) % 2, -1.0, 1.0)
    bins = by_length(chosen, rejected, lengths, bins=4)
    assert sum(row["count"] for row in bins) == 12
    assert (bins[0]["low"], bins[0]["high"], bins[0]["count"]) == (1, 1, 5), "pairs of one length stay together"
    assert bins[0]["chosen_fell"] == pytest.approx(2 / 5)
    assert bins[0]["both_fell"] == pytest.approx(1 / 5)
    for before, after in itertools.pairwise(bins):
        assert before["high"] < after["low"]
    assert by_length(chosen, rejected, lengths, bins=1)[0]["both_fell"] == pytest.approx(
        np.mean((chosen < 0) & (rejected < 0))
    )
    (same,) = by_length(chosen, rejected, np.full(12, 3.0), bins=4)
    assert same["count"] == 12
