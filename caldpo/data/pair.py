"""A preference pair before and after tokenisation. No torch here: sources stay light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a preferred and a dispreferred response.

    ``prompt`` is a conversation (to be rendered by a chat template) or plain text (taken as it is).
    Scores are ground-truth rewards in the data's own unit; both or neither are given. A demonstration has no
    dispreferred response: ``rejected`` is empty, and is tokenised as an EOS alone.
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    score_chosen: float | None = None
    score_rejected: float | None = None
    origin: str = ""  # file:line or dataset row, for messages
    demonstration: bool = False  # a response to imitate, with none to compare it with

    @property
    def has_scores(self) -> bool:
        """Whether both ground-truth rewards are known."""
        return self.score_chosen is not None and self.score_rejected is not None


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of the shared prompt and of each response; ``index`` is the pair's row in its split."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    score_chosen: float | None
    score_rejected: float | None
    index: int
    origin: str
