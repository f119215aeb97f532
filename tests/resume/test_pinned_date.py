"""A chat template that writes the date, and a run that is resumed on another day."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from caldpo.data import datamodule
from tests.data.format_rows import assistant, user
from tests.data.small import byte_tokenizer
from tests.evaluation.runs import evaluate, inside
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.runs import BASE
from tests.resume.stopped import stopped

DATED = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)


class Day(datetime):
    """A clock that shows one day."""

    shown = 0

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime(2024, 2, cls.shown, 12)


def prompts_of(run: Path) -> str:
    """The beginning of the first held-out prompt, from the samples of the run."""
    return json.loads((run / "samples.jsonl").read_text().splitlines()[0])["prompt"]


def test_a_run_that_goes_on_tomorrow_keeps_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_tokenizer(template=DATED).save_pretrained(tmp_path / "tokenizer")
    for name, letters in (("train", "abcdefgh"), ("test", "xyz")):
        rows = [
            {"prompt": [user(f"{a}?")], "chosen": [assistant(f"yes {a}")], "rejected": [assistant("no")]}
            for a in letters
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr(datamodule, "datetime", Day)
    overrides = (*BASE, "loss=dpo", "trainer.max_steps=3", "data.micro_batch_size=2", "hydra.run.dir=run")
    with inside(tmp_path):
        Day.shown = 28
        stopped(*overrides, after=4)
        Day.shown = 29
        train("resume=run")
        summary = json.loads(Path("run/summary.json").read_text())
        assert (summary["status"], summary["date"]) == ("finished", "2024-02-28")
        names(summary["data"]["prompts"], "date", "2024-02-28")
        assert prompts_of(Path("run")).startswith("28 Feb 2024")
        caches = len(list(Path("outputs/cache").glob("tokens-*.safetensors")))
        evaluate("run", "suite=preference")  # of the same tokens, as yet another file would say otherwise
        assert len(list(Path("outputs/cache").glob("tokens-*.safetensors"))) == caches == 2
