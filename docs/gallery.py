"""Take the pictures of gallery.md with Chromium, of an evaluated demo: ``python docs/gallery.py outputs/SWEEP``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).with_name("gallery")
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
# name of the picture: (anchor of the page, colour scheme, viewport)
PICTURES = {
    "dynamics": ("dynamics", "light", DESKTOP),
    "frontier_dark": ("frontier", "dark", DESKTOP),
    "table": ("table", "light", DESKTOP),
    "samples": ("samples", "light", DESKTOP),
    "phone": ("dynamics", "light", PHONE),
}
LIVE = ["caldpo.train", "-m", "experiment=demo", "loss=dpo,cal_dpo,cpo", "seed=0"]  # the sweep that is watched
RUNNING = "() => [...document.querySelectorAll('#live-runs tr')].some(row => /running/.test(row.innerText))"
DRAWN = "() => document.querySelectorAll('.main-svg').length > 3"


def opened(browser: Browser, address: str, scheme: str, size: dict[str, int]) -> Page:
    """Open a page."""
    page = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=1.0).new_page()
    page.goto(address)
    return page


def wait(page: Page, expression: str) -> None:
    """Wait until it holds. Playwright's own waiting is eval, which the page forbids."""
    while not page.evaluate(expression):
        page.wait_for_timeout(200)


def take(page: Page, name: str, anchor: str) -> None:
    """Take the picture of what follows an anchor."""
    page.evaluate("anchor => document.getElementById(anchor).scrollIntoView()", anchor)
    page.wait_for_timeout(2000)  # figures are drawn as they come into view
    page.screenshot(path=FOLDER / f"{name}.png")
    print(FOLDER / f"{name}.png")


def take_live(browser: Browser) -> None:
    """Watch a sweep of three losses, and take its page while the second trains."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweep"
        trains = subprocess.Popen(
            [sys.executable, "-m", *LIVE, f"hydra.sweep.dir={sweep}"], stdout=subprocess.DEVNULL, cwd=folder
        )
        watches = subprocess.Popen(
            [sys.executable, "-u", "-m", "caldpo.compare", str(sweep), "watch=true"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert watches.stdout is not None
            address = next(filter(None, (re.search(r"http://\S+", line) for line in watches.stdout)))[0]
            page = opened(browser, address, "light", DESKTOP)
            wait(page, RUNNING)
            wait(page, DRAWN)
            page.wait_for_timeout(15_000)  # some evaluations more
            take(page, "live", "progress")
        finally:
            for process in (watches, trains):
                process.terminate()
                process.wait()


def main(sweep: Path) -> None:
    """Take all."""
    FOLDER.mkdir(exist_ok=True)
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        for name, (anchor, scheme, size) in PICTURES.items():
            take(opened(browser, (sweep / "report.html").resolve().as_uri(), scheme, size), name, anchor)
        take_live(browser)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
