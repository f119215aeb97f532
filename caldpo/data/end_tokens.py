"""Define the tokens that end a response, for training, sampling, log-probs of samples, lengths and exports alike.

- the tokenizer's EOS;
- the special token that the chat template writes after an assistant's turn, such as ``<|im_end|>`` or
  ``<end_of_turn>``, which need not be the EOS;
- what the model's own settings name: ``eos_token_id`` of generation_config.json, a number or a list. Where that file
  names none, what config.json names, as transformers' ``generate`` has it; special tokens of config.json always.

A trained response ends with one of the first two: with that of its template, else with the EOS. A sampled response ends
with the first of any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.data.chat_template import Renderer
from caldpo.data.pair import Message, PreferencePair, TokenizedPair
from caldpo.data.raw_row import RowError
from caldpo.errors import CaldpoError
from caldpo.models.adapted_policy import base_model
from caldpo.models.sampling import token_names

_PROBE = "response"  # text of an assistant turn


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the chat template writes after an assistant turn; None where it writes none."""
    if tokenizer.chat_template is None:
        return None
    probe = PreferencePair((Message(role="user", content="a"),), _PROBE, "", demonstration=True)
    try:
        _, mark, after = Renderer(tokenizer).pair(probe).chosen.rpartition(_PROBE)
    except (RowError, CaldpoError, ValueError):  # refused so short a conversation: its rows tell why
        return None
    if not mark:
        return None
    special = _special(tokenizer) - {tokenizer.bos_token_id, tokenizer.unk_token_id}
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in special), None)


def trained_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that a trained response may end with: EOS first, then the end of turn."""
    return _distinct([tokenizer.eos_token_id, turn_end(tokenizer)])


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """Return every token that ends a response of this model, the tokenizer's EOS first."""
    base = base_model(model)
    own = _ids(getattr(getattr(base, "generation_config", None), "eos_token_id", None))
    config = base.config.get_text_config()
    special = _special(tokenizer)
    of_config = [token for token in _ids(getattr(config, "eos_token_id", None)) if not own or token in special]
    return _distinct([*trained_ends(tokenizer), *own, *of_config])


def response_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Sequence[int]) -> str:
    """Decode a response without its end token and without special tokens."""
    body = ids[:-1] if len(ids) and ids[-1] in ends else ids
    return str(tokenizer.decode(list(body), skip_special_tokens=True))


def inner_end_notes(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, pairs: Iterable[TokenizedPair]
) -> list[str]:
    """Describe, on a line, how many trained responses go on after a token that ends a sampled one; empty for none."""
    ends = set(end_tokens(tokenizer, model))
    if len(ends) == 1:  # only the EOS, which is in a response only at its end
        return []
    tokens: set[int] = set()
    count = 0
    for pair in pairs:
        for ids in (pair.chosen_ids, pair.rejected_ids):
            inner = ends.intersection(ids[:-1])
            tokens |= inner
            count += bool(inner)
    if not count:
        return []
    where = f"{count:,} training responses hold {token_names(tokenizer, sorted(tokens))} before their end"
    return [f"{where}, at which samples end: they are trained on whole"]


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}


def _ids(setting: object) -> list[int]:
    """List the token ids of a setting that is one id or a list; anything else is left out."""
    items = setting if isinstance(setting, list | tuple) else [setting]
    return [token for token in items if isinstance(token, int) and not isinstance(token, bool) and token >= 0]


def _distinct(tokens: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(token for token in tokens if token is not None))
