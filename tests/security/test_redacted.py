"""Logs, output and the environment of other processes, without secrets."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from caldpo.bench.worker import environment as of_benchmark
from caldpo.evaluation.lm_eval import installation
from caldpo.evaluation.lm_eval import subprocess_run as outside
from caldpo.security import secrets as redact
from caldpo.security.redacted_streams import (
    HUB_TOKENS,
    RedactedFormatter,
    RedactedStream,
    UnlinkedLogHandler,
    environment_without_secrets,
    mask_wrapped,
    redacted_output,
)
from caldpo.security.secrets import MASK, redact_text
from tests.helpers.messages import refused
from tests.security.secrets import ENVIRONMENT, set_environment


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)
    monkeypatch.setattr(redact, "_learned", set())
    monkeypatch.setenv("PWD", "/a/folder/of/mine")


def test_log_records_and_their_tracebacks() -> None:
    try:
        raise RuntimeError(f"refused {ENVIRONMENT['HF_TOKEN']}")
    except RuntimeError:
        record = logging.LogRecord(
            "n", logging.ERROR, "/a/folder/of/mine/x.py", 1, "key %s", (ENVIRONMENT["OPENAI_API_KEY"],), sys.exc_info()
        )
    text = RedactedFormatter("%(levelname)s %(message)s %(pathname)s").format(record)
    assert text.startswith(f"ERROR key {MASK} /a/folder/of/mine/x.py\nTraceback")
    assert f"RuntimeError: refused {MASK}" in text
    assert not any(secret in text for secret in ENVIRONMENT.values())


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    outside, link, plain = tmp_path / "outside", tmp_path / "train.log", tmp_path / "plain.log"
    outside.write_text("kept\n")
    link.symlink_to(outside)
    for path in (link, plain):
        handler = UnlinkedLogHandler(path)
        handler.emit(logging.LogRecord("n", logging.INFO, "x.py", 1, "told", (), None))
        handler.close()
    assert outside.read_text() == "kept\n"
    assert plain.read_text() == "told\n"
    with pytest.raises(IsADirectoryError):
        UnlinkedLogHandler(tmp_path)


def test_a_stream_masks_and_is_the_stream_otherwise() -> None:
    kept = io.StringIO()
    stream = RedactedStream(kept)
    assert stream.write(f"a {ENVIRONMENT['WANDB_API_KEY']}\n") == len(ENVIRONMENT["WANDB_API_KEY"]) + 3
    stream.writelines([f"{ENVIRONMENT['HF_TOKEN']}\n", "plain\n"])
    assert stream.getvalue() == f"a {MASK}\n{MASK}\nplain\n"
    assert not stream.isatty()
    stream.close()
    assert kept.closed


def test_output_is_masked_within_and_as_before_after(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with redacted_output():
        print(ENVIRONMENT["HF_TOKEN"])
        print(ENVIRONMENT["OPENAI_API_KEY"], file=sys.stderr)
        with redacted_output():  # a command that calls another
            print("plain")
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{MASK}\nplain\n", f"{MASK}\n")


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("width", [24, 31, 40, 57, 80, 200])
@pytest.mark.parametrize("secret", [*ENVIRONMENT, "of a known form"])
def test_layout_does_not_bring_a_secret_through(secret: str, width: int, colours: bool) -> None:
    """Whatever Rich does to it: no piece of ten characters is left."""
    value = ENVIRONMENT.get(secret, "hf_" + "Kp4" * 12)
    text = f"/folder/with/{value}/and more"
    written = io.StringIO()
    console = Console(file=RedactedStream(written), width=width, force_terminal=colours)  # type: ignore[arg-type]
    table = Table(title="Run", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name in ("folder", "policy"):
        table.add_row(name, text)
    console.print(table)
    console.print(text)
    console.print(text, soft_wrap=True)
    assert (table.row_count, "folder" in written.getvalue()) == (2, True)
    left = re.sub(r"\x1b\[[0-9;]*m|[\s│┃]", "", written.getvalue())
    plain = re.sub(r"\s", "", value)
    assert not [plain[k : k + 10] for k in range(len(plain) - 9) if plain[k : k + 10] in left]


def test_a_cropped_cell_shows_no_start_of_a_secret() -> None:
    written = io.StringIO()
    table = Table()
    table.add_column("policy")
    table.add_row(f"model/{ENVIRONMENT['OPENAI_API_KEY']}")
    Console(file=RedactedStream(written), width=24).print(table)  # type: ignore[arg-type]
    assert "│ model/**" in written.getvalue()
    assert "*…" in written.getvalue()
    assert "sk-" not in written.getvalue()


def test_a_table_without_secrets_stays_as_it_is() -> None:
    written, masked = io.StringIO(), io.StringIO()
    for file in (written, RedactedStream(masked)):
        table = Table(title="Runs")
        table.add_column("run", overflow="fold")
        table.add_column("error")
        table.add_row("loss=dpo,seed=0/" + "x" * 60, "hf_transfer is not installed " * 5)
        Console(file=file, width=40, force_terminal=True).print(table)  # type: ignore[arg-type]
    assert written.getvalue() == masked.getvalue()


def test_text_of_many_lines_is_searched_quickly() -> None:
    lines = "\n".join(f"│ {number:6d} │ metrics/of/{number} │ 0.{number:06d} │" for number in range(2000))
    begun = time.perf_counter()
    assert mask_wrapped(lines) == lines
    assert time.perf_counter() - begun < 1.0, "seconds for 80 kB, ten times what it takes"


@pytest.mark.parametrize(
    "text",
    [
        ENVIRONMENT["MY_SERVICE_PASSWORD"],
        repr(ENVIRONMENT["MY_SERVICE_PASSWORD"])[1:-1],
        "pass%20%22word%22%20with%5Cquotes",
        "Authorization: Bearer abcdefghijklmnopqrstuvwxyz",
        "https://ghp_abcdefghijklmnopqrstuvwxyz@github.com/x",
        "github_pat_11ABCDEFG0123456789_abcdefghijklmnop",
        "wandb_v1_abcdefghijklmnopqrstuvwxyz",
        "AKIA" + "ABCDEFGH12345678",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_spellings_and_forms(text: str) -> None:
    masked = redact_text(f"before {text} after")
    assert MASK in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")
    assert not any(len(word) > 12 and word in masked for word in text.replace("Authorization:", "").split())


def test_a_value_under_a_secret_key_is_masked_wherever_it_turns_up_later() -> None:
    assert redact_text("401 for correct-horse-battery") == "401 for correct-horse-battery"
    redact.redact({"before": "correct-horse-battery", "server": {"api_key": "correct-horse-battery"}})
    assert redact_text("401 for correct-horse-battery") == f"401 for {MASK}"


@pytest.mark.parametrize(
    ("given", "masked"),
    [
        ({"password": 1234567890}, {"password": MASK}),
        ({"token": 5, "secret": True}, {"token": 5, "secret": True}),
        ({"credentials": {"user": "me", "list": ["abc", None]}}, {"credentials": {"user": MASK, "list": [MASK, None]}}),
        ({"api_keys": ["abc"]}, {"api_keys": [MASK]}),
        ({"api_key_env": "OPENAI_API_KEY"}, {"api_key_env": "OPENAI_API_KEY"}),
        ({"first": "the-same-value", "client_secret": "the-same-value"}, {"first": MASK, "client_secret": MASK}),
    ],
)
def test_containers(given: dict, masked: dict) -> None:
    assert redact.redact(given) == masked


def test_other_processes_get_no_secret_that_they_do_not_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not ENVIRONMENT.keys() & environment_without_secrets().keys()
    assert environment_without_secrets("HF_TOKEN")["HF_TOKEN"] == ENVIRONMENT["HF_TOKEN"]
    assert environment_without_secrets()["PWD"] == "/a/folder/of/mine"
    given: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], **options: object) -> object:
        assert isinstance(command, list)
        assert not options.get("shell")
        given.append((command, options["env"]))  # type: ignore[arg-type]
        raise OSError

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(OSError):  # noqa: PT011 - the one above
        outside._run(["python", "-m", "lm_eval"], tmp_path / "x", tmp_path / "log")
    with refused(key="leaderboard.python", value="/no/such/python"):
        installation._probe("/no/such/python")
    (_, of_harness), (_, of_probe) = given
    assert ENVIRONMENT.keys() & of_harness.keys() == {"HF_TOKEN"}
    assert set(HUB_TOKENS) >= {"HF_TOKEN"}
    assert not ENVIRONMENT.keys() & of_probe.keys()


def test_benchmark_workers_get_no_secret() -> None:
    assert not ENVIRONMENT.keys() & of_benchmark(1).keys()
    assert of_benchmark(1)["WANDB_MODE"] == "disabled"
