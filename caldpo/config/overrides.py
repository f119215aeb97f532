"""Read overrides of the command line as Hydra does, and quote values for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import OverrideParseException

from caldpo.config.did_you_mean import as_yaml
from caldpo.errors import CaldpoError
from caldpo.utils.file_names import is_there

_SPECIAL = ("null", "true", "false", "nan", "inf")  # words that are no text


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


def override(key: str, value: object) -> str:
    """Write ``key=value`` so that Hydra reads the Python value back; ``key`` as on the command line.

    Raises:
        CaldpoError: a value that no yaml holds.
    """
    return f"{key}={_written(require_plain(value, key))}"


def plain_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check settings that a call from Python gives: keys of the configuration with plain values."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        remedy = 'write {"loss.beta": 0.1}, with keys as on the command line'
        raise CaldpoError(f"is a {type(settings).__name__}", key="settings", remedy=remedy)
    return {str(key): require_plain(value, str(key)) for key, value in settings.items()}


def require_plain(value: Any, key: str) -> Any:
    """Return a value as a yaml holds it: paths as text, tuples as lists.

    Raises:
        CaldpoError: about ``key``: it is, or holds, an object of another kind.
    """
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [require_plain(item, key) for item in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: require_plain(item, key) for name, item in value.items()}
    raise CaldpoError(
        f"{value!r} is a {type(value).__name__}, which a configuration cannot hold",
        key=key,
        remedy="write a number, a text, true or false, None, or lists and dicts of these",
    )


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_escaped(name)}:{_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, str):
        is_word = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) and value.lower() not in _SPECIAL
        return value if is_word else quoted(value)
    return as_yaml(value)


def _escaped(name: str) -> str:
    return re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", name)
