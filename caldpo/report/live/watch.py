"""``watch=true`` of ``python -m caldpo.compare``: serve the page of runs under way until somebody stops it."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from caldpo.report.live.live_page import LivePage
from caldpo.report.live.page_server import PageServer
from caldpo.report.shown_metrics import CHOSEN
from caldpo.report.statistics import BandKind

_BY_SIGTERM = 128 + signal.SIGTERM  # the code of the SystemExit that exit_on_signals raises


def watch_runs(folders: Sequence[Path], root: Path, band: BandKind, port: int) -> bool:
    """Serve the page until Ctrl-C or SIGTERM; return whether a run has finished of which a report can be written.

    Raises:
        CaldpoError: the port is taken.
    """
    page = LivePage(folders, root, band)
    with PageServer(page, port) as server:
        names = ", ".join(map(str, folders))
        try:
            print(f"watching {names}: {server.address}  (Ctrl-C stops, and writes the report)", flush=True)
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            pass
        except SystemExit as stop:
            if stop.code != _BY_SIGTERM:
                raise
    page.watched.refresh()
    finished = [run for run in page.watched.runs if run.finished and CHOSEN.curve(run.curves)]
    print("stopped: writing the report" if finished else "stopped: no run has finished, and there is no report")
    return bool(finished)
