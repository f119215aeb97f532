"""Check pairs: usable by a tokenizer and a loss, not degenerate, scored where the loss needs it, in the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from caldpo.data.data_report import Rejection
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError
from caldpo.data.stored_pairs import StoredPairs, text_digest
from caldpo.errors import CaldpoError
from caldpo.utils.text_format import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 5  # rows named in a message


def check_pair(pair: PreferencePair) -> None:
    """Refuse a pair that no tokenizer or loss could use, whatever its format. A NUL character is legal text.

    Raises:
        RowError: a blank prompt or response (except the one that a row lacks), or half of a surrogate pair.
    """
    if not isinstance(pair.prompt, tuple) and not pair.prompt.strip():
        raise RowError("the prompt has no text")
    sides = [("chosen", pair.chosen, pair.chosen_extra)] if pair.has_chosen else []
    sides += [("rejected", pair.rejected, pair.rejected_extra)] if pair.has_rejected else []
    for side, response, extra in sides:
        calls = extra is not None and bool(extra.get("tool_calls"))  # a response may be a tool call alone
        if not response.strip() and not calls:
            raise RowError(f"the {side if pair.label is None else 'labelled'} response has no text")
    context = (pair.prompt, pair.chosen_extra, pair.rejected_extra, pair.tools, pair.template_kwargs)
    try:  # as a tokenizer does; its own error would name no row
        for part in (pair.chosen, pair.rejected, *filter(None, context)):
            for text in (part,) if isinstance(part, str) else _texts(part):
                text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"text with a lone surrogate (U+{ord(error.object[error.start]):04X})") from None


def _texts(value: object) -> Iterator[str]:
    """Yield all texts in a value, the keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(name)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def has_reversed_scores(pair: PreferencePair) -> bool:
    """Whether the rejected response has the higher score."""
    return pair.has_scores and pair.score_chosen < pair.score_rejected  # type: ignore[operator]


class DegeneracyCheck:
    """Finds pairs without signal, and pairs that repeat or contradict an earlier one.

    Keeps 16 bytes per pair. Of two pairs that repeat or contradict each other the first one stands, so a split always
    gives the same answer. Without ``find_repeats`` none is looked for.
    """

    def __init__(self, *, find_repeats: bool = True) -> None:
        self._find_repeats = find_repeats
        self._in_order: dict[bytes, bool] = {}  # by digest of a pair whose sides are sorted: whether they were

    def repeats(self, signal: Signal) -> str | None:
        """Return how a pair, told by its :func:`pair_signal`, repeats or contradicts an earlier one."""
        if not self._find_repeats:
            return None
        digest, in_order, what = signal
        if digest in self._in_order:
            return f"{'repeats' if self._in_order[digest] == in_order else 'contradicts'} an earlier {what}"
        self._in_order[digest] = in_order
        return None


class Signal(NamedTuple):
    """What a pair says, to compare with other pairs."""

    digest: bytes  # of the pair with its sides sorted, or of an unpaired row without its label
    in_order: bool  # whether the sides were sorted, or the label
    what: str = "pair"


def pair_signal(pair: PreferencePair) -> str | Signal:
    """Return why a pair has no signal by itself, else its signal; of an unpaired row, its signal.

    Responses are compared without surrounding white space, because chat templates trim it.
    """
    if pair.label is not None:
        extra = pair.chosen_extra if pair.has_chosen else pair.rejected_extra
        response = text_digest(pair.response.strip(), extra)
        digest = text_digest("unpaired", (pair.prompt, pair.tools, pair.template_kwargs), response)
        return Signal(digest, pair.label, "row with the same response")
    chosen, rejected = (pair.chosen.strip(), pair.chosen_extra), (pair.rejected.strip(), pair.rejected_extra)
    if chosen == rejected:
        same = pair.chosen == pair.rejected
        return f"chosen and rejected {'are identical' if same else 'differ in surrounding white space alone'}"
    if pair.has_scores and pair.score_chosen == pair.score_rejected:
        return "equal scores, so no preference"
    sides = [text_digest(text, extra) for text, extra in (chosen, rejected)]
    context = text_digest("", (pair.prompt, pair.tools, pair.template_kwargs))
    return Signal(text_digest("", (context, min(sides), max(sides))), sides[0] < sides[1])


def require_scores(pairs: StoredPairs, split: str, loss_name: str) -> None:
    """Check that every pair has both ground-truth rewards, an unpaired row that of its response."""
    labels = pairs.labels()
    present = np.stack([labels != 0, labels != 1], axis=1)
    missing = np.flatnonzero((np.isnan(pairs.scores()) & present).any(axis=1))
    if len(missing):
        raise CaldpoError(
            f"loss {loss_name} reads the data's scores, and {len(missing):,} of "
            f"{counted(len(pairs), 'pair')} of {split} have none, first {pairs.origin(int(missing[0]))}",
            key="loss",
            value=loss_name,
            remedy="give every row score_chosen and score_rejected, or take a loss that needs no scores: with a "
            "calibrated one loss.targets=fixed",
        )


def refuse_untokenized(rejections: list[Rejection], kept: int, split: str, on_invalid: str, listed_in: Path) -> None:
    """Refuse a split of which tokenisation left out everything, or unusable rows under ``on_invalid=error``.

    Args:
        rejections: of tokenisation.
        kept: number of tokenised pairs.
        split, listed_in: for the message: the split's name, and the file that lists all rejections.
        on_invalid: the setting.
    """
    refused = [r for r in rejections if r.kind == "row"]
    if not (refused and on_invalid == "error") and kept:
        return
    listed = refused or rejections
    lines = "".join(f"\n    {r.origin}: {r.reason}" for r in listed[:_SHOWN])
    more = f"\n    ... and {len(listed) - _SHOWN:,} more, see {listed_in}" if len(listed) > _SHOWN else ""
    what = f"{'' if kept else 'no pair is left: '}{counted(len(listed), 'pair')} cannot be used"
    raise CaldpoError(
        f"{what} once they are tokenised{lines}{more}",
        key=split,
        remedy="name another template with data.chat_template=FILE, leave out on purpose what it does not write with "
        "data.columns.ignored=[COLUMN], raise data.max_length, or set data.on_invalid=skip to leave out such rows",
    )


def refuse_unknown(share: float, limit: float, split: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a split with a larger share of tokens for text outside the vocabulary than ``limit``."""
    if share > limit:
        raise CaldpoError(
            f"{share:.1%} of the tokens of {split} are {tokenizer.unk_token}: the vocabulary of the policy's tokenizer "
            f"({len(tokenizer):,} tokens) does not cover this text",
            key="model",
            remedy="choose a model whose vocabulary covers the data, for instance model=hf model.path=ID_OR_FOLDER,"
            f" or set data.max_unknown={min(1.0, share + 0.005):.2f} to train on them",
        )
