"""What makes a parsed pair unusable, and what makes it useless."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from caldpo.data.pair import PreferencePair
from caldpo.data.rows import RowError


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
        if not response.strip() and not (pair.demonstration and side == "rejected"):
            raise RowError(f"the {side} response has no text")
    for value in _texts(pair):
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
        if pair.chosen == pair.rejected:
            return "chosen and rejected are identical"
        if pair.chosen.strip() == pair.rejected.strip():
            return "chosen and rejected differ in surrounding white space alone"
        if pair.has_scores and pair.score_chosen == pair.score_rejected:
            return "equal scores, so no preference"
        digest = _digest(pair.prompt, pair.chosen, pair.rejected)
        if digest in self._seen:
            return "repeats an earlier pair"
        if _digest(pair.prompt, pair.rejected, pair.chosen) in self._seen:
            return "contradicts an earlier pair"
        self._seen.add(digest)
        return None


def _digest(prompt: object, chosen: str, rejected: str) -> bytes:
    # repr keeps the three parts apart, whatever characters they hold.
    identity = repr((prompt, chosen.strip(), rejected.strip()))
    return hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=16).digest()


def _texts(pair: PreferencePair) -> Iterator[str]:
    if isinstance(pair.prompt, str):
        yield pair.prompt
    else:
        yield from (message["content"] for message in pair.prompt)
    yield from (pair.chosen, pair.rejected)
