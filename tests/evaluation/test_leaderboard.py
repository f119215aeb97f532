"""Scores of LM Eval on the policy in memory: those of transformers alone, and of LM Eval's command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldpo.data.pair import TokenizedPair
from caldpo.evaluation.lm_eval.leaderboards import BOARDS, V2
from caldpo.evaluation.lm_eval.task_plan import PAIRS
from caldpo.evaluation.pair_scoring import score_pairs
from tests.callbacks.oracle_data import naive_logprob
from tests.evaluation.lm_eval_tasks import ASKED, data_sets_in, quick_python, write_tasks
from tests.evaluation.runs import evaluate, inside, result, value
from tests.helpers.messages import holds, names

pytest.importorskip("lm_eval")
TASKS = "leaderboard.tasks=[word_choice,word_answer,held_out_pairs]"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where data sets are cached, in this process and in those it starts."""
    folder = tmp_path_factory.mktemp("harness")
    with data_sets_in(folder / "cache"):
        yield folder


@pytest.fixture(scope="module")
def model(trained: Path) -> tuple[Any, Any]:
    """The exported policy and its tokenizer, loaded by transformers."""
    return AutoModelForCausalLM.from_pretrained(trained / "policy"), AutoTokenizer.from_pretrained(trained / "policy")


@pytest.fixture(scope="module")
def questions(home: Path, model: tuple[Any, Any]) -> dict[str, list[dict[str, Any]]]:
    policy, tokenizer = model

    def continuation(question: str) -> str:
        ids = tokenizer(question, return_tensors="pt").input_ids
        output = policy.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        return str(tokenizer.decode(output, skip_special_tokens=True))

    return write_tasks(home / "own", continuation)


@pytest.fixture(scope="module")
def evaluated(trained: Path, home: Path, questions: dict) -> dict:
    with inside(trained.parent):
        evaluate(
            "run",
            "suite=leaderboard",
            TASKS,
            f"leaderboard.include_path={home / 'own'}",
            "leaderboard.log_samples=true",
        )
    return result(trained, "leaderboard")


def test_choices_by_log_probs_of_transformers(evaluated: dict, questions: dict, model: tuple[Any, Any]) -> None:
    policy, tokenizer = model[0].double(), model[1]
    right = []
    for row in questions["word_choice"]:
        prompt = tokenizer(row["question"]).input_ids
        logps = [naive_logprob(policy, prompt, tokenizer(choice).input_ids) for choice in row["choices"]]
        right.append(int(np.argmax(logps)) == row["label"])
    assert 0 < sum(right) < ASKED
    measure = evaluated["measures"]["word_choice"]
    assert measure["value"] == pytest.approx(np.mean(right))
    half = 1.96 * np.std(right, ddof=1) / np.sqrt(ASKED)
    assert (measure["low"], measure["high"]) == pytest.approx((np.mean(right) - half, np.mean(right) + half))
    assert (measure["n"], measure["unit"], measure["better"]) == (ASKED, "acc", "higher")


def test_answers_by_greedy_decoding_of_transformers(evaluated: dict) -> None:
    """Every second question has the policy's own continuation for an answer."""
    assert value(evaluated, "word_answer") == 0.5
    assert evaluated["measures"]["word_answer"]["unit"] == "exact_match"


def test_held_out_pairs_by_the_own_engine(evaluated: dict, trained: Path, model: tuple[Any, Any]) -> None:
    """LM Eval's log-probs rank the pairs as the project's do, without the end-of-text token."""
    policy, tokenizer = model
    rows = [json.loads(line) for line in (trained.parent / "test.jsonl").read_text().splitlines()]
    pairs = [
        TokenizedPair(*(tokenizer(row[k]).input_ids for k in ("prompt", "chosen", "rejected")), None, None, i, "")
        for i, row in enumerate(rows)
    ]
    a, b = score_pairs(policy.float(), pairs, pad_id=0, batch=8, label="", context=nullcontext)
    assert 0 < np.mean(a > b) < 1
    assert value(evaluated, PAIRS) == pytest.approx(np.mean(a > b))
    by_length = a / [len(row["chosen"]) for row in rows] > b / [len(row["rejected"]) for row in rows]
    assert evaluated["details"]["tasks"][PAIRS]["metrics"][PAIRS]["acc_norm,none"] == pytest.approx(np.mean(by_length))
    sides = [
        json.loads(line)["label"] for line in (trained / "evaluation" / "held_out_pairs.jsonl").read_text().splitlines()
    ]
    assert sides == [0, 1] * 20


def test_what_is_recorded(evaluated: dict, trained: Path) -> None:
    import lm_eval

    details = evaluated["details"]
    assert details["lm_eval"] == lm_eval.__version__
    assert details["tasks"]["word_choice"]["shots"] == {"word_choice": 0}
    assert details["tasks"]["word_choice"]["n"] == {"word_choice": {"original": ASKED, "effective": ASKED}}
    assert details["tasks"]["word_choice"]["chat_template"] is False
    assert evaluated["examples"] == 2 * ASKED + 40
    assert evaluated["notes"] == []
    samples = trained / "evaluation" / "leaderboard_samples"
    assert {f.name: len(f.read_text().splitlines()) for f in samples.iterdir()} == {
        "word_choice.jsonl": ASKED,
        "word_answer.jsonl": ASKED,
        "held_out_pairs.jsonl": 40,
    }


def test_lm_evals_command_line_says_the_same(evaluated: dict, trained: Path, home: Path, questions: dict) -> None:
    command = [
        *(str(quick_python(home)), "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "7"),
        *("--model_args", f"pretrained={trained / 'policy'}", "--tasks", "word_choice,word_answer"),
        *("--include_path", str(home / "own"), "--output_path", str(home / "output")),
    ]
    subprocess.run(command, check=True, capture_output=True)
    output = json.loads(next((home / "output").rglob("results_*.json")).read_text())["results"]
    ours = evaluated["details"]["tasks"]
    for name, metric in (("word_choice", "acc"), ("word_answer", "exact_match")):
        for key in (f"{metric},none", f"{metric}_stderr,none"):
            assert ours[name]["metrics"][name][key] == pytest.approx(output[name][key])


def test_another_environment_says_the_same(evaluated: dict, trained: Path, home: Path, questions: dict) -> None:
    _evaluate_outside(trained, home, quick_python(home), "held_out_pairs")
    outside = result(trained, "leaderboard")
    assert outside["measures"]["held_out_pairs"] == pytest.approx(evaluated["measures"]["held_out_pairs"])
    assert outside["details"]["python"] == str(home / "python")


@pytest.mark.slow
def test_an_environment_with_all_tasks_agrees(evaluated: dict, trained: Path, home: Path, questions: dict) -> None:
    _evaluate_outside(trained, home, Path(sys.executable), "word_answer")
    assert value(result(trained, "leaderboard"), "word_answer") == 0.5


def test_a_command_line_that_fails(
    trained: Path, home: Path, questions: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = home / "failing"
    failing.write_text(f'#!/bin/sh\n[ $1 = -m ] || exec {sys.executable} "$@"\necho no memory left. >&2; exit 3\n')
    failing.chmod(0o755)
    _evaluate_outside(trained, home, failing, "word_choice", fails=1)
    output = capsys.readouterr().err
    names(output, "leaderboard.tasks=word_choice:", "no memory left.", "-m lm_eval")
    assert "evaluation/leaderboard.log" in output


def test_data_that_is_on_the_hub(trained: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A leaderboard goes on without it and says so; a task that was named itself is an error."""
    with inside(trained.parent):
        evaluate("run", "suite=leaderboard", "leaderboard.tasks=[arc_easy]", fails=1)
        names(capsys.readouterr().err, "leaderboard.tasks=arc_easy:", "data")
        evaluate("run", "suite=leaderboard", "leaderboard.tasks=[leaderboard_v2,held_out_pairs]", "leaderboard.limit=4")
    evaluated = result(trained, "leaderboard")
    assert set(evaluated["measures"]) == {PAIRS}
    assert evaluated["measures"][PAIRS]["n"] == evaluated["examples"] == 4
    assert set(evaluated["details"]["left_out"]) == {row.task for row in BOARDS[V2]}
    names(evaluated["details"]["left_out"]["leaderboard_gpqa"], "data")
    assert any(holds(note, "leaderboard_gpqa") and holds(note, "data") for note in evaluated["notes"])
    assert any(holds(note, "limit=4") and holds(note, "leaderboard") for note in evaluated["notes"])


def _evaluate_outside(trained: Path, home: Path, python: Path, *tasks: str, fails: int | None = None) -> None:
    with inside(trained.parent):
        evaluate(
            "run",
            "suite=leaderboard",
            f"leaderboard.tasks=[{','.join(tasks)}]",
            f"leaderboard.include_path={home / 'own'}",
            f"leaderboard.python={python}",
            fails=fails,
        )
