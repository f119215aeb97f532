"""Mask secrets by how they are written: before the host of an address, after a name, in a header.

What is masked is rather too much than too little: a password may hold any character, and an address with a password
does not say where that ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MASK = "***"

_ADDRESS = re.compile(r"(?<=://)[^\s'\"<>]+")
_LOOK_BACK = 200  # characters of a line before a name
_WEB = re.compile(r"(?:https?|wss?|ftp)\Z", re.I)
_PORT = re.compile(r"[^:]+:\d{1,5}(?=/|\Z)")

_NAME = re.compile(
    r"(?<![\w.@/+~-])(?P<key>[A-Za-z_][\w.@/+~-]*)(?P<quote>\\*[\"'])?"
    r"(?:(?P<colon>[ \t]*:(?!//)(?:(?(quote)\s|[ \t])*))|(?P<equals>[ \t]*=[ \t]*))"
)
_OPTION = re.compile(r"(?<![\w-])--(?P<key>[A-Za-z][\w-]*)[ \t]+(?![-\s])")
_ELEMENT = re.compile(r"<(?P<key>[A-Za-z_][\w:.-]*)>(?=[^<\s])")
_NETRC = re.compile(r"\blogin[ \t]+\S+[ \t]+password[ \t]+(?=\S)")
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?|(?P<escaped>\\+[\"']).*?(?:(?<!\\)(?P=escaped)|$)")
_BLOCK = re.compile(r"[|>][+-]?[ \t]*\n(?:[ \t]+[^\n]*(?:\n|\Z))+")  # yaml's text of several lines
_LINE = re.compile(r"[^\n]*[^\s]")
_FLOW = re.compile(r"[^\n,}\]]*[^\s,}\]]")  # in a yaml mapping on one line
_TO_QUOTE = re.compile(r"[^\"'\n]*[^\"'\s\\]")
_WORD = re.compile(r"[^\s,;'\"{}\[\]()<>|│┃]+")  # the last are frames of tables
_TO_TAG = re.compile(r"[^<]+")
_CREDENTIALS = re.compile(r"(?:(?:Basic|Bearer|Token|Negotiate|NTLM|ApiKey)[ \t]+)?[^\s\"',]+(?![^\n]*=)", re.I)
_REFERENCE = re.compile(r"\$|\$\{oc\.env:\w+(,\s*null)?\}")  # to a variable that holds one
_HEADERS = {"authorization", "cookie"}  # last words of names
# what stands after such a name where none is given, or in source code
_INNOCENT = {
    *("none", "null", "true", "false", "???"),
    *("str", "string", "int", "bool", "bytes", "float", "any", "optional"),
}


def mask_addresses(text: str) -> str:
    """Mask whatever stands before the host of an address."""
    if "@" not in text:
        return text
    return _ADDRESS.sub(lambda match: _masked_address(text[: match.start() - 3], match[0]), text)


def mask_named(text: str, is_secret_name: Callable[[str], bool]) -> str:
    """Mask values that follow names of secrets: ``"key": "value"``, ``key: value``, ``--key value``.

    Overrides, ``key=value``, are left to :func:`caldpo.security.secrets.redact_text`. The text may be of any kind:
    JSON, yaml, source code, headers, a command line, prose.
    """
    for pattern, find in ((_NAME, _after_name), (_OPTION, _after_option), (_ELEMENT, _in_element)):
        text = _masked(text, pattern, find, is_secret_name)
    return _masked(text, _NETRC, _after_option, lambda _: True)


Find = Callable[[str, "re.Match[str]"], "re.Match[str] | None"]


def _masked(text: str, pattern: re.Pattern[str], find: Find, is_secret_name: Callable[[str], bool]) -> str:
    parts, place = [], 0
    for match in pattern.finditer(text):
        key = match.groupdict().get("key") or ""
        if match.start() < place or not (is_secret_name(key) or _is_header(key)):
            continue
        value = find(text, match)
        if value is None or not _can_be_secret(value[0]):
            continue
        opening, closing = _quotes(value[0])
        parts += [text[place : value.start()], opening, MASK, closing]
        place = value.end()
    return "".join([*parts, text[place:]])


def _after_name(text: str, match: re.Match[str]) -> re.Match[str] | None:
    """Match the value after ``key:`` or ``key =``, as far as its surroundings let it go."""
    end = match.end()
    if match["equals"] == "=":
        return None
    if quoted := _QUOTED.match(text, end):
        return quoted
    since = max(0, match.start() - _LOOK_BACK)
    line = text[max(since, text.rfind("\n", since, match.start()) + 1) : match.start()]
    before = line.rstrip()[-1:]
    if match["equals"] is not None:
        found = _WORD.match(text, end)
        return found if found and _looks_secret(found[0]) else None  # else source code, mostly
    if _is_header(match["key"]):
        if line[-1:] in ("'", '"'):
            return _TO_QUOTE.match(text, end)
        return (line.strip() and _CREDENTIALS.match(text, end)) or _LINE.match(text, end)
    if before in ("", "-") and not match["quote"]:
        return _BLOCK.match(text, end) or (_FLOW if text[end : end + 1] in ("{", "[") else _LINE).match(text, end)
    word = _WORD.match(text, end)
    if before in ("{", ",") and not (word and word[0].lower() in _INNOCENT):  # else the next parameter of a function
        return _FLOW.match(text, end)
    if line[-1:] in ("'", '"'):
        return _TO_QUOTE.match(text, end)
    in_prose = line[-1:] in (" ", "\t") and before.isalnum()  # "no such token: ..." is no name of a value
    return word if word and (not in_prose or _looks_secret(word[0])) else None


def _after_option(text: str, match: re.Match[str]) -> re.Match[str] | None:
    return _QUOTED.match(text, match.end()) or _WORD.match(text, match.end())


def _in_element(text: str, match: re.Match[str]) -> re.Match[str] | None:
    return _TO_TAG.match(text, match.end())


def _is_header(key: str) -> bool:
    return key.lower().rpartition("-")[2] in _HEADERS


def _looks_secret(word: str) -> bool:
    return len(word) >= 8 and any(c.isdigit() for c in word) and any(c.isalpha() for c in word)


def _can_be_secret(value: str) -> bool:
    plain = value.strip("\\\"' \t")
    counts = plain.isdecimal() and len(plain) < 8
    if not plain or counts or plain.lower() in _INNOCENT or set(plain) <= {"*"}:
        return False
    return _REFERENCE.fullmatch(plain) is None


def _quotes(value: str) -> tuple[str, str]:
    """Split off the quotes around a value."""
    opening = re.match(r"\\*[\"']", value)
    if opening is None:
        return "", ""
    closed = value.endswith(opening[0]) and len(value) >= 2 * len(opening[0])
    return opening[0], opening[0] if closed else ""


def _masked_address(before: str, rest: str) -> str:
    """Mask what stands before the host of an address, given after its ``://``."""
    end = rest.rfind("@")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if end <= 0 or rest[end + 1 :] == "" or rest.startswith("["):
        return rest
    user = re.split(r"[/@?#]", rest, maxsplit=1)[0]
    if ":" not in user:  # a token alone; what comes after the host may hold an @ of its own
        if "@" not in authority:
            return rest
        end = authority.rfind("@")
    elif "@" not in authority and _WEB.search(before) and _PORT.match(rest):
        return rest  # a host with its port
    return f"{MASK}{rest[end:]}"
