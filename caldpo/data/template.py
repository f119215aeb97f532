"""From a pair to texts: what the policy is prompted with, and what follows it.

Conversations are rendered by the tokenizer's chat template, always through transformers' sandboxed
``apply_chat_template``, since templates come from the hub with the tokenizer. A template is a program, and what the
sandbox does not stop is bounded here: memory, time and the length of what it writes. Plain text is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from caldpo.data.pair import Message, PreferencePair
from caldpo.data.rows import RowError
from caldpo.data.template_file import MAX_TEMPLATE_CHARACTERS
from caldpo.errors import CaldpoError
from caldpo.limits import TooLong, bounded

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
    """

    prompt: str
    chosen: str
    rejected: str
    templated: bool
    eos_stripped: int


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


def render_pair(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> RenderedPair:
    """Render a pair with the tokenizer's chat template, or take its text as it is.

    EOS tokens written out in a response's own text are taken out first: a response ends once.

    Raises:
        RowError: the template refuses the conversation, or does not continue its own prompt.
        CaldpoError: the template itself is broken, reaches out of its sandbox, or takes too much.
    """
    chosen, in_chosen = without_token(pair.chosen, tokenizer.eos_token)
    rejected, in_rejected = without_token(pair.rejected, tokenizer.eos_token)
    stripped = in_chosen + in_rejected
    if isinstance(pair.prompt, str):
        return RenderedPair(pair.prompt, chosen, rejected, templated=False, eos_stripped=stripped)
    with _bounded():
        prompt = _apply(tokenizer, pair.prompt, generate=True)
        after_chosen, after_rejected = (
            _continuation(prompt, _apply(tokenizer, _answered(pair.prompt, text), generate=False))
            if text is not None
            else ""
            for text in (chosen, None if pair.demonstration else rejected)
        )
    return RenderedPair(prompt, after_chosen, after_rejected, templated=True, eos_stripped=stripped)


def _answered(prompt: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    return (*prompt, Message(role="assistant", content=text))


def render_prompt(prompt: str | tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a prompt that a response is to follow: as :func:`render_pair` writes it, whatever the response.

    Raises:
        RowError: the template refuses the conversation.
        CaldpoError: the template itself is broken, reaches out of its sandbox, or takes too much.
    """
    if isinstance(prompt, str):
        return prompt
    with _bounded():
        return _apply(tokenizer, prompt, generate=True)


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


def _apply(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], *, generate: bool) -> str:
    conversation: Any = list(messages)
    try:
        text = str(tokenizer.apply_chat_template(conversation, add_generation_prompt=generate, tokenize=False))
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
    if len(text) > MAX_WRITTEN + MAX_REPEATED * sum(len(message["content"]) for message in messages):
        raise _too_much(f"{len(text):,} characters")
    return text


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
