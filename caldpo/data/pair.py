"""Define a preference pair before and after tokenisation. No torch here: sources stay light."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # system, user, assistant or tool
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]  # of an assistant, as OpenAI writes them
    tool_call_id: NotRequired[str]  # of a tool
    name: NotRequired[str]
    reasoning_content: NotRequired[str]  # of an assistant


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a preferred and a dispreferred response.

    ``prompt`` is a conversation (to be rendered by a chat template) or plain text (taken as it is).
    Scores are ground-truth rewards in the data's own unit; both or neither are given. A demonstration has no
    dispreferred response: ``rejected`` is empty, and tokenised as EOS alone.

    Args:
        origin: file and line, or split and row, for messages.
        chosen_extra, rejected_extra: fields of a response's message other than its text: ``tool_calls``,
            ``reasoning_content``.
        tools, template_kwargs: the list of tools and further variables for the chat template.
        remarks: what was done to make a pair of the row, in fixed phrases to count by.
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    score_chosen: float | None = None
    score_rejected: float | None = None
    origin: str = ""
    demonstration: bool = False
    chosen_extra: Mapping[str, Any] | None = None
    rejected_extra: Mapping[str, Any] | None = None
    tools: Sequence[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def chosen_turn(self) -> Message:
        """The preferred response as a turn of a conversation."""
        return Message(role="assistant", content=self.chosen, **(self.chosen_extra or {}))  # type: ignore[typeddict-item]

    @property
    def rejected_turn(self) -> Message:
        """The dispreferred response as a turn of a conversation."""
        return Message(role="assistant", content=self.rejected, **(self.rejected_extra or {}))  # type: ignore[typeddict-item]

    @property
    def has_scores(self) -> bool:
        """Whether both ground-truth rewards are known."""
        return self.score_chosen is not None and self.score_rejected is not None


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of the shared prompt and of each response; ``index`` is the row of the pair in its split."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    score_chosen: float | None
    score_rejected: float | None
    index: int
    origin: str


def prompt_key(prompt: str | Sequence[Message]) -> str:
    """Return a digest that is equal for prompts a reader would call the same.

    Letter case, Unicode composition and the amount of white space do not count.
    """
    turns = [("", prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
    normal = [(role, " ".join(unicodedata.normalize("NFKC", body).casefold().split())) for role, body in turns]
    return hashlib.blake2b(repr(normal).encode(), digest_size=16).hexdigest()
