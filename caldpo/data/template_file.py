"""A chat template in a file of its own. No heavy imports: whether it is there is asked before anything loads."""

from __future__ import annotations

from caldpo.data.sources._file_names import expanded
from caldpo.errors import CaldpoError

MAX_TEMPLATE_CHARACTERS = 200_000  # the longest published templates have about 20,000


def read_template(path: str) -> str:
    """The chat template in a file.

    Raises:
        CaldpoError: no such file, not UTF-8 text, empty, or absurdly long.
    """
    file = expanded(path)
    try:
        with file.open(encoding="utf-8") as handle:
            text = handle.read(MAX_TEMPLATE_CHARACTERS + 1)  # the rest of a huge file says nothing more
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
