"""Debian's Chromium, by playwright; tests that import this skip where either is absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 180_000  # milliseconds; a busy machine starts Chromium in a minute
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    arguments = ["--disable-gpu", "--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE)
        yield started
        started.close()


class Opened:
    """A page, with all that it said, asked for and tried to open."""

    def __init__(self, browser: Any, address: str, size: dict[str, int], scheme: str = "light") -> None:
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def draw_all(self) -> None:
        """Scroll until each figure that is shown was drawn."""
        for plot in self.page.query_selector_all(".figure:not([hidden]) .plot"):
            plot.scroll_into_view_if_needed()
            self.wait("plot => plot.querySelector('.main-svg') !== null", plot)

    def wait(self, expression: str, arg: Any = None) -> None:
        """Wait until it holds, asked from here: what playwright itself asks again is eval, which the page forbids."""
        end = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(expression, arg):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(50)

    def groups(self, id: str) -> set[str]:
        """Labels of the settings that a figure draws."""
        traces = "[...document.getElementById(id).data].filter(t => t.meta).map(t => DATA.groups[t.meta.group].label)"
        return set(self.page.evaluate(f"id => {traces}", f"plot-{id}"))
