"""Keep special tokens that the data's own text spells out as text.

A tokenizer turns ``<s>`` into BOS wherever it occurs, even in HTML within a response. That is right for what a chat
template writes around a conversation, and wrong for the conversation itself. So a mark, a character that occurs nowhere
else, is put into special tokens in the data's own text before rendering; the rendered text is cut at the remaining
special tokens, which are the template's, and the pieces between are tokenised as plain text, without the mark.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from caldpo.data.fast_encoding import Encode, fast_encoder
from caldpo.data.raw_row import RowError

Ids = TypeVar("Ids", list[int], "array[int]")

_IDS: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
MANY = 3000  # texts from which on a faster way to encode them is worth looking for: that takes a quarter of a second
_MARKS = range(0xE000, 0xE100)  # code points for private use, of which no text has all


class SpecialText:
    """The special tokens of a tokenizer, which must not change afterwards, as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = {str(token.content): token for token in tokenizer.added_tokens_decoder.values() if token.special}
        names = [name for name in dict.fromkeys((*added, *tokenizer.all_special_tokens)) if name]
        numbers: Any = tokenizer.convert_tokens_to_ids(names)
        self._ids: dict[str, int] = dict(zip(names, numbers, strict=True))
        self._left = {name for name, token in added.items() if token.lstrip}
        self._right = {name for name, token in added.items() if token.rstrip}
        special = set(self._ids.values())
        # A vocabulary of words may have the token as a word: there its text cannot be told from the token.
        written = self._plain(names) if names else []
        self.writable = frozenset(n for n, ids in zip(names, written, strict=True) if special.isdisjoint(ids))
        self._any, self._writable = _pattern(names), _pattern(self.writable)
        self._apart: bool | None = None
        self._encode: Encode | None = None  # once many texts were encoded
        self._encoded = 0  # texts

    def spelled_out(self, text: str) -> list[str]:
        """List the special tokens that a text spells out, in order."""
        return self._any.findall(text) if self._any else []

    def mark_for(self, *texts: str) -> str:
        """Choose a mark for these texts: empty where none of them has a special token that could stay text."""
        if self._writable is None or not any(self._writable.search(text) for text in texts):
            return ""
        used = set(chain.from_iterable(texts))
        mark = next((chr(code) for code in _MARKS if chr(code) not in used), None)
        if mark is None:
            raise RowError("uses all characters for private use")
        return mark

    def marked(self, value: Any, mark: str) -> Any:
        """Put the mark into every special token that can stay text, in a text or all texts of a value."""
        if not mark or self._writable is None:
            return value
        if isinstance(value, str):
            return self._writable.sub(lambda match: match[0][:1] + mark + match[0][1:], value)
        if isinstance(value, Mapping):
            return {name: self.marked(item, mark) for name, item in value.items()}
        return [self.marked(item, mark) for item in value] if isinstance(value, list | tuple) else value

    def encode_all(self, texts: list[str], mark: str = "") -> list[list[int]]:
        """List the ids of :meth:`encode_arrays`."""
        return [ids.tolist() for ids in self.encode_arrays(texts, mark)]

    def encode_arrays(self, texts: list[str], mark: str = "") -> list[array[int]]:
        """Encode texts: without a mark all special tokens as such, with one as :meth:`encode` does."""
        if mark:
            return [array("i", self.encode(text, mark)) for text in texts]
        self._encoded += len(texts)
        if self._encode is None and self._encoded >= MANY:
            self._encode = fast_encoder(self._tokenizer)
        if self._encode is not None:
            return self._encode(texts)
        return [array("i", ids) for ids in self._tokenizer(texts, add_special_tokens=False, **_IDS)["input_ids"]]

    def encode(self, text: str, mark: str) -> list[int]:
        """Encode a marked text: unmarked special tokens as such, the rest as plain text without the mark."""
        pieces = self._any.split(text) if self._any else [text]
        tokens = [*(self._any.findall(text) if self._any else ()), None]
        ids: list[int] = []
        for place, (piece, token) in enumerate(zip(pieces, tokens, strict=True)):
            if place and tokens[place - 1] in self._right:
                piece = piece.lstrip()
            if token in self._left:
                piece = piece.rstrip()
            if piece := piece.replace(mark, ""):
                apart = not ids or self._stands_apart()
                ids += self._plain([piece])[0] if apart else encode_continuation(self._plain, piece)
            if token is not None:
                ids.append(self._ids[token])
        return ids

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True, **_IDS)["input_ids"]

    def _stands_apart(self) -> bool:
        """Whether text after a special token has the same ids as alone."""
        if self._apart is None:
            after, alone = self.encode_all([f"{next(iter(self._ids))}a", "a"])
            self._apart = after[1:] == alone
        return self._apart


def encode_continuation(encode: Callable[[list[str]], list[Ids]], text: str) -> Ids:
    """Encode a text that continues another one.

    SentencePiece-style tokenizers put a space before the beginning of a text. So the text is tokenised after a short
    word, whose tokens are then removed, provided that they did not merge with the text.
    """
    for word in ("\n", "a", "="):
        before, both = encode([word, word + text])
        if both[: len(before)] == before:
            return both[len(before) :]
    return encode([text])[0]


def _pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
