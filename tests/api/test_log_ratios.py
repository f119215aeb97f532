"""``caldpo.log_ratios``, ``evaluate`` and ``compare``: their numbers, computed another way."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

import caldpo
from tests.api.test_fit import SETTINGS, rows
from tests.helpers.messages import refused
from tests.helpers.tiny import WORDS, tiny_model, tiny_tokenizer


def by_hand(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """The sum of log-probs of a response and its end, by one plain forward pass of transformers."""
    head = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([[*head, *tokenizer(response)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
    return float(logps.gather(1, ids[0, 1:, None])[len(head) - 1 :].sum())


def test_they_are_those_of_plain_forward_passes(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("tokenizer")
    policy, reference = tiny_model(seed=1), tiny_model(seed=2)
    pairs = [{**rows()[0], "chosen": " w1"}, *rows()[:5], rows()[0]]  # of several lengths, one twice
    frame = caldpo.log_ratios(policy, reference, pairs, tokenizer=tokenizer, batch_size=4)
    assert frame["prompt"].tolist() == [row["prompt"] for row in pairs]
    for side in ("chosen", "rejected"):
        for name, model in (("policy", policy), ("reference", reference)):
            expected = [by_hand(model, tokenizer, row["prompt"], row[side]) for row in pairs]
            assert frame[f"{name}_{side}"].tolist() == pytest.approx(expected, abs=1e-4)
        difference = frame[f"policy_{side}"] - frame[f"reference_{side}"]
        assert frame[f"{side}_log_ratio"].tolist() == difference.tolist()
        assert frame[f"{side}_tokens"].tolist() == [len(row[side].split()) + 1 for row in pairs]
    assert policy.training is False
    # a folder, a name of a file and a table are the same
    policy.save_pretrained("policy")
    tokenizer.save_pretrained("policy")
    Path("some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    table = pd.DataFrame(pairs)
    indexed = [table.set_index("prompt"), table.set_index(["prompt", "chosen"]), table.set_index(table.index + 7)]
    indexed.append(table.set_index(["prompt", table.index]))  # one level with a name
    for given in (table, *indexed, "some.jsonl", ["some.jsonl"]):
        pd.testing.assert_frame_equal(caldpo.log_ratios("policy", reference, given, batch_size=4), frame)
    assert not Path("outputs").exists(), "nothing is written"


def test_truncation_is_asked_for_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained("tokenizer")
    pairs = [{"prompt": "w1 w2 w3", "chosen": " w4 w5 w6", "rejected": " w7"}]
    whole = caldpo.tokenize(pairs, tokenizer)[0]
    assert (len(whole.prompt_ids), len(whole.chosen_ids), len(whole.rejected_ids)) == (3, 4, 2)
    assert capsys.readouterr().out == ""
    cut = caldpo.tokenize(pairs, tokenizer, max_length=4, max_prompt_length=2)[0]
    assert (cut.prompt_ids, cut.chosen_ids) == (whole.prompt_ids[-2:], whole.chosen_ids[:2])
    assert "max_length=4" in capsys.readouterr().out
    for limits in ({"max_length": 1}, {"max_length": 4, "max_prompt_length": 4}):
        with refused(key="max_prompt_length", remedy="max_length"):
            caldpo.tokenize(pairs, tokenizer, **limits)


def test_every_row_counts(folder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained("tokenizer"), tiny_model()
    bad = [*rows()[:2], {"prompt": "w1", "chosen": "w2"}, {"prompt": "w1", "chosen": 3, "rejected": "w2"}]
    with refused("2 of 4 rows", "pairs[2]:", "pairs[3]:", key="pairs") as caught:
        caldpo.log_ratios(model, model, bad, tokenizer=tokenizer)
    assert "jsonl" not in str(caught.value), "the file that the rows pass through is deleted"
    with refused("1 of 3 rows", "pairs[2]:", key="pairs"):
        caldpo.tokenize(pd.DataFrame(bad[:3]), tokenizer)
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    with refused("2 of 4 rows", "bad.jsonl:3:", key="pairs"):
        caldpo.tokenize("bad.jsonl", tokenizer)
    assert [pair.origin for pair in caldpo.tokenize(bad[:2], tokenizer)] == ["pairs[0]", "pairs[1]"]
    with refused("columns", key="pairs"):  # of a table, not of a row
        caldpo.tokenize(pd.DataFrame({"text": ["a"], "other": ["b"]}), tokenizer)
    several = [{"prompt": "w1", "responses": ["w2", "w3", "w4"], "scores": [1, 2, "x"]}]
    with refused("pairs[0]", key="pairs"):
        caldpo.tokenize(several, tokenizer)
    with refused(key="tokenizer", remedy="tokenizer="):
        caldpo.log_ratios(model, model, rows())
    with refused(key="reference"):
        caldpo.log_ratios(model, None, rows(), tokenizer=tokenizer)
    with refused("int", key="policy"):
        caldpo.log_ratios(3, model, rows(), tokenizer=tokenizer)  # type: ignore[arg-type]
    with refused(key="batch_size", value=0):
        caldpo.log_ratios(model, model, rows(), tokenizer=tokenizer, batch_size=0)
    small = copy.deepcopy(model)
    small.resize_token_embeddings(20)
    with refused(20, key="tokenizer"):
        caldpo.log_ratios(small, small, rows(), tokenizer=tokenizer)


def test_a_reference_with_another_tokenizer_is_refused(folder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained("tokenizer"), tiny_model()
    for name, words in (("model", WORDS), ("other", WORDS[::-1])):
        model.save_pretrained(name)
        tiny_tokenizer(words).save_pretrained(name)
    Path("other/model.safetensors").rename("weights")  # whoever loads them fails otherwise
    for policy, given in (("model", None), (model, tokenizer)):
        with refused("40 of 44 tokens", "'w0'", "'w39'", key="reference", value="other", remedy="tokenizer"):
            caldpo.log_ratios(policy, "other", rows(), tokenizer=given)
        with refused("40 of 44 tokens", key="reference.path", value="other", remedy="tokenizer"):
            caldpo.evaluate(policy, rows(), "preference", reference="other", tokenizer=given)
    Path("weights").rename("other/model.safetensors")
    for file in Path("other").glob("tokenizer*"):
        file.unlink()
    assert (caldpo.log_ratios("model", "other", rows())["chosen_log_ratio"] == 0).all()


def test_a_run_is_measured_and_compared(folder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained("tokenizer"), tiny_model()
    given: dict[str, Any] = {"tokenizer": tokenizer, "lr": 0.02, "max_steps": 2, "settings": SETTINGS}
    runs = [caldpo.fit(model, rows()[:16], loss, test_pairs=rows()[16:], **given) for loss in ("dpo", "cal_dpo")]

    frame = caldpo.log_ratios(runs[0], None, rows()[16:])  # the policy and the reference of the run
    assert frame["chosen_log_ratio"].mean() == pytest.approx(runs[0].final["val/log_ratios/chosen"], abs=1e-4)
    assert frame["rejected_log_ratio"].mean() == pytest.approx(runs[0].final["val/log_ratios/rejected"], abs=1e-4)
    pd.testing.assert_frame_equal(caldpo.log_ratios(str(runs[0].folder), None, rows()[16:]), frame)
    of_both = caldpo.log_ratios(runs[0], str(runs[1].folder), rows()[16:])
    assert of_both["reference_chosen"].equals(caldpo.log_ratios(runs[1], None, rows()[16:])["policy_chosen"])
    for reference in (runs[1], str(runs[1].folder)):
        measures = caldpo.evaluate(runs[0], rows()[16:], "preference", reference=reference).set_index("measure")
        expected = of_both["chosen_log_ratio"].mean()
        assert measures.loc["log_ratio_chosen", "value"] == pytest.approx(expected, abs=1e-4)
    with refused("2 runs", key="run"):
        caldpo.log_ratios("outputs", None, rows())

    measures = caldpo.evaluate(runs[0], suites="preference").set_index("measure")
    correct = frame["chosen_log_ratio"] > frame["rejected_log_ratio"]
    assert measures["suite"].unique().tolist() == ["preference"]
    assert measures.loc["accuracy", "value"] == correct.mean()
    assert measures.loc["log_ratio_chosen", "value"] == pytest.approx(frame["chosen_log_ratio"].mean(), abs=1e-4)
    low, value, high = measures.loc["log_ratio_chosen", ["low", "value", "high"]]
    assert low <= value <= high

    # other pairs, and a model in memory against the same reference: the run's policy by another way
    others = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows()[:8]]
    of_run = caldpo.evaluate(runs[0], others, ["preference"]).set_index("measure")
    alone = caldpo.evaluate(
        runs[0].policy, others, ["preference"], reference=model, tokenizer=tokenizer, settings={"device": "cpu"}
    ).set_index("measure")
    expected = caldpo.log_ratios(runs[0].policy, model, others, tokenizer=tokenizer)["chosen_log_ratio"].mean()
    for found in (of_run, alone):
        assert found.loc["log_ratio_chosen", "value"] == pytest.approx(expected, abs=1e-4)
        assert found.loc["accuracy", "n"] == 8
    with refused(key="reference.path", remedy="reference.path"):
        caldpo.evaluate(runs[0].policy, others, "preference", tokenizer=tokenizer)
    with refused("preferences"):
        caldpo.evaluate(runs[0], suites="preferences")

    comparison = caldpo.compare([runs[0], runs[1].folder], folder="compared")
    assert comparison.folder == folder / "compared"
    table = comparison.table.set_index("loss")
    for run in runs:
        found = table.loc[run.summary["loss_name"], "val/log_ratios/chosen"]
        assert found == pytest.approx(run.final["val/log_ratios/chosen"], rel=1e-5)
    assert "cal_dpo" in comparison.report.read_text()
    assert "cal_dpo" in comparison.page.read_text()
    with refused("int", key="runs[0]"):
        caldpo.compare([1])  # type: ignore[list-item]
    with refused(key="sweep", value=folder / "nowhere"):
        caldpo.compare("nowhere")
