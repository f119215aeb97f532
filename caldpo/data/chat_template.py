"""Render pairs to texts: the prompt the policy sees, and the response after it.

Conversations are rendered by the tokenizer's chat template, always through transformers' sandboxed
``apply_chat_template``, since templates come from the hub with the tokenizer. A template is a program, and resources
that the sandbox does not limit are bounded here: memory, time and output length. Plain text is taken as it is.

Special tokens that a conversation or a response spells out stay text (:mod:`caldpo.data.special_text`), with two
exceptions. A text prompt that spells some out was rendered by a template elsewhere, so that it and its responses are
taken with them. And EOS at the end of a response is stripped and counted, since a response ends once.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from caldpo.data.pair import Message, PreferencePair
from caldpo.data.raw_row import RowError
from caldpo.data.special_text import SpecialText
from caldpo.data.template_checks import (
    require_calls,
    require_response,
    require_variables_read,
    rewritten_turns,
    without_calls,
)
from caldpo.errors import CaldpoError
from caldpo.utils.resource_limits import TooLong, bounded
from caldpo.utils.yaml_io import texts_in

# far beyond any real template, which takes microseconds and writes little more than its input
MAX_MEBIBYTES = 512  # of memory, for the conversations of one pair
MAX_SECONDS = 10.0  # of processor time, likewise
MAX_WRITTEN = 1_000_000  # characters around a conversation
MAX_REPEATED = 20  # times a conversation may be written

_CLOCK = "strftime_now"  # transformers' function for templates that write today's date
_DIRECTIVES = (*"aAbBcd", *"HIjmMp", *"SUwWxX", *"yYzZGu", *"VeDFTR", *(f"-{letter}" for letter in "dmHIMSjye"))


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """The texts of a pair: ``prompt + chosen`` and ``prompt + rejected`` are the two whole sequences."""

    prompt: str
    chosen: str  # the rest of the sequence, with what a template writes around a response
    rejected: str
    marked: tuple[str, str, str]  # the three with the mark in special tokens of the pair's own text
    mark: str  # empty where there are no such tokens
    templated: bool  # a template wrote the special tokens into the text
    eos_stripped: int  # EOS tokens that the responses' own text contained
    rewritten: int = 0  # earlier assistant turns that the template did not write verbatim


class Renderer:
    """Renders pairs and prompts with one tokenizer.

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
        self._templates: dict[bool, tuple[str, str]] = {}
        self._reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages", "strftime_now"}

    def pair(self, pair: PreferencePair) -> RenderedPair:
        """Render a pair: conversations by the chat template, plain text as it is.

        Raises:
            RowError: the template refuses the conversation, does not continue its own prompt, or leaves out part of
                its input; a response spells out a special token that this tokenizer cannot take for text.
            CaldpoError: the template itself is broken, reaches out of its sandbox, or exceeds its limits.
        """
        rendered = isinstance(pair.prompt, str) and bool(self.special.spelled_out(pair.prompt))
        chosen, in_chosen = self._ended_once(pair.chosen, all_of_them=rendered)
        rejected, in_rejected = self._ended_once(pair.rejected, all_of_them=rendered)
        stripped = in_chosen + in_rejected
        if isinstance(pair.prompt, str):
            mark = "" if rendered else self.special.mark_for(chosen, rejected, pair.prompt)
            chosen, rejected = self.special.marked([chosen, rejected], mark)
            return _rendered((pair.prompt, chosen, rejected), mark, templated=False, eos_stripped=stripped)
        sides: dict[str, Any] = {"chosen": pair.chosen_turn | {"content": chosen}} if pair.has_chosen else {}
        if pair.has_rejected:
            sides["rejected"] = pair.rejected_turn | {"content": rejected}
        turns: list[Any] = list(sides.values())
        inputs = [*pair.prompt, *turns], pair.tools, pair.template_kwargs
        mark = self.special.mark_for(*texts_in(inputs))
        prompt, turns = self.special.marked((list(pair.prompt), turns), mark)
        extra = {
            "tools": self.special.marked(pair.tools, mark),
            "variables": self.special.marked(pair.template_kwargs, mark) or {},
        }
        with _bounded():
            written = self._apply(prompt, generate=True, **extra)
            wholes = self._apply_all([[*prompt, turn] for turn in turns], generate=False, **extra)
            after = [_continuation(written, whole) for whole in wholes]
            rewritten = self._require_prompt(prompt, written, **extra)
            for side, turn, text in zip(sides, turns, after, strict=True):
                ends = [place for token in self._ends if (place := text.find(token)) >= 0]
                require_response(turn, text[: min(ends, default=len(text))], side)
        continued = dict(zip(sides, after, strict=True))
        texts = (written, continued.get("chosen", ""), continued.get("rejected", ""))
        return _rendered(texts, mark, templated=True, eos_stripped=stripped, rewritten=rewritten)

    def prompt(self, prompt: str | tuple[Message, ...]) -> tuple[str, str]:
        """Render a prompt that a response is to follow, with the errors of :meth:`pair`; return its mark as well."""
        if isinstance(prompt, str):
            return prompt, ""
        mark = self.special.mark_for(*texts_in(prompt))
        with _bounded():
            return self._apply(self.special.marked(prompt, mark), generate=True), mark

    def _ended_once(self, text: str, *, all_of_them: bool) -> tuple[str, int]:
        """Strip the EOS that a response's own text ends with, and count the tokens taken out."""
        eos, bos = self._tokenizer.eos_token, self._tokenizer.bos_token
        if all_of_them or eos not in self.special.writable:
            text, count = without_token(text, eos)
            spelled = () if all_of_them else self.special.spelled_out(text)
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
        """Count the earlier turns that the template rewrote; refuse one that left out a turn, tools or tool calls."""
        if tools and self._same(written, prompt, tools=None, variables=variables):
            raise RowError("the chat template does not write the list of tools")
        if any("tool_calls" in turn for turn in prompt):
            if self._same(written, without_calls(prompt), tools=tools, variables=variables):
                raise RowError("the chat template does not write tool_calls")
            require_calls(prompt, written)
        return rewritten_turns(prompt, written)

    def _same(self, written: str, prompt: Sequence[Message], **extra: Any) -> bool:
        try:
            return self._apply(prompt, generate=True, **extra) == written
        except RowError:  # the template fails without them, so it reads them
            return False

    def _apply(self, messages: Sequence[Message], **options: Any) -> str:
        return self._apply_all([messages], **options)[0]

    def _apply_all(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        generate: bool,
        tools: Any = None,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[str]:
        try:
            template, dated = self._template(tools)
            require_variables_read(variables, template)
            if taken := self._reserved.intersection(variables):
                raise RowError(f"chat_template_kwargs names a variable that the data may not set ({min(taken)})")
            several: Any = [list(messages) for messages in conversations]
            written: Any = self._tokenizer.apply_chat_template(
                several if len(several) > 1 else several[0],
                tools=tools,
                chat_template=dated,
                add_generation_prompt=generate,
                tokenize=False,
                **variables,
            )
            texts = [str(text) for text in (written if len(several) > 1 else [written])]
            for text in texts:
                text.encode()
        except RowError:
            raise
        except UnicodeEncodeError:  # the pair's own text was checked, but a template writes any text
            raise RowError("the chat template writes half of a surrogate pair") from None
        except jinja2.TemplateSyntaxError as error:
            raise _bad(f"is no valid Jinja: line {error.lineno}: {error.message}") from error
        except SyntaxError as error:  # of the Python code that Jinja makes of it
            raise _bad(f"is nested too deep: {error.msg}") from error
        except jinja2.exceptions.SecurityError as error:
            raise _bad(f"reaches out of its sandbox ({str(error).rstrip('.')})") from error
        except (MemoryError, RecursionError, OverflowError) as error:
            raise _too_much(str(error).rstrip(".") or f"more than {MAX_MEBIBYTES} MiB of memory") from error
        except Exception as error:  # a template is a program: it can raise anything
            raise RowError(f"the chat template refuses the conversation ({error})") from error
        for text, messages in zip(texts, several, strict=True):
            more = len(text) - MAX_WRITTEN
            if more > 0 and more > MAX_REPEATED * sum(map(len, texts_in((messages, tools)))):
                raise _too_much(f"{len(text):,} characters")
        return texts

    def _template(self, tools: Any) -> tuple[str, str]:
        """Return the template for conversations without or with tools, and the same with a fixed date."""
        if (templates := self._templates.get(tools is None)) is None:
            template = self._tokenizer.get_chat_template(tools=tools)
            fixed = self._now is not None and reads_clock(template)
            dated = with_fixed_date(template, self._now) if fixed else template  # type: ignore[arg-type]
            templates = self._templates[tools is None] = template, dated
        return templates


def _last_of(text: str, end: int) -> int:
    """Return the end of ``text[:end]`` without trailing white space."""
    while end and text[end - 1].isspace():
        end -= 1
    return end


def _rendered(marked: tuple[str, str, str], mark: str, **facts: Any) -> RenderedPair:
    prompt, chosen, rejected = (text.replace(mark, "") for text in marked) if mark else marked
    return RenderedPair(prompt, chosen, rejected, marked, mark, **facts)


def without_token(text: str, token: str) -> tuple[str, int]:
    """Remove every occurrence of ``token``, and count them."""
    count = text.count(token) if token else 0
    text = text.replace(token, "") if count else text
    if not token or token not in text:
        return text, count
    # Removing one has joined another. Repeated passes would take forever on a text made for it.
    characters: list[str] = []
    for character in text:
        characters.append(character)
        if character == token[-1] and "".join(characters[-len(token) :]) == token:
            del characters[-len(token) :]
            count += 1
    return "".join(characters), count


def bound_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Bound the tokenizer's template as here, also where other libraries render with it."""
    render = tokenizer.apply_chat_template

    def apply_chat_template(*arguments: Any, **options: Any) -> Any:
        with _bounded():
            return render(*arguments, **options)

    tokenizer.apply_chat_template = apply_chat_template  # type: ignore[method-assign]
    return tokenizer


@contextmanager
def _bounded() -> Iterator[None]:
    """Bound memory and time of all texts of a pair at once: setting the bounds takes as long as rendering one text."""
    try:
        with bounded(mebibytes=MAX_MEBIBYTES, seconds=MAX_SECONDS):
            yield
    except TooLong:
        raise _too_much(f"more than {MAX_SECONDS:g} seconds") from None


def _bad(what: str) -> CaldpoError:
    remedy = "mend the template, or name one that you have read with data.chat_template=FILE"
    return CaldpoError(f"the chat template {what}", key="data.chat_template", remedy=remedy)


def _too_much(what: str) -> CaldpoError:
    return _bad(f"exceeds what any chat template needs for one conversation: {what}")


def _continuation(prompt: str, whole: str) -> str:
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    same = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(prompt, whole, strict=False)))
    raise RowError(
        "the chat template renders a conversation otherwise than the prompt to generate from "
        f"(after {same} characters {whole[same : same + 40]!r} instead of {prompt[same : same + 40]!r}; "
        "data.chat_template=FILE names another template)"
    )


def reads_clock(template: str) -> bool:
    """Whether a chat template asks for the time."""
    return _CLOCK in template


def with_fixed_date(template: str, now: datetime) -> str:
    """Return the template with a macro in front that answers ``strftime_now`` for ``now``.

    A run keeps the date of the day it began on: resumed a day later, or evaluated, it would otherwise have other
    tokens. The template that is exported with the policy stays unchanged.
    """
    steps = [("%%", "\0"), *((f"%{name}", now.strftime(f"%{name}")) for name in _DIRECTIVES), ("\0", "%")]
    filters = "".join(f"|replace({json.dumps(old)},{json.dumps(new)})" for old, new in steps)
    # the empty expression keeps Jinja from taking the template's first line break for that of the macro
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
