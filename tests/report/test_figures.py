"""What the figures draw: numbers of curves and bands, labels with units, looks, scales. Not their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex

from caldpo.config.find_runs import find_runs
from caldpo.report.dynamics_plot import reward_dynamics
from caldpo.report.frontier_plot import reward_kl
from caldpo.report.grouping import RunGroup, group_runs
from caldpo.report.loss_style import colour_of, looks
from caldpo.report.loss_terms_plot import loss_terms, term_shares
from caldpo.report.plot_style import linear_limit, round_up, save, set_symmetric_log
from caldpo.report.read_runs import read_runs
from tests.helpers.messages import names
from tests.report.runs import finals, held_out, write_run


def settings_in(folder):
    return group_runs(read_runs(find_runs(folder), folder))


def sweep(folder, ends, **run):
    """Runs by (loss, seed) whose chosen and rejected log-ratios go from 0 to the given ends in 10 steps."""
    for job, ((loss, seed), (chosen, rejected)) in enumerate(ends.items()):
        rows = [held_out(0, 0.0, 0.0), held_out(5, chosen / 2, rejected / 2), held_out(10, chosen, rejected)]
        write_run(folder / f"{loss},{seed}", loss, seed, rows=rows, metrics=finals(rows[-1]), job=job, **run)
    return settings_in(folder)


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def collections(axes, kind):
    return [collection for collection in axes.collections if type(collection) is kind]


def curve(axes, place):
    """The ``place``-th curve; solid lines come before dashed ones."""
    (lines,) = collections(axes, LineCollection)
    return [tuple(point) for point in lines.get_segments()[place]]


def markers(axes, colour):
    """Where the curve of a colour is marked."""
    shapes = collections(axes, PathCollection)
    points = [p for shape in shapes for p in zip(shape.get_offsets().data, shape.get_facecolors(), strict=True)]
    return {tuple(at) for at, own in points if to_hex(own) == colour.lower()}


def test_curves_and_bands_of_the_dynamics(tmp_path):
    ends = {("dpo", 0): (-4.0, -9.0), ("dpo", 1): (-6.0, -11.0), ("cal_dpo", 0): (1.0, -2.0)}
    figure = reward_dynamics(sweep(tmp_path, ends), "data x", "range")
    axes = panels(figure)
    assert curve(axes["Chosen log-ratio"], 0) == [(0, 0.0), (5, -2.5), (10, -5.0)]
    assert curve(axes["Chosen log-ratio"], 1) == [(0, 0.0), (5, 0.5), (10, 1.0)]
    assert curve(axes["Log-ratio margin"], 0) == [(0, 0.0), (5, 2.5), (10, 5.0)]
    assert curve(axes["Accuracy"], 0)[-1] == (10, 0.9)
    rewards = [y for _, y in curve(axes["Chosen implicit reward"], 0)]
    assert rewards == pytest.approx([0.0, -0.25, -0.5])
    (band,) = collections(axes["Chosen log-ratio"], PolyCollection)
    assert len(band.get_paths()) == 1, "cal_dpo has a single seed, hence none"
    heights = band.get_paths()[0].vertices
    assert sorted(set(heights[heights[:, 0] == 10][:, 1])) == [-6.0, -4.0]


def test_labels_of_the_dynamics(tmp_path):
    ends = {("dpo", 0): (-4.0, -9.0), ("dpo", 1): (-6.0, -11.0), ("cal_dpo", 0): (1.0, -2.0)}
    figure = reward_dynamics(sweep(tmp_path, ends, reward_beta=0.1), "data x", "sd")
    axes = panels(figure)
    assert axes["Chosen log-ratio"].get_ylabel() == "nats"
    assert axes["Chosen implicit reward"].get_ylabel() == "0.1 x nats"
    assert axes["Displacement"].get_xlabel() == "optimiser step"
    title = figure.get_suptitle()
    assert "data x" in title
    names(title, "1 to 2 seeds", "± 1 standard deviation")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dpo (2 seeds)", "cal_dpo (1 seed)"]


def test_the_zero_line_stands_out_in_the_chosen_panels(tmp_path):
    axes = panels(reward_dynamics(sweep(tmp_path, {("dpo", 0): (-4.0, -9.0)}), "", "range"))
    zero = axes["Chosen log-ratio"].get_lines()[-1]
    other = axes["Rejected log-ratio"].get_lines()[-1]
    assert list(zero.get_ydata()) == [0.0, 0.0]
    assert zero.get_linewidth() > other.get_linewidth()
    assert list(axes["Accuracy"].get_lines()[-1].get_ydata()) == [0.5, 0.5]


def test_rewards_of_runs_with_several_reward_betas_are_drawn_in_one_unit(tmp_path):
    for beta in (0.2, 0.5):
        rows = [held_out(0, 0.0, 0.0), held_out(10, 1.0, -1.0, beta=beta)]
        write_run(tmp_path / f"{beta}", rows=rows, loss_keys={"beta": beta}, reward_beta=beta)
    axes = panels(reward_dynamics(settings_in(tmp_path), "", "range"))["Reward margin"]
    assert axes.get_ylabel() == "0.1 x nats"
    assert [curve(axes, place)[-1][1] for place in (0, 1)] == pytest.approx([0.2, 0.2])


def test_an_outlier_turns_the_axis_logarithmic_and_says_so(tmp_path):
    ends = {(name, 0): (value, 2 * value) for name, value in zip("abcd", (1.0, 0.8, 0.9, -40.0), strict=True)}
    axes = panels(reward_dynamics(sweep(tmp_path, ends), "", "range"))["Chosen log-ratio"]
    assert axes.get_yscale() == "symlog"
    names(axes.get_ylabel(), "nats", "±1")
    low, high = axes.transAxes.inverted().transform(axes.transData.transform([(0, -40), (0, 1)]))[:, 1]
    middle = axes.transAxes.inverted().transform(axes.transData.transform((0, 0)))[1]
    assert 0 <= low < middle < high <= 1
    assert high - middle > 0.15, "the small curves keep a readable share of the panel"


@pytest.mark.parametrize(
    ("extents", "limit"),
    [
        ([1.0, 0.8, 0.9, 40.0], 1.0),
        ([1.0, 0.8, 0.9, 5.0], None),  # five times the median is still readable
        ([0.02, 0.03, 0.02, 0.9], 0.05),
        ([1.0, 30.0], None),  # two curves: no outlier among them
        ([float("nan"), 0.0], None),
        ([], None),
    ],
)
def test_when_an_axis_turns_logarithmic(extents, limit):
    assert linear_limit(extents) == pytest.approx(limit)


@pytest.mark.parametrize(("value", "rounded"), [(1.0, 1.0), (1.1, 2.0), (4.0, 5.0), (7.0, 10.0), (0.03, 0.05)])
def test_round_up(value, rounded):
    assert round_up(value) == pytest.approx(rounded)


def test_ticks_of_a_logarithmic_axis():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(-45, 1.5)
    set_symmetric_log(axes, 1.0)
    assert sorted(axes.get_yticks()) == [-30, -10, -3, -1, -0.5, 0, 0.5, 1]


def test_a_colour_per_loss_and_a_dash_per_variant():
    names = [("dpo", "dpo"), ("cal_dpo a", "cal_dpo"), ("cal_dpo b", "cal_dpo"), ("ipo", "ipo")]
    styles = looks([RunGroup(label, loss, ()) for label, loss in names])
    assert styles[1].colour == styles[2].colour
    assert len({look.colour for look in styles}) == 3
    assert styles[1].dash != styles[2].dash
    assert len(set(styles)) == 4


def test_variants_of_a_single_loss_get_colours():
    styles = looks([RunGroup(f"dpo {i}", "dpo", ()) for i in range(12)])
    assert len({look.colour for look in styles}) > 9
    assert len(set(styles)) == 12


def test_a_loss_looks_the_same_in_every_report():
    for losses in (["ipo", "dpo", "new"], ["new", "cal_dpo", "dpo"], ["dpo", "new"]):
        styles = dict(zip(losses, looks([RunGroup(loss, loss, ()) for loss in losses]), strict=True))
        assert (styles["dpo"].colour, styles["dpo"].dash) == (colour_of("dpo"), "-")
        assert styles["new"] == looks([RunGroup("new", "new", ())])[0]


def test_of_equal_curves_each_is_seen(tmp_path):
    """Solid lines lie below and are wider, others have gaps; between first and last step markers do not coincide."""
    losses = ("ipo", "cal_ipo", "slic")
    styles = looks([RunGroup(loss, loss, ()) for loss in losses])
    assert len({str(look.dash) for look in styles}) == 3
    assert styles[0].dash == "-"
    assert styles[0].zorder < min(look.zorder for look in styles[1:])
    assert styles[0].width > max(look.width for look in styles[1:])
    rows = [held_out(step, step, -step) for step in range(16)]
    for loss in losses:
        write_run(tmp_path / loss, loss, rows=rows)
    axes = panels(reward_dynamics(settings_in(tmp_path), "", "range"))["Chosen log-ratio"]
    marked = [markers(axes, look.colour) for look in styles]
    assert set.intersection(*marked) == {(15, 15)}
    assert all(len(points) > 2 for points in marked)


@pytest.mark.parametrize("count", [3, 40])
def test_panels_keep_their_room_whatever_the_legend_holds(count, tmp_path):
    for i in range(count):
        rows = [held_out(0, 0.0, 0.0), held_out(10, i, -1.0)]
        write_run(tmp_path / f"{i}", rows=rows, loss_keys={"beta": i}, overrides=[f"loss.beta={i}"])
    figure = reward_dynamics(settings_in(tmp_path), "", "range")
    figure.set_dpi(30)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    panel = panels(figure)["Chosen log-ratio"].get_position()
    assert panel.height * height > 2.2
    box = figure.legends[0].get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    assert -0.01 <= box.x0 < box.x1 <= width
    assert -0.01 <= box.y0 < box.y1 <= height


def test_shares_of_the_terms(tmp_path):
    for seed, calibration in enumerate((3.0, 1.0)):
        rows = [
            held_out(step, 0.0, 0.0, **{"terms/contrast": 1.0, "terms/calibration": c, "terms/nll": 0.0})
            for step, c in ((0, calibration), (10, 0.0))
        ]
        write_run(tmp_path / str(seed), "cal_dpo", seed, rows=rows)
    (setting,) = settings_in(tmp_path)
    steps, shares = term_shares(setting)
    assert steps.tolist() == [0, 10]
    assert set(shares) == {"contrast", "calibration"}, "a term that is 0 throughout is no term"
    assert shares["contrast"] == pytest.approx([(1 / 4 + 1 / 2) / 2, 1.0])
    assert np.add(*shares.values()) == pytest.approx([1.0, 1.0])
    figure = loss_terms([setting], "")
    assert [axes.get_title() for axes in figure.axes] == ["cal_dpo"]


def test_no_figure_of_terms_for_losses_of_one_term(tmp_path):
    rows = [held_out(step, 0.0, 0.0, **{"terms/contrast": 0.7}) for step in (0, 10)]
    write_run(tmp_path / "a", rows=rows)
    assert loss_terms(settings_in(tmp_path), "") is None


def test_reward_against_kl(tmp_path):
    rows = [held_out(0, 0.0, 0.0), held_out(10, 1.0, -1.0)]
    for seed, (kl, reward) in enumerate([(2.0, 0.5), (4.0, 0.7)]):
        known = {"oracle__kl": kl, "oracle__reward": reward, "oracle__reference_reward": -0.25}
        write_run(tmp_path / str(seed), seed=seed, rows=rows, metrics=finals(rows[-1], **known))
    (axes,) = reward_kl(settings_in(tmp_path), "").axes
    across, _, along, _ = axes.collections  # bars with their caps
    point = axes.get_lines()[0]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (3.0, pytest.approx(0.6))
    assert across.get_segments()[0][:, 0] == pytest.approx([3 - np.sqrt(2), 3 + np.sqrt(2)])
    assert along.get_segments()[0][:, 1] == pytest.approx([0.6 - np.sqrt(0.02), 0.6 + np.sqrt(0.02)])
    assert list(axes.get_lines()[-1].get_ydata()) == [-0.25, -0.25]


def test_no_figure_against_kl_without_a_known_reward(tmp_path):
    assert reward_kl(sweep(tmp_path, {("dpo", 0): (-1.0, -2.0)}), "") is None


def test_the_same_runs_give_the_same_files(tmp_path):
    settings = sweep(tmp_path / "runs", {("dpo", 0): (-4.0, -9.0), ("ipo", 0): (1.0, -2.0)})
    for name in ("a.svg", "b.svg"):
        save(reward_dynamics(settings, "data x", "range"), tmp_path / name, 100)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
