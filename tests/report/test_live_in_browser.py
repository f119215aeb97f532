"""The page of runs under way in a real Chromium: it follows them, and keeps what its reader has chosen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.chromium import Opened, launched, needs_chromium
from tests.report.live_runs import end, evaluate, serving, training
from tests.report.pages import write_samples
from tests.report.runs import finals, held_out, write_run

axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = needs_chromium
PANEL = "panel-log_ratios-chosen"
CURVE = f"""label => document.getElementById("plot-{PANEL}").data
  .filter(trace => trace.meta && trace.mode === "lines+markers" && DATA.groups[trace.meta.group].label === label)
  .map(trace => trace.customdata).flat()"""
LOSSES = {"cpo": -2.0, "ipo": -6.0}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as started:
        yield started


class Followed:
    """A page that follows a sweep: two finished settings with samples, and one that trains."""

    def __init__(self, browser: Any, folder: Path, stack: contextlib.ExitStack) -> None:
        for loss, chosen in LOSSES.items():
            rows = [held_out(0, 0.0, 0.0), held_out(20, chosen, 2 * chosen)]
            run = write_run(folder / loss, loss, rows=rows, metrics=finals(rows[1]), evaluation={"x": {"measures": {}}})
            write_samples(run, loss)
        self.lock = contextlib.ExitStack()
        self.run = self.lock.enter_context(training(folder / "dpo"))
        self.server = stack.enter_context(serving(folder))
        self.opened = Opened(browser, self.server.address, {"width": 1280, "height": 900})
        self.page = self.opened.page
        self.opened.wait("document.querySelectorAll('#live-runs tr').length === 1")
        self.draw()
        self.page.evaluate("window.unchanged = true")

    def draw(self) -> None:
        self.page.locator("#dynamics").scroll_into_view_if_needed()
        self.opened.wait(f"document.getElementById('plot-{PANEL}').data")

    def until(self, label: str, curve: list[float]) -> None:
        self.opened.wait(f"curve => String(({CURVE})('{label}')) === String(curve)", curve)
        assert self.page.evaluate("window.unchanged"), "the document was not loaded again"


@pytest.fixture
def followed(browser: Any, tmp_path: Path) -> Iterator[Followed]:
    with contextlib.ExitStack() as stack:
        made = Followed(browser, tmp_path, stack)
        stack.callback(made.lock.close)
        stack.callback(made.opened.context.close)
        yield made


def test_the_curve_grows_and_what_the_reader_chose_stays(followed: Followed) -> None:
    page = followed.page
    assert followed.opened.groups(PANEL) == {"dpo", "ipo", "cpo"}
    assert "running" in page.locator("#legend button", has_text="dpo").inner_text()
    page.locator("#legend button", has_text="ipo").click()
    page.locator("#from").fill("0")
    page.locator("#to").fill("12")
    page.locator("#to").press("Tab")
    page.locator("#logarithmic").check()
    page.locator("#bands").uncheck()
    page.locator("#prompt-filter").fill("dull")
    head = page.locator("#finals thead th", has_text="chosen log-ratio").first
    head.locator("button").click()
    page.locator("#settings").scroll_into_view_if_needed()
    page.evaluate("document.querySelectorAll('#dynamics details').forEach(part => { part.open = true; })")
    followed.draw()
    head.locator("button").focus()
    followed.until("dpo", [0, -1])
    plot = page.evaluate_handle(f"document.getElementById('plot-{PANEL}')")

    evaluate(followed.run, 10, -3.0)
    followed.until("dpo", [0, -1, -3])
    assert followed.opened.groups(PANEL) == {"dpo", "cpo"}
    assert page.locator("#legend button", has_text="ipo").get_attribute("aria-pressed") == "false"
    assert page.evaluate(f"document.getElementById('plot-{PANEL}').layout.xaxis.range") == [0, 12]
    assert page.evaluate(f"plot => plot === document.getElementById('plot-{PANEL}')", plot), "drawn on, not anew"
    assert page.locator("#logarithmic").is_checked()
    assert not page.locator("#bands").is_checked()
    assert page.locator("#dynamics details").first.get_attribute("open") is not None
    assert page.locator("#prompt option").count() == 1

    followed.lock.close()
    end(followed.run, metrics=finals(held_out(10, -3.0, -6.0)))
    followed.opened.wait("document.querySelectorAll('#finals tbody td.best, #finals tbody tr').length >= 3")
    followed.opened.wait("!DATA.groups.some(group => group.state)")
    assert (
        page.locator("#finals thead th", has_text="chosen log-ratio").first.get_attribute("aria-sort") == "descending"
    )
    assert page.locator("#finals tbody th").all_inner_texts() == ["cpo", "dpo", "ipo"]
    assert page.locator("#prompt-filter").input_value() == "dull"
    assert page.evaluate("document.activeElement.textContent") == "chosen log-ratio"
    assert page.locator("#legend button", has_text="ipo").get_attribute("aria-pressed") == "false"
    assert page.evaluate("window.unchanged")
    assert followed.opened.said == []
    assert all(url.startswith((followed.server.address, "data:")) for url in followed.opened.asked)


def test_another_setting_appears_though_names_change(followed: Followed, tmp_path: Path) -> None:
    page = followed.page
    page.locator("#legend button", has_text="dpo").click()
    rows = [held_out(0, 0.0, 0.0), held_out(20, 3.0, 1.0)]
    write_run(tmp_path / "other", "dpo", rows=rows, metrics=finals(rows[1]), loss_keys={"beta": 0.7})
    followed.opened.wait("DATA.groups.length === 4")
    labels = {
        button.inner_text().split("\n")[0]: button.get_attribute("aria-pressed")
        for button in page.locator("#legend button").all()
    }
    assert list(labels.values()).count("false") == 1
    off = next(label for label, pressed in labels.items() if pressed == "false")
    assert off.startswith("dpo")
    assert "0.7" not in off, "the one that was switched off, by its new name"
    assert page.evaluate("window.unchanged")
    assert followed.opened.said == []


def test_nothing_stands_in_the_way_and_a_server_that_is_gone_is_said(followed: Followed) -> None:
    page = followed.page
    found = axe_api.Axe().run(page).response["violations"]
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in serious] == []
    followed.server.shutdown()
    followed.server.server_close()
    followed.opened.wait("document.getElementById('live-said').textContent.includes('does not answer')")
    assert followed.opened.groups(PANEL) == {"dpo", "ipo", "cpo"}


def test_a_zoom_does_not_outlive_the_axis_it_was_drawn_on(followed: Followed) -> None:
    """An outlier turns the axis logarithmic: the same range would mean other nats."""
    zoomed = f"({PANEL!r} in ZOOM)"
    followed.page.locator(f"#plot-{PANEL}").scroll_into_view_if_needed()
    followed.draw()
    followed.page.evaluate(f"ZOOM[{PANEL!r}] = [-0.8, -0.2]")
    evaluate(followed.run, 10, -2.0)
    followed.until("dpo", [0.0, -1.0, -2.0])
    assert followed.page.evaluate(zoomed), "of the same axis it stays"
    assert not followed.page.locator("#logarithmic").is_checked()
    evaluate(followed.run, 15, -500.0)
    followed.opened.wait("document.getElementById('logarithmic').checked")
    assert not followed.page.evaluate(zoomed)
