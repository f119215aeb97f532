"""Whether a policy's preference probabilities can be believed: reliability diagrams of the suite ``preference``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from caldpo.report.comparison_facts import count_text
from caldpo.report.evaluation_measures import PREFIX, details, evaluated, evaluated_seeds
from caldpo.report.grouping import Setting
from caldpo.report.plot_style import Look, drawing, grid_shape, looks
from caldpo.report.run_files import is_number
from caldpo.report.statistics import estimate
from caldpo.report.table_cells import spread

SUITE = "preference"
_ERROR = f"{PREFIX}/{SUITE}/calibration_error"
Bins = Sequence[Mapping[str, Any]]  # as caldpo.evaluation.calibration_error.reliability_curve gives them


@dataclass(frozen=True)
class Reliability:
    """Bins of claimed probability that have pairs, arrays of shape ``(bins,)``.

    Attributes:
        low: lower edge.
        high: upper edge.
        claimed: mean claimed probability.
        observed: share that was the preferred one.
        share: of all pairs.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    claimed: NDArray[np.float64]
    observed: NDArray[np.float64]
    share: NDArray[np.float64]


def reliability(curves: Iterable[Bins]) -> Reliability:
    """One curve, or several as one: every pair of every seed counts alike, so that bins of few pairs say little."""
    bins: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for entry in (entry for curve in curves for entry in curve):
        bins.setdefault((round(entry["low"], 9), round(entry["high"], 9)), []).append(entry)
    edges = sorted(bins)
    counts = [[entry["count"] for entry in bins[edge]] for edge in edges]
    means = [
        [
            float(np.average([entry[name] for entry in bins[edge]], weights=n))
            for edge, n in zip(edges, counts, strict=True)
        ]
        for name in ("claimed", "observed")
    ]
    totals = np.array([sum(n) for n in counts], dtype=np.float64)
    low, high = np.array(edges).T
    return Reliability(low, high, np.array(means[0]), np.array(means[1]), totals / totals.sum())


def calibration(settings: Sequence[Setting], headline: str) -> Figure | None:
    """A reliability diagram per setting: seeds thin, all seeds together thick, and where the pairs are.

    Returns:
        None where no run was evaluated by the suite.
    """
    curves = [[c for run in evaluated(s, SUITE) if (c := details(run, SUITE).get("reliability"))] for s in settings]
    shown = [entry for entry in zip(settings, looks(settings), curves, strict=True) if entry[2]]
    if not shown:
        return None
    rows, columns = grid_shape(len(shown))
    with drawing():
        side = max(2.5, min(3.4, 6.4 / columns))
        size = max(7.0, 0.8 + side * columns), 1.5 + (side + 0.6) * rows
        figure = Figure(figsize=size, layout="constrained")
        seeds = count_text(evaluated_seeds(setting, SUITE) for setting, *_ in shown)
        units = {_unit(setting) for setting, *_ in shown}
        shared = f" · {unit}" if len(units) == 1 and (unit := next(iter(units))) else ""
        figure.suptitle(f"Calibration of the preference probability\n{headline} · {seeds}{shared}", fontsize=11)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (setting, look, found) in zip(grid.flat, shown, strict=False):
            _draw(axes, setting, look, found, "" if shared else _unit(setting))
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        for axes in grid.flat[max(0, len(shown) - columns) : len(shown)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("claimed probability")
        for axes in grid[:, 0]:
            axes.set_ylabel("observed share")
        several = any(len(found) > 1 for *_, found in shown)
        figure.legend(handles=_legend(several), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _unit(setting: Setting) -> str:
    """Of which margin the claimed probability is the sigmoid; empty where the evaluations do not say."""
    betas = {details(run, SUITE).get("reward_beta") for run in evaluated(setting, SUITE)}
    known = sorted(beta for beta in betas if is_number(beta))
    return f"reward_beta {', '.join(f'{beta:g}' for beta in known)}" if known else ""


def _draw(axes: Axes, setting: Setting, look: Look, curves: Sequence[Bins], unit: str) -> None:
    whole = reliability(curves)
    axes.bar(whole.low, whole.share, whole.high - whole.low, align="edge", color="#dddddd", edgecolor="white")
    axes.plot([0, 1], [0, 1], color="#222222", linewidth=0.9, linestyle="--")
    if len(curves) > 1:
        for own in (reliability([curve]) for curve in curves):
            axes.plot(own.claimed, own.observed, color=look.colour, linewidth=0.7, alpha=0.55)
    axes.plot(
        whole.claimed,
        whole.observed,
        color=look.colour,
        marker=look.marker,
        markersize=4.5,
        linewidth=1.9,
        clip_on=False,  # markers at 0 and 1 are whole
        zorder=3,
    )
    error = estimate(setting.finals(lambda final: final.get(_ERROR)))
    title = "\n".join([textwrap.fill(setting.label, 34), *([unit] if unit else [])])
    axes.set_title(f"{title}\ncalibration error {spread(error)}" if error else title, fontsize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def _legend(several: bool) -> list[Line2D | Patch]:
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
