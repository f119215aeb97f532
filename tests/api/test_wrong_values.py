"""Arguments of a wrong kind are told from Python as well, with key and value, before anything loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import caldpo
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_tokenizer

PAIRS = [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}]
# there is no such model: whatever is refused is refused before one is looked for
MODELS = ("nobody/policy", "nobody/reference", PAIRS)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: caldpo.log_ratios(*MODELS, device="tpu"), {"key": "device", "value": "tpu"}),
        (lambda: caldpo.log_ratios(*MODELS, max_length="5"), {"key": "max_length", "value": "5"}),
        (lambda: caldpo.log_ratios(*MODELS, batch_size=True), {"key": "batch_size", "value": True}),
        (lambda: caldpo.log_ratios(*MODELS, tokenizer=3), {"key": "tokenizer", "value": 3}),
        (lambda: caldpo.tokenize(PAIRS, tiny_tokenizer(), max_prompt_length=2.5), {"key": "max_prompt_length"}),
        (lambda: caldpo.tokenize(PAIRS, None), {"key": "tokenizer", "value": None, "remedy": "AutoTokenizer"}),
        (lambda: caldpo.fit("model", PAIRS, tokenizer=3), {"key": "tokenizer", "value": 3, "remedy": "AutoTokenizer"}),
        (lambda: caldpo.fit("tiny", folder=3), {"key": "folder", "value": 3}),
        (lambda: caldpo.fit("tiny", config_dir=3), {"key": "config_dir", "value": 3}),
        (lambda: caldpo.Run(None), {"key": "folder", "value": None}),
        (lambda: caldpo.compare(None), {"key": "runs[0]", "remedy": "folders"}),
        (lambda: caldpo.compare("outputs", folder=3), {"key": "folder", "value": 3}),
        (lambda: caldpo.compose(None), {"key": "overrides", "remedy": "compose(["}),
        (lambda: caldpo.train({}, folder=3), {"key": "folder", "value": 3}),
        (lambda: caldpo.evaluate("nobody/policy", PAIRS, 3), {"key": "suite", "value": 3, "remedy": "preference"}),
        (lambda: caldpo.evaluate("nobody/policy", PAIRS, reference=3), {"key": "reference", "remedy": "folder"}),
        (lambda: caldpo.evaluate("nobody/policy", PAIRS, tokenizer=3), {"key": "tokenizer", "value": 3}),
    ],
)
def test_they_are_refused(
    call: Callable[[], Any], facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(**facts):
        call()


def test_a_tokenizer_may_be_named(folder: Path) -> None:
    assert caldpo.tokenize(PAIRS, "tokenizer") == caldpo.tokenize(PAIRS, tiny_tokenizer())
