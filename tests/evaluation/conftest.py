"""One trained run for all tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.callbacks.oracle_data import naive_logprob
from tests.evaluation.runs import TINY_RUN, inside, reference_model, tiny_run, write_data
from tests.helpers.command import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with an export and all its checkpoints; its data lies beside it."""
    home = tmp_path_factory.mktemp("evaluated")
    write_data(home)
    return tiny_run(home, "callbacks.checkpoint.every=4", "callbacks.checkpoint.keep=all")


@pytest.fixture(scope="session")
def naive(trained: Path) -> dict[str, np.ndarray]:
    """Log-ratios, lengths and scores by transformers alone, sequence by sequence in float64."""
    tokenizer = AutoTokenizer.from_pretrained(trained / "policy")
    policy = AutoModelForCausalLM.from_pretrained(trained / "policy").double()
    with inside(trained.parent):
        reference = reference_model().double()
    rows = [json.loads(line) for line in (trained.parent / "test.jsonl").read_text().splitlines()]
    columns: dict[str, list[float]] = {name: [] for name in ("a", "b", "n_w", "n_l", "s_w", "s_l")}
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        for side, ratio, length, score in (("chosen", "a", "n_w", "s_w"), ("rejected", "b", "n_l", "s_l")):
            ids = [*tokenizer(row[side]).input_ids, tokenizer.eos_token_id]
            columns[ratio].append(naive_logprob(policy, prompt, ids) - naive_logprob(reference, prompt, ids))
            columns[length].append(len(ids))
            columns[score].append(row[f"score_{side}"])
    return {name: np.array(values) for name, values in columns.items()} | {
        "prompt": np.array([r["prompt"] for r in rows])
    }


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two losses, two seeds."""
    home = tmp_path_factory.mktemp("sweep")
    write_data(home)
    with inside(home):
        train("-m", *TINY_RUN, "loss=dpo,cal_dpo", "seed=0,1", "hydra.sweep.dir=sweep")
    return home / "sweep"
