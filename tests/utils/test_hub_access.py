"""A hub out of reach, or without the repository, is told after one request; a cached copy is read without the hub."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest
import torch

from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.models.hub_files import commit_of
from caldpo.models.hub_model import HubModel, check_causal_lm
from caldpo.utils.hub_access import hub_failure
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_model, tiny_tokenizer

COMMIT = "a" * 40
UNREACHABLE = "http://127.0.0.1:9"
# what the hub answers a request for a file, by owner
ANSWERS = {
    "nobody": (401, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "moved": (404, "RevisionNotFound"),
    "bare": (404, "EntryNotFound"),
    "busy": (503, ""),
}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub that gives nothing, with an empty cache; the files that were asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status, code = ANSWERS.get(self.path.removeprefix("/datasets").split("/")[1], (404, ""))
            if "/resolve/" in self.path:  # the rest is of huggingface_hub itself
                asked.append(self.path)
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "hub")
    yield asked
    server.shutdown()
    server.server_close()
    hub_failure.cache_clear()


def online(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    hub_failure.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache / "datasets"))


@pytest.mark.parametrize(
    ("path", "fact"),
    [("nobody/nothing", "no repository of this name"), ("gated/model", "restricted"), ("moved/model", "revision v2")],
)
def test_a_repository_that_the_hub_does_not_give(path: str, fact: str, requests: list[str]) -> None:
    source = HubModel(path, revision="v2")
    assert source.commit() == "v2"  # nothing else is known
    with refused(fact, key="model.path", value=path, remedy=("id", "hf auth login", "HF_TOKEN")):
        source.load_tokenizer()
    assert requests == [f"/{path}/resolve/v2/config.json"]  # one, whatever asked


def test_the_key_that_named_it_is_named(requests: list[str]) -> None:
    with refused(key="reference.path", value="nobody/nothing", remedy="id"):
        check_causal_lm("nobody/nothing", key="reference.path")
    with refused("no repository", key="data.source.path", value="nobody/nothing", remedy=("id", "hf auth login")):
        HubDataset("nobody/nothing").rows("train")
    assert len(requests) == 2


def test_another_attempt_asks_again(requests: list[str]) -> None:
    for count in (1, 2):
        with refused(key="model.path"):
            HubModel("nobody/nothing").load_tokenizer()
        assert len(requests) == count


def test_a_hub_that_is_busy_and_a_repository_without_this_file_are_left_to_the_libraries(requests: list[str]) -> None:
    assert hub_failure("busy/model", None) is None
    assert hub_failure("bare/model", None) is None
    assert hub_failure("bare/model", None, "dataset") is None
    assert requests[-1] == "/datasets/bare/model/resolve/main/README.md"


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    online(monkeypatch, UNREACHABLE, tmp_path / "hub")
    remedy = ("network", "HF_HUB_OFFLINE=1")
    with refused("cannot be reached", key="model.path", value="org/model", remedy=remedy):
        HubModel("org/model").load_policy()
    with refused("cannot be reached", key="model.tokenizer", value="org/model", remedy=remedy):
        HubModel("unused", tokenizer="org/model").load_tokenizer()
    for read in (HubDataset("org/data").rows, HubDataset("org/data").held_out):
        with refused("cannot be reached", key="data.source.path", value="org/data", remedy=remedy):
            read("train")
    assert "Retrying" not in caplog.text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("HF_HUB_OFFLINE", "cached", key="model.path", value="org/model", remedy="HF_HOME"):
        HubModel("org/model").load_policy()
    assert datasets.config.HF_HUB_OFFLINE is False  # as before
    hub_failure.cache_clear()


def test_a_cached_model_is_read_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = tmp_path / "hub/models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    tiny_model().save_pretrained(repository / "snapshots" / COMMIT)
    tiny_tokenizer().save_pretrained(repository / "snapshots" / COMMIT)
    online(monkeypatch, UNREACHABLE, tmp_path / "hub")
    for revision in (None, COMMIT):
        source = HubModel("org/model", revision=revision)
        assert source.load_tokenizer().convert_tokens_to_ids("w3") == 7
        for name, value in source.load_policy().state_dict().items():
            assert torch.equal(value, tiny_model().state_dict()[name])
        assert commit_of("org/model", revision) == COMMIT
    with refused("cannot be reached", key="model.path", value="org/model"):
        HubModel("org/model", revision="v2").load_tokenizer()  # another one than the cached
    assert "Retrying" not in caplog.text
    hub_failure.cache_clear()
