"""Whole runs on real preference pairs with a real tokenizer, and on the embedded environment."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.helpers.command import SIDES, train
from tests.helpers.shared import shared

ZEPHYR = [
    "model=random",
    "model.num_layers=1",
    "model.hidden_size=16",
    "model.num_heads=2",
    "data=local",
    "logger=csv",
]
QUICK = ["trainer.max_steps=2", "trainer.val_check_interval=null", "data.max_test_pairs=8", "data.micro_batch_size=2"]
LIMITS = [
    "data.max_length=256",
    "data.max_prompt_length=128",
    "callbacks.samples.prompts=0",
    "hydra.run.dir=run",
]


def lengths(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """Tokens of prompt, chosen and rejected response by the real tokenizer, text put together by hand."""
    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/zephyr"))
    found = []
    for row in rows:
        prompt = "".join(f"<|{m['role']}|>\n{m['content']}</s>\n" for m in row["chosen"][:-1]) + "<|assistant|>\n"
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        sides = [tokenizer(prompt + row[s][-1]["content"], add_special_tokens=False).input_ids for s in SIDES]
        found.append((len(ids), *(len(side) - len(ids) + 1 for side in sides)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_prefs", "gsm8k_correctness_pairs"])
def test_real_pairs_with_the_real_tokenizer(name: str, folder: Path) -> None:
    """Every row is kept, and the truncated ones are as many as counting by hand finds."""
    file, tokenizer = shared(f"data/{name}.jsonl.gz"), shared("tokenizers/zephyr")
    test = [f"data.test={shared('data/test_prefs.jsonl.gz')}"]
    train(*ZEPHYR, *QUICK, *LIMITS, f"model.tokenizer={tokenizer}", f"data.train={file}", *test, "loss=cal_dpo")
    data = json.loads(Path("run/summary.json").read_text())["data"]
    with gzip.open(file) as lines:
        rows = [json.loads(line) for line in lines]
    counted = lengths(rows)
    cut = {"prompt": 0, "chosen": 0, "rejected": 0}
    for prompt, *responses in counted:
        kept = prompt if prompt + max(responses) <= 256 else min(prompt, 128)
        cut["prompt"] += kept < prompt
        for side, tokens in zip(SIDES, responses, strict=True):
            cut[side] += tokens > 256 - kept
    assert data["train"]["truncated"] == cut
    assert data["train"]["pairs"] + data["train"]["identical_after_truncation"] == len(rows)


@pytest.mark.slow
def test_hh_transcripts_drop_the_known_bad_rows(folder: Path) -> None:
    file, tokenizer = shared("data/hh_harmless_test.jsonl.gz"), shared("tokenizers/zephyr")
    files = [f"model.tokenizer={tokenizer}", f"data.train={file}", "data.on_invalid=skip"]
    train(*ZEPHYR, *QUICK, *LIMITS, *files, "loss=dpo")
    rejected = [json.loads(line) for line in Path("run/rejected_rows.jsonl").read_text().splitlines()]
    bad = {86, 516, 925, 1103, 1254, 1688, 1950, 1952, 2036}  # rows from 0; lines count from 1
    assert {int(row["origin"].rsplit(":", 1)[1]) - 1 for row in rejected if row["kind"] == "row"} == bad
    assert json.loads(Path("run/summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_the_embedded_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m caldpo.train``, shortened: pairs with a known reward, and what generations earn."""
    monkeypatch.chdir(tmp_path)
    train("trainer.max_steps=20", "logger=csv", "hydra.run.dir=run", "trainer.progress_bar=false")
    summary = json.loads(Path("run/summary.json").read_text())
    metrics = summary["metrics"]
    assert summary["loss_name"] == "cal_dpo"
    names = {"reward", "reference_reward", "win_rate", "kl", "slope", "pearson", "error"}
    assert {f"oracle/{name}" for name in names} <= metrics.keys()
    assert metrics["val/log_ratios/chosen"] > 0
    assert metrics["val/rewards/margins"] > 0
    assert 0 < metrics["oracle/kl"] < 50
    assert 0 <= metrics["oracle/win_rate"] <= 1
    train("trainer.max_steps=20", "logger=csv", "hydra.run.dir=again", "trainer.progress_bar=false")
    again = json.loads(Path("again/summary.json").read_text())["metrics"]
    for name in ("val/loss", "oracle/reward", "oracle/kl"):
        assert again[name] == metrics[name]  # the cached SFT policy is the one that was fitted
