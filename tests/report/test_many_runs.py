"""Comparisons of many and of long runs: how often what is read, and that all is as from the whole data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from caldpo.report import repeated_yaml
from caldpo.report.comparison import compare_runs
from caldpo.report.grouping import group_runs
from caldpo.report.loss_terms_plot import loss_terms
from caldpo.report.read_curves import read_curves
from caldpo.report.read_runs import read_run, read_runs
from caldpo.report.repeated_yaml import read_config, read_job
from caldpo.report.shown_metrics import is_drawn
from caldpo.report.statistics import Band, band, thinned
from caldpo.utils.yaml_io import flatten, read_yaml
from tests.report.runs import finals, held_out, write_metrics, write_run

ROWS = [
    held_out(0, 0.0, 0.0),
    *({"step": step, "loss": 1 / (step + 1), "lr": 1e-4} for step in range(20)),
    held_out(20, -1.0, -3.0),
]


def sweep(place: Path, settings: int = 4, seeds: int = 2) -> Path:
    for job in range(settings * seeds):
        setting, seed = divmod(job, seeds)
        lr = {"optim": {"lr": float(setting)}}
        known = finals(ROWS[-1], oracle__kl=1.0 + setting, oracle__reward=0.5)
        write_run(place / str(job), seed=seed, rows=ROWS, metrics=known, config=lr, job=job)
    return place


def random_band(steps: int, seeds: int = 3) -> Band:
    noise = np.random.default_rng(0).normal(size=(seeds, steps)).cumsum(axis=1)
    whole = band([dict(enumerate(values)) for values in noise.tolist()], "range")
    assert whole is not None
    return whole


def test_each_metrics_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, opened, opening = sweep(tmp_path), [], Path.open

    def counted(path: Path, *arguments: object, **keys: object) -> object:
        opened.append(path)
        return opening(path, *arguments, **keys)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(Path, "open", counted)
    compare_runs(str(place), dpi=30)
    read = [path.parent.name for path in opened if path.name == "metrics.csv"]
    assert sorted(read) == sorted(str(job) for job in range(8))


def test_sections_that_runs_share_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, parsed, parse = sweep(tmp_path), [], repeated_yaml.parse_yaml
    repeated_yaml._section.cache_clear()
    repeated_yaml._parsed.cache_clear()
    monkeypatch.setattr(repeated_yaml, "parse_yaml", lambda text: parsed.append(text) or parse(text))
    read_runs(sorted(place.iterdir()), place)
    assert len(parsed) == len(set(parsed))
    assert sum(text.startswith("loss:") for text in parsed) == 1
    assert sum(text.startswith("optim:") for text in parsed) == 4


def test_a_configuration_by_sections_is_that_of_the_whole_file(tmp_path: Path) -> None:
    folder = sweep(tmp_path, 1, 1) / "0"
    for name in ("config.yaml", ".hydra/config.yaml"):
        assert read_config(folder / name) == flatten(read_yaml(folder / name))
    assert read_job(folder / ".hydra/hydra.yaml") == (0, {"loss": "dpo", "model": "tiny", "data": "reviews"})


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: {c: 2}\na: {d: 3}\n",  # a key twice
        'a: "x\nb: y"\nc: 1\n',  # a text over two lines, of which the second one looks like a key
        "# a comment\na: 1\n",
        "---\na: 1\n",
        "- a: 1\n",
        "{a: 1, b: 2}\n",
        "",
        "a:\n- 1\n- {b: 2}\nc: |\n  d: e\n",
    ],
)
def test_a_configuration_that_hydra_did_not_write_is_read_as_a_whole(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert read_config(path) == flatten(yaml.safe_load(text))


@pytest.mark.parametrize("text", ["a: [1\nb: 2\n", "a: *x\n", "a: &x 1\nb: *x\n"])
def test_a_damaged_section_damages_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\w"):
        read_config(path)


@pytest.mark.parametrize("number", ["3", "null", "'3'"])
def test_the_number_of_a_job_is_that_of_the_whole_file(number: str, tmp_path: Path) -> None:
    path = tmp_path / "hydra.yaml"
    help_ = "  help:\n    num: 7\n    choices:\n      loss: none\n"
    path.write_text(f"hydra:\n{help_}  job:\n    num: {number}\n  runtime:\n    choices:\n      loss: dpo\n")
    whole = yaml.safe_load(path.read_text())["hydra"]
    assert read_job(path) == (whole["job"]["num"], whole["runtime"]["choices"])


def test_of_what_no_figure_draws_the_last_value_is_that_of_the_whole_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = [*ROWS, {"step": 7, "loss": 9.0}, {"step": 19, "lr": 3e-4}, {"step": 19, "loss": 0.25}]  # logged again
    write_metrics(path, rows)
    whole, drawn = read_curves(path, []), read_curves(path, [], is_drawn)
    assert drawn.keys() == whole.keys()
    for name, curve in whole.items():
        assert drawn[name] == (curve if name.startswith("val/") else {curve.last_step: curve.last})
    assert whole["loss"][7] == 9.0
    assert dict(drawn["loss"]) == {19: 0.25}
    assert dict(drawn["lr"]) == {19: 3e-4}


def test_a_run_is_the_same_whether_or_not_all_its_curves_are_whole(tmp_path: Path) -> None:
    folder = sweep(tmp_path, 1, 1) / "0"
    whole, drawn = read_run(folder, tmp_path), read_run(folder, tmp_path, is_drawn)
    assert (drawn.final, drawn.notes, drawn.last_step) == (whole.final, whole.notes, whole.last_step)


def test_a_thinned_curve_keeps_its_ends_and_extremes() -> None:
    whole = random_band(100_000)
    thin = thinned(whole)
    assert len(thin.steps) < 3_500
    assert (thin.steps[0], thin.steps[-1]) == (0, 99_999)
    for name, extreme in (("mean", np.max), ("mean", np.min), ("low", np.min), ("high", np.max)):
        values, every = getattr(thin, name), getattr(whole, name)
        assert np.array_equal(values, every[thin.steps]), "what stays is not changed"
        for stretch in range(500):  # in each of which a figure shows what it would show of all points
            own = (thin.steps >= 200 * stretch) & (thin.steps < 200 * (stretch + 1))
            assert extreme(values[own]) == extreme(every[200 * stretch : 200 * (stretch + 1)])


def test_a_thinned_curve_keeps_its_gaps() -> None:
    whole = random_band(10_000, seeds=1)
    for place in (*range(40, 60), 5_000):
        whole.mean[place] = whole.low[place] = whole.high[place] = np.nan
    gaps = thinned(whole).steps[np.isnan(thinned(whole).mean)]
    assert {int(step) // 20 for step in gaps} == {2, 250}


def test_a_short_curve_is_drawn_as_it_is() -> None:
    whole = random_band(2_000)
    assert thinned(whole) is whole


def test_many_settings_have_a_panel_each(tmp_path: Path) -> None:
    rows = [held_out(step, 0.0, 0.0, **{"terms/contrast": 3.0, "terms/calibration": 1.0}) for step in (0, 10)]
    for setting in range(23):
        write_run(tmp_path / str(setting), rows=rows, config={"optim": {"lr": float(setting)}}, job=setting)
    groups = group_runs(read_runs(sorted(tmp_path.iterdir()), tmp_path))
    figure = loss_terms(groups, "")
    assert figure is not None
    (plane,) = figure.axes
    titles = {text.get_text().replace("\n", " ") for text in plane.texts}
    assert titles >= {group.label for group in groups}
    calibration, contrast, frames = plane.collections  # stacked in the order of their names
    assert len(calibration.get_paths()) == len(contrast.get_paths()) == len(frames.get_segments()) == 23
    low, middle, high = (
        frames.get_segments()[0][1][1],
        calibration.get_paths()[0].vertices[:, 1].max(),
        contrast.get_paths()[0].vertices[:, 1].max(),
    )
    assert (middle - low) / (high - low) == pytest.approx(0.25)
    assert high == pytest.approx(frames.get_segments()[0][0][1])


COMPARE = """
import sys
from caldpo.report.comparison import compare_runs
compare_runs(sys.argv[1], dpi=30)
heavy = {"torch", "transformers", "pytorch_lightning", "pandas", "datasets", "scipy.stats"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_a_comparison_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    place = sweep(tmp_path)
    subprocess.run([sys.executable, "-c", COMPARE, str(place)], check=True, capture_output=True, text=True)
