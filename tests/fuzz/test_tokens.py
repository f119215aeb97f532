"""Whatever pairs and templates say: every pair is tokenised within the limits or left out with a reason."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoTokenizer

from caldpo.data.chat_template import MAX_WRITTEN
from caldpo.data.load import load_pairs
from caldpo.data.token_cache import cached_tokens
from caldpo.data.tokenize import TokenizedSplit, tokenize_pairs, truncate
from caldpo.errors import CaldpoError
from tests.data.small import TEMPLATE, letter_tokenizer, word_tokenizer
from tests.fuzz.effort import fuzz
from tests.fuzz.test_rows import Given
from tests.fuzz.values import texts
from tests.helpers.shared import SHARED

pytestmark = pytest.mark.slow

QUIET = Console(quiet=True)
SNIPPETS = (
    "{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.role }}", "{{ eos_token }}",
    "{{ bos_token }}", "{% if add_generation_prompt %}", "{% endif %}", "{{ raise_exception('no') }}",
    "{{ '\\ud800' }}", "{{ 1 / 0 }}", "{{ messages[99].content }}", "{{ messages }}", "{% set x = messages[0] %}",
    "{{ x.content | upper }}", "{{ x }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ ''.__class__ }}",
    "{{ 'ab' * 20 }}", "{%", "}}", "{#", "#}", "{{ messages.pop() }}", "{{ messages | tojson }}",
    "{{ strftime_now('%Y') }}", "{% generation %}", "{% break %}",
)  # fmt: skip


@functools.cache
def tokenizer(name: str) -> Any:
    """One of the embedded tokenizers, or of the shared ones, which are skipped where they are not."""
    made = {"words": word_tokenizer, "bos": functools.partial(word_tokenizer, bos=True), "letters": letter_tokenizer}
    if name in made:
        return made[name]()
    if not (SHARED / "tokenizers" / name).exists():
        pytest.skip(f"needs tokenizers/{name} of the shared folder beside the checkout")
    return AutoTokenizer.from_pretrained(SHARED / "tokenizers" / name)


sound = texts.map(lambda text: text.encode("utf-8", "replace").decode())
words = st.lists(
    st.sampled_from(["a", "yes", "no", "é", "<eos>", "<bos>", "</s>", "user", ":"]), min_size=1, max_size=9
)
contents = sound | words.map(" ".join) | words.map(lambda w: " ".join(w) * 9)


def turns(said: list[str], system: bool) -> list[dict[str, str]]:
    """A conversation that ends with a user turn."""
    said = said if len(said) % 2 else said[1:]
    first = [{"role": "system", "content": said[0]}] if system else []
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


conversations = st.builds(
    turns, st.lists(contents, min_size=1, max_size=4).filter(lambda s: len(s) != 2), st.booleans()
)


def row(prompt: Any, chosen: str, rejected: str) -> dict[str, Any]:
    """In TRL's format, with or without turns."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, **{k: [{"role": "assistant", "content": v}] for k, v in sides.items()}}


data = st.lists(st.builds(row, contents | conversations, contents, contents), min_size=1, max_size=5)
templates = (
    st.just(TEMPLATE)
    | st.lists(st.sampled_from(SNIPPETS) | sound, max_size=8).map("".join)
    | sound.map(lambda text: "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}" + text)
)
limits = st.tuples(st.integers(2, 30), st.integers(1, 29)).filter(lambda both: both[1] < both[0])


def check(split: TokenizedSplit, count: int, tok: Any, max_length: int) -> None:
    """The properties of any tokenised split of ``count`` pairs."""
    assert len(split.pairs) + len(split.rejections) == count
    assert split.places == sorted(set(split.places))
    for pair in split.pairs:
        sides = (pair.chosen_ids, pair.rejected_ids)
        assert len(pair.prompt_ids) + max(map(len, sides)) <= max_length
        assert pair.prompt_ids
        for ids in sides:
            assert ids
            assert tok.eos_token_id not in ids[:-1]
        assert all(0 <= token < len(tok) for ids in (pair.prompt_ids, *sides) for token in ids)


@pytest.mark.parametrize("name", ["words", "bos", "letters", "gpt2", "zephyr"])
@fuzz(40, cost=2, values=data, template=templates, both=limits, keep=st.booleans())
def test_any_pairs_under_any_template(
    name: str, values: Any, template: str, both: tuple[int, int], keep: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tok = tokenizer(name)
    tok.chat_template = template
    pairs, _ = load_pairs(Given(values), "train")
    keys: dict[str, Any] = {
        "max_length": both[0],
        "max_prompt_length": both[1],
        "on_degenerate": "keep" if keep else "drop",
    }
    try:
        split = tokenize_pairs(pairs, tok, console=QUIET, **keys)
    except CaldpoError as error:
        str(error).encode()
        return
    check(split, len(pairs), tok, both[0])
    assert all(len(rejection.reason) < MAX_WRITTEN / 100 for rejection in split.rejections)
    folder: Path = tmp_path_factory.getbasetemp() / "fuzzed-tokens"
    for _ in range(2):  # written, and read
        again = cached_tokens(pairs, tok, cache=folder, console=QUIET, bar=QUIET, label="", **keys)
        assert [again.pairs[:], again.rejections, again.counts] == [split.pairs[:], split.rejections, split.counts]
    for file in folder.iterdir():
        file.unlink()


ids = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@fuzz(300, prompt=ids, chosen=ids, rejected=ids, both=limits, bos=st.none() | st.integers(0, 9))
def test_truncation(prompt: Any, chosen: Any, rejected: Any, both: tuple[int, int], bos: int | None) -> None:
    max_length, max_prompt_length = both
    cut = truncate(prompt, chosen, rejected, max_length=max_length, max_prompt_length=max_prompt_length, bos=bos)
    assert len(cut[0]) + max(len(cut[1]), len(cut[2])) <= max_length
    assert all(cut)
    assert prompt[len(prompt) - len(cut[0]) + 1 :] == cut[0][1:]  # the end of the prompt; its first token may be BOS
    assert cut[0][0] in (prompt[-len(cut[0])], bos)
    for whole, kept in zip((chosen, rejected), cut[1:], strict=True):
        assert whole[: len(kept)] == kept
    if len(prompt) + max(len(chosen), len(rejected)) <= max_length:
        assert cut == (prompt, chosen, rejected)
