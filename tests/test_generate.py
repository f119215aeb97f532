"""The command on trained runs and on models: whose responses, to what, and what is kept of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldpo.data.datamodule import PairDataModule
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.generation import chat
from caldpo.generation import generation_run as module
from tests.callbacks.oracle_data import naive_logprob
from tests.evaluation.runs import inside, reference_model, tiny_run, write_data
from tests.helpers.messages import names
from tests.test_generate_prompts import chat_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on prompts of plain text, of a model that reads 64 tokens."""
    home = tmp_path_factory.mktemp("generate")
    write_data(home)
    return tiny_run(home, "model.max_position_embeddings=64")


@pytest.fixture(scope="module")
def conversed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on conversations."""
    home = tmp_path_factory.mktemp("converse")
    write_data(home)
    chat_tokenizer().save_pretrained(home / "tokenizer")
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (home / f"{name}.jsonl").read_text().splitlines()]
        for row in rows:
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
            row |= {side: [{"role": "assistant", "content": row[side].strip()}] for side in ("chosen", "rejected")}
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_run(home)


def command(run: Path, *arguments: str) -> None:
    """Run the command in this process, from beside the run."""
    from caldpo.generate import main

    with inside(run.parent):
        main([run.name, *arguments])


def generate(run: Path, *arguments: str) -> pd.DataFrame:
    """The table that the command wrote."""
    command(run, *arguments)
    return table(run)


def table(run: Path, name: str = "generations") -> pd.DataFrame:
    return pd.read_csv(run / "evaluation" / f"{name}.csv", keep_default_na=False)


def first_prompts(run: Path, count: int) -> list[Any]:
    rows = [json.loads(line) for line in (run.parent / "test.jsonl").read_text().splitlines()]
    return [row["prompt"] for row in rows[::2]][:count]  # two pairs have one prompt


def as_list(texts: list[str]) -> str:
    return f"prompts={json.dumps(texts)}"


def test_policy_and_reference_answer_the_first_held_out_prompts(trained: Path) -> None:
    table = generate(trained, "count=3", "samples=2", "seed=5", "temperature=0.8")
    assert list(table["prompt"]) == [p for p in first_prompts(trained, 3) for _ in range(4)]
    assert list(zip(table["who"], table["sample"], strict=True)) == [
        (who, sample) for _ in range(3) for who in ("policy", "reference") for sample in (0, 1)
    ]
    assert set(table["seed"]) == {5}
    assert set(table["temperature"]) == {0.8}
    assert set(table["true_reward"]) == {""}
    assert (table["tokens"] <= 6).all()  # as long as the run's own samples
    assert (table.loc[~table["ended"], "tokens"] == 6).all()


def test_log_ratios_are_those_of_transformers_alone(trained: Path) -> None:
    table = generate(trained, "count=8", "samples=3")
    tokenizer = AutoTokenizer.from_pretrained(trained / "policy")
    policy = AutoModelForCausalLM.from_pretrained(trained / "policy").double()
    with inside(trained.parent):
        reference = reference_model().double()
    checked = 0
    for row in table.itertuples():
        ids = tokenizer(row.response).input_ids + [tokenizer.eos_token_id] * row.ended
        if len(ids) != row.tokens:  # special tokens in the middle, which text does not show
            continue
        prompt = tokenizer(row.prompt).input_ids
        ratio = naive_logprob(policy, prompt, ids) - naive_logprob(reference, prompt, ids)
        assert float(row.log_ratio) == pytest.approx(float(ratio), abs=1e-4)
        checked += 1
    assert checked > 24


def test_they_are_the_samples_that_suites_look_at(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[EvaluatedPolicy] = []

    class Kept(EvaluatedPolicy):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(module, "EvaluatedPolicy", Kept)
    table = generate(trained, "count=4", "samples=2")
    (policy,) = made
    sampling = policy.sampling(4, 2, None, 1.0)
    for who in ("policy", "reference"):
        drawn = [policy.decode(ids) for ids in policy.samples(who, sampling)]
        assert list(table.loc[table["who"] == who, "response"]) == drawn


def test_greedy_takes_the_likeliest_token(trained: Path) -> None:
    table = generate(trained, "count=2", "temperature=0", "max_new_tokens=9", "compare=false")
    tokenizer = AutoTokenizer.from_pretrained(trained / "policy")
    policy = AutoModelForCausalLM.from_pretrained(trained / "policy").eval()
    for row in table.itertuples():
        ids = tokenizer(row.prompt).input_ids
        answer: list[int] = []
        while len(answer) < 9 and answer[-1:] != [tokenizer.eos_token_id]:
            with torch.no_grad():
                answer.append(int(policy(torch.tensor([ids + answer])).logits[0, -1].argmax()))
        assert row.response == tokenizer.decode(answer, skip_special_tokens=True)
        assert row.tokens == len(answer)


def test_without_comparison_the_reference_is_not_loaded(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the reference was loaded")

    monkeypatch.setattr(EvaluatedPolicy, "_load_reference", refuse)
    table = generate(trained, "count=2", "compare=false")
    assert set(table["who"]) == {"policy"}
    assert set(table["log_ratio"]) == {""}


class TestGivenPrompts:
    def test_a_held_out_prompt_typed_gets_the_same_answers(self, trained: Path, capsys) -> None:
        held_out = generate(trained, "count=3")
        typed = generate(trained, as_list(first_prompts(trained, 3)))
        pd.testing.assert_frame_equal(held_out, typed)
        assert "template" not in capsys.readouterr().out

    def test_in_a_conversational_run_a_text_is_a_users_turn(self, conversed: Path, capsys) -> None:
        held_out = generate(conversed, "count=3")
        texts = [prompt[0]["content"] for prompt in first_prompts(conversed, 3)]
        typed = generate(conversed, as_list(texts))
        pd.testing.assert_frame_equal(held_out, typed)
        assert json.loads(typed["prompt"][0]) == [{"role": "user", "content": texts[0]}]
        names(capsys.readouterr().out, "chat template", "conversations")
        plain = generate(conversed, as_list(texts), "as_chat=false")
        assert list(plain["prompt"][::2]) == texts
        assert list(plain["log_ratio"]) != list(typed["log_ratio"])

    def test_a_turn_by_request(self, trained: Path) -> None:
        table = generate(trained, as_list(["w1 w2"]), "as_chat=true")
        assert set(table["prompt"]) == {'[{"role": "user", "content": "w1 w2"}]'}

    def test_too_long_a_prompt_is_refused(self, trained: Path, capsys) -> None:
        with pytest.raises(SystemExit) as stopped:
            generate(trained, as_list([" ".join(["w1"] * 64)]))
        assert stopped.value.code == 1
        names(capsys.readouterr().err, "error:", "64 tokens", "64")
        table = generate(trained, as_list([" ".join(["w1"] * 61)]), "samples=8")
        assert table["tokens"].max() == 3  # what there is room for


def test_true_rewards_where_the_data_knows_them(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def reward(prompt: str, response: str) -> float:
        if prompt == "w1":
            raise KeyError(prompt)  # as a table of rewards does
        return len(prompt) + 100.0 * len(response.split())

    monkeypatch.setattr(PairDataModule, "oracle", property(lambda self: reward))
    table = generate(trained, "count=2")
    expected = [reward(row.prompt, row.response) for row in table.itertuples()]
    assert list(table["true_reward"].astype(float)) == expected
    names(capsys.readouterr().out, "reward", "true")
    assert set(generate(trained, as_list(["w1"]))["true_reward"]) == {""}


class TestModel:
    def test_needs_no_data_for_given_prompts(self, trained: Path, tmp_path: Path, capsys) -> None:
        from caldpo.generate import main

        texts = first_prompts(trained, 2)
        with inside(trained.parent):
            reference_model().save_pretrained(tmp_path / "start")
        paths = [f"model.path={trained / 'policy'}", f"reference.path={tmp_path / 'start'}", f"output={tmp_path}"]
        main([*paths, as_list(texts), "max_new_tokens=6", "as_chat=false"])
        of_model = pd.read_csv(tmp_path / "evaluation" / "generations.csv", keep_default_na=False)
        of_run = generate(trained, as_list(texts))
        assert list(of_model["response"]) == list(of_run["response"])
        assert of_model["log_ratio"].astype(float).to_numpy() == pytest.approx(of_run["log_ratio"].astype(float))

    def test_has_no_reference_unless_it_is_named(self, trained: Path, tmp_path: Path, capsys) -> None:
        from caldpo.generate import main

        main([f"model.path={trained / 'policy'}", as_list(["w1"]), f"output={tmp_path}", "max_new_tokens=4"])
        table = pd.read_csv(tmp_path / "evaluation" / "generations.csv", keep_default_na=False)
        assert list(table["who"]) == ["policy"]
        assert table["prompt"][0] == '[{"role": "user", "content": "w1"}]'
        names(capsys.readouterr().out, "tokenizer", "chat template")


class Typed(io.StringIO):
    """What a person types, who presses Ctrl-C in the end where ``interrupt`` says so."""

    def __init__(self, *lines: str, interrupt: bool = False) -> None:
        super().__init__("".join(f"{line}\n" for line in lines))
        self.interrupt = interrupt

    def readline(self, *arguments: int) -> str:  # type: ignore[override]
        line = super().readline(*arguments)
        if not line and self.interrupt:
            raise KeyboardInterrupt
        return line


class TestChat:
    def converse(self, run: Path, monkeypatch: pytest.MonkeyPatch, typed: Typed, *arguments: str) -> pd.DataFrame:
        """The rows that one session added; it ends by itself, without an exit code."""
        file = run / "evaluation" / "chat.csv"
        before = len(table(run, "chat")) if file.exists() else 0
        monkeypatch.setattr(sys, "stdin", typed)
        command(run, "chat=true", "max_new_tokens=4", *arguments)
        return table(run, "chat")[before:].reset_index(drop=True) if file.exists() else pd.DataFrame()

    def test_text_lines_are_prompts_of_their_own(self, trained: Path, monkeypatch, capsys) -> None:
        rows = self.converse(trained, monkeypatch, Typed("w1 w2", "", "/qiut", "w1 w2", "/quit", "w5"), "seed=3")
        assert list(rows["prompt"]) == ["w1 w2"] * 4
        assert list(rows["who"]) == ["policy", "reference"] * 2
        assert list(rows["turn"]) == [0, 0, 1, 1]
        assert list(rows["seed"]) == [3, 3, 4, 4]  # the same question may get another answer
        names(capsys.readouterr().out, "/qiut")
        again = self.converse(trained, monkeypatch, Typed("w1 w2"), "seed=4")
        for name in ("response", "log_ratio"):
            assert list(again[name]) == list(rows[name][2:])

    def test_nothing_is_lost_at_an_interrupt(self, trained: Path, monkeypatch, capsys) -> None:
        rows = self.converse(trained, monkeypatch, Typed("w3", "w4", interrupt=True), "compare=false")
        assert list(rows["prompt"]) == ["w3", "w4"]
        names(capsys.readouterr().out, "run/evaluation/chat.csv")

    def test_a_turn_that_cannot_be_answered_ends_nothing(self, trained: Path, monkeypatch, capsys) -> None:
        rows = self.converse(trained, monkeypatch, Typed(" ".join(["w1"] * 70), "w4"), "compare=false")
        assert list(rows["prompt"]) == ["w4"]
        names(capsys.readouterr().out, "70 tokens")

    def test_a_conversation_goes_on_with_the_policys_answers(self, conversed: Path, monkeypatch) -> None:
        asked: list[Any] = []
        encode = chat.as_prompt
        monkeypatch.setattr(chat, "as_prompt", lambda policy, prompt: asked.append(prompt) or encode(policy, prompt))
        rows = self.converse(conversed, monkeypatch, Typed("w1", "w2", "/new", "w3"))
        answers = rows.loc[rows["who"] == "policy", "response"].tolist()
        assert [[(m["role"], m["content"]) for m in prompt] for prompt in asked] == [
            [("user", "w1")],
            [("user", "w1"), ("assistant", answers[0]), ("user", "w2")],
            [("user", "w3")],
        ]
        assert list(rows["conversation"]) == [0, 0, 0, 0, 1, 1]
        assert list(rows["prompt"][::2]) == ["w1", "w2", "w3"]

    def test_nothing_typed_leaves_nothing(self, trained: Path, monkeypatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "stdin", Typed("/quit"))
        command(trained, "chat=true", f"output={tmp_path}")
        assert not list(tmp_path.rglob("chat.csv"))
