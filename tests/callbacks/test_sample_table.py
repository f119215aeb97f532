"""The table of samples: one row a prompt at each evaluation, in samples.jsonl and in a tracker with tables."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from caldpo.callbacks.sample_table import SampleTable
from tests.callbacks.oracle_data import OracleData, fit, make_module, reward, scored_pairs, words
from tests.helpers.tiny import sample_responses

SAMPLING: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 4}
PROMPTS = [p.prompt_ids for p in scored_pairs()[::2][:3]]


class Tables(Logger):
    """A tracker that keeps what its tables are given."""

    name = version = "tables"

    def __init__(self) -> None:
        super().__init__()
        self.given: list[dict[str, Any]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Not looked at."""

    def log_hyperparams(self, *args: Any, **keys: Any) -> None:
        """Not looked at."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.given.append({"key": key, "columns": columns, "data": [list(row) for row in data], "step": step})


class SeenPolicies(pl.Callback):
    """What the policy of each evaluation samples, asked for beside the table."""

    def __init__(self) -> None:
        self.samples: list[list[str]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        sampled = sample_responses(module.policy, module.tokenizer, PROMPTS, **SAMPLING)
        self.samples.append([words(ids) for ids in sampled])


def sampled(folder: Path, oracle: Any = None, *more: pl.Callback, prompts: int = 3) -> list[dict[str, Any]]:
    """The rows of a run of four steps, evaluated at 0, 2 and 4."""
    folder.mkdir(exist_ok=True)
    fit(
        make_module(),
        OracleData(oracle),
        folder,
        SampleTable(prompts, **SAMPLING),
        *more,
        max_steps=4,
        val_check_interval=2,
    )
    file = folder / "samples.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_rows_of_every_evaluation_are_what_the_policy_says_then(tmp_path: Path) -> None:
    seen = SeenPolicies()
    rows = sampled(tmp_path, None, seen)
    assert [row["step"] for row in rows] == [0] * 3 + [2] * 3 + [4] * 3
    pairs = scored_pairs()[::2][:3]
    assert [row["prompt"] for row in rows] == [words(p.prompt_ids) for p in pairs] * 3
    assert [row["chosen"] for row in rows] == [words(p.chosen_ids) for p in pairs] * 3
    assert [row["sample"] for row in rows] == [text for samples in seen.samples for text in samples]
    assert seen.samples[0] != seen.samples[2], "training at this rate changes what is sampled"
    assert set(rows[0]) == {"step", "prompt", "chosen", "sample"}, "no true reward where none is known"


def test_two_runs_alike_have_the_same_table(tmp_path: Path) -> None:
    assert sampled(tmp_path / "a") == sampled(tmp_path / "b")


def test_a_known_reward_has_a_column(tmp_path: Path) -> None:
    rows = sampled(tmp_path, reward)
    for row in rows:
        assert row["true_reward"] == pytest.approx(reward(row["prompt"], row["sample"]), abs=5e-5)
    assert len({row["true_reward"] for row in rows}) > 1


def test_sampling_leaves_the_global_generators_and_the_mode_as_they_were(tmp_path: Path) -> None:
    module = make_module()
    module.policy.train()
    before = torch.get_rng_state()
    trainer: Any = SimpleNamespace(
        is_global_zero=True, datamodule=OracleData(None), default_root_dir=str(tmp_path), loggers=[]
    )
    SampleTable(3, **SAMPLING).on_validation_epoch_end(trainer, module)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 3
    assert torch.equal(torch.get_rng_state(), before)
    assert module.policy.training


def test_no_prompts_write_nothing(tmp_path: Path) -> None:
    assert sampled(tmp_path, prompts=0) == []
    assert not (tmp_path / "samples.jsonl").exists()


def test_fewer_prompts_than_wanted_are_all_there_are(tmp_path: Path) -> None:
    distinct = len({tuple(p.prompt_ids) for p in scored_pairs()})
    assert len(sampled(tmp_path, prompts=1000)) == 3 * distinct


def test_a_tracker_gets_the_whole_table_each_time(tmp_path: Path) -> None:
    """W&B replaces a table of the same name, so each one holds the earlier rows as well."""
    tables = Tables()

    class Join(pl.Callback):
        def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
            if tables not in trainer.loggers:
                trainer.loggers = [*trainer.loggers, tables]

    rows = sampled(tmp_path, reward, Join())
    assert [(given["key"], given["step"], len(given["data"])) for given in tables.given] == [
        ("samples", 0, 3),
        ("samples", 2, 6),
        ("samples", 4, 9),
    ]
    last = tables.given[-1]
    assert [dict(zip(last["columns"], row, strict=True)) for row in last["data"]] == rows
