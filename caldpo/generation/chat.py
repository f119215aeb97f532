"""A conversation with the policy, the reference beside it, on the terminal or from a pipe."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.text import Text

from caldpo.data.pair import Message
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.evaluation.evaluation_settings import GenerateSettings
from caldpo.generation.generation_console import print_responses
from caldpo.generation.generation_table import CHAT, Transcript
from caldpo.generation.prompt_forms import Form, as_prompt, find_form, user_turn
from caldpo.generation.responses import Response, respond
from caldpo.generation.user_prompts import Asked

_QUIT, _NEW = "/quit", "/new"
_ASK = "you> "


def converse(subject: EvaluatedPolicy, settings: GenerateSettings, console: Console, *, compare: bool) -> None:
    """Answer each line of standard input until it ends, or ``/quit``, or Ctrl-C, which all are good ends.

    With a chat template the conversation goes on with the policy's answers; as plain text each line is a prompt of its
    own. Every turn is in ``chat.csv`` before it is shown.
    """
    form = find_form(subject, settings.as_chat)
    commands = f"{_QUIT} or Ctrl-D ends{f', {_NEW} begins anew' if form.as_turn else ''}"
    for told in (str(form), commands):
        console.print(told, style="dim", highlight=False, soft_wrap=True)
    how = subject.sampling(1, 1, settings.max_new_tokens, settings.temperature)
    chat = _Chat(subject, form, how, Transcript(subject.folder / CHAT), compare)
    _prepare_input()
    try:
        while (line := _next_line()) is not None and line.strip() != _QUIT:
            _take(chat, line, console)
    except KeyboardInterrupt:
        console.print()
    if chat.transcript.turns:
        console.print(f"written to {chat.transcript.file}", highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Chat:
    """The state of a conversation."""

    subject: EvaluatedPolicy
    form: Form
    how: Sampling
    transcript: Transcript
    compare: bool
    conversation: int = 0
    history: tuple[Message, ...] = field(default=())

    def begin_anew(self) -> None:
        """Forget what was said."""
        self.conversation, self.history = self.conversation + 1, ()

    def answer(self, text: str) -> list[Response]:
        """The responses to what the user says next.

        Raises:
            CaldpoError: the conversation is too long, or the template refuses it.
        """
        asked: Asked = (*self.history, user_turn(text)) if self.form.as_turn else text
        # another seed a turn, or the same question would always get the same answer
        how = replace(self.how, seed=self.how.seed + self.transcript.turns)
        (responses,) = respond(self.subject, [as_prompt(self.subject, asked)], how, compare=self.compare)
        self.transcript.add(self.conversation, text, responses, how)
        if not isinstance(asked, str):
            self.history = (*asked, Message(role="assistant", content=responses[0].text))
        return responses


def _take(chat: _Chat, line: str, console: Console) -> None:
    """One line of the user: a turn, or a command."""
    command = line.strip()
    if not command:
        return
    if command == _NEW:
        chat.begin_anew()
        console.print("a new conversation", style="dim")
    elif command.startswith("/") and len(command.split()) == 1:
        console.print(Text(f"no such command: {command} (there are {_QUIT} and {_NEW})", "yellow"))
    else:
        try:
            print_responses(console, chat.answer(line))
        except CaldpoError as error:  # this turn cannot be answered; the next may
            console.print(Text(str(error), "yellow"), soft_wrap=True)


def _prepare_input() -> None:
    """Line editing on a terminal; bytes that are no UTF-8 from a pipe are shown as such instead of ending it."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def _next_line() -> str | None:
    """What is typed next; None at the end of input."""
    try:
        line = input(_ASK)
    except EOFError:
        print()
        return None
    if not sys.stdin.isatty():
        print(line)  # a terminal shows what is typed, a pipe does not
    return line
