"""A reference reads the policy's token ids: one with a tokenizer of other ids is refused before weights load."""

from __future__ import annotations

from pathlib import Path

import pytest

from caldpo.reference.reference_load import check_tokens
from tests.evaluation.runs import evaluate
from tests.helpers.command import train
from tests.helpers.messages import names, refused
from tests.helpers.tiny import SPECIAL, WORDS, tiny_model, tiny_tokenizer

SMALL = (
    *("data=local", "data.train=pairs.jsonl", "data.micro_batch_size=8", "trainer.max_steps=1", "export=false"),
    *("logger=csv", "trainer.progress_bar=false", "callbacks.samples.prompts=0"),
)


@pytest.mark.parametrize(
    ("tokens", "facts"),
    [
        ([*WORDS[:-2], "w39", "w38"], ("2 of 44 tokens", "first id 42", "'w38'", "'w39'")),
        ([*WORDS[:-1], "v39"], ("1 of 44 tokens", "first id 43", "'w39'", "'v39'")),
        ([*WORDS[:-2], "w39"], ("2 of 44 tokens", "first id 42", "'w38'", "'w39'")),
        ([*WORDS[:-1], "", "w39"], ("1 of 44 tokens", "first id 43", "no token")),
        (WORDS, ()),
        ([*WORDS, "w40"], ()),
        (WORDS[:-1], ()),
        ([*WORDS[:3], "", *WORDS[4:]], ()),
    ],
    ids=["swapped", "renamed", "shifted", "moved to the end", "same", "added", "fewer", "a gap"],
)
def test_ids_are_compared(tokens: list[str], facts: tuple[str, ...]) -> None:
    ids = {token: i for i, token in enumerate([*SPECIAL, *tokens]) if token}
    if facts:
        with refused(*facts, key="reference.path", value="other", remedy="tokenizer"):
            check_tokens(tiny_tokenizer(), ids, "other")
    else:
        check_tokens(tiny_tokenizer(), ids, "other")


def test_a_reference_with_another_tokenizer_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (("model", WORDS), ("other", WORDS[::-1])):
        tiny_model().save_pretrained(name)
        tiny_tokenizer(words).save_pretrained(name)
    Path("other/model.safetensors").rename("weights")  # whoever loads them fails otherwise
    names_other = ("reference.path=other", "reference=frozen", "reference.distinct=true")
    train("model=hf", "model.path=model", *SMALL, *names_other, fails=1)
    names(capsys.readouterr().err, "reference.path=other:", "40 of 44 tokens", "'w0'", "'w39'", remedy="tokenizer")
    data = ("data=local", "data.train=pairs.jsonl", "data.test=pairs.jsonl", "data.on_shared_prompts=keep")
    evaluate("model.path=model", *data, "suite=preference", "reference.path=other", fails=1)
    names(capsys.readouterr().err, "reference.path=other:", "40 of 44 tokens", remedy="tokenizer")

    Path("weights").rename("other/model.safetensors")  # with the weights alone nothing contradicts
    for file in Path("other").glob("tokenizer*"):
        file.unlink()
    train("model=hf", "model.path=model", *SMALL, *names_other)
    evaluate("model.path=model", *data, "suite=preference", "reference.path=other")
