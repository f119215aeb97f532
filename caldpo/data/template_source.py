"""Find a chat template: in a file of its own or with the tokenizer, and fix the date it writes. No heavy imports."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

from caldpo.errors import CaldpoError
from caldpo.utils.file_names import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEMPLATE_CHARACTERS = 200_000  # the longest published templates have about 20,000

_CLOCK = "strftime_now"  # transformers' function for templates that write today's date
_DIRECTIVES = (*"aAbBcd", *"HIjmMp", *"SUwWxX", *"yYzZGu", *"VeDFTR", *(f"-{letter}" for letter in "dmHIMSjye"))


def read_template(path: str) -> str:
    """Read the chat template in a file.

    Raises:
        CaldpoError: no such file, not UTF-8 text, empty, or absurdly long.
    """
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
    """Check that the tokenizer can render conversations.

    Raises:
        CaldpoError: the tokenizer has no chat template, or one that is absurdly long.
    """
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
