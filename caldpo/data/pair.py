"""Define a preference pair before and after tokenisation. No torch here: sources stay light."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    dispreferred response, and an unpaired row has only the one that its label says: the text of the other is empty,
    and tokenised as EOS alone.

    Args:
        origin: file and line, or split and row, for messages.
        chosen_extra, rejected_extra: fields of a response's message other than its text: ``tool_calls``,
            ``reasoning_content``.
        tools, template_kwargs: the list of tools and further variables for the chat template.
        remarks: what was done to make a pair of the row, in fixed phrases to count by.
        label: of an unpaired row, whether its one response is desirable; None of a pair or a demonstration.
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
    label: bool | None = None

    @property
    def chosen_turn(self) -> Message:
        """The preferred response as a turn of a conversation."""
        return Message(role="assistant", content=self.chosen, **(self.chosen_extra or {}))  # type: ignore[typeddict-item]

    @property
    def rejected_turn(self) -> Message:
        """The dispreferred response as a turn of a conversation."""
        return Message(role="assistant", content=self.rejected, **(self.rejected_extra or {}))  # type: ignore[typeddict-item]

    @property
    def has_chosen(self) -> bool:
        """Whether there is a preferred, or desirable, response."""
        return self.label is not False

    @property
    def has_rejected(self) -> bool:
        """Whether there is a dispreferred, or undesirable, response."""
        return not self.demonstration and self.label is not True

    @property
    def response(self) -> str:
        """The preferred response, or the only one."""
        return self.chosen if self.has_chosen else self.rejected

    @property
    def has_scores(self) -> bool:
        """Whether both ground-truth rewards are known."""
        return self.score_chosen is not None and self.score_rejected is not None


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of the shared prompt and of each response; ``index`` is the row of the pair in its split.

    ``label`` is that of an unpaired row, whose other response is an EOS alone that stands for nothing.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    score_chosen: float | None
    score_rejected: float | None
    index: int
    origin: str
    label: bool | None = None

    @property
    def scored(self) -> bool:
        """Whether the ground-truth reward of each response that there is, is known."""
        scores = (self.score_chosen, self.label is not False), (self.score_rejected, self.label is not True)
        return all(score is not None for score, present in scores if present)


def labelled(pair: PreferencePair, label: bool) -> PreferencePair:
    """Return the unpaired row of a pair or a demonstration: of the preferred response where ``label``, else the other.

    A demonstration's response is the one that is labelled.
    """
    if not label and pair.demonstration:
        pair = replace(pair, rejected=pair.chosen, rejected_extra=pair.chosen_extra, score_rejected=pair.score_chosen)
    side = "rejected" if label else "chosen"  # the absent one
    absent: dict[str, Any] = {side: "", f"{side}_extra": None, f"score_{side}": None}
    return replace(pair, demonstration=False, label=label, **absent)


def taken_apart(pair: PreferencePair) -> list[PreferencePair]:
    """Return the two unpaired rows of a pair; an unpaired row alone, as it is."""
    if pair.label is not None:
        return [pair]
    sides = {"chosen": True, "rejected": False} if pair.has_rejected else {"chosen": True}
    return [replace(labelled(pair, label), origin=f"{pair.origin} ({side})") for side, label in sides.items()]


def prompt_key(prompt: str | Sequence[Message]) -> str:
    """Return a digest that is equal for prompts a reader would call the same.

    Letter case, Unicode composition and the amount of white space do not count.
    """
    turns = [("", prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
    normal = [(role, " ".join(unicodedata.normalize("NFKC", body).casefold().split())) for role, body in turns]
    return hashlib.blake2b(repr(normal).encode(), digest_size=16).hexdigest()
