"""Shapes in annotations are checked while testing; no test reaches for the network; fuzzing says what it tried."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

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


TRIED = "fuzz_tried"  # what a worker of pytest-xdist hands over: inputs by test
_of_workers: Counter[str] = Counter()


def tried_here() -> Counter[str]:
    """Inputs that this process tried, by test; none where no fuzzing test was even collected."""
    effort = sys.modules.get("tests.fuzz.effort")
    return Counter() if effort is None else effort.tried


def pytest_sessionfinish(session: pytest.Session) -> None:
    handed_over = getattr(session.config, "workeroutput", None)  # of a worker alone
    if handed_over is not None:
        handed_over[TRIED] = dict(tried_here())


@pytest.hookimpl(optionalhook=True)  # unknown without pytest-xdist
def pytest_testnodedown(node: Any, error: object) -> None:
    _of_workers.update(getattr(node, "workeroutput", {}).get(TRIED, {}))  # one that was killed hands over nothing


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tried = tried_here() + _of_workers
    if tried:
        bad = [*terminalreporter.stats.get("failed", ()), *terminalreporter.stats.get("error", ())]
        failures = sum(report.nodeid.startswith("tests/fuzz/") for report in bad)
        for name, count in sorted(tried.items()):
            terminalreporter.write_line(f"{count:>9,}  {name}")
        inputs = f"{tried.total():,} inputs in {len(tried)} tests"
        terminalreporter.write_line(f"fuzzing: {inputs}, {failures} failure{'s' * (failures != 1)}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a tokenizer, and 24 pairs of which the chosen ends in w9 and the rejected in w8."""
    from tests.helpers.tiny import tiny_tokenizer  # after the hook above, which checks what is imported from here on

    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    tokenizer.save_pretrained("tokenizer")
    rows = [{"prompt": f"w{i} w2 w3", "chosen": f" w{i % 7} w9", "rejected": f" w{i % 5} w8"} for i in range(10, 34)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path
