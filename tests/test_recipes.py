"""The paper's recipes run through their real loading code, on stand-ins in the hub's own formats."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from tests.command import train
from tests.tiny import tiny_model, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
# what a CPU needs instead of the recipe's GPU, and a handful of pairs instead of its thousands
HERE = [
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "trainer.accumulate_grad_batches=2",
    "trainer.progress_bar=false",
    "callbacks.samples.max_new_tokens=4",
    "logger=csv",
    "hydra.run.dir=run",
]


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def ultrafeedback(folder: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        def turns(text: str) -> list[dict[str, str]]:
            return [{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": text}]

        chosen, rejected = turns(f"w{i} w1"), turns(f"w{i} w2")
        scores = {"score_chosen": 8.0, "score_rejected": 3.5}
        return {"prompt": f"w{i}", "prompt_id": "0" * 64, "chosen": chosen, "rejected": rejected} | scores

    parquet(folder / "data/train_prefs-00000-of-00001.parquet", [row(i) for i in range(10)])
    parquet(folder / "data/test_prefs-00000-of-00001.parquet", [row(i) for i in range(10, 14)])


def hh(folder: Path) -> None:
    for split, numbers in (("train", range(10)), ("test", range(10, 14))):
        rows = [
            {side: f"\n\nHuman: w{i}\n\nAssistant: w{i} {end}" for side, end in (("chosen", "w1"), ("rejected", "w2"))}
            for i in numbers
        ]
        path = folder / "harmless-base" / f"{split}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def tldr(folder: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        post = {"id": str(i), "post": f"w{i} w3", "title": f"w{i}", "subreddit": "tifu", "site": None, "article": None}
        return {"info": post, "summaries": [{"text": " w4 w5"}, {"text": f" w{i}"}], "choice": i % 2}

    parquet(folder / "comparisons/train/0000.parquet", [row(i) for i in range(10)])
    parquet(folder / "comparisons/validation/0000.parquet", [row(i) for i in range(10, 14)])


@pytest.mark.parametrize(
    ("experiment", "architecture", "build"),
    [
        ("ultrafeedback_zephyr", "mistral", ultrafeedback),
        ("hh_pythia", "gpt_neox", hh),
        ("hh_pythia_sft", "gpt_neox", hh),
        ("tldr_pythia", "gpt_neox", tldr),
    ],
)
def test_recipe(
    experiment: str, architecture: str, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained("model")
    tiny_model(architecture).save_pretrained("model")
    build(tmp_path / "pairs")
    train(f"experiment={experiment}", "model.path=model", "data.source.path=pairs", *HERE)
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["start_difference"] == 0
    assert summary["data"]["train"]["pairs"] == 10
    assert summary["data"]["test"]["pairs"] == 4
    assert summary["metrics"]["val/logps/chosen"] < 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["optim"]["lr"] == 5e-7
    assert config["model"]["gradient_checkpointing"] is True
    assert config["model"]["dtype"] == "float32"  # a step of 5e-7 is lost in bfloat16
