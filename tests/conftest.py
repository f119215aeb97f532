"""Shapes in annotations are checked while testing; no test reaches for the network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

_hook = install_import_hook(["caldpo.losses", "caldpo.metrics", "caldpo.logprobs", "caldpo.types"], "beartype.beartype")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a tokenizer, and 24 pairs of which the chosen ends in w9 and the rejected in w8."""
    from tests.tiny import tiny_tokenizer  # after the hook above, which checks what is imported from here on

    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    tokenizer.save_pretrained("tokenizer")
    rows = [{"prompt": f"w{i} w2 w3", "chosen": f" w{i % 7} w9", "rejected": f" w{i % 5} w8"} for i in range(10, 34)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path
