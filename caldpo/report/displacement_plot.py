"""How far chosen and rejected responses moved, pair by pair: distributions of the suite ``displacement``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from caldpo.report.comparison_facts import count_text
from caldpo.report.evaluation_measures import details, evaluated, evaluated_seeds
from caldpo.report.grouping import Setting
from caldpo.report.plot_style import Look, drawing, linear_limit, looks, set_symmetric_log

SUITE = "displacement"
SIDES = ("chosen", "rejected")
_SPANS = ((0.05, 0.95, 1.2), (0.25, 0.75, 5.0))  # from level to level, and how thick
_FAINT = 0.4  # opacity of the rejected side
_OFFSET = 0.19  # of the two sides from the middle of their row


def displacement(settings: Sequence[Setting], headline: str) -> Figure | None:
    """Ranges of the log-ratios of each setting, and which share of pairs lost both responses, by length.

    Returns:
        None where no run was evaluated by the suite.
    """
    shown = [(s, look) for s, look in zip(settings, looks(settings), strict=True) if quantiles(s, "chosen")]
    if not shown:
        return None
    lengths = [(setting, look, by_length(setting)) for setting, look in shown]
    with drawing():
        figure = Figure(figsize=(12.5, max(4.2, 1.7 + 0.52 * len(shown))), layout="constrained")
        seeds = count_text(evaluated_seeds(setting, SUITE) for setting, _ in shown)
        figure.suptitle(f"Displacement of held-out responses\n{headline} · {seeds}", fontsize=11)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_ranges(left, shown)
        figure.legend(_side_handles(), SIDES, loc="outside lower center", ncols=2, frameon=False)
        _draw_lengths(right, [entry for entry in lengths if len(entry[2][0])])
    return figure


def quantiles(setting: Setting, side: str) -> dict[float, float]:
    """Quantiles of the log-ratios of one side in nats, by level: means over runs; empty where there are none."""
    found = [details(run, SUITE).get("log_ratios") for run in evaluated(setting, SUITE)]
    curves = [dict(zip(f["levels"], f[side], strict=True)) for f in found if f]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    return {level: sum(curve[level] for curve in curves) / len(curves) for level in shared}


def by_length(setting: Setting) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle of each bin of lengths, tokens, and share of its pairs whose two responses both fell.

    Bins are matched by their place, since their edges may follow each seed's own pairs; every pair of every seed
    counts alike. Runs with another number of bins than the first one's are left out.
    """
    found: list[Sequence[Mapping[str, Any]]] = [
        bins for run in evaluated(setting, SUITE) if (bins := details(run, SUITE).get("by_length"))
    ]
    runs = [bins for bins in found if len(bins) == len(found[0])]
    if not runs:
        return np.array([]), np.array([])
    columns = {
        name: np.array([[b[name] for b in bins] for bins in runs]) for name in ("low", "high", "count", "both_fell")
    }
    weights = columns["count"] / columns["count"].sum(axis=0)
    middle = (columns["low"] + columns["high"]) / 2
    return (weights * middle).sum(axis=0), (weights * columns["both_fell"]).sum(axis=0)


def _draw_ranges(axes: Axes, shown: Sequence[tuple[Setting, Look]]) -> None:
    drawn: list[list[float]] = []
    for row, (setting, look) in enumerate(shown):
        for side, offset in zip(SIDES, (-_OFFSET, _OFFSET), strict=True):
            found = quantiles(setting, side)
            _draw_range(axes, found, row + offset, look.colour, faint=side == "rejected")
            drawn.append([value for level, value in found.items() if 0.05 <= level <= 0.95])
    axes.axvline(0, color="#222222", linewidth=1.2, zorder=1.5)
    axes.set_yticks(range(len(shown)), [textwrap.fill(setting.label, 30) for setting, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)  # the first setting on top
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


def _side_handles() -> list[Line2D]:
    return [
        Line2D([], [], color="#555555", alpha=alpha, linewidth=5, marker="|", markersize=9, markeredgecolor="#222222")
        for alpha in (1.0, _FAINT)
    ]


def _draw_range(axes: Axes, found: Mapping[float, float], height: float, colour: str, *, faint: bool) -> None:
    alpha = _FAINT if faint else 1.0
    for low, high, width in _SPANS:
        if low in found and high in found:
            axes.plot(
                [found[low], found[high]],
                [height] * 2,
                color=colour,
                alpha=alpha,
                linewidth=width,
                solid_capstyle="butt",
            )
    if 0.5 in found:
        outlined = [withStroke(linewidth=3.5, foreground="white")]  # seen on a black range, too
        axes.plot(
            found[0.5], height, color="#222222", marker="|", markersize=9, markeredgewidth=1.6, path_effects=outlined
        )


def _draw_lengths(
    axes: Axes, shown: Sequence[tuple[Setting, Look, tuple[NDArray[np.float64], NDArray[np.float64]]]]
) -> None:
    if not shown:
        axes.set_visible(False)
        return
    for setting, look, (middle, share) in shown:
        axes.plot(
            middle,
            share,
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            markersize=4.5,
            label=textwrap.fill(setting.label, 40),
        )
    axes.set(
        title="Both responses fell",
        xlabel="mean length of the two, tokens (middle of the bin)",
        ylabel="share of pairs",
    )
    axes.set_ylim(0, None)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
