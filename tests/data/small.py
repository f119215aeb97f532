"""Small tokenizers and a source of pairs, built in memory."""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from caldpo.data.chat_template import RenderedPair, Renderer
from caldpo.data.pair import Message, PreferencePair
from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.tokenize import TokenizedSplit, tokenize_pairs
from tests.helpers.shared import shared

WORDS = [
    *string.ascii_lowercase,
    "yes",
    "no",
    "maybe",
    "user",
    "assistant",
    ":",
    "?",
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' + eos_token + ' z ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


def word_tokenizer(*, bos: bool = False, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A word a token; <unk> 0, <bos> 1, <eos> 2, then WORDS. With ``bos`` it adds <bos> and <eos> itself."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<bos>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = template
    return fast


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece style: a space before the first word, letters as tokens, ``▁y`` the only merge."""
    letters = ["<unk>", "<bos>", "<eos>", "▁", *"abcdefghijklmnopqrstuvwxyz:", "▁y"]
    vocabulary = {token: i for i, token in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "y")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>")


def byte_tokenizer(*, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte a token, so that every text can be written; <s> and </s> are special, <think> is not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<think>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    return fast


def ids(tokenizer: Any, tokens: str) -> list[int]:
    """The ids of vocabulary entries given with spaces between."""
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens.split()]


def chat(*turns: str) -> tuple[Message, ...]:
    """A conversation whose turns alternate, the user's first."""
    return tuple(Message(role=("user", "assistant")[i % 2], content=t) for i, t in enumerate(turns))


class RowsSource(PairSource):
    """Serves given rows by split; each row is (prompt, chosen, rejected) or one with two scores more."""

    name = "rows"

    def __init__(self, **splits: Sequence[tuple[Any, ...]]) -> None:
        self.splits = splits

    def rows(self, split: str) -> Iterator[RawRow]:
        columns = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
        for line, row in enumerate(self.splits[split], 1):
            yield RawRow(f"{split}:{line}", dict(zip(columns, row, strict=False)))


def pair(prompt: Any, chosen: str, rejected: str, origin: str = "data:1") -> PreferencePair:
    """A pair without scores."""
    return PreferencePair(prompt, chosen, rejected, origin=origin)


def rendered(pair: PreferencePair, tokenizer: Any, now: datetime | None = None) -> RenderedPair:
    """The texts of a pair."""
    return Renderer(tokenizer, now).pair(pair)


def tokenized(pairs: list[Any], tokenizer: Any, **changes: Any) -> TokenizedSplit:
    """Pairs as tokenize_pairs makes them, by default without truncation."""
    settings = {"max_length": 10_000, "max_prompt_length": 5_000, "on_degenerate": "drop"} | changes
    return tokenize_pairs(pairs, tokenizer, console=Console(quiet=True), **settings)


@functools.cache
def zephyr() -> Any:
    """A real SentencePiece-style tokenizer with a chat template."""
    return AutoTokenizer.from_pretrained(shared("tokenizers/zephyr"))


@functools.cache
def gpt2() -> Any:
    """A real byte-level tokenizer without a chat template."""
    return gpt2_with()


def gpt2_with(**changes: Any) -> Any:
    """The same with other special tokens."""
    return AutoTokenizer.from_pretrained(shared("tokenizers/gpt2"), **changes)
