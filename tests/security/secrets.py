"""Secrets for tests to hide, and the search for them in every file below a folder."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

# made up; none is worth anything
ENVIRONMENT = {
    "HF_TOKEN": "hf_" + "Qx7" * 11,
    "WANDB_API_KEY": "0f1e2d3c" * 5,
    "OPENAI_API_KEY": "sk-proj-" + "Zz9" * 12,
    "AWS_SECRET_ACCESS_KEY": "aws/secret+with=signs" * 2,
    "MY_SERVICE_PASSWORD": 'pass "word" with\\quotes',
}
GIVEN = "key-given-on-the-command-line"  # under a key that sounds like a secret
IN_ADDRESS = "password-in-an-address"


def set_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable of :data:`ENVIRONMENT`."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def leaks(folder: Path) -> list[str]:
    """``FILE: SECRET`` of each file below ``folder`` that has one in its bytes or in its path, in any spelling."""
    found = []
    wanted = {name: _spellings(value) for name, value in {**ENVIRONMENT, "given": GIVEN, "address": IN_ADDRESS}.items()}
    for path in sorted(folder.rglob("*")):
        content = str(path).encode() + (path.read_bytes() if path.is_file() else b"")
        joined = re.sub(rb"\s+", b"", content)  # a terminal's width may have cut one in two
        for name, spellings in wanted.items():
            if any(text in content or re.sub(rb"\s+", b"", text) in joined for text in spellings):
                found.append(f"{path.relative_to(folder)}: {name}")
    return found


def _spellings(secret: str) -> list[bytes]:
    texts = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return [*(text.encode() for text in texts), base64.b64encode(secret.encode()).rstrip(b"=")]
