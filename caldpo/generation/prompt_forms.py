"""From what is asked to tokens: held-out prompts, given texts, and turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caldpo.data.pair import Message
from caldpo.data.raw_row import RowError
from caldpo.data.tokenize import encode_prompt
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.generation.responses import Prompt
from caldpo.generation.user_prompts import Asked


@dataclass(frozen=True)
class Form:
    """How a text is asked.

    Args:
        as_turn: as a user's turn for the chat template; otherwise as it is.
        why: in a few words, for the terminal.
    """

    as_turn: bool
    why: str

    def __str__(self) -> str:
        form = "a user's turn in the chat template" if self.as_turn else "taken as it is"
        return f"a text is {form}: {self.why}"


def find_form(subject: EvaluatedPolicy, as_chat: bool | None) -> Form:
    """Whether texts are turns: as ``as_chat`` says, else as the data has its prompts, else as the tokenizer can.

    Raises:
        CaldpoError: a turn is asked for and the tokenizer has no chat template.
    """
    if as_chat is not None:
        form = Form(as_chat, f"as_chat={str(as_chat).lower()}")
    elif subject.has_data:
        turns = any(not isinstance(pair.prompt, str) for pair in subject.data.test_sources)
        form = Form(turns, f"the data's prompts are {'conversations' if turns else 'plain text'}")
    else:
        turns = subject.tokenizer.chat_template is not None
        form = Form(turns, f"the tokenizer has {'a' if turns else 'no'} chat template")
    if form.as_turn:
        _require_template(subject, key="as_chat")
    return form


def held_out(subject: EvaluatedPolicy, count: int) -> list[Prompt]:
    """The first ``count`` distinct held-out prompts, cut as in training, with their chosen responses."""
    return [Prompt(found.prompt, found.prompt_ids, found.reference) for found in subject.held_out(count)]


def given(subject: EvaluatedPolicy, asked: Sequence[Asked], form: Form) -> list[Prompt]:
    """Prompts that a person gave, uncut.

    Raises:
        CaldpoError: the chat template refuses one, or one has no tokens.
    """
    return [
        as_prompt(subject, (user_turn(prompt),) if isinstance(prompt, str) and form.as_turn else prompt)
        for prompt in asked
    ]


def as_prompt(subject: EvaluatedPolicy, asked: Asked) -> Prompt:
    """Text as it is, or a conversation in the chat template, as training tokenises a prompt.

    Raises:
        CaldpoError: the template refuses the conversation, or there is none; there are no tokens.
    """
    if not isinstance(asked, str):
        _require_template(subject, key="prompts")
    try:
        return Prompt(asked, encode_prompt(asked, subject.tokenizer))
    except RowError as error:
        raise CaldpoError(str(error), key="prompts", value=repr(asked)[:80]) from error


def user_turn(text: str) -> Message:
    """What a user says, as a message."""
    return Message(role="user", content=text)


def _require_template(subject: EvaluatedPolicy, key: str) -> None:
    if subject.tokenizer.chat_template is None:
        raise CaldpoError(
            "the policy's tokenizer has no chat template to write a conversation with",
            key=key,
            remedy="give prompts as text, with as_chat=false",
        )
