"""The page in a real Chromium: drawn, switched, sorted, filtered and copied, and nothing foreign runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import large_sweep
from tests.helpers.command import train
from tests.report.chromium import Opened, launched, needs_chromium
from tests.report.pages import ENDS, HOSTILE, PROMPTS, read_groups, render, write_sweep

axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = needs_chromium
WIDTHS = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 800}}

FAULTS = """Object.fromEntries(Object.entries(FIGURES).flatMap(([id, make]) => {
  const faults = Plotly.validate(make().traces, make().layout) || [];
  return faults.length ? [[id, faults.map(fault => fault.msg)]] : [];
}))"""
LAST_OF_DPO = """id => document.getElementById(id).data
  .find(trace => trace.meta && DATA.groups[trace.meta.group].label === "dpo").y.at(-1)"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_sweep(tmp_path_factory.mktemp("page") / "sweep")
    (folder / "report.html").write_text(render(folder), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as started:
        yield started


@pytest.fixture(scope="module")
def desk(browser: Any, address: str) -> Iterator[Opened]:
    opened = Opened(browser, address, WIDTHS["desk"])
    yield opened
    opened.context.close()


def test_every_figure_is_drawn_without_a_word_or_a_request(desk: Opened, address: str) -> None:
    desk.draw_all()
    for id in ("panel-log_ratios-chosen", "panel-displacement", "frontier", "calibration", "displacement", "lengths"):
        assert desk.groups(id) == set(ENDS), id
    assert desk.page.evaluate(FAULTS) == {}, "plotly knows every key"
    assert desk.said == []
    assert desk.asked == [address]


def test_what_is_foreign_is_text(desk: Opened) -> None:
    assert desk.page.locator("img").count() == 0
    assert HOSTILE in desk.page.locator("#incomplete").inner_text()
    desk.page.locator("#prompt").select_option(index=2)
    shown = desk.page.locator("#answers")
    assert HOSTILE in shown.locator(".prompt").inner_text()
    assert HOSTILE in shown.locator(".card p").nth(1).inner_text()
    assert desk.page.evaluate("plain('<a href=x>%{y}$&')") == "&lt;a href=x&gt;&#37;{y}&#36;&amp;"


def test_settings_are_switched_by_mouse_and_keyboard(desk: Opened) -> None:
    desk.page.locator("#dynamics").scroll_into_view_if_needed()
    button = desk.page.locator("#legend button", has_text="ipo")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert desk.groups("panel-log_ratios-chosen") == {"dpo", "cal_dpo"}
    button.focus()
    desk.page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert desk.groups("panel-log_ratios-chosen") == set(ENDS)
    desk.page.locator("#pair").click()
    assert desk.groups("panel-log_ratios-chosen") == {"dpo", "cal_dpo"}
    desk.page.locator("#find").fill("ipo")
    desk.page.locator("#all").click()
    assert desk.page.locator("#count").inner_text() == "3 of 3"
    desk.page.locator("#find").fill("")


def test_labels_stand_at_the_curves_ends(desk: Opened) -> None:
    read = "id => document.getElementById(id).layout.annotations.map(a => a.text)"
    assert set(desk.page.evaluate(read, "plot-panel-log_ratios-chosen")) == set(ENDS)


def test_scale_and_axis_are_switched(desk: Opened) -> None:
    assert desk.page.evaluate(LAST_OF_DPO, "plot-panel-log_ratios-chosen") == pytest.approx(-7.5)
    desk.page.locator("#logarithmic").check()
    linear = desk.page.evaluate("DATA.panels.find(p => p.id === 'log_ratios-chosen').linear")
    logarithmic = -desk.page.evaluate("x => Math.log10(1 + x)", 7.5 / linear)
    assert desk.page.evaluate(LAST_OF_DPO, "plot-panel-log_ratios-chosen") == pytest.approx(logarithmic)
    desk.page.locator("#logarithmic").uncheck()
    desk.page.locator("input[name=scale][value=reward]").check()
    assert not desk.page.locator("#plot-panel-log_ratios-chosen").is_visible()
    desk.page.locator("#plot-panel-rewards-chosen").scroll_into_view_if_needed()
    desk.wait("document.getElementById('plot-panel-rewards-chosen').data")
    assert desk.page.evaluate(LAST_OF_DPO, "plot-panel-rewards-chosen") == pytest.approx(-0.75)
    desk.page.locator("input[name=scale][value=nats]").check()


def test_steps_are_zoomed_together_and_reset(desk: Opened) -> None:
    desk.page.locator("#plot-panel-log_ratios-chosen").scroll_into_view_if_needed()
    desk.wait("document.getElementById('plot-panel-log_ratios-chosen').data")
    desk.page.locator("#from").fill("5")
    desk.page.locator("#to").fill("15")
    desk.page.locator("#to").press("Tab")
    read = "id => document.getElementById(id).layout.xaxis.range"
    for panel in ("log_ratios-chosen", "log_ratios-rejected"):
        assert desk.page.evaluate(read, f"plot-panel-{panel}") == [5, 15]
    desk.page.locator("#all-steps").click()
    low, high = desk.page.evaluate(read, "plot-panel-log_ratios-chosen")
    assert low <= 0
    assert high >= 20


def test_the_table_is_sorted_by_a_column(desk: Opened) -> None:
    head = desk.page.locator("#finals thead th", has_text="chosen log-ratio").first
    labels = desk.page.locator("#finals tbody th")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert labels.all_inner_texts()[:3] == ["cal_dpo", "ipo", "dpo"]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert labels.all_inner_texts()[:3] == ["dpo", "ipo", "cal_dpo"]


def test_prompts_are_filtered(desk: Opened) -> None:
    desk.page.locator("#prompt-filter").fill("dull")
    assert desk.page.locator("#prompt option").count() == 1
    assert desk.page.locator("#answers .prompt").inner_text() == PROMPTS[1]
    cards = desk.page.locator("#answers .card").all_inner_texts()
    assert [card.splitlines()[0] for card in cards] == ["reference", *ENDS]
    assert all(word in cards[1] for word in ("dpo answers 1", "true reward 1.5", "log-ratio 0.5"))
    desk.page.locator("#prompt-filter").fill("nowhere")
    assert desk.page.locator("#prompt option").count() == 0
    desk.page.locator("#prompt-filter").fill("")


def test_a_command_is_copied(desk: Opened) -> None:
    desk.page.locator("#commands button.copy").first.click()
    desk.wait("document.getElementById('said').textContent === 'copied'")
    copied = desk.page.evaluate("navigator.clipboard.readText()")
    assert copied == "python -m caldpo.train -m loss=dpo,cal_dpo,ipo seed=0,1"
    assert desk.said == [], "nothing went wrong until here"


def test_a_figure_is_saved(desk: Opened) -> None:
    with desk.page.expect_download() as download:
        desk.page.locator("[data-save='panel-log_ratios-chosen']").click()
    assert download.value.suggested_filename == "panel-log_ratios-chosen.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    assert desk.said == []


def test_printing_is_light_and_has_every_figure(browser: Any, address: str) -> None:
    opened = Opened(browser, address, WIDTHS["desk"], "dark")
    opened.page.pdf()
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "light"
    missing = "[...document.querySelectorAll('.figure:not([hidden]) .plot')].filter(p => !p.querySelector('.main-svg'))"
    assert opened.page.evaluate(f"{missing}.length") == 0
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert opened.said == []
    opened.context.close()


@pytest.mark.parametrize(("width", "scheme"), [("desk", "dark"), ("phone", "light")])
def test_nothing_stands_in_the_way(browser: Any, address: str, width: str, scheme: str) -> None:
    opened = Opened(browser, address, WIDTHS[width], scheme)
    opened.draw_all()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]["width"]
    assert opened.page.evaluate("document.documentElement.dataset.theme") == scheme
    found = axe_api.Axe().run(opened.page).response["violations"]
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in serious] == []
    assert opened.said == []
    opened.context.close()


def test_a_sweep_of_34_settings(browser: Any, tmp_path: Path) -> None:
    large_sweep.main(tmp_path, 34 * large_sweep.SEEDS, 20)
    (tmp_path / "report.html").write_text(render(tmp_path), encoding="utf-8")
    address = (tmp_path / "report.html").as_uri()
    opened = Opened(browser, address, WIDTHS["desk"])
    opened.draw_all()
    drawn = opened.groups("panel-log_ratios-chosen")
    assert len(drawn) == 12, "of many the first"
    assert {"dpo", "cal_dpo"} <= drawn
    opened.page.locator("#all").click()
    opened.page.locator("#dynamics").scroll_into_view_if_needed()
    opened.draw_all()
    assert len(opened.groups("panel-log_ratios-chosen")) == len(opened.groups("frontier")) == 34
    assert opened.page.locator("#finals tbody tr").count() == 34
    opened.page.locator("#find").fill("cal_")
    assert opened.page.locator("#legend button:visible").all_inner_texts() == ["cal_dpo", "cal_ipo", "cal_slic"]
    assert opened.page.evaluate(FAULTS) == {}
    assert (opened.said, opened.asked) == ([], [address])
    opened.context.close()


@pytest.mark.slow
def test_the_page_of_a_demo(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ("trainer.max_steps=4", "trainer.val_check_interval=2", "callbacks.oracle.prompts=4")
    train("-m", "experiment=demo", "loss=dpo,cal_dpo", "seed=0,1", *short, "hydra.sweep.dir=demo")
    address = (tmp_path / "demo/report.html").as_uri()
    opened = Opened(browser, address, WIDTHS["desk"])
    opened.draw_all()
    for id in ("panel-log_ratios-chosen", "panel-displacement", "frontier"):
        assert opened.groups(id) == {"dpo", "cal_dpo"}, id
    dpo = read_groups(tmp_path / "demo")[0]
    last = [run.final["val/log_ratios/chosen"] for run in dpo.finished]
    assert opened.page.evaluate(LAST_OF_DPO, "plot-panel-log_ratios-chosen") == pytest.approx(sum(last) / 2, rel=1e-5)
    assert (opened.said, opened.asked) == ([], [address])
    opened.context.close()
