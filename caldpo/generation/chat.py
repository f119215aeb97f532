"""Chat with the policy, the reference beside it, on the terminal or from a pipe."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from caldpo.data.pair import Message
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.evaluation.evaluation_settings import GenerateSettings
from caldpo.generation.generation_checks import PromptContent
from caldpo.generation.generation_output import CHAT, append_rows, print_responses, rows_of
from caldpo.generation.responses import Response, as_prompt, find_form, respond

_QUIT, _NEW = "/quit", "/new"
_PROMPT = "you> "


def converse(policy: EvaluatedPolicy, settings: GenerateSettings, console: Console, *, compare: bool) -> None:
    """Answer each line of standard input until it ends, or ``/quit``, or Ctrl-C, none of which is an error.

    With a chat template the conversation continues with the policy's answers; as plain text each line is a prompt by
    itself. Every turn is written to ``chat.csv`` before it is shown.
    """
    as_turn, form = find_form(policy, settings.as_chat)
    commands = f"{_QUIT} or Ctrl-D ends{f', {_NEW} starts a new conversation' if as_turn else ''}"
    for line in (form, commands):
        console.print(line, style="dim", highlight=False, soft_wrap=True)
    sampling = policy.sampling(1, 1, settings.max_new_tokens, settings.temperature)
    chat = _Chat(policy, policy.folder / CHAT, as_turn, sampling, compare)
    _prepare_input()
    try:
        while (text := _read_line()).strip() != _QUIT:
            _handle(chat, text, console)
    except (EOFError, KeyboardInterrupt):
        console.print()
    if chat.turns:
        console.print(f"written to {chat.file}", highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Chat:
    """The state of a session: its turns, and the history of its current conversation."""

    policy: EvaluatedPolicy
    file: Path
    as_turn: bool
    sampling: Sampling
    compare: bool
    session: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    conversation: int = 0
    turns: int = 0
    history: tuple[Message, ...] = ()

    def answer(self, text: str) -> list[Response]:
        """Respond to the user's next text, and append the turn to the file.

        Raises:
            CaldpoError: the conversation is too long, or the template refuses it.
        """
        content: PromptContent = (*self.history, Message(role="user", content=text)) if self.as_turn else text
        # another seed each turn, or the same question would always get the same answer
        sampling = replace(self.sampling, seed=self.sampling.seed + self.turns)
        (responses,) = respond(self.policy, [as_prompt(self.policy, content)], sampling, compare=self.compare)
        turn = {"session": self.session, "conversation": self.conversation, "turn": self.turns}
        append_rows(self.file, [turn | row for row in rows_of(text, responses, sampling)])
        self.turns += 1
        if not isinstance(content, str):
            self.history = (*content, Message(role="assistant", content=responses[0].text))
        return responses


def _handle(chat: _Chat, line: str, console: Console) -> None:
    """Handle one line of the user: a turn, or a command."""
    command = line.strip()
    if not command:
        return
    if command == _NEW:
        chat.conversation, chat.history = chat.conversation + 1, ()
        console.print("a new conversation", style="dim")
    elif command.startswith("/") and len(command.split()) == 1:
        console.print(Text(f"no such command: {command} (choose {_QUIT} or {_NEW})", "yellow"))
    else:
        try:
            print_responses(console, chat.answer(line))
        except CaldpoError as error:  # the next turn may be answered
            console.print(Text(str(error), "yellow"), soft_wrap=True)


def _prepare_input() -> None:
    """Enable line editing on a terminal; replace invalid UTF-8 from a pipe instead of failing."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def _read_line() -> str:
    line = input(_PROMPT)
    if not sys.stdin.isatty():
        print(line)  # a terminal echoes, a pipe does not
    return line
