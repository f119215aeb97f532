"""What the figures of evaluation draw: pooled bins, quantiles, shares by length, paths and frontiers."""

from __future__ import annotations

import pytest

from caldpo.config.find_runs import find_runs
from caldpo.report.evaluation_plots import by_length, calibration, displacement, quantiles
from caldpo.report.frontier_plot import frontier_point, frontiers, reward_kl
from caldpo.report.grouping import group_runs
from caldpo.report.loss_style import LOSSES
from caldpo.report.markdown_report import report
from caldpo.report.read_runs import read_runs
from tests.helpers.messages import names
from tests.report.results import content, measure, reliability
from tests.report.runs import finals, held_out, write_run

ROWS = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
LEVELS = [0.05, 0.25, 0.5, 0.75, 0.95]


def settings_in(folder):
    return group_runs(read_runs(find_runs(folder), folder))


def run(folder, loss, seed, evaluation=None, *, beta=None, known=()):
    """A run; ``known`` are KL and reward as training logs them."""
    logged = dict(zip(("oracle__kl", "oracle__reward"), known, strict=False))
    keys = {} if beta is None else {"beta": beta}
    overrides = [] if beta is None else [f"loss.beta={beta}"]
    place = folder / f"{loss}{beta or ''},{seed}"
    metrics = finals(ROWS[-1], **logged)
    write_run(place, loss, seed, rows=ROWS, metrics=metrics, evaluation=evaluation, loss_keys=keys, overrides=overrides)


def xy(line):
    return [list(map(float, values)) for values in line.get_data()]


# -- calibration


def calibrated(*bins, error=None):
    measures = {} if error is None else {"calibration_error": measure(error)}
    return {"preference": content(measures, details=reliability(*bins))}


def test_reliability_of_all_seeds_counts_every_pair_alike(tmp_path):
    run(tmp_path, "dpo", 0, calibrated((0.2, 0.22, 0.0, 10), (0.7, 0.78, 1.0, 10), error=0.2))
    run(tmp_path, "dpo", 1, calibrated((0.2, 0.26, 0.4, 30), (0.7, 0.74, 0.6, 30), (0.9, 0.95, 1.0, 20), error=0.4))
    run(tmp_path, "ipo", 0)
    run(tmp_path, "dpo", 2)
    figure = calibration(settings_in(tmp_path), "data x")
    names(figure.get_suptitle(), "data x", "2 seeds")
    (axes,) = figure.axes
    names(axes.get_title(), "dpo", "0.30 ± 0.14")
    diagonal, first, second, whole = axes.get_lines()
    assert xy(diagonal) == [[0, 1], [0, 1]]
    assert xy(first) == [pytest.approx([0.22, 0.78]), [0.0, 1.0]]
    assert xy(second) == [pytest.approx([0.26, 0.74, 0.95]), pytest.approx([0.4, 0.6, 1.0])]
    # (10 * 0.22 + 30 * 0.26) / 40 = 0.25, (10 * 0 + 30 * 0.4) / 40 = 0.3, and alike in the other bins
    assert xy(whole) == [pytest.approx([0.25, 0.75, 0.95]), pytest.approx([0.3, 0.7, 1.0])]
    assert whole.get_linewidth() > first.get_linewidth()
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in axes.patches]
    assert bars == [pytest.approx(bar) for bar in ((0.2, 0.1, 0.4), (0.7, 0.1, 0.4), (0.9, 0.1, 0.2))]


def test_a_panel_per_setting(tmp_path):
    losses = sorted(LOSSES[:9])
    for loss in losses:
        run(tmp_path, loss, 0, calibrated((0.4, 0.45, 0.3, 10)))
    figure = calibration(settings_in(tmp_path), "")
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == losses
    assert len({(axes.get_lines()[-1].get_color(), axes.get_lines()[-1].get_marker()) for axes in figure.axes[:9]}) == 9
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["observed", "perfect", "share of pairs in the bin"]


def test_no_calibration_without_bins(tmp_path):
    run(tmp_path, "dpo", 0, {"preference": content({})})
    assert calibration(settings_in(tmp_path), "") is None


# -- displacement


def displaced(chosen, rejected, bins=()):
    names = ("low", "high", "count", "both_fell")
    details = {
        "log_ratios": {"levels": LEVELS, "chosen": chosen, "rejected": rejected},
        "by_length": [dict(zip(names, b, strict=True)) for b in bins],
    }
    return {"displacement": content({}, details=details)}


def test_ranges_of_chosen_and_rejected(tmp_path):
    run(tmp_path, "dpo", 0, displaced([-4.0, -3.0, -2.0, -1.0, 0.0], [-9.0, -8.0, -7.0, -6.0, -5.0]))
    run(tmp_path, "dpo", 1, displaced([-6.0, -5.0, -4.0, -3.0, -2.0], [-9.0, -8.0, -7.0, -6.0, -5.0]))
    (setting,) = settings_in(tmp_path)
    assert quantiles(setting, "chosen") == dict(zip(LEVELS, (-5.0, -4.0, -3.0, -2.0, -1.0), strict=True))
    ranges, lengths = displacement([setting], "").axes
    wide, box, median, *rejected, zero = ranges.get_lines()
    assert [xy(line)[0] for line in (wide, box, median)] == [[-5.0, -1.0], [-4.0, -2.0], [-3.0]]
    assert [xy(line)[0] for line in rejected] == [[-9.0, -5.0], [-8.0, -6.0], [-7.0]]
    assert xy(median)[1][0] < xy(rejected[-1])[1][0], "chosen above rejected, on an axis that runs downwards"
    assert ranges.get_ylim()[0] > ranges.get_ylim()[1]
    assert xy(zero)[0] == [0, 0]
    assert [text.get_text() for text in ranges.get_yticklabels()] == ["dpo"]
    assert not lengths.get_visible(), "no pairs by length"


def test_an_outlier_keeps_the_other_ranges_readable(tmp_path):
    for loss, size in zip("abcd", (1.0, 0.9, 0.8, 200.0), strict=True):
        values = [-size, -size / 2, 0.0, size / 4, size / 2]
        run(tmp_path, loss, 0, displaced(values, values))
    axes = displacement(settings_in(tmp_path), "").axes[0]
    assert axes.get_xscale() == "symlog"
    names(axes.get_xlabel(), "log-ratio", "nats", "±1")
    ends = axes.transAxes.inverted().transform(axes.transData.transform([(-1, 0), (0.5, 0), (-200, 0), (100, 0)]))[:, 0]
    assert ends[1] - ends[0] > 0.15
    assert 0 < ends[2] < ends[3] < 1


def test_shares_by_length_count_every_pair_alike(tmp_path):
    plain = [-1.0, -0.5, 0.0, 0.5, 1.0]
    run(tmp_path, "dpo", 0, displaced(plain, plain, [(1, 9, 10, 0.2), (10, 30, 50, 0.6)]))
    run(tmp_path, "dpo", 1, displaced(plain, plain, [(3, 11, 30, 0.4), (12, 40, 50, 0.8)]))
    (setting,) = settings_in(tmp_path)
    middle, share = by_length(setting)
    # middles 5 and 7 by 10 and 30 pairs; 20 and 26 by 50 and 50
    assert middle == pytest.approx([6.5, 23.0])
    assert share == pytest.approx([0.35, 0.7])
    (line,) = displacement([setting], "").axes[1].get_lines()
    assert xy(line) == [pytest.approx([6.5, 23.0]), pytest.approx([0.35, 0.7])]


# -- reward against KL


def rewarded(kl, reward, points=(), reference=0.0):
    names = ("step", "kl", "reward")
    measures = {"kl": measure(kl), "reward": measure(reward), "reference_reward": measure(reference)}
    return {"oracle": content(measures, details={"points": [dict(zip(names, p, strict=True)) for p in points]})}


def points_of(axes):
    return [line for line in axes.get_lines() if line.get_linestyle() == "None"]


def ends(axes):
    """Final points by label."""
    return {p.get_label(): (float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in points_of(axes)}


def test_evaluated_points_take_the_place_of_those_of_training(tmp_path):
    run(tmp_path, "dpo", 0, rewarded(2.0, 0.5, reference=-0.25), known=(90.0, 90.0))
    run(tmp_path, "dpo", 1, rewarded(4.0, 0.7, reference=-0.75), known=(90.0, 90.0))
    (axes,) = reward_kl(settings_in(tmp_path), "").axes
    assert ends(axes) == {"dpo": (3.0, pytest.approx(0.6))}
    assert list(axes.get_lines()[-1].get_ydata()) == [-0.5, -0.5]


def test_settings_that_were_not_evaluated_keep_those_of_training_and_say_so(tmp_path):
    run(tmp_path, "dpo", 0, rewarded(2.0, 0.5))
    run(tmp_path, "ipo", 0, known=(1.0, 0.25))
    (axes,) = reward_kl(settings_in(tmp_path), "").axes
    assert ends(axes) == {"dpo": (2.0, 0.5), "ipo (as training logged it)": (1.0, 0.25)}


def test_the_path_over_checkpoints_is_a_mean_over_seeds(tmp_path):
    run(tmp_path, "dpo", 0, rewarded(4.0, 2.0, [(0, 0.0, 0.0), (10, 1.0, 1.5), (20, 4.0, 2.0)]))
    run(tmp_path, "dpo", 1, rewarded(6.0, 4.0, [(0, 0.0, 0.0), (5, 0.5, 9.0), (10, 2.0, 2.5), (20, 6.0, 4.0)]))
    (axes,) = reward_kl(settings_in(tmp_path), "").axes
    path = axes.get_lines()[0]
    assert xy(path) == [[0.0, 1.5, 5.0], [0.0, 2.0, 3.0]], "step 5 was kept by one seed alone"
    assert ends(axes) == {"dpo": (5.0, 3.0)}


def test_points_without_kl_or_alone_draw_no_path(tmp_path):
    content_ = rewarded(4.0, 2.0, [(20, 4.0, 2.0)])
    content_["oracle"]["details"]["points"].append({"step": 10, "reward": 1.0})
    run(tmp_path, "dpo", 0, content_)
    (axes,) = reward_kl(settings_in(tmp_path), "").axes
    (point,) = points_of(axes)
    assert [line.get_label() for line in axes.get_lines() if line is not point] == ["reference"]


def test_the_frontier_joins_what_differs_in_beta_alone_in_the_order_of_kl(tmp_path):
    places = {0.1: (3.0, 2.0), 1.0: (1.0, 1.0), 0.01: (2.0, 2.5)}
    for beta, (kl, reward) in places.items():
        run(tmp_path, "dpo", 0, rewarded(kl, reward), beta=beta)
    run(tmp_path, "cal_dpo", 0, rewarded(1.5, 1.25), beta=0.1)
    run(tmp_path, "ipo", 0, rewarded(1.75, 1.25))
    settings = settings_in(tmp_path)
    (joined,) = frontiers(settings)
    assert [settings[i].loss for i in joined] == ["dpo"] * 3
    (axes,) = reward_kl(settings, "").axes
    (line,) = (line for line in axes.get_lines() if line.get_label() == "dpo over β")
    assert xy(line) == [[1.0, 2.0, 3.0], [1.0, 2.5, 2.0]]
    assert line.get_linestyle() == "--"
    assert [text.get_text() for text in axes.texts] == ["β 1", "β 0.01", "β 0.1"]


def test_settings_that_differ_in_more_than_beta_are_not_joined(tmp_path):
    for beta, steps in ((0.1, 20), (0.5, 40)):
        write_run(
            tmp_path / str(beta),
            rows=ROWS,
            loss_keys={"beta": beta},
            config={"optim": {"lr": steps}},
            evaluation=rewarded(beta, 1.0),
        )
    assert frontiers(settings_in(tmp_path)) == []


def test_a_reward_that_is_no_number_has_no_point(tmp_path):
    run(tmp_path, "dpo", 0, rewarded(2.0, 0.5))
    run(tmp_path, "ipo", 0, rewarded(2.0, float("nan")))
    run(tmp_path, "cpo", 0, rewarded(2.0, float("inf")))
    points = {group.label: frontier_point(group) for group in settings_in(tmp_path)}
    assert [label for label, point in points.items() if point is not None] == ["dpo"]


def test_a_path_begins_at_the_reference_on_an_axis_of_square_roots(tmp_path):
    for loss, kl in (("dpo", 0.5), ("ipo", 30.0)):
        run(tmp_path, loss, 0, rewarded(kl, 1.0, [(0, 0.0, 0.0), (10, kl / 2, 0.5), (20, kl, 1.0)]))
    (axes,) = reward_kl(settings_in(tmp_path), "").axes
    starts = [line.get_xydata()[0].tolist() for line in axes.lines if len(line.get_xydata()) == 3]
    assert starts == [[0.0, 0.0], [0.0, 0.0]]
    places = axes.transData.transform([(0.0, 0.0), (7.5, 0.0), (30.0, 0.0)])[:, 0]
    assert (places[1] - places[0]) / (places[2] - places[0]) == pytest.approx(0.5), "of a quarter of the KL, half way"


def test_the_report_shows_the_picture_where_its_figures_stand(tmp_path):
    run(tmp_path, "dpo", 0, rewarded(2.0, 0.5), known=(2.0, 0.5))
    text = report(settings_in(tmp_path), [tmp_path], "range", ["reward_kl.png"])
    assert text.count("(reward_kl.png)") == 1
    assert "(reward_kl.png)" in text.split("## Evaluation")[1]
