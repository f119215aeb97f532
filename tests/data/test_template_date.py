"""A template that writes the date writes that of the run's first day."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from caldpo.data.chat_template import with_fixed_date
from caldpo.data.token_cache import cached_tokens
from caldpo.resume.pins import first_day, pin
from tests.data.prepared import TEST, TRAIN, Conversations, prepared
from tests.data.small import byte_tokenizer, chat, pair, rendered
from tests.helpers.messages import names

DATED = (
    "\n{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% macro day() %}{{ strftime_now('%A') }}{% endmacro %}{{ date_string + ' ' + day() + ', 100%% ' }}"
    "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
THEN = datetime(2024, 2, 29)

EMBEDDED: Any = SimpleNamespace(repository=lambda: None)


def test_the_date_is_fixed_in_any_format() -> None:
    texts = rendered(pair(chat("a"), "b", "c"), byte_tokenizer(template=DATED), THEN)
    assert texts.prompt.lstrip("\n").startswith("29 Feb 2024 Thursday, 100%% user:a</s>")
    now = rendered(pair(chat("a"), "b", "c"), byte_tokenizer(template=DATED))
    assert f"{datetime.now():%Y}" in now.prompt
    formats = ("%Y-%m-%d", "%d %B %Y", "%-d %b", "%%d %H:%M", "%A %j %y")
    for form in formats:
        template = f"{{{{ strftime_now('{form}') }}}}{{{{ messages[-1].content }}}}"
        tokenizer = byte_tokenizer(template=with_fixed_date(template, THEN))
        text = tokenizer.apply_chat_template(list(chat("a")), tokenize=False)
        assert text == f"{THEN.strftime(form)}a"


def test_the_same_day_is_the_same_tokens_and_another_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"max_length": 500, "max_prompt_length": 200, "on_degenerate": "drop", "label": "train"}
    consoles = {"console": Console(), "bar": Console(quiet=True)}
    pairs, tokenizer = [pair(chat("a"), "b", "c")], byte_tokenizer(template=DATED)
    digests = [
        cached_tokens(pairs, tokenizer, cache=tmp_path, now=now, **keys, **consoles).pairs.digest()
        for now in (THEN, THEN, datetime(2024, 3, 1))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert capsys.readouterr().out.count(".safetensors") == 1, "read once"
    assert tokenizer.chat_template == DATED  # what is exported writes the date of its use


def test_a_resumed_run_keeps_the_day_it_began_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Conversations(train=TRAIN, test=TEST)
    data, report = prepared(tmp_path, byte_tokenizer(template=DATED), source=source)
    names(report["prompts"], "chat template", "date")
    names(capsys.readouterr().out, f"{datetime.now():%Y-%m-%d}")
    data.now = THEN
    recorded = pin(EMBEDDED, data, {})
    assert recorded == {"date": "2024-02-29"}
    data.now = datetime(2024, 3, 1)
    assert pin(EMBEDDED, data, recorded) == recorded
    assert data.now == THEN
    assert first_day({"date": "no date"}) is None
