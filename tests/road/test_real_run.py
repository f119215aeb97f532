"""The road of a real run, over tiny folders as the hub has them: what each command leaves, the next one takes.

``model=hf model.path=FOLDER`` is trained, killed, resumed, measured by every suite that runs offline, read, exported,
loaded by transformers alone, and trained again. ``CALDPO_ROAD=all`` takes the adapter over every family, too.
"""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation.runs import evaluate, inside, result, value
from tests.helpers.command import call, train
from tests.resume.child import Kill
from tests.resume.runs import train as train_apart
from tests.road.folders import FAMILIES, rows, write_classifier, write_model, write_rows

RUN = (
    "model=hf",
    "data.train=train.jsonl",
    "data.test=test.jsonl",
    "data.micro_batch_size=8",
    "loss=dpo",
    "trainer=cpu",
    "trainer.val_check_interval=3",
    "trainer.progress_bar=false",
    "logger=csv",
    "console=compact",
    "callbacks.samples.prompts=2",
    "callbacks.samples.max_new_tokens=4",
    "callbacks.oracle.max_new_tokens=6",
)
EVALUATION = (
    "suite=[preference,displacement,oracle,judge,leaderboard]",
    "preference.resamples=10",
    "displacement.resamples=10",
    "oracle.resamples=10",
    "oracle.prompts=4",
    "oracle.classifier=classifier",
    "oracle.positive_label=LABEL_1",
    "judge.mock=true",
    "judge.prompts=4",
    "judge.resamples=10",
    "leaderboard.tasks=[held_out_pairs]",
    "leaderboard.bootstrap_iters=0",
)
SUITES = ("preference", "displacement", "oracle", "judge_mock", "leaderboard")
ALL = os.environ.get("CALDPO_ROAD") == "all"
ADAPTED = sorted(FAMILIES) if ALL else ("gpt2", "gpt_oss", "qwen3")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, a classifier for a reward, and a model of each family."""
    folder = tmp_path_factory.mktemp("road")
    write_rows(folder)
    write_classifier(folder / "classifier")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_whole_weights(home: Path, family: str) -> None:
    walk(home, family, "optim.lr=0.003", run=f"{family}-whole")


@pytest.mark.slow
@pytest.mark.parametrize("family", ADAPTED)
def test_adapter(home: Path, family: str) -> None:
    pytest.importorskip("peft")
    walk(home, family, "adapter=lora", "adapter.rank=4", "optim.lr=0.02", run=f"{family}-lora")


def walk(home: Path, family: str, *how: str, run: str) -> None:
    """From a published folder to a trained one and on from there."""
    pytest.importorskip("lm_eval")
    if not (home / family).is_dir():
        write_model(home / family, family)
    adapted = "adapter=lora" in how

    command = [*RUN, f"model.path={family}", *how, "trainer.max_steps=6", "callbacks.checkpoint.every=2"]
    killed = train_apart(home, *command, f"hydra.run.dir={run}", kill=Kill("update", 4, signal.SIGKILL))
    assert killed.codes == (-signal.SIGKILL,), killed.said
    with inside(home):
        train(f"resume={run}")
        summary = json.loads(Path(run, "summary.json").read_text())
        assert (summary["status"], summary["steps"], summary["start_difference"]) == ("finished", 6, 0)
        with Path(run, "metrics.csv").open(newline="") as file:
            steps = [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]
        assert steps == list(range(6))

        evaluate(run, *EVALUATION)
        call_generate(run, "count=2", "max_new_tokens=4")
        assert len(Path(run, "evaluation/generations.csv").read_text().splitlines()) >= 3
        call_export(run, f"to=exports/{run}", *(["merge=true"] if adapted else []))

    for suite in SUITES:
        assert result(home / run, suite)["examples"] > 0, suite
    after, before = logprobs(home / "exports" / run), logprobs(home / family)
    trained = summary["metrics"]
    for side, said in zip(("chosen", "rejected"), after.mean(1).tolist(), strict=True):
        assert trained[f"val/logps/{side}"] == pytest.approx(said, abs=2e-3)
    ratios = after - before
    assert ratios.abs().max() > 0.05, "training has moved the policy"
    measured = result(home / run, "preference")
    assert value(measured, "accuracy") == pytest.approx((ratios[0] > ratios[1]).double().mean().item())
    assert value(measured, "margin") == pytest.approx(0.1 * (ratios[0] - ratios[1]).mean().item(), abs=1e-3)

    with inside(home):
        again = [
            *RUN,
            f"model.path=exports/{run}",
            "optim.lr=0.003",
            "trainer.max_steps=1",
            "callbacks.samples.prompts=0",
        ]
        train(*again, f"hydra.run.dir={run}-again")
        summary = json.loads(Path(f"{run}-again", "summary.json").read_text())
        assert (summary["status"], summary["start_difference"]) == ("finished", 0)
        with Path(f"{run}-again", "metrics.csv").open(newline="") as file:
            first = next(csv.DictReader(file))
    assert float(first["val/logps/chosen"]) == pytest.approx(trained["val/logps/chosen"], abs=2e-3)


def call_generate(*arguments: str) -> None:
    from caldpo.generate import main

    call(main, arguments, None)


def call_export(*arguments: str) -> None:
    from caldpo.export import main

    call(main, arguments, None)


def logprobs(folder: Path) -> torch.Tensor:
    """Summed log-probs of the held-out responses by transformers alone, one at a time, nats: (2, pairs)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows(8, 2):
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        start = tokenizer(asked, add_special_tokens=False).input_ids
        for side in ("chosen", "rejected"):
            answer = row[side][0]["content"] + tokenizer.eos_token
            ids = torch.tensor([*start, *tokenizer(answer, add_special_tokens=False).input_ids])
            with torch.no_grad():
                said = model(ids[None], use_cache=False).logits[0].double().log_softmax(-1)
            found.append(said[len(start) - 1 : -1].gather(1, ids[len(start) :, None]).sum())
    return torch.stack(found).view(-1, 2).T
