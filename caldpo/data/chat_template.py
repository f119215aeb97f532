"""From a pair to texts: what the policy is prompted with, and what follows it.

Conversations are rendered by the tokenizer's chat template, always through transformers' sandboxed
``apply_chat_template``, since templates come from the hub with the tokenizer. A template is a program, and what the
sandbox does not stop is bounded here: memory, time and the length of what it writes. Plain text is taken as it is.

Special tokens that a conversation or a response spells out stay text (:mod:`caldpo.data.special_text`), with two
exceptions.
A text prompt that spells some out was written by a template of somebody's own, so that it and its responses are taken
with them. And EOS at the end of a response is taken off and counted, since a response ends once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from caldpo.data import template_checks as faithful
from caldpo.data.pair import Message, PreferencePair
from caldpo.data.raw_row import RowError
from caldpo.data.special_text import SpecialText
from caldpo.data.template_clock import reads_clock, stopped
from caldpo.data.template_file import MAX_TEMPLATE_CHARACTERS
from caldpo.errors import CaldpoError
from caldpo.utils.resource_limits import TooLong, bounded
from caldpo.utils.yaml_io import texts_in

# far beyond any real template, which takes microseconds and writes little more than it is given
MAX_MEBIBYTES = 512  # of memory, for the conversations of one pair
MAX_SECONDS = 10.0  # of processor time, likewise
MAX_WRITTEN = 1_000_000  # characters around a conversation
MAX_REPEATED = 20  # times a conversation may be written out

_ANOTHER = "name a template that you have read with data.chat_template=FILE"


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """The texts of a pair: ``prompt + chosen`` and ``prompt + rejected`` are the two whole sequences.

    Args:
        prompt: what the policy is prompted with.
        chosen, rejected: what follows it, with whatever a template writes around a response.
        templated: True if a template wrote the special tokens into the text.
        eos_stripped: how many EOS tokens the responses' own text contained.
        mark: the character that stands in special tokens of the pair's own text; empty where there are none.
        marked: the three texts with it; None where there are none.
        rewritten: earlier turns of the assistant that the template did not write as they were given.
    """

    prompt: str
    chosen: str
    rejected: str
    templated: bool
    eos_stripped: int
    mark: str = ""
    marked: tuple[str, str, str] | None = None
    rewritten: int = 0


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that conversations can be rendered.

    Raises:
        CaldpoError: the tokenizer has no chat template, or one that is absurdly long.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise CaldpoError(
            f"the data has conversations, and the policy's tokenizer{_named(tokenizer)} has no chat template to "
            "write them with",
            key="data.chat_template",
            remedy="name a Jinja file with data.chat_template=FILE, take a model whose tokenizer has a chat "
            "template, or use data whose prompts are plain text",
        ) from error
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise CaldpoError(
            f"the tokenizer's chat template has {len(template):,} characters, which no chat template has",
            remedy="name a template of your own with data.chat_template=FILE",
        )


class Renderer:
    """Writes pairs and prompts with one tokenizer.

    Args:
        tokenizer: its chat template and special tokens must not change afterwards.
        now: the time for templates that write the date; None is that of each call.
        turn: the token with which the template ends a turn, if it is another than the EOS.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None, turn: str | None = None
    ) -> None:
        self._tokenizer, self._now = tokenizer, now
        self._turn, self._ends = turn, [token for token in (tokenizer.eos_token, turn) if token]
        self.special = SpecialText(tokenizer)
        self._reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages", "strftime_now"}

    def pair(self, pair: PreferencePair) -> RenderedPair:
        """The pair's texts, by the chat template or as they are.

        Raises:
            RowError: the template refuses the conversation, does not continue its own prompt, or leaves out what it
                was given; a response spells out a special token that this tokenizer cannot take for text.
            CaldpoError: the template itself is broken, reaches out of its sandbox, or takes too much.
        """
        rendered = isinstance(pair.prompt, str) and bool(self.special.found(pair.prompt))
        chosen, in_chosen = self._ended_once(pair.chosen, all_of_them=rendered)
        rejected, in_rejected = self._ended_once(pair.rejected, all_of_them=rendered)
        stripped = in_chosen + in_rejected
        if isinstance(pair.prompt, str):
            mark = "" if rendered else self.special.mark_for(chosen, rejected, pair.prompt)
            chosen, rejected = self.special.marked([chosen, rejected], mark)
            return _plain(pair.prompt, chosen, rejected, mark, templated=False, eos_stripped=stripped)
        turns: list[Any] = [pair.chosen_turn | {"content": chosen}]
        if not pair.demonstration:
            turns.append(pair.rejected_turn | {"content": rejected})
        given = [*pair.prompt, *turns], pair.tools, pair.template_kwargs
        mark = self.special.mark_for(*texts_in(given))
        prompt, turns = self.special.marked((list(pair.prompt), turns), mark)
        extra = {
            "tools": self.special.marked(pair.tools, mark),
            "variables": self.special.marked(pair.template_kwargs, mark) or {},
        }
        with _bounded():
            written = self._apply(prompt, generate=True, **extra)
            after = [_continuation(written, self._apply([*prompt, turn], generate=False, **extra)) for turn in turns]
            rewritten = self._require_prompt(prompt, written, **extra)
            for side, turn, text in zip(("chosen", "rejected"), turns, after, strict=False):
                ends = [place for token in self._ends if (place := text.find(token)) >= 0]
                faithful.require_response(turn, text[: min(ends, default=len(text))], side)
        answers = [*after, ""][:2]
        return _plain(written, answers[0], answers[1], mark, templated=True, eos_stripped=stripped, rewritten=rewritten)

    def prompt(self, prompt: str | tuple[Message, ...]) -> tuple[str, str]:
        """The text of a prompt that a response is to follow, as :meth:`pair` writes it, and the mark in it.

        Raises:
            RowError: the template refuses the conversation.
            CaldpoError: the template itself is broken, reaches out of its sandbox, or takes too much.
        """
        if isinstance(prompt, str):
            return prompt, ""
        mark = self.special.mark_for(*texts_in(prompt))
        with _bounded():
            return self._apply(self.special.marked(prompt, mark), generate=True), mark

    def _ended_once(self, text: str, *, all_of_them: bool) -> tuple[str, int]:
        """A response without the EOS that its own text ends with, and how many tokens were taken out."""
        eos, bos = self._tokenizer.eos_token, self._tokenizer.bos_token
        if all_of_them or eos not in self.special.writable:
            text, count = without_token(text, eos)
            spelled = () if all_of_them else self.special.found(text)
            harmless = self.special.writable | {self._tokenizer.unk_token}
            if stuck := next((name for name in spelled if name not in harmless), None):
                raise RowError(f"a response spells out a special token that the tokenizer takes for one ({stuck})")
            ended = self._turn is not None and text.rstrip().endswith(self._turn)
            return text.rstrip() if ended else text, count
        if bos and bos != eos and bos in text:  # in HTML, <s> and </s> go together
            return text, 0
        end, count = len(text), 0
        while text.endswith(eos, 0, last := _last_of(text, end)):
            end, count = last - len(eos), count + 1
        return text[:end], count

    def _require_prompt(self, prompt: Sequence[Message], written: str, tools: Any, variables: Mapping[str, Any]) -> int:
        """The number of earlier turns that the template rewrote.

        Raises:
            RowError: it left out a turn, the tools, or what turns call.
        """
        if tools and self._same(written, prompt, tools=None, variables=variables):
            raise RowError("the chat template does not write the list of tools")
        if any("tool_calls" in turn for turn in prompt):
            if self._same(written, faithful.without_calls(prompt), tools=tools, variables=variables):
                raise RowError("the chat template does not write tool_calls")
            faithful.require_calls(prompt, written)
        return faithful.rewritten_turns(prompt, written)

    def _same(self, written: str, prompt: Sequence[Message], **extra: Any) -> bool:
        try:
            return self._apply(prompt, generate=True, **extra) == written
        except RowError:  # without it, the template does not go: it reads it
            return False

    def _apply(
        self,
        messages: Sequence[Message],
        *,
        generate: bool,
        tools: Any = None,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        conversation: Any = list(messages)
        try:
            template = self._tokenizer.get_chat_template(tools=tools)
            faithful.require_read(variables, template)
            if taken := self._reserved.intersection(variables):
                raise RowError(f"chat_template_kwargs names what is not the data's to say ({min(taken)})")
            if self._now is not None and reads_clock(template):
                template = stopped(template, self._now)
            text = str(
                self._tokenizer.apply_chat_template(
                    conversation,
                    tools=tools,
                    chat_template=template,
                    add_generation_prompt=generate,
                    tokenize=False,
                    **variables,
                )
            )
        except RowError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise _broken(f"is no valid Jinja: line {error.lineno}: {error.message}") from error
        except SyntaxError as error:  # of the Python code that Jinja makes of it
            raise _broken(f"is nested too deep: {error.msg}") from error
        except jinja2.exceptions.SecurityError as error:
            raise _bad(f"reaches for what the sandbox keeps from it ({str(error).rstrip('.')})") from error
        except (MemoryError, RecursionError, OverflowError) as error:
            raise _too_much(str(error).rstrip(".") or f"more than {MAX_MEBIBYTES} MiB of memory") from error
        except Exception as error:  # a template is a program: it can raise anything
            raise RowError(f"the chat template refuses the conversation ({error})") from error
        if len(text) > MAX_WRITTEN + MAX_REPEATED * sum(map(len, texts_in((conversation, tools)))):
            raise _too_much(f"{len(text):,} characters")
        return text


def render_pair(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None) -> RenderedPair:
    """One pair's texts; see :meth:`Renderer.pair`."""
    return Renderer(tokenizer, now).pair(pair)


def render_prompt(prompt: str | tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a prompt that a response is to follow; see :meth:`Renderer.prompt`."""
    text, mark = Renderer(tokenizer).prompt(prompt)
    return text.replace(mark, "") if mark else text


def _last_of(text: str, end: int) -> int:
    """Where ``text[:end]`` ends without the white space at its end."""
    while end and text[end - 1].isspace():
        end -= 1
    return end


def _plain(prompt: str, chosen: str, rejected: str, mark: str, **facts: Any) -> RenderedPair:
    """The texts without the mark, and with it beside them where there is one."""
    if not mark:
        return RenderedPair(prompt, chosen, rejected, **facts)
    bare = [text.replace(mark, "") for text in (prompt, chosen, rejected)]
    return RenderedPair(bare[0], bare[1], bare[2], **facts, mark=mark, marked=(prompt, chosen, rejected))


def without_token(text: str, token: str) -> tuple[str, int]:
    """``text`` without any occurrence of ``token``, and how many there were."""
    count = text.count(token) if token else 0
    text = text.replace(token, "") if count else text
    if not token or token not in text:
        return text, count
    # Taking one out has joined another. Once more and again would take for ever on a text that is made for it.
    kept: list[str] = []
    for character in text:
        kept.append(character)
        if character == token[-1] and "".join(kept[-len(token) :]) == token:
            del kept[-len(token) :]
            count += 1
    return "".join(kept), count


def _named(tokenizer: PreTrainedTokenizerBase) -> str:
    """`` (NAME)``, or nothing for a tokenizer that was made in memory."""
    return f" ({tokenizer.name_or_path})" if tokenizer.name_or_path else ""


def bound_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, whose template is bounded as here also where somebody else renders with it."""
    render = tokenizer.apply_chat_template

    def apply_chat_template(*arguments: Any, **options: Any) -> Any:
        with _bounded():
            return render(*arguments, **options)

    tokenizer.apply_chat_template = apply_chat_template  # type: ignore[method-assign]
    return tokenizer


@contextmanager
def _bounded() -> Iterator[None]:
    """What a template may take, around all that it writes of a pair: setting the bounds takes as long as one text."""
    try:
        with bounded(mebibytes=MAX_MEBIBYTES, seconds=MAX_SECONDS):
            yield
    except TooLong:
        raise _too_much(f"more than {MAX_SECONDS:g} seconds") from None


def _broken(what: str) -> CaldpoError:
    remedy = "mend the template, or name another with data.chat_template=FILE"
    return CaldpoError(f"the chat template {what}", key="data.chat_template", remedy=remedy)


def _bad(what: str) -> CaldpoError:
    return CaldpoError(f"the chat template {what}", key="data.chat_template", remedy=_ANOTHER)


def _too_much(what: str) -> CaldpoError:
    return _bad(f"takes what no chat template takes to write one conversation: {what}")


def _continuation(prompt: str, whole: str) -> str:
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    same = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(prompt, whole, strict=False)))
    raise RowError(
        "the chat template renders a conversation otherwise than the prompt to generate from "
        f"(after {same} characters {whole[same : same + 40]!r} instead of {prompt[same : same + 40]!r}; "
        "data.chat_template=FILE names another template)"
    )
