"""Data modules as ``conf/data/base.yaml`` sets them, prepared from a few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from caldpo.data.columns import Columns
from caldpo.data.datamodule import PairDataModule
from tests.data.small import RowsSource, chat, word_tokenizer

BASE = Path(__file__).parents[2] / "conf/data/base.yaml"
TRAIN = [(f"a {w} ?", f" yes {w}", f" no {w}") for w in "bcdefghijk"]
TEST = [(f"z {w} ?", f" yes {w}", f" no {w}") for w in "bcd"]


def settings(**changes: Any) -> dict[str, Any]:
    """Settings of base.yaml with ``changes``, without preview."""
    values = yaml.safe_load(BASE.read_text())
    del values["_target_"]
    del values["columns"]["_target_"]
    values["columns"] = Columns(**values["columns"])
    values["max_unknown"] = 1.0  # the vocabularies of these tests are of a few letters
    values |= {"cache": None, "source": RowsSource(train=TRAIN, test=TEST), "train": "train", "test": "test", "seed": 0}
    unknown = changes.keys() - values.keys()
    assert not unknown
    return values | changes


def prepared(tmp_path: Path, tokenizer: Any = None, **changes: Any) -> tuple[PairDataModule, dict[str, Any]]:
    """A data module after ``prepare_pairs``, and its report."""
    needs_scores, score_range = changes.pop("needs_scores", False), changes.pop("score_range", None)
    module = PairDataModule(**settings(**changes))
    report = module.prepare_pairs(
        tokenizer or word_tokenizer(), tmp_path, needs_scores, "cal_dpo", score_range=score_range
    )
    return module, report.as_dict()


def rejected(tmp_path: Path) -> list[dict[str, str]]:
    """The rows of ``rejected_rows.jsonl``."""
    return [json.loads(line) for line in (tmp_path / "rejected_rows.jsonl").read_text().splitlines()]


class Conversations(RowsSource):
    """The same rows as conversations."""

    def __init__(self, **splits: Any) -> None:
        super().__init__(**{k: [(list(chat(p)), *map(self.reply, r)) for p, *r in v] for k, v in splits.items()})

    @staticmethod
    def reply(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text.strip()}]
