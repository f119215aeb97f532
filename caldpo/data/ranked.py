"""Make pairs of the responses to one prompt that are ranked or scored, by a stated rule. No heavy imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from caldpo.data.pair import Message, PreferencePair
from caldpo.data.raw_row import RowError

RankedRule = Literal["best_worst", "all", "adjacent"]


@dataclass(frozen=True, slots=True)
class RankedResponses:
    """A prompt and several responses to it, all text or all turns.

    Args:
        prompt: text or turns, as of a pair.
        responses: at least one; texts where the prompt is text, else turns of the assistant.
        quality: of each response; the higher the better, equal ones are tied.
        scored: whether ``quality`` is ground-truth rewards, and not places in a ranking.
    """

    prompt: str | tuple[Message, ...]
    responses: Sequence[str] | Sequence[Message]
    quality: Sequence[float]
    scored: bool = False

    def pair(self, better: int, worse: int) -> PreferencePair:
        """Return the pair of two responses."""
        chosen, chosen_extra = _text_and_extra(self.responses[better])
        rejected, rejected_extra = _text_and_extra(self.responses[worse])
        return PreferencePair(
            self.prompt,
            chosen,
            rejected,
            score_chosen=self.quality[better] if self.scored else None,
            score_rejected=self.quality[worse] if self.scored else None,
            chosen_extra=chosen_extra,
            rejected_extra=rejected_extra,
        )


@dataclass(frozen=True, slots=True)
class RankedCounts:
    """What gave no pair in a row of several responses."""

    ties: int  # pairs of tied responses that the rule named, and which have no preference
    unused: int  # responses in no pair


def best_worst(order: Sequence[int], quality: Sequence[float]) -> list[tuple[int, int]]:
    """Pair the best response with the worst; of tied ones the first that the row lists."""
    lowest = quality[order[-1]]
    return [(order[0], next(place for place in order if quality[place] == lowest))]


def every(order: Sequence[int], quality: Sequence[float]) -> list[tuple[int, int]]:
    """Pair each response with every worse one."""
    return [(better, worse) for rank, better in enumerate(order) for worse in order[rank + 1 :]]


def adjacent(order: Sequence[int], quality: Sequence[float]) -> list[tuple[int, int]]:
    """Pair each response with the next worse one in the order."""
    return list(pairwise(order))


_RULES: Mapping[RankedRule, Callable[[Sequence[int], Sequence[float]], list[tuple[int, int]]]] = {
    "best_worst": best_worst,
    "all": every,
    "adjacent": adjacent,
}


def pairs_by_rule(row: RankedResponses, rule: RankedRule) -> tuple[list[PreferencePair], RankedCounts]:
    """Make the pairs of a row, best response first; pairs of tied responses are left out and counted.

    Tied responses stay in the order of the row, so that the same row always gives the same pairs.

    Raises:
        RowError: fewer than two responses, or all of them are tied.
    """
    if len(row.responses) < 2:
        raise RowError(f"a single response to compare ({len(row.responses)})")
    order = sorted(range(len(row.responses)), key=lambda place: -row.quality[place])
    places = _RULES[rule](order, row.quality)
    chosen = [(better, worse) for better, worse in places if row.quality[better] > row.quality[worse]]
    if not chosen:
        raise RowError("all its responses are tied", kind="degenerate")
    used = {place for both in chosen for place in both}
    pairs = [row.pair(*both) for both in chosen]
    return pairs, RankedCounts(ties=len(places) - len(chosen), unused=len(row.responses) - len(used))


def _text_and_extra(response: str | Message) -> tuple[str, dict[str, object] | None]:
    if isinstance(response, str):
        return response, None
    rest = {name: value for name, value in response.items() if name not in ("role", "content", "name")}
    return response["content"], rest or None
