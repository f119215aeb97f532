"""Secrets by how they are written: whatever the characters, and in whatever text."""

from __future__ import annotations

import json
import random
import string
import time

import pytest
import yaml

from caldpo.security.secrets import redact_text

HARD = string.ascii_letters + string.digits + "/@:%+~!*-_.=&#?$^;"


def drawn(number: int) -> str:
    """A password: any characters, none of which says what it is; never a host or a port."""
    rng = random.Random(number)
    return "Zq" + "".join(rng.choice(HARD) for _ in range(rng.randint(6, 24))) + "9Qz"


WRITTEN = [
    "https://user:{}@host.example/path",
    "https://:{}@h",
    "clone from https://me:{}@host:8080/x.git failed",
    "postgresql+psycopg2://u:{}@db/name",
    "'redis://:{}@localhost:6379/0'",
    '{{"user": "me", "api_key": "{}", "n": 1}}',
    "{{'password': '{}'}}",
    '{{\\"api_key\\": \\"{}\\", \\"n\\": 1}}',
    "password: {}",
    "  - db_password: '{}'",
    "api_key : {}",
    "user: me\nAPI_KEY: {}\nother: 1",
    "secret_key = '{}'",
    'token = "{}"  # in a file of settings',
    "Authorization: Basic {}",
    "Authorization: {}",
    "> authorization: Digest response={}",
    "curl -H 'Authorization: Basic {}' https://host",
    'curl -H "X-Api-Key: {}" https://host',
    "Proxy-Authorization: Basic {}",
    "Set-Cookie: session={}",
    '{{"Authorization": "Bearer {}"}}',
    "program --password '{}' --other 1",
    "program --api-key {} --other 1",
    "<password>{}</password>",
    "machine host login me password {}",
    "password: |\n  {}\n",
]


@pytest.mark.parametrize("written", WRITTEN)
def test_no_secret_comes_through(written: str) -> None:
    for number in range(60):
        secret = drawn(number)
        if "'{}'" not in written and '"{}' not in written:
            secret = secret.replace(";", "x") if "--api-key" in written or "login" in written else secret
        text = written.format(secret)
        masked = redact_text(text)
        assert secret not in masked, text
        # nor a half of it
        assert secret[:6] not in masked, (text, masked)
        assert secret[-6:] not in masked, (text, masked)
        assert redact_text(masked) == masked


@pytest.mark.parametrize("number", range(40))
def test_json_and_yaml(number: int) -> None:
    """And what is masked is JSON still."""
    rng = random.Random(number)
    secret = drawn(number) + rng.choice(["", '"', "'", "\\", "é"]) + "end"
    content = {"a": 1, "model": {"api_key": secret, "path": "x/y"}, "list": ["b", {"password": secret}]}
    assert secret not in redact_text(yaml.safe_dump(content, allow_unicode=True))
    for text in (json.dumps(content), json.dumps(content, indent=2), json.dumps(json.dumps(content))):
        masked = redact_text(text)
        assert secret not in masked
        assert json.dumps(secret)[1:-1] not in masked
        found = json.loads(masked)
        found = json.loads(found) if isinstance(found, str) else found
        assert (found["a"], found["model"]["path"], found["list"][0]) == (1, "x/y", "b")
        assert found["model"]["api_key"] == found["list"][1]["password"] == "***"


@pytest.mark.parametrize(
    "text",
    [
        "see https://github.com/org/repo@v1.2 and hf://datasets/a/b@main/x.json",
        "http://localhost:8000/v1/models@latest",
        "http://node1.cluster:8080/a@b",
        "https://example.org/a:b@c",
        "https://[::1]:80/a@b",
        "eos_token: </s>, pad_token: <pad>",
        "tokens: 512, tokens_per_second: 30.5, max_token: 5",
        "the tokenizer has no EOS token: responses could not end",
        "def load(path: str, token: str | None = None) -> None:",
        "token: null\npassword: ''\napi_key: ???",
        "token: ${oc.env:HF_TOKEN}",
        "    token = self.next_token(ids)",
        "data.train: is required (str)",
        "tokens by author: 12; author: somebody",
        "10:32:11 step: 5 loss: 0.1",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redact_text(text) == text


def test_long_texts_take_no_time() -> None:
    started = time.perf_counter()
    for text in (
        "a" * 200_000,
        "a:" * 100_000,
        "https://" * 25_000,
        "https://a:b" * 20_000,
        "token " * 40_000,
        "'\\" * 99_999,
    ):
        redact_text(text)
    assert time.perf_counter() - started < 5
