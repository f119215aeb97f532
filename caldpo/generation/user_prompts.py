"""Prompts that a person gives: texts on the command line, or a file. No heavy imports here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from caldpo.data.formats._fields import messages, text
from caldpo.data.pair import Message
from caldpo.data.raw_row import RowError
from caldpo.data.sources.json_rows import read_jsonl
from caldpo.errors import CaldpoError

Asked = str | tuple[Message, ...]  # text, or a conversation that ends where the policy is to answer

_FORMS = '\'["first text", "second text"]\', or a file: .txt with one a line, .jsonl with a prompt a row'


def read_prompts(given: str | Sequence[str]) -> list[Asked]:
    """The prompts that ``prompts=`` gives.

    Args:
        given: texts, or the name of a ``.txt`` or ``.jsonl`` file.

    Raises:
        CaldpoError: no such file, a row without a prompt, a prompt without text, or no prompt at all.
    """
    if isinstance(given, str):
        found, place = list(_of_file(given)), str(given)
    else:
        found, place = [(f"prompts[{i}]", prompt) for i, prompt in enumerate(given)], None
    for origin, prompt in found:
        if isinstance(prompt, str) and not prompt.strip():
            raise CaldpoError("the prompt has no text", key=origin)
    if not found:
        raise _unusable("holds no prompt", place or "[]")
    return [prompt for _, prompt in found]


def _of_file(name: str) -> Iterator[tuple[str, Asked]]:
    """Each prompt with its origin."""
    path = Path(name).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise _unusable("neither a list of texts nor a .txt or .jsonl file", name)
    if not path.is_file():
        raise _unusable("there is no such file", name)
    yield from _of_text(path) if path.suffix == ".txt" else _of_rows(path)


def _of_text(path: Path) -> Iterator[tuple[str, Asked]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CaldpoError(f"cannot be read as UTF-8 text: {error}", key="prompts", value=path) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", line.removesuffix("\r")


def _of_rows(path: Path) -> Iterator[tuple[str, Asked]]:
    for row in read_jsonl(path):
        try:
            if row.error is not None:
                raise RowError(row.error)
            assert isinstance(row.value, dict)
            is_text = isinstance(row.value.get("prompt"), str)
            yield row.origin, text(row.value, "prompt") if is_text else messages(row.value, "prompt")
        except RowError as error:
            raise CaldpoError(
                str(error), key=row.origin, remedy="give each row a `prompt`: text, or a list of messages"
            ) from error


def _unusable(why: str, given: str) -> CaldpoError:
    return CaldpoError(why, key="prompts", value=given, remedy=f"give {_FORMS}")
