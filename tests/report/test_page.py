"""The page without a browser: its numbers are those of the report's frames, and what is foreign stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from caldpo.report.comparison import compare_runs
from caldpo.report.evaluation_plots import by_length, quantiles
from caldpo.report.markdown_report import report
from caldpo.report.page import page_html
from caldpo.report.page.headline_sentence import sentences
from caldpo.report.page.page_curves import panels, thinned_count
from caldpo.report.page.page_html import page_data, render_page, shown_at_first
from caldpo.report.page.page_numbers import plain_number, sortable
from caldpo.report.page.page_samples import samples
from caldpo.report.page.page_tables import columns, table_rows
from caldpo.report.statistics import Estimate, mean_interval
from tests.helpers.messages import names
from tests.report.pages import (
    ENDS,
    HOSTILE,
    HOSTILE_PROMPT,
    PROMPTS,
    STEPS,
    Page,
    data_of,
    read_groups,
    render,
    write_sweep,
)
from tests.report.runs import finals, held_out, table, write_run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("page") / "sweep")


@pytest.fixture(scope="module")
def text(sweep: Path) -> str:
    return render(sweep)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def label(data: dict, entry: dict) -> str:
    return data["groups"][entry["group"]]["label"]


def test_curves_are_means_and_ranges_of_the_rows(text: str) -> None:
    data = data_of(text)
    panel = next(panel for panel in data["panels"] if panel["id"] == "log_ratios-chosen")
    assert (panel["unit"], panel["scale"]) == ("nats", "nats")
    curves = {label(data, curve): curve for curve in panel["curves"]}
    assert set(curves) == set(ENDS)
    for loss, (chosen, *_) in ENDS.items():
        shares = np.array(STEPS) / 20
        assert curves[loss]["x"] == list(STEPS)
        assert curves[loss]["y"] == pytest.approx(shares * (chosen + 0.5))
        assert curves[loss]["low"] == pytest.approx(shares * chosen)
        assert curves[loss]["high"] == pytest.approx(shares * (chosen + 1))
    rewards = next(panel for panel in data["panels"] if panel["id"] == "rewards-margins")
    assert (rewards["unit"], rewards["scale"]) == ("0.1 x nats", "reward")
    assert rewards["curves"][0]["y"][-1] == pytest.approx(0.1 * 12)


def test_points_of_evaluations(sweep: Path, text: str) -> None:
    data = data_of(text)
    points = {label(data, point): point for point in data["frontier"]["points"]}
    assert points["cal_dpo"]["kl"] == [2.0, 0.0]
    assert points["cal_dpo"]["reward"] == pytest.approx([0.91, 0.02 / np.sqrt(2)])
    assert points["cal_dpo"]["path"] == [[0, 1, 2], pytest.approx([0, 0.455, 0.91])]
    (curve,) = [curve for curve in data["calibration"] if label(data, curve) == "dpo"]
    assert (curve["claimed"], curve["observed"], curve["share"]) == ([0.25, 0.85], [0.3, 0.8], [0.25, 0.75])
    groups = {group.label: group for group in read_groups(sweep)}
    for entry in data["displacement"]["ranges"]:
        assert entry["values"] == list(quantiles(groups[label(data, entry)], entry["side"]).values())
    for entry in data["displacement"]["lengths"]:
        assert [entry["x"], entry["y"]] == [list(side) for side in by_length(groups[label(data, entry)])]
    (terms,) = data["terms"]
    assert label(data, terms) == "cal_dpo"
    assert terms["shares"] == {"contrast": [0.75] * 5, "calibration": [0.25] * 5}


def test_the_table_has_the_cells_of_the_report(sweep: Path, page: Page) -> None:
    markdown = report(read_groups(sweep), [sweep], "range", [])
    rows = {**table(markdown, "Final figures on held-out pairs"), "": {}}
    cells = set(page.of("td"))
    for loss in ENDS:
        for title, cell in rows[loss].items():
            assert title in ("setting", "seeds") or cell.replace("**", "") in cells, title


def test_what_is_foreign_stays_text(text: str, page: Page) -> None:
    assert "img" not in page.tags
    assert page.tags.count("script") == 6, "the data, plotly and the page's own"
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert any(HOSTILE in shown for shown in page.of("td")), "the error of the failed run"
    assert "loss=dpo,seed=7 <img src=x onerror=alert(3)>" in page.of("th")
    assert any(shown.startswith(HOSTILE) for shown in page.of("td")), "the notes of a run"
    assert any("notes=" in shown and "a  b" in shown for shown in page.of("code")), "a command as it is typed"
    text.encode()
    prompts = [entry["prompt"] for entry in data_of(text)["samples"]["prompts"]]
    shown = HOSTILE_PROMPT.replace("\u202e", "\ufffd")  # a direction mark is shown, not obeyed
    assert prompts == [*PROMPTS[:2], shown]


def test_nothing_is_fetched_and_only_the_pages_own_scripts_run(text: str, page: Page) -> None:
    loaded = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action") and value]
    assert all(value.startswith("#") for value in loaded), loaded
    policy = next(value for _, value in page.attributes if value and "script-src" in value)
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert digests == allowed
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_the_first_sentences(sweep: Path, tmp_path: Path) -> None:
    said = sentences(read_groups(sweep))
    # 0.91 +- 0.014 against 0.51 +- 0.014, n = 2: t(0.975, 2) * 0.014 = 0.061
    names(said[0], "cal_dpo", "highest true reward", "3 settings", "2 seeds")
    names(next(line for line in said if line.startswith("cal_dpo minus dpo")), "0.50", "told apart")
    names(next(line for line in said if "KL" in line), "2.00", "6.00")
    names(next(line for line in said if "chosen log-ratio" in line), "below 0 in every seed of dpo, ipo", "of cal_dpo")
    names(said[-1], "1 of 7")


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ({"dpo": (0.5, 0.7), "cal_dpo": (0.6, 0.8)}, ("No setting", "cal_dpo", "difference to dpo is within")),
        ({"dpo": (0.5,), "cal_dpo": (0.9,)}, ("No setting", "single seed")),
        ({"dpo": (0.5, 0.6)}, ("dpo", "nothing to compare")),
    ],
)
def test_no_winner_is_named_that_the_seeds_do_not_show(
    rewards: dict[str, tuple[float, ...]], words: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [held_out(0, 0.0, 0.0), held_out(10, 1.0, -1.0)]
    for loss, values in rewards.items():
        for seed, value in enumerate(values):
            write_run(tmp_path / f"{loss}{seed}", loss, seed, rows=rows, metrics=finals(rows[-1], oracle__reward=value))
    names(sentences(read_groups(tmp_path))[0], *words)


def test_long_curves_keep_ends_and_extremes_and_the_page_says_so(tmp_path: Path) -> None:
    steps = 100_000
    values = np.random.default_rng(0).normal(size=steps).cumsum()
    path = write_run(tmp_path / "sweep" / "a", rows=[held_out(0, 0.0, 0.0)])
    lines = [f"{step},{value:.9g}" for step, value in enumerate(values)]
    (path / "metrics.csv").write_text("\n".join(["step,val/log_ratios/chosen", *lines]) + "\n")
    groups = read_groups(tmp_path / "sweep")
    (panel,) = panels(groups, "range")
    (curve,) = panel["curves"]
    assert (curve["x"][0], curve["x"][-1], curve["steps"]) == (0, steps - 1, steps)
    assert len(curve["x"]) < 4_000
    kept = dict(zip(curve["x"], curve["y"], strict=True))
    for place in (values.argmin(), values.argmax()):
        assert kept[int(place)] == pytest.approx(values[place], rel=1e-6)
    assert thinned_count([panel]) == 1
    assert 'id="thinned"' in render_page(groups, [tmp_path], "range")


def test_of_many_settings_the_first_are_drawn_with_dpo_and_cal_dpo(tmp_path: Path) -> None:
    rows = [held_out(0, 0.0, 0.0), held_out(10, 1.0, -1.0)]
    for job in range(40):
        loss = {37: "dpo", 39: "cal_dpo"}.get(job, "ipo")
        write_run(tmp_path / f"{job:02}", loss, rows=rows, job=job, loss_keys={"beta": job})
    groups = read_groups(tmp_path)
    shown = shown_at_first(groups)
    assert len(shown) == 12
    assert {37, 39, 0, 1} <= set(shown)
    text = render_page(groups, [tmp_path], "range")
    assert 'id="first-shown"' in text
    assert data_of(text)["shown"] == shown


def test_bad_lines_of_samples_are_counted_and_cost_themselves(sweep: Path) -> None:
    found = samples([group for group in read_groups(sweep) if group.finished])
    assert found is not None
    assert found["bad"] == 2 * 3, "two lines of each setting's first run"
    first = found["prompts"][0]["answers"]
    assert [answer["group"] for answer in first] == [None, 0, 1, 2]
    assert first[0] == {"group": None, "text": "reference answers 0", "reward": 0.25, "log_ratio": None}
    assert (first[1]["reward"], first[1]["log_ratio"]) == (0.5, 1.5)


def test_samples_of_training_are_those_of_its_last_evaluation(tmp_path: Path) -> None:
    rows = [held_out(0, 0.0, 0.0), held_out(10, 1.0, -1.0)]
    run = write_run(tmp_path / "a", rows=rows)
    common = {"prompt": "p", "chosen": "c"}
    lines = [{**common, "step": step, "sample": f"at {step}", "true_reward": float(step)} for step in (0, 10)]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = samples(read_groups(tmp_path))
    assert found is not None
    (prompt,) = found["prompts"]
    answers = [(answer["group"], answer["text"], answer["reward"]) for answer in prompt["answers"]]
    assert answers == [("chosen", "c", None), (0, "at 10", 10.0)]


def test_a_page_of_runs_of_which_none_finished(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rows=[held_out(0, 0.0, 0.0)], status="running")
    page = Page(render_page(read_groups(tmp_path), [tmp_path], "range"))
    assert "a" in page.of("th")
    assert page_data([], "range")["panels"] == []


def test_numbers_of_the_page() -> None:
    assert plain_number(1 / 3) == 0.3333333
    assert [plain_number(value) for value in (float("nan"), float("inf"), 1e200, None)] == [None] * 4
    width = 4.302653 * 0.3 / 3**0.5  # t(0.975, 2)
    assert mean_interval(Estimate(1.0, 0.3, 3)) == pytest.approx((1 - width, 1 + width))
    assert mean_interval(Estimate(1.0, None, 1)) is None
    sorts_by = {2.0: "2.0", float("nan"): "", None: "", float("inf"): "Infinity", -float("inf"): "-Infinity"}
    assert {value: sortable(value) for value in sorts_by} == sorts_by


def test_intervals_of_shares_are_shares(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.9)):
        row = {**held_out(10, 1.0, -1.0), "val/rewards/accuracies": accuracy}
        write_run(tmp_path / str(seed), seed=seed, rows=[row], metrics=finals(row))
    groups = read_groups(tmp_path)
    shown = columns(groups)
    ((_, _, row_cells),) = table_rows(groups, shown)
    cell = next(cell for column, cell in zip(shown, row_cells, strict=True) if column.unit == "share of pairs")
    assert cell.interval == "[0, 1.00]", "Student's t on one degree of freedom reaches far beyond"


def test_a_page_that_cannot_be_made_costs_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_sweep(tmp_path / "sweep")
    (folder / "report.html").write_text("of an earlier comparison")
    monkeypatch.setattr(page_html, "page_data", lambda *_: 1 / 0)
    compare_runs(str(folder), dpi=30)
    assert not (folder / "report.html").exists()
    names((folder / "report.md").read_text(), "report.html could not be made", "ZeroDivisionError")
