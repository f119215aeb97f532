"""Mask secrets in what is written or printed.

Masked are the values of keys and environment variables that sound like secrets, well-known forms of access tokens, and
whatever stands before the host in addresses. A value that was once masked because of its key is masked wherever it
turns up later in this process, as in an error's message.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import OmegaConf

from caldpo.errors import CaldpoError
from caldpo.security.secret_patterns import MASK, mask_addresses, mask_named
from caldpo.utils.atomic_io import write_text
from caldpo.utils.file_names import is_there

_SHORTEST = 8  # characters; a shorter environment value ("none", "true") would mask innocent text
_WORDS = {"token", "secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "apikey"}
# also at the end of a word that runs on: PGPASSWORD, SECRETKEY, ACCESSTOKEN; no plain "pass", as of COMPASS
_ENDINGS = (
    *("token", "password", "passwd", "passphrase", "secret", "sshpass", "dbpass", "smtppass"),
    *(f"{kind}key" for kind in ("secret", "api", "access", "private", "account", "storage")),
)
# and as the last of several words: MYSQL_PWD, SMTP_PASS, GITHUB_PAT, REDISCLI_AUTH; PWD alone is a folder
_LAST_WORDS = {"pwd", "pass", "pat", "auth"}
_KINDS_OF_KEY = (
    *("api", "access", "account", "auth", "encryption", "kaggle", "storage"),
    *("openai", "private", "service", "signing", "wandb"),
)
_WORD_PAIRS = {(kind, key) for kind in _KINDS_OF_KEY for key in ("key", "keys")} | {("connection", "string")}
# Variables are named NVIDIA_KEY and the like after whatever they open; a key in a configuration is often a column.
_OPEN_KEYS = {"public", "sort", "primary", "foreign", "cache", "partition", "shortcut", "compose"}
# eos_token, mask_token and their like are words of a tokenizer, and chosen_per_token a mean; HF_TOKEN_PATH is a place.
_NOT_BEFORE_TOKEN = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "special", "additional", "per"}
_PLACES = {"path", "file", "dir", "folder", "env"}

_ENVIRONMENT_REFERENCE = re.compile(r"\$\{oc\.env:\w+(,\s*null)?\}")
_PAIR_IN_TEXT = re.compile(r"(?<![\w.@/+~-])(?P<key>[\w.@/+~-]+)=(?P<value>'[^']*'|\"[^\"]*\"|[^,\s'\"]+)")
KNOWN_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_-]{20,}|wandb_v1_[A-Za-z0-9_]{20,}|AKIA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})"
    r"|(?<=\b[Bb]earer )[A-Za-z0-9._~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)

_learned: set[str] = set()  # values that stood under secret keys


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Tell whether a name sounds like a secret's: ``api_key``, ``HF_TOKEN``, ``PGPASSWORD``; not ``tokenizer``."""
    last = re.split(r"[./@]", name)[-1]
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", last)]
    if _PLACES & set(words):
        return False
    if _NOT_BEFORE_TOKEN & set(words) and not set(words) & (_WORDS - {"token"}):
        return False
    if any(word.endswith(_ENDINGS) for word in words) or _WORDS & set(words):
        return True
    opens = last.isupper() and words[-1:] == ["key"] and not _OPEN_KEYS & set(words)
    if len(words) > 1 and (words[-1] in _LAST_WORDS or opens):
        return True
    return any(pair in _WORD_PAIRS for pair in itertools.pairwise(words))


def redact(container: Any) -> Any:
    """Copy nested mappings and sequences with every secret masked; references to variables stay."""
    # before anything is masked: a secret may stand in plain text ahead of its key
    _learned.update(value for value in _secret_values(container, secret=False) if len(value) >= _SHORTEST)
    return _redacted(container, secret=False)


def _redacted(node: Any, *, secret: bool) -> Any:
    if isinstance(node, Mapping):
        return {key: _redacted(item, secret=secret or is_secret_name(str(key))) for key, item in node.items()}
    if isinstance(node, list | tuple):
        return [_redacted(item, secret=secret) for item in node]
    if secret and _can_be_secret(node):
        return MASK
    return redact_text(node) if isinstance(node, str) else node


def _secret_values(node: Any, *, secret: bool) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, item in node.items():
            yield from _secret_values(item, secret=secret or is_secret_name(str(key)))
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _secret_values(item, secret=secret)
    elif secret and _can_be_secret(node):
        yield str(node)
    elif isinstance(node, str):
        for match in _PAIR_IN_TEXT.finditer(node):
            yield from _secret_values({match["key"]: match["value"].strip("'\"")}, secret=False)


def redact_text(text: str) -> str:
    """Mask secret environment values, values of secret keys, known forms and passwords of addresses."""
    for secret in known_secrets():
        if secret in text:
            text = text.replace(secret, MASK)
    text = _PAIR_IN_TEXT.sub(_mask_pair, text)
    return mask_addresses(mask_named(KNOWN_FORMS.sub(MASK, text), is_secret_name))


def redact_error(error: CaldpoError) -> str:
    """Write an error as text, with secrets masked.

    ``api_key: unknown key`` says something of a key, and no value: only what follows the key is looked at.
    """
    apart = "\0"  # between a key and its colon there is then no pair
    subject_key = "" if error.key is None else re.escape(error.key)
    subject = rf"\A{subject_key}" if subject_key else r"^  [\w.+~@/-]+"  # one problem, or several with a line each
    text = re.sub(rf"(?m)({subject})(?=: )", rf"\1{apart}", str(error))
    return redact_text(text).replace(apart, "")


def redact_files(folder: Path) -> None:
    """Mask secrets in the yaml files of ``folder``, each replaced atomically and only when it has any."""
    for path in sorted(folder.glob("*.yaml")):
        redact_file(path)


def redact_file(path: Path) -> None:
    """Mask secrets in one yaml file that OmegaConf wrote; nothing where there is none."""
    if not path.is_file():
        return
    written = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    masked = redact(written)
    if masked == written:
        return
    # Parallel runs of a sweep mend the sweep's own file at the same time.
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(masked)))


def _can_be_secret(value: Any) -> bool:
    """Tell whether a value under a secret key is one: not an empty one, nor the name of a variable that holds it."""
    if isinstance(value, int):
        return len(str(value)) >= _SHORTEST  # a password of digits; a short number is a count
    return isinstance(value, str) and value not in ("", "???", MASK) and not _ENVIRONMENT_REFERENCE.fullmatch(value)


def _mask_pair(match: re.Match[str]) -> str:
    key, value = match["key"], match["value"]
    if is_secret_name(key) and _can_be_secret(value.strip("'\"")):
        return f"{key}={MASK}"
    return f"{key}={_PAIR_IN_TEXT.sub(_mask_pair, value)}"  # a quoted value may hold pairs of its own


def known_secrets() -> list[str]:
    """List the values to mask wherever they stand, in every spelling, the longest first."""
    return _secrets_among(tuple(os.environ.items()), frozenset(_learned))


@functools.lru_cache(maxsize=4)
def _secrets_among(variables: tuple[tuple[str, str], ...], learned: frozenset[str]) -> list[str]:
    values = {value for name, value in variables if len(value) >= _SHORTEST and is_secret_name(name)}
    # SSH_KEY or BUILD_PWD may name a file or folder, which messages have to name, too
    values = {value for value in values if not (value.startswith("/") and is_there(value))} | learned
    # as they stand in addresses, in JSON and in the repr of a text
    written = {form for s in values for form in (s, quote(s, safe=""), json.dumps(s)[1:-1], repr(s)[1:-1])}
    return sorted(written, key=len, reverse=True)  # a secret inside another one is masked with it
