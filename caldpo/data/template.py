"""From a pair to texts: what the policy is prompted with, and what follows it.

Conversations are rendered by the tokenizer's chat template, always through transformers' sandboxed
``apply_chat_template``, since templates come from the hub with the tokenizer. Plain text is taken as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from caldpo.data.pair import Message, PreferencePair
from caldpo.data.rows import RowError
from caldpo.errors import CaldpoError

MAX_TEMPLATE_CHARACTERS = 200_000  # the longest published templates have about 20,000


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


def read_template(path: str) -> str:
    """The chat template in a file.

    Raises:
        CaldpoError: no such file, not UTF-8 text, empty, or absurdly long.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CaldpoError(
            f"the chat template cannot be read ({error})",
            key="data.chat_template",
            value=path,
            remedy="name a UTF-8 file with a Jinja chat template, or set null for the tokenizer's own",
        ) from error
    if not text.strip() or len(text) > MAX_TEMPLATE_CHARACTERS:
        raise CaldpoError(
            f"the file has {len(text):,} characters, which no chat template has",
            key="data.chat_template",
            value=path,
            remedy=f"name a Jinja chat template of at most {MAX_TEMPLATE_CHARACTERS:,} characters",
        )
    return text


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
        CaldpoError: the template itself is broken.
    """
    chosen, in_chosen = without_token(pair.chosen, tokenizer.eos_token)
    rejected, in_rejected = without_token(pair.rejected, tokenizer.eos_token)
    stripped = in_chosen + in_rejected
    prompt = render_prompt(pair.prompt, tokenizer)
    if isinstance(pair.prompt, str):
        return RenderedPair(prompt, chosen, rejected, templated=False, eos_stripped=stripped)
    after_chosen, after_rejected = (
        _continuation(prompt, _apply(tokenizer, (*pair.prompt, reply), generate=False))
        for reply in (Message(role="assistant", content=text) for text in (chosen, rejected))
    )
    return RenderedPair(prompt, after_chosen, after_rejected, templated=True, eos_stripped=stripped)


def render_prompt(prompt: str | tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a prompt that a response is to follow: as :func:`render_pair` writes it, whatever the response.

    Raises:
        RowError: the template refuses the conversation.
        CaldpoError: the template itself is broken.
    """
    return prompt if isinstance(prompt, str) else _apply(tokenizer, prompt, generate=True)


def without_token(text: str, token: str) -> tuple[str, int]:
    """``text`` without any occurrence of ``token``, and how many there were."""
    count = 0
    while found := text.count(token):  # again, because taking one out can join another
        count, text = count + found, text.replace(token, "")
    return text, count


def _named(tokenizer: PreTrainedTokenizerBase) -> str:
    """`` (NAME)``, or nothing for a tokenizer that was made in memory."""
    return f" ({tokenizer.name_or_path})" if tokenizer.name_or_path else ""


def _apply(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], *, generate: bool) -> str:
    conversation: Any = list(messages)
    try:
        return str(tokenizer.apply_chat_template(conversation, add_generation_prompt=generate, tokenize=False))
    except jinja2.TemplateSyntaxError as error:
        raise CaldpoError(
            f"the chat template is no valid Jinja: line {error.lineno}: {error.message}",
            key="data.chat_template",
            remedy="mend the template, or name another with data.chat_template=FILE",
        ) from error
    except Exception as error:  # a template is a program: it can raise anything
        raise RowError(f"the chat template refuses the conversation ({error})") from error


def _continuation(prompt: str, whole: str) -> str:
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    same = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(prompt, whole, strict=False)))
    raise RowError(
        "the chat template renders a conversation otherwise than the prompt to generate from "
        f"(after {same} characters {whole[same : same + 40]!r} instead of {prompt[same : same + 40]!r}; "
        "data.chat_template=FILE names another template)"
    )
