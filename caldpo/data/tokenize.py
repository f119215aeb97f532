"""Tokenise pairs: one prompt shared by two responses, each ending in exactly one EOS.

- The prompt's ids are the tokenisation of the prompt alone, as in generation. A response's ids are what the
  tokenisation of the whole sequence adds to them. Where a token would straddle the boundary, the response is tokenised
  apart instead (counted as a boundary merge).
- A template decides about BOS. For plain text the tokenizer does: its leading special tokens come once before the
  prompt, its trailing ones nowhere.
- Text that a template writes after a response's end token is cut: after EOS, or the special token that ends a turn
  (``<|im_end|>``). A missing one is appended as EOS; one at the end of the response's own text is removed (counted).
  Other special tokens that the data spells out stay text (counted).
- Truncation follows the DPO reference code (Rafailov et al. 2023): only a pair too long for ``max_length``
  loses the left part of its prompt, then the right part of its responses. A truncated response has no EOS, because its
  text does not end there. A leading BOS survives truncation: a model trained with one has never seen a text begin
  otherwise.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice, takewhile
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from caldpo.data.chat_template import RenderedPair, Renderer
from caldpo.data.data_report import Rejection, TokenCounts
from caldpo.data.end_tokens import turn_end
from caldpo.data.pair import Message, PreferencePair
from caldpo.data.raw_row import RowError
from caldpo.data.special_text import Ids, encode_continuation
from caldpo.data.stored_pairs import BLOCK, PackedPairs, StoredPairs
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError
from caldpo.utils.ordered_map import ordered_map


@dataclass(frozen=True, slots=True)
class TokenizedSplit:
    """The tokenised pairs of a split, what was counted, and the pairs that are missing."""

    pairs: TokenizedPairs
    sources: StoredPairs  # that they were made of, in the same order
    counts: TokenCounts
    rejections: list[Rejection]  # pairs that the template refuses, and those dropped since both responses are equal
    cut_prompts: frozenset[int]  # indices of the tokenised pairs whose prompt was truncated
    places: list[int]  # positions of the tokenised pairs among all pairs; the others are the rejections


def tokenize_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int,
    on_degenerate: Literal["drop", "keep"],
    console: Console,
    label: str = "tokenising",
    now: datetime | None = None,
) -> TokenizedSplit:
    """Tokenise ``pairs`` as this module describes, with a progress bar on ``console``.

    Args:
        pairs: checked pairs; conversations need a tokenizer with a chat template.
        tokenizer: it must have an EOS token.
        max_length: tokens a prompt and a response may have together.
        max_prompt_length: tokens left of the prompt of a pair that is too long; below ``max_length``, so that a
            response keeps at least one token.
        on_degenerate: whether to drop a pair whose responses are the same tokens.
        console, label: of the progress bar.
        now: the time for chat templates that write the date; None is that of each call.

    Raises:
        CaldpoError: the tokenizer has no EOS token, or the chat template is broken.
    """
    if tokenizer.eos_token_id is None:
        raise CaldpoError(
            f"the tokenizer {tokenizer.name_or_path!r} has no EOS token, so no response could end",
            remedy="set eos_token in the tokenizer's files",
        )
    stored = StoredPairs.of(pairs)
    worker = PairTokenizer(tokenizer, max_length, max_prompt_length, on_degenerate, now)
    chunks = track(
        ordered_map(worker.tokenize, stored.packed()),
        label,
        total=-(-len(stored) // BLOCK),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tokens, ends, places = array("i"), array("q", [0]), array("q")
    counts, rejections, cut_prompts = TokenCounts(), list[Rejection](), set[int]()
    start = 0  # place of the chunk's first pair
    for chunk in chunks:
        cut_prompts.update(len(places) + index for index in chunk.cut_prompts)
        places.extend(start + place for place in chunk.places)
        rejections += chunk.rejections
        ends.extend(len(tokens) + end for end in chunk.ends)
        tokens.frombytes(chunk.tokens)
        counts.add(chunk.counts)
        start += len(chunk.places) + len(chunk.rejections)
    sources = stored.take(np.frombuffer(places, dtype=np.int64) if places else [])
    arrays = np.frombuffer(tokens, dtype=np.int32) if tokens else np.zeros(0, np.int32), np.frombuffer(ends, np.int64)
    return TokenizedSplit(
        TokenizedPairs.of_arrays(*arrays, sources), sources, counts, rejections, frozenset(cut_prompts), places.tolist()
    )


def truncate(
    prompt: Ids,
    chosen: Ids,
    rejected: Ids,
    *,
    max_length: int,
    max_prompt_length: int,
    bos: int | None,
) -> tuple[Ids, Ids, Ids]:
    """Truncate a pair that is too long: the prompt from the left, then the responses from the right.

    Args:
        prompt, chosen, rejected: token ids; the responses include their EOS, and keep at least one token.
        max_length: tokens of the prompt and the longer response together.
        max_prompt_length: tokens left of the prompt of a pair that is too long.
        bos: a first token to keep in front of a truncated prompt; None if there is none.
    """
    if len(prompt) + max(len(chosen), len(rejected)) <= max_length:
        return prompt, chosen, rejected
    if len(prompt) > max_prompt_length:
        tail = prompt[len(prompt) - max_prompt_length :]
        prompt = prompt[:1] + tail[1:] if bos is not None and prompt[0] == bos else tail
    room = max_length - len(prompt)
    return prompt, chosen[:room], rejected[:room]


def end_once(ids: list[int], eos: int, *, templated: bool, turn: int | None = None) -> list[int]:
    """End a response's ids with exactly one end token: the EOS, or ``turn``, with which the template ends a turn.

    The first end token of a templated text is the template's, and the rest is cut; otherwise every EOS is removed.
    """
    if templated and (ends := [ids.index(token) for token in (eos, turn) if token in ids]):
        return ids[: min(ends) + 1]
    body = [token for token in ids if token != eos] if eos in ids else ids
    return body if body and body[-1] == turn else [*body, eos]


def encode_prompt(prompt: str | tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode a prompt without responses, untruncated, as :func:`tokenize_pairs` encodes the prompt of a pair.

    Raises:
        RowError: the template refuses the conversation, or there are no tokens.
        CaldpoError: the template itself is broken.
    """
    renderer = Renderer(tokenizer)
    text, mark = renderer.prompt(prompt)
    [ids] = renderer.special.encode_arrays([text], mark)
    if isinstance(prompt, str):
        ids = _led(ids, array("i", leading_special_tokens(tokenizer)))
    if not ids:
        raise RowError("the prompt has no tokens")
    return ids.tolist()


def leading_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer itself puts before a plain text, BOS or nothing as a rule."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], pairs)]


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of text outside the vocabulary; None where there is none.

    Some tokenizers name their end token as the unknown one, too: those cover every byte.
    """
    unknown = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else unknown


def _led(prompt: array[int], leading: array[int]) -> array[int]:
    """Put the tokenizer's leading special tokens in front of ``prompt``, once."""
    return prompt if prompt[: len(leading)] == leading else leading + prompt


# prompt, chosen, rejected, and whether the prompt was truncated
_Ids = tuple["array[int]", "array[int]", "array[int]", bool]


@dataclass(frozen=True, slots=True)
class TokenizedChunk:
    """Some pairs, tokenised: small to send from another process."""

    tokens: bytes  # int32, of all pairs in a row
    ends: Sequence[int]  # in them, of each prompt, chosen and rejected response
    places: list[int]  # of the tokenised pairs among the chunk's
    rejections: list[Rejection]  # of the others
    cut_prompts: list[int]  # indices of tokenised pairs
    counts: TokenCounts


class PairTokenizer:
    """Tokenises chunks of pairs, each by itself, and counts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        max_prompt_length: int,
        on_degenerate: str,
        now: datetime | None,
    ) -> None:
        self.tokenizer, self.on_degenerate = tokenizer, on_degenerate
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.counts = TokenCounts()
        self.leading, self.unknown = array("i", leading_special_tokens(tokenizer)), unknown_token(tokenizer)
        turn = turn_end(tokenizer)
        self.turn = None if turn == tokenizer.eos_token_id else turn  # with which the template ends a turn, besides EOS
        self.turn_text = None if self.turn is None else str(tokenizer.convert_ids_to_tokens(self.turn))
        self.renderer = Renderer(tokenizer, now, self.turn_text)

    def tokenize(self, packed: PackedPairs) -> TokenizedChunk:
        """Tokenise the pairs of a chunk."""
        self.counts = TokenCounts()
        results: dict[int, _Ids | Rejection] = {}
        rendered: list[tuple[int, PreferencePair, RenderedPair]] = []
        for place, pair in enumerate(packed.unpack()):
            try:
                rendered.append((place, pair, self.renderer.pair(self._unended(pair))))
            except RowError as error:
                results[place] = Rejection(pair.origin, error.kind, error.reason)
        unmarked = [text for *_, texts in rendered if not texts.mark for text in _sequences(texts)]
        encoded = iter(self.renderer.special.encode_arrays(unmarked) if unmarked else [])
        for place, pair, texts in rendered:
            marked = self.renderer.special.encode_arrays(_sequences(texts), texts.mark) if texts.mark else None
            results[place] = self._pair(pair, texts, *(marked or islice(encoded, 3)))
        return self._chunk(results)

    def _chunk(self, results: Mapping[int, _Ids | Rejection]) -> TokenizedChunk:
        tokens, ends = array("i"), list[int]()
        places, rejections, cut_prompts = list[int](), list[Rejection](), list[int]()
        for place, result in sorted(results.items()):
            if isinstance(result, Rejection):
                rejections.append(result)
                continue
            *sides, is_cut = result
            if is_cut:
                cut_prompts.append(len(places))
            places.append(place)
            for ids in sides:
                tokens.extend(ids)
                ends.append(len(tokens))
        return TokenizedChunk(tokens.tobytes(), ends, places, rejections, cut_prompts, self.counts)

    def _unended(self, pair: PreferencePair) -> PreferencePair:
        """Strip the template's end of turn from responses whose own text ends with it: a response ends once."""
        token = self.turn_text
        if token is None or isinstance(pair.prompt, str):
            return pair
        ended = [text.rstrip().endswith(token) for text in (pair.chosen, pair.rejected)]
        self.counts.eos_stripped += sum(ended)
        if ended[0]:
            pair = replace(pair, chosen=pair.chosen.rstrip().removesuffix(token))
        return replace(pair, rejected=pair.rejected.rstrip().removesuffix(token)) if ended[1] else pair

    def _pair(
        self, pair: PreferencePair, texts: RenderedPair, prompt: array[int], *joint: array[int]
    ) -> _Ids | Rejection:
        whole = [self._response(texts, prompt, ids, text) for ids, text in zip(joint, texts.marked[1:], strict=True)]
        if not texts.templated:
            prompt = _led(prompt, self.leading)
        if not prompt:
            return Rejection(pair.origin, "row", "the prompt has no tokens")
        cut_prompt, chosen, rejected = truncate(
            prompt,
            *whole,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            bos=self.tokenizer.bos_token_id,
        )
        counts = self.counts
        counts.eos_stripped += texts.eos_stripped
        counts.special_as_text += bool(texts.mark)
        counts.turns_rewritten += texts.rewritten
        counts.special_in_prompts += not texts.templated and bool(self.renderer.special.spelled_out(texts.prompt))
        counts.prompts_truncated += len(cut_prompt) < len(prompt)
        counts.chosen_truncated += len(chosen) < len(whole[0])
        counts.rejected_truncated += len(rejected) < len(whole[1])
        ids = cut_prompt + chosen + rejected
        counts.tokens += len(ids)
        counts.unknown += 0 if self.unknown is None else int((np.frombuffer(ids, np.int32) == self.unknown).sum())
        if chosen == rejected and pair.label is None:
            counts.identical += 1
            if self.on_degenerate == "drop":
                cut = " once truncated" if whole[0] != whole[1] else ""
                return Rejection(pair.origin, "degenerate", f"chosen and rejected are the same tokens{cut}")
        return cut_prompt, chosen, rejected, len(cut_prompt) < len(prompt)

    def _response(self, texts: RenderedPair, prompt: array[int], joint: array[int], text: str) -> array[int]:
        eos = self.tokenizer.eos_token_id
        if not text:  # the absent response of a demonstration or an unpaired row
            return array("i", [eos])
        if joint[: len(prompt)] == prompt:
            ids = joint[len(prompt) :]
        else:
            self.counts.boundary_merges += 1
            ids = encode_continuation(partial(self.renderer.special.encode_arrays, mark=texts.mark), text)
        if texts.templated and ids:
            flat = np.frombuffer(ids, np.int32)
            ends = np.flatnonzero(flat == eos if self.turn is None else (flat == eos) | (flat == self.turn))
            if len(ends):
                return ids[: int(ends[0]) + 1]  # as end_once, in no time
        self.counts.eos_appended += texts.templated
        return array("i", end_once(ids.tolist(), eos, templated=texts.templated, turn=self.turn))


def _sequences(texts: RenderedPair) -> list[str]:
    """List the prompt and both whole sequences."""
    prompt, chosen, rejected = texts.marked
    return [prompt, prompt + chosen, prompt + rejected]
