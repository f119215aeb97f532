"""Keeps secrets out of what is written or printed.

Masked are the values of keys that sound like secrets, the values of environment variables that do, wherever
they stand, well-known forms of access tokens, and user:password in addresses.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

MASK = "***"

_SHORTEST = 8  # characters; a shorter environment value ("none", "true") would mask innocent text
_WORDS = {"token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "apikey"}
_WORD_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("auth", "key")}
# eos_token, mask_token and their like are words of a tokenizer; HF_TOKEN_PATH is a place, no secret.
_NOT_BEFORE_TOKEN = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "special", "additional"}
_PLACES = {"path", "file", "dir", "folder"}

_ENVIRONMENT_REFERENCE = re.compile(r"\$\{oc\.env:\w+(,\s*null)?\}")
_PAIR_IN_TEXT = re.compile(r"(?P<key>[\w.@/+~-]+)=(?P<value>'[^']*'|\"[^\"]*\"|[^,\s'\"]+)")
_KNOWN_FORMS = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})")
_USER_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def is_secret_name(name: str) -> bool:
    """Whether a key or variable sounds like a secret: ``api_key``, ``HF_TOKEN``; not ``tokenizer``."""
    last = re.split(r"[./@]", name)[-1]
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", last)]
    if _PLACES & set(words):
        return False
    if _NOT_BEFORE_TOKEN & set(words) and not set(words) & (_WORDS - {"token"}):
        return False
    return bool(_WORDS & set(words)) or any(pair in _WORD_PAIRS for pair in itertools.pairwise(words))


def redact(container: Any) -> Any:
    """A copy of nested mappings and sequences with every secret masked; references to variables stay."""
    if isinstance(container, Mapping):
        return {key: MASK if _is_secret_value(str(key), value) else redact(value) for key, value in container.items()}
    if isinstance(container, list | tuple):
        return [redact(item) for item in container]
    return redact_text(container) if isinstance(container, str) else container


def redact_text(text: str) -> str:
    """``text`` with secret environment values, ``key=value`` of secret keys and known forms masked."""
    for secret in _environment_secrets():
        text = text.replace(secret, MASK)
    text = _PAIR_IN_TEXT.sub(_mask_pair, text)
    return _USER_IN_URL.sub(MASK, _KNOWN_FORMS.sub(MASK, text))


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
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(OmegaConf.to_yaml(OmegaConf.create(masked)), encoding="utf-8")
    draft.replace(path)


def _is_secret_value(key: str, value: Any) -> bool:
    return (
        isinstance(value, str)
        and value not in ("", "???")
        and is_secret_name(key)
        and not _ENVIRONMENT_REFERENCE.fullmatch(value)
    )


def _mask_pair(match: re.Match[str]) -> str:
    key, value = match["key"], match["value"]
    if _is_secret_value(key, value.strip("'\"")):
        return f"{key}={MASK}"
    return f"{key}={_PAIR_IN_TEXT.sub(_mask_pair, value)}"  # a quoted value may hold pairs of its own


def _environment_secrets() -> list[str]:
    return _secrets_among(tuple(sorted(os.environ.items())))


@functools.lru_cache(maxsize=4)
def _secrets_among(variables: tuple[tuple[str, str], ...]) -> list[str]:
    found = {value for name, value in variables if len(value) >= _SHORTEST and is_secret_name(name)}
    return sorted(found, key=len, reverse=True)  # a secret inside another one is masked with it
