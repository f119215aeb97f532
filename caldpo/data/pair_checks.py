"""What makes a parsed pair unusable, and what makes it useless."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError


def check_pair(pair: PreferencePair) -> None:
    """Refuse a pair that no tokenizer or loss could use, whatever format it came in.

    A NUL character is kept: it is legal text.

    Raises:
        RowError: a blank prompt or response (but the one that a demonstration does not have), or text that is not
            Unicode (half of a surrogate pair).
    """
    if not isinstance(pair.prompt, tuple) and not pair.prompt.strip():
        raise RowError("the prompt has no text")
    for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        extra = pair.chosen_extra if side == "chosen" else pair.rejected_extra
        calls = extra is not None and bool(extra.get("tool_calls"))  # a response may be a call of a tool alone
        if not response.strip() and not calls and not (pair.demonstration and side == "rejected"):
            raise RowError(f"the {side} response has no text")
    own = pair.prompt, pair.chosen, pair.rejected
    beside = pair.chosen_extra, pair.rejected_extra, pair.tools, pair.template_kwargs
    for value in _texts((own, beside)):
        try:
            value.encode()  # what a tokenizer does; its own error would name no row
        except UnicodeEncodeError as error:
            raise RowError(f"text with a lone surrogate (U+{ord(value[error.start]):04X})") from None


def has_reversed_scores(pair: PreferencePair) -> bool:
    """Whether the scores say that the rejected response is the better one."""
    return pair.has_scores and pair.score_chosen < pair.score_rejected  # type: ignore[operator]


class DegeneracyCheck:
    """Finds pairs without signal, or with a signal that an earlier pair contradicts.

    Keeps 16 bytes a pair. Of two pairs that repeat or contradict each other the first one stands, so a
    split always gives the same answer. Responses are compared without surrounding white space, because chat
    templates trim it.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def reason(self, pair: PreferencePair) -> str | None:
        """Why ``pair`` is degenerate, given the pairs asked about before; None when it is not."""
        alike = pair.chosen_extra == pair.rejected_extra  # in what they have beside their text
        if alike and pair.chosen == pair.rejected:
            return "chosen and rejected are identical"
        if alike and pair.chosen.strip() == pair.rejected.strip():
            return "chosen and rejected differ in surrounding white space alone"
        if pair.has_scores and pair.score_chosen == pair.score_rejected:
            return "equal scores, so no preference"
        prompt = pair.prompt, pair.tools, pair.template_kwargs
        chosen, rejected = (pair.chosen.strip(), pair.chosen_extra), (pair.rejected.strip(), pair.rejected_extra)
        digest = _digest(prompt, chosen, rejected)
        if digest in self._seen:
            return "repeats an earlier pair"
        if _digest(prompt, rejected, chosen) in self._seen:
            return "contradicts an earlier pair"
        self._seen.add(digest)
        return None


def _digest(*parts: object) -> bytes:
    # repr keeps the parts apart, whatever characters they hold.
    return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).digest()


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, the names in objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(name)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
