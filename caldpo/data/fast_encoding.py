"""Encode texts to the ids that a tokenizer gives them, at less cost than by its own call.

- The ids alone are asked for: offsets, which nobody reads here, take a third of the time.
- A BPE vocabulary in SentencePiece's style (Llama, Mistral, Zephyr) merges whole texts, although no merge can cross the
  beginning of a word, or a line break: no entry of the vocabulary has ``▁`` after another character, or a line break
  beside one. So the ids of a text are those of its words, one after another, and those of a word are remembered. Where
  this does not hold, or the tokenizer does anything else, it is not done.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

Encode = Callable[[list[str]], "list[array[int]]"]

_SPACE = "▁"
_BREAK, _JOINED = "\n", "\0"
_WORD = re.compile(f" *[^ {_BREAK}]+| +|{_BREAK}")  # with spaces in place of the mark
_LONGEST = 40  # characters of a word that is remembered
_MOST_WORDS = 125_000  # remembered, and as many from before; of some 140 bytes each: 35 MB at most
_PROBES = ["", " ", "a", " a", "a b", "  a  b ", "▁a", "a▁ b", "\n\na\n", "é🙂日本 語", "a\tb\x00c", "don't 12345"]


def fast_encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Return what encodes texts as ``tokenizer(texts, add_special_tokens=False)`` does, special tokens as such.

    The tokenizer must not change afterwards.
    """

    def encode(texts: list[str]) -> list[array[int]]:
        options: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
        return [array("i", ids) for ids in tokenizer(texts, add_special_tokens=False, **options)["input_ids"]]

    # other tokenizers may do more than their backend does
    if not tokenizer.is_fast or not type(tokenizer).__module__.startswith("transformers."):
        return encode
    if getattr(tokenizer, "split_special_tokens", False):
        return encode
    backend: Tokenizer = tokenizer.backend_tokenizer
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    probes = [*_PROBES, *(f"a{token} b{token}{token} \n{token}<{token}" for token in added)]
    expected = encode(probes)  # resets padding and truncation of the backend, too
    for fast in (_words_encoder(backend), _ids_encoder(backend)):
        if fast is not None and fast(probes) == expected:
            return fast
    return encode


def _ids_encoder(backend: Tokenizer) -> Encode:
    def encode(texts: list[str]) -> list[array[int]]:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        return [array("i", encoding.ids) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def _words_encoder(backend: Tokenizer) -> Encode | None:
    """Return an encoder by words; None where the ids of a word may depend on its neighbours."""
    state = json.loads(backend.to_str())
    model, words = state["model"], state["pre_tokenizer"] or {}
    added = state["added_tokens"]
    if (
        model["type"] != "BPE"
        or model["dropout"]
        or model["ignore_merges"]
        or model["continuing_subword_prefix"]
        or model["end_of_word_suffix"]
        or _SPACE not in model["vocab"]
        or not model["byte_fallback"]  # unknown characters are fused otherwise
        or any(f"<0x{byte:02X}>" not in model["vocab"] for byte in range(256))
        or any(_SPACE in entry.lstrip(_SPACE) or (_BREAK in entry and entry != _BREAK) for entry in model["vocab"])
        or state["normalizer"] is not None
        or {**words, "prepend_scheme": ""} != {**_METASPACE, "prepend_scheme": ""}
        or any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
        or any(not token["content"] for token in added)
        or _overlap(
            [token["content"] for token in added if token["normalized"]],
            [token["content"] for token in added if not token["normalized"]],
        )
    ):
        return None
    tokens = {token["content"]: array("i", [token["id"]]).tobytes() for token in added}
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if tokens else None
    scheme, words_ids, whole = words["prepend_scheme"], _Words(backend), _ids_encoder(backend)

    def encode(text: str) -> array[int]:
        if _JOINED in text:
            return whole([text])[0]
        ids: list[bytes] = []
        for place, piece in enumerate(pattern.split(text) if pattern else [text]):
            if place % 2:
                ids.append(tokens[piece])
            elif piece:
                begins = scheme == "always" or (scheme == "first" and place == 0)
                ids += map(words_ids.__getitem__, _split(piece.replace(_SPACE, " "), begins))
        return array("i", b"".join(ids))

    return lambda texts: list(map(encode, texts))


def _overlap(later: list[str], first: list[str]) -> bool:
    """Whether one of the added tokens that are cut out later could begin before one of those that are cut out first."""
    return any(b in a or any(a.endswith(b[:n]) for n in range(1, len(b))) for a in later for b in first)


def _split(text: str, begins: bool) -> list[str]:
    """Split a text into words as :class:`_Words` wants them; ``begins``: a space is put before it if it has none."""
    spaced = text if text[0] == " " or not begins else f" {text}"
    if "  " in spaced:
        words = _WORD.findall(spaced)
        return [word[1:] if word[0] == " " else word if word == _BREAK else _JOINED + word for word in words]
    joined = spaced[1:] if spaced[0] == " " else _JOINED + spaced
    return joined.replace(_BREAK, f" {_BREAK} {_JOINED}").split(" ")


_METASPACE = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "", "split": False}


class _Words(dict[str, bytes]):
    """The ids of words, as int32, as far as they have occurred.

    A word stands without the space before it, and behind NUL where there is none. A line break is a word.
    """

    def __init__(self, backend: Tokenizer) -> None:
        super().__init__()
        self._model = backend.model
        self._before: dict[str, bytes] = {}  # words that were remembered until there were too many

    def __missing__(self, word: str) -> bytes:
        ids = self._before.get(word)
        if ids is None:
            ids = self._tokenized(word)
        if len(word) <= _LONGEST:
            if len(self) >= _MOST_WORDS:
                self._before = dict(self)
                self.clear()
            self[word] = ids
        return ids

    def _tokenized(self, word: str) -> bytes:
        bare = word == _BREAK or word[:1] == _JOINED
        text = word.lstrip(_JOINED) if bare else f" {word}"
        tokens = self._model.tokenize(text.replace(" ", _SPACE)) if text else []
        return array("i", [token.id for token in tokens]).tobytes()
