"""Runs under way, whose rows the tests add, and a server of their page."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caldpo.config.run_lock import run_lock
from caldpo.metrics_file import NAME, RowWriter
from caldpo.report.live.live_page import LivePage
from caldpo.report.live.page_server import PageServer
from tests.report.runs import held_out, write_run

PLANNED = 20


@contextlib.contextmanager
def training(folder: Path, loss: str = "dpo", seed: int = 0, chosen: float = -1.0) -> Iterator[Path]:
    """A run that is training, in whose metrics two evaluations stand; its lock is held."""
    rows = [held_out(0, 0.0, 0.0), held_out(5, chosen, 2 * chosen)]
    summary = {"planned_steps": PLANNED, "steps": None}
    write_run(folder, loss, seed, rows=rows, status="running", summary=summary, overrides=["trainer.max_steps=20"])
    with run_lock(folder):
        yield folder


def evaluate(run: Path, step: int, chosen: float) -> None:
    """Add an evaluation to the run's metrics, as training does."""
    row = held_out(step, chosen, 2 * chosen)
    RowWriter(run / NAME).write({name: value for name, value in row.items() if name != "step"}, step)


def end(run: Path, status: str = "finished", **entries: Any) -> None:
    """Let the run end; its lock is to be let go by whoever holds it."""
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": status, "steps": PLANNED, **entries}))


@contextlib.contextmanager
def serving(*folders: Path) -> Iterator[PageServer]:
    """A server that looks at the files whenever it is asked."""
    page = LivePage(folders, folders[0], rest=0.0, share=1.0)
    with PageServer(page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: PageServer, path: str, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    """Ask the server, with the headers given and no others: status, headers and body."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in ({"Host": f"127.0.0.1:{port}"} if headers is None else headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), body


def state_of(server: PageServer) -> dict[str, Any]:
    status, _, body = ask(server, "/state")
    assert status == 200
    return json.loads(body)
