"""Serve a page on this machine alone: three paths, no file, and nothing to a site that resolves its name to here."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from caldpo.errors import CaldpoError
from caldpo.report.live.live_page import LivePage

LOCAL = "127.0.0.1"
# Whatever the port: behind `ssh -L` it is another one.
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_HTML, _JSON = "text/html; charset=utf-8", "application/json"


class PageServer(ThreadingTCPServer):
    """Serves a page on ``127.0.0.1``; ``serve_forever`` and ``shutdown`` as of any server of the library."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, page: LivePage, port: int = 0) -> None:
        """``port``: 0 takes any that is free.

        Raises:
            CaldpoError: the port is taken, or not to be had.
        """
        self.routes: dict[str, tuple[str, Callable[[], bytes]]] = {
            "/": (_HTML, page.page),
            "/update": (_HTML, lambda: page.page(bare=True)),
            "/state": (_JSON, page.state),
        }
        try:
            super().__init__((LOCAL, port), _Handler)
        except OSError as error:
            wrong = f"cannot be served on: {error.strerror or error}"
            raise CaldpoError(wrong, key="port", value=port, remedy="name another one; 0 takes any") from error

    @property
    def address(self) -> str:
        return f"http://{LOCAL}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a browser go away in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "caldpo", ""
    timeout = 30  # seconds for which a silent connection is kept

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            self.send_error(403, "Unknown Host", "The page is served under 127.0.0.1 and localhost alone.")
        elif self.path not in self.server.routes:
            self.send_error(404)
        else:
            kind, make = self.server.routes[self.path]
            self._answer(kind, make())

    def _answer(self, kind: str, body: bytes) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        is_known = self.headers.get("If-None-Match") == tag
        self.send_response(304 if is_known else 200)
        for name, value in {**_HEADERS, "ETag": tag}.items():
            self.send_header(name, value)
        if is_known:
            self.end_headers()
            return
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page asks every few seconds."""
