"""Mask secrets that a terminal's layout has cut in two: wrapped or cropped at a column's width, or coloured."""

from __future__ import annotations

import re
from collections.abc import Iterator

from caldpo.security.secrets import KNOWN_FORMS, known_secrets

_COLOURS = r"\x1b\[[0-9;?]*[A-Za-z]"
_FRAME = r"[ \t\r│┃║|]"
_ELLIPSIS = "…"
_SHORTEST_START = 6  # characters of a secret before an ellipsis
_LAYOUT = re.compile(rf"{_COLOURS}|{_FRAME}+|\n+")
# the end of one line with the start of the next, but no space between two words of a line
_FOLD = re.compile(rf"(?:{_COLOURS}|{_FRAME})*\n(?:{_COLOURS}|{_FRAME}|\n)*|{_COLOURS}")


def mask_wrapped(text: str) -> str:
    """Replace each character of a secret that layout has cut by ``*``, so that tables keep their form.

    What is in one piece is left to :func:`caldpo.security.secrets.redact_text`. No other cell of a table may stand
    between the halves: the last column is the one for texts of any length.
    """
    if "\n" not in text.rstrip("\n") and "\x1b" not in text and _ELLIPSIS not in text:
        return text
    chars = list(text)
    for place in _cut(text):
        chars[place] = "*"
    return "".join(chars)


def _cut(text: str) -> Iterator[int]:
    """Yield the positions of the characters of all secrets that do not stand in one piece."""
    secrets = known_secrets()
    # A line breaks where a space was, so secrets with spaces are looked for without.
    joined, places = _without(_LAYOUT, text)
    for secret in secrets:
        unwrapped = _LAYOUT.sub("", secret)
        for match in re.finditer(re.escape(unwrapped), joined) if unwrapped else ():
            yield from _if_cut(text, places[match.start() : match.end()])
        for end in (place for place, char in enumerate(joined) if char == _ELLIPSIS):
            longest = range(len(unwrapped), _SHORTEST_START - 1, -1)
            length = next((n for n in longest if joined.endswith(unwrapped[:n], 0, end)), 0)
            yield from places[end - length : end]
    joined, places = _without(_FOLD, text)
    for match in KNOWN_FORMS.finditer(joined):
        yield from _if_cut(text, places[match.start() : match.end()])


def _if_cut(text: str, positions: list[int]) -> list[int]:
    """Keep positions that a line's end or a colour separates; else they are words of one line alone."""
    between = text[positions[0] : positions[-1]]
    return positions if "\n" in between or "\x1b" in between else []


def _without(what: re.Pattern[str], text: str) -> tuple[str, list[int]]:
    """Remove a pattern; return the rest with the original position of each character."""
    places: list[int] = []
    end = 0
    for match in what.finditer(text):
        places += range(end, match.start())
        end = match.end()
    places += range(end, len(text))
    return "".join(text[place] for place in places), places
