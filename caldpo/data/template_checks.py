"""Check a chat template: that there is one, and that it wrote its whole input. No heavy imports.

A template is a program, and may leave out or rewrite. The text of a response has to occur in the trained text, and the
text of a prompt in the rendered prompt, or the row is refused. White space is ignored: templates trim and break lines.
An earlier assistant turn may be rewritten, since templates strip its reasoning by design, in generation too: such turns
are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from caldpo.data.pair import Message
from caldpo.data.raw_row import RowError
from caldpo.errors import CaldpoError
from caldpo.utils.file_names import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEMPLATE_CHARACTERS = 200_000  # the longest published templates have about 20,000


def read_template(path: str) -> str:
    """Read the chat template in a file; refuse one that is not UTF-8 text, empty, or absurdly long."""
    file = expanded(path)
    try:
        with file.open(encoding="utf-8") as handle:
            text = handle.read(MAX_TEMPLATE_CHARACTERS + 1)  # enough to refuse a longer one
    except (OSError, ValueError) as error:
        raise CaldpoError(
            f"the chat template cannot be read ({error})",
            key="data.chat_template",
            value=path,
            remedy="name a UTF-8 file with a Jinja chat template, or set null for the tokenizer's own",
        ) from error
    if not text.strip() or len(text) > MAX_TEMPLATE_CHARACTERS:
        more = "more than " if len(text) > MAX_TEMPLATE_CHARACTERS else ""
        raise CaldpoError(
            f"the file has {more}{min(len(text), MAX_TEMPLATE_CHARACTERS):,} characters, which no chat template has",
            key="data.chat_template",
            value=path,
            remedy=f"name a Jinja chat template of at most {MAX_TEMPLATE_CHARACTERS:,} characters",
        )
    return text


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without a chat template, or with one that is absurdly long."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        name = f" ({tokenizer.name_or_path})" if tokenizer.name_or_path else ""  # none for one made in memory
        raise CaldpoError(
            f"the data has conversations, and the policy's tokenizer{name} has no chat template to write them with",
            key="data.chat_template",
            remedy="name a Jinja file with data.chat_template=FILE, take a model whose tokenizer has a chat "
            "template, or use data whose prompts are plain text",
        ) from error
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise CaldpoError(
            f"the tokenizer's chat template has {len(template):,} characters, which no chat template has",
            remedy="name a template of your own with data.chat_template=FILE",
        )


def rewritten_turns(prompt: Iterable[Message], written: str) -> int:
    """Count the assistant turns of a prompt that do not occur in the rendered text verbatim.

    Each text needs an occurrence of its own: a short one may well be part of another turn.

    Raises:
        RowError: a turn of another role does not occur.
    """
    texts = [
        (text, m["role"]) for m in prompt for text in (m["content"], m.get("reasoning_content", "")) if text.strip()
    ]
    rest, count = _squeezed(written), 0
    for text, role in sorted(texts, key=lambda item: -len(_squeezed(item[0]))):
        form = next((form for form in _forms(text) if form in rest), None)
        if form is not None:
            rest = rest.replace(form, "\n", 1)
        elif role != "assistant":
            raise RowError(f"the chat template leaves out or rewrites the text of a {role} turn")
        else:
            count += 1
    return count


def require_response(turn: Message, written: str, side: str) -> None:
    """Refuse a response that does not occur completely in what the template wrote up to its end token."""
    if not _occurs(turn["content"], written):
        raise RowError(f"the chat template leaves out or rewrites part of the {side} response")
    if not _occurs(turn.get("reasoning_content", ""), written):
        raise RowError(f"the chat template leaves out the {side} response's reasoning_content")
    require_calls([turn], written)


def require_calls(turns: Iterable[Message], written: str) -> None:
    """Refuse calls of tools that the text does not name, or without a name."""
    for call in (call for turn in turns for call in turn.get("tool_calls", ())):
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise RowError("tool_calls has a call without a name")
        if name not in written:
            raise RowError(f"the chat template does not write tool_calls ({name[:40]})")


def require_variables_read(variables: Iterable[str], template: str) -> None:
    """Refuse variables whose names occur nowhere in a template."""
    for name in variables:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise RowError(f"the chat template does not read chat_template_kwargs.{name}")


def without_calls(turns: Iterable[Message]) -> tuple[Message, ...]:
    """Return the turns without their tool calls."""
    bare: list[Any] = [{name: item for name, item in turn.items() if name != "tool_calls"} for turn in turns]
    return tuple(bare)


def _occurs(text: str, written: str) -> bool:
    """Whether a text occurs in another, white space aside, or as the content of a JSON string."""
    return text.strip() in written or any(form in _squeezed(written) for form in _forms(text))


def _forms(text: str) -> Iterator[str]:
    """Yield the ways a template may write a text, without white space."""
    yield _squeezed(text)
    yield _squeezed(json.dumps(text, ensure_ascii=False)[1:-1])


def _squeezed(text: str) -> str:
    return "".join(text.split())
