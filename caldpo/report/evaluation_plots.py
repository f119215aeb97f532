"""Draw evaluations: reliability diagrams (suite ``preference``) and ranges of log-ratios (suite ``displacement``)."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from caldpo.report.comparison_facts import count_text
from caldpo.report.evaluation_results import PREFIX, details, evaluated, evaluated_seeds
from caldpo.report.grouping import RunGroup
from caldpo.report.loss_style import Look, looks
from caldpo.report.plot_style import drawing, grid_shape, linear_limit, set_symmetric_log
from caldpo.report.run_files import is_number
from caldpo.report.statistics import estimate
from caldpo.report.table_cells import spread

PREFERENCE = "preference"
_ERROR = f"{PREFIX}/{PREFERENCE}/calibration_error"
Bins = Sequence[Mapping[str, Any]]  # as caldpo.evaluation.calibration_error.reliability_curve gives them
DISPLACEMENT = "displacement"
SIDES = ("chosen", "rejected")
_SPANS = ((0.05, 0.95, 1.2), (0.25, 0.75, 5.0))  # from level to level, and how thick
_FAINT = 0.4  # opacity of the rejected side
_OFFSET = 0.19  # of the two sides from the middle of their row


# ---- suite preference


class Reliability(NamedTuple):
    """Bins of claimed probability that have pairs, arrays of shape ``(bins,)``."""

    low: NDArray[np.float64]  # edges
    high: NDArray[np.float64]
    claimed: NDArray[np.float64]  # mean claimed probability
    observed: NDArray[np.float64]  # share that was the preferred one
    share: NDArray[np.float64]  # of all pairs


def reliability(curves: Iterable[Bins]) -> Reliability:
    """Pool curves into one: every pair of every seed counts alike, so that bins of few pairs say little."""
    bins: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for entry in itertools.chain.from_iterable(curves):
        bins.setdefault((round(entry["low"], 9), round(entry["high"], 9)), []).append(entry)
    rows = []
    for edges in sorted(bins):
        counts = [entry["count"] for entry in bins[edges]]
        claimed, observed = (
            np.average([entry[name] for entry in bins[edges]], weights=counts) for name in ("claimed", "observed")
        )
        rows.append((*edges, claimed, observed, sum(counts)))
    low, high, claimed, observed, totals = np.array(rows, dtype=np.float64).T
    return Reliability(low, high, claimed, observed, totals / totals.sum())


def calibration(groups: Sequence[RunGroup], headline: str) -> Figure | None:
    """Draw a reliability diagram per evaluated group: seeds thin, all seeds together thick, and where the pairs are."""
    curves = [
        [bins for run in evaluated(group, PREFERENCE) if (bins := details(run, PREFERENCE).get("reliability"))]
        for group in groups
    ]
    entries = [entry for entry in zip(groups, looks(groups), curves, strict=True) if entry[2]]
    if not entries:
        return None
    rows, columns = grid_shape(len(entries))
    with drawing():
        side = max(2.5, min(3.4, 6.4 / columns))
        size = max(7.0, 0.8 + side * columns), 1.5 + (side + 0.6) * rows
        figure = Figure(figsize=size, layout="constrained")
        seeds = count_text(evaluated_seeds(group, PREFERENCE) for group, *_ in entries)
        units = [_unit(group) for group, *_ in entries]
        shared = f" · {units[0]}" if units[0] and len(set(units)) == 1 else ""
        figure.suptitle(f"Calibration of the preference probability\n{headline} · {seeds}{shared}", fontsize=11)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, unit, (group, look, bins) in zip(grid.flat, units, entries, strict=False):
            _draw_reliability(axes, group, look, bins, "" if shared else unit)
        for axes in grid.flat[len(entries) :]:
            axes.set_visible(False)
        for axes in grid.flat[max(0, len(entries) - columns) : len(entries)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("claimed probability")
        for axes in grid[:, 0]:
            axes.set_ylabel("observed share")
        several = any(len(bins) > 1 for *_, bins in entries)
        figure.legend(handles=_reliability_legend(several), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _unit(group: RunGroup) -> str:
    """Of which margin the claimed probability is the sigmoid; empty where the evaluations do not say."""
    betas = {details(run, PREFERENCE).get("reward_beta") for run in evaluated(group, PREFERENCE)}
    known = sorted(beta for beta in betas if is_number(beta))
    return f"reward_beta {', '.join(f'{beta:g}' for beta in known)}" if known else ""


def _draw_reliability(axes: Axes, group: RunGroup, look: Look, curves: Sequence[Bins], unit: str) -> None:
    whole = reliability(curves)
    axes.bar(whole.low, whole.share, whole.high - whole.low, align="edge", color="#dddddd", edgecolor="white")
    axes.plot([0, 1], [0, 1], color="#222222", linewidth=0.9, linestyle="--")
    if len(curves) > 1:
        for own in (reliability([curve]) for curve in curves):
            axes.plot(own.claimed, own.observed, color=look.colour, linewidth=0.7, alpha=0.55)
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 4.5, "linewidth": 1.9}
    axes.plot(whole.claimed, whole.observed, clip_on=False, zorder=3, **style)  # markers at 0 and 1 are whole
    error = estimate(group.finals(lambda final: final.get(_ERROR)))
    title = "\n".join([textwrap.fill(group.label, 34), *([unit] if unit else [])])
    axes.set_title(f"{title}\ncalibration error {spread(error)}" if error else title, fontsize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def _reliability_legend(several: bool) -> list[Line2D | Patch]:
    grey = "#555555"
    lines = [Line2D([], [], color=grey, linewidth=1.9, marker="o", markersize=4.5, label="observed")]
    if several:
        lines[0].set_label("all seeds")
        lines.append(Line2D([], [], color=grey, linewidth=0.7, alpha=0.55, label="a seed"))
    return [
        *lines,
        Line2D([], [], color="#222222", linewidth=0.9, linestyle="--", label="perfect"),
        Patch(color="#dddddd", label="share of pairs in the bin"),
    ]


# ---- suite displacement


def displacement(groups: Sequence[RunGroup], headline: str) -> Figure | None:
    """Draw ranges of the log-ratios of each evaluated group, and the share of pairs that lost both responses."""
    entries = [entry for entry in zip(groups, looks(groups), strict=True) if quantiles(entry[0], "chosen")]
    if not entries:
        return None
    with drawing():
        figure = Figure(figsize=(12.5, max(4.2, 1.7 + 0.52 * len(entries))), layout="constrained")
        seeds = count_text(evaluated_seeds(group, DISPLACEMENT) for group, _ in entries)
        figure.suptitle(f"Displacement of held-out responses\n{headline} · {seeds}", fontsize=11)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_ranges(left, entries)
        middle: dict[str, Any] = {"marker": "|", "markersize": 9, "markeredgecolor": "#222222"}
        handles = [Line2D([], [], color="#555555", alpha=alpha, linewidth=5, **middle) for alpha in (1.0, _FAINT)]
        figure.legend(handles, SIDES, loc="outside lower center", ncols=2, frameon=False)
        _draw_lengths(right, entries)
    return figure


def quantiles(group: RunGroup, side: str) -> dict[float, float]:
    """Average the quantiles of one side's log-ratios, nats, over runs, by level; empty where there are none."""
    in_runs = [details(run, DISPLACEMENT).get("log_ratios") for run in evaluated(group, DISPLACEMENT)]
    curves = [dict(zip(ratios["levels"], ratios[side], strict=True)) for ratios in in_runs if ratios]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    return {level: sum(curve[level] for curve in curves) / len(curves) for level in shared}


def by_length(group: RunGroup) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the middle of each bin of lengths, tokens, and share of its pairs whose two responses both fell.

    Bins are matched by their place, since their edges may follow each seed's own pairs; every pair of every seed
    counts alike. Runs with another number of bins than the first one's are left out.
    """
    in_runs: list[Sequence[Mapping[str, Any]]] = [
        bins for run in evaluated(group, DISPLACEMENT) if (bins := details(run, DISPLACEMENT).get("by_length"))
    ]
    runs = [bins for bins in in_runs if len(bins) == len(in_runs[0])]
    if not runs:
        return np.array([]), np.array([])
    names = ("low", "high", "count", "both_fell")
    low, high, count, both_fell = (np.array([[b[name] for b in bins] for bins in runs]) for name in names)
    weights = count / count.sum(axis=0)
    return (weights * ((low + high) / 2)).sum(axis=0), (weights * both_fell).sum(axis=0)


def _draw_ranges(axes: Axes, entries: Sequence[tuple[RunGroup, Look]]) -> None:
    drawn: list[list[float]] = []
    for row, (group, look) in enumerate(entries):
        for side, offset in zip(SIDES, (-_OFFSET, _OFFSET), strict=True):
            values = quantiles(group, side)
            _draw_range(axes, values, row + offset, look.colour, faint=side == "rejected")
            drawn.append([value for level, value in values.items() if 0.05 <= level <= 0.95])
    axes.axvline(0, color="#222222", linewidth=1.2, zorder=1.5)
    axes.set_yticks(range(len(entries)), [textwrap.fill(group.label, 30) for group, _ in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)  # the first group on top
    axes.grid(visible=False, axis="y")
    unit = "log-ratio to the reference, nats"
    limit = linear_limit([max(map(abs, values)) for values in drawn])
    if limit is not None:
        low, high = min(map(min, drawn)), max(map(max, drawn))
        # The margins of a linear axis would be too wide.
        axes.set_xlim(1.15 * min(low, -limit / 2), 1.15 * max(high, limit / 2))
        set_symmetric_log(axes, limit, across=True)
        unit += f" (logarithmic beyond ±{limit:g})"
    axes.set(title="5 to 95 %, 25 to 75 % and median of the pairs", xlabel=unit)


def _draw_range(axes: Axes, values: Mapping[float, float], height: float, colour: str, *, faint: bool) -> None:
    style: dict[str, Any] = {"color": colour, "alpha": _FAINT if faint else 1.0, "solid_capstyle": "butt"}
    for low, high, width in _SPANS:
        if low in values and high in values:
            axes.plot([values[low], values[high]], [height] * 2, linewidth=width, **style)
    if 0.5 in values:
        outlined = [withStroke(linewidth=3.5, foreground="white")]  # seen on a black range, too
        style = {"color": "#222222", "marker": "|", "markersize": 9, "markeredgewidth": 1.6}
        axes.plot(values[0.5], height, path_effects=outlined, **style)


def _draw_lengths(axes: Axes, entries: Sequence[tuple[RunGroup, Look]]) -> None:
    for group, look in entries:
        middle, share = by_length(group)
        if len(middle):
            style = {"color": look.colour, "linestyle": look.dash, "marker": look.marker, "markersize": 4.5}
            axes.plot(middle, share, label=textwrap.fill(group.label, 40), **style)
    axes.set_visible(bool(axes.lines))
    if not axes.lines:
        return
    axes.set(title="Both responses fell", xlabel="mean length of the two, tokens (middle of the bin)")
    axes.set(ylabel="share of pairs", ylim=(0, None))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
