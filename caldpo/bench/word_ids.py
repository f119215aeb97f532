"""A tokenizer whose tokens are words, so that any ids can be written as text that tokenises back to them."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "</s>")  # ids 0, 1, 2
EOS = SPECIAL.index("</s>")


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """``vocab_size`` tokens: the special ones, and ``w3``, ``w4``, ... by their ids."""
    words = [*SPECIAL, *map(_word, range(len(SPECIAL), vocab_size))]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def as_text(ids: Iterable[int]) -> str:
    """The text of plain ids; an EOS is left out, because tokenisation appends it."""
    return " ".join(_word(token) for token in ids if token != EOS)


def _word(token: int) -> str:
    return f"w{token}"
