"""What a judge is asked: a text with places for the prompt and the two responses, the project's own or a person's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

from caldpo.data.pair import Message
from caldpo.errors import CaldpoError

KEY = "judge.prompt"
PLACES = ("prompt", "first", "second")
_FOLDER = Path(__file__).with_name("templates")


def built_in() -> list[str]:
    """Names of the project's own texts."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt"))


def load_template(name: str) -> Template:
    """A text of the project by its name, or the contents of a file.

    Args:
        name: of :func:`built_in`, or the path of a UTF-8 file with ``$prompt``, ``$first`` and ``$second`` in it.

    Raises:
        CaldpoError: there is no such text, or its places are not these three.
    """
    path = _FOLDER / f"{name}.txt" if name in built_in() else Path(name).expanduser()
    try:
        template = Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        choices = ", ".join(built_in())
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CaldpoError(
            f"cannot be read: {reason}", key=KEY, value=name, remedy=f"choose one of {choices}, or name a text file"
        ) from None
    _check_places(template, name)
    return template


def _check_places(template: Template, name: str) -> None:
    if not template.is_valid():
        raise CaldpoError(
            "a dollar sign begins no name", key=KEY, value=name, remedy="write $$ for a dollar sign that is meant so"
        )
    found = template.get_identifiers()
    if missing := [f"${place}" for place in PLACES if place not in found]:
        raise CaldpoError(
            f"has no {' and no '.join(missing)}",
            key=KEY,
            value=name,
            remedy="put $prompt, $first and $second where the prompt and the two responses belong",
        )
    if unknown := [f"${place}" for place in found if place not in PLACES]:
        raise CaldpoError(
            f"nothing is put in place of {', '.join(unknown)}",
            key=KEY,
            value=name,
            remedy="the places are $prompt, $first and $second; write $$ for a dollar sign",
        )


def fill(template: Template, prompt: str, first: str, second: str) -> str:
    """The text with its places filled; in one pass, so that ``$first`` inside a response stays as it is."""
    return template.substitute(prompt=prompt, first=first, second=second)


def readable(prompt: str | Sequence[Message]) -> str:
    """A prompt as a judge reads it: text as it is, a conversation as ``User: ...`` and ``Assistant: ...``."""
    if isinstance(prompt, str):
        return prompt.strip()
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in prompt)
