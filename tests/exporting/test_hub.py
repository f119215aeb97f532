"""Uploads: what the hub answers in words for a person, before anything is exported, and what is uploaded."""

from __future__ import annotations

import functools
import inspect
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from huggingface_hub import HfApi

from caldpo.exporting import hub_upload as hub
from caldpo.exporting.export_settings import hub_token
from tests.helpers.messages import refused

SECRET = "hf_" + "a1B2" * 8


class Hub(BaseHTTPRequestHandler):
    """A stand-in for three of the hub's addresses."""

    answers: ClassVar[dict[str, tuple[int, dict]]] = {}
    seen: ClassVar[list[tuple[str, str, dict]]] = []

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append((self.path, self.headers.get("authorization", ""), json.loads(body) if body else {}))
        status, content = self.answers[next(path for path in self.answers if self.path.startswith(path))]
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _answer  # noqa: N815 - names of the standard library

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, dict]]]:
    """What the stand-in answers by path; a hub where all goes well."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    Hub.seen = []
    Hub.answers = {
        "/api/whoami": (200, {"name": "me"}),
        "/api/repos/create": (200, {"url": f"{url}/org/name"}),
        "/api/models/org/name": (200, {"id": "org/name", "private": True, "siblings": []}),
    }
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HfApi", functools.partial(HfApi, endpoint=url))
    yield Hub.answers
    server.shutdown()
    server.server_close()


def test_a_repository_is_made_private_with_the_token_of_the_environment(answers: dict) -> None:
    hub.prepare_repository("org/name", private=True)
    assert {header for _, header, _ in Hub.seen} == {f"Bearer {SECRET}"}
    (made,) = [body for path, _, body in Hub.seen if path.startswith("/api/repos/create")]
    assert made["name"] == "name"
    assert made["organization"] == "org"
    assert made.get("private", made.get("visibility")) in (True, "private")


@pytest.mark.parametrize(
    ("path", "status", "fact", "remedy"),
    [
        ("/api/whoami", 401, "token", "HF_TOKEN"),
        ("/api/repos/create", 403, "may not write", "write access"),
        ("/api/repos/create", 400, "Bad request", "again"),
    ],
)
def test_a_refusal_is_told(answers: dict, path: str, status: int, fact: str, remedy: str) -> None:
    answers[path] = (status, {"error": "no"})
    answers["/api/models/org/name"] = (404, {"error": "no such repository"})
    with refused(fact, key="push_to", value="org/name", remedy=remedy) as caught:
        hub.prepare_repository("org/name", private=True)
    assert SECRET not in str(caught.value)


@pytest.mark.skipif("write" not in inspect.signature(HfApi.auth_check).parameters, reason="an older huggingface_hub")
def test_a_repository_of_others_is_refused_before_the_export(answers: dict) -> None:
    Hub.answers = {"/api/models/org/name/auth-check": (403, {"error": "no"}), **answers}
    with refused("may not write", key="push_to", value="org/name", remedy="write access"):
        hub.prepare_repository("org/name", private=True)


def test_a_public_repository_takes_no_private_policy(answers: dict) -> None:
    answers["/api/models/org/name"] = (200, {"id": "org/name", "private": False, "siblings": []})
    with refused("public", key="push_to", value="org/name", remedy="private=false"):
        hub.prepare_repository("org/name", private=True)
    hub.prepare_repository("org/name", private=False)


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HfApi", functools.partial(HfApi, endpoint="http://127.0.0.1:9"))
    with refused("hub", "Connection refused", key="push_to", value="org/name", remedy="HF_HUB_OFFLINE"):
        hub.prepare_repository("org/name", private=True)


def test_the_whole_folder_goes_up_in_one_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict = {}
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(
        HfApi,
        "upload_folder",
        lambda _, **arguments: asked.update(arguments) or SimpleNamespace(commit_url="https://there"),
    )
    assert hub.upload("org/name", tmp_path, "why") == "https://there"
    assert asked == {
        "repo_id": "org/name",
        "repo_type": "model",
        "folder_path": str(tmp_path),
        "commit_message": "why",
    }


def test_without_a_token_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with refused("no token", key="push_to", remedy="HF_TOKEN"):
        hub_token()
