"""Read overrides of the command line as Hydra does, and quote values for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import OverrideParseException

from caldpo.errors import CaldpoError
from caldpo.utils.file_names import is_there


def parse_overrides(loader: ConfigLoader | None, overrides: Sequence[str]) -> list[Override]:
    """Parse overrides as Hydra does; skip those that it cannot read."""
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except (OverrideParseException, ValueError):  # the second for a whole number of thousands of digits
            continue
    return parsed


def require_unspaced(overrides: Sequence[str]) -> None:
    """Raise a CaldpoError for ``key = value``, which a shell hands over as three arguments."""
    for place, text in enumerate(overrides):
        before = overrides[place - 1] if place else ""
        after = overrides[place + 1] if place + 1 < len(overrides) else ""
        key, sign, value = text.partition("=")
        bare_after = after if after and "=" not in after and not is_there(after) else ""
        if sign and not key.strip():  # of `key =value` and `key = value`
            key, value = before, value or bare_after
        elif sign and not value and bare_after:  # of `key= value`
            value = bare_after
        elif not (sign and key != key.rstrip() and not is_there(text)):  # of `'key = value'`
            continue
        if not key:
            raise CaldpoError("an override is written key=value", key=text, remedy="see --help for examples")
        if "=" not in key:
            key, value = key.strip(), value.strip()
            raise CaldpoError("an override has no spaces around =", key=key, remedy=f"write {key}={value or 'VALUE'}")


def with_positional(overrides: Sequence[str], key: str, *, several: bool = False) -> list[str]:
    """Make the first bare argument, or ``several`` of them, the value of ``key``.

    Bare is what has no ``=``, or names a file or folder: those of runs have ``=`` in their names. ``[a,b]`` is two of
    several, unless a folder has that name.
    """
    texts = list(overrides)
    bare = [
        place for place, text in enumerate(texts) if "=" not in text or is_there(text) or (several and _is_list(text))
    ]
    names = [name for place in bare for name in _listed(texts[place])] if several else [texts[i] for i in bare[:1]]
    if not bare or not names:
        return texts
    texts[bare[0]] = f"{key}={quoted(names[0])}" if len(names) == 1 else f"{key}=[{','.join(map(quoted, names))}]"
    return [text for place, text in enumerate(texts) if not several or place not in bare[1:]]


def _is_list(text: str) -> bool:
    return text.startswith("[") and text.endswith("]") and not is_there(text)


def _listed(text: str) -> list[str]:
    """Split ``[a,b]`` into names; a comma in the name of a folder separates nothing."""
    if not _is_list(text):
        return [text]
    names: list[str] = []
    parts = text[1:-1].split(",")
    while parts:
        most = next((n for n in range(len(parts), 0, -1) if is_there(",".join(parts[:n]).strip(" '\""))), 1)
        names.append(",".join(parts[:most]).strip(" '\""))
        del parts[:most]
    return [name for name in names if name]


def with_quoted_paths(overrides: Sequence[str]) -> list[str]:
    """Quote values that name a file or folder and that Hydra's grammar would read otherwise.

    The folders of a sweep's runs are named after their overrides: ``run=outputs/SWEEP/loss=dpo,seed=0``.
    """
    texts = []
    for text in overrides:
        key, sign, value = text.partition("=")
        special = sign and re.search("[=,]", value) and not is_there(text) and is_there(value)
        texts.append(f"{key}={quoted(value)}" if special else text)
    return texts


def quoted(text: str) -> str:
    """Quote ``text`` as the value of an override where Hydra's grammar would read it otherwise."""
    # Without a slash it might be a number, or null.
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text) and "/" in text:
        return text
    # Quotes keep ${...} an interpolation; a backslash makes it text, and those before it have to be doubled.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return QuotedString(escaped, Quote.single).with_quotes()
