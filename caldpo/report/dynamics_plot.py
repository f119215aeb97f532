"""The central picture: what happens to chosen and rejected responses over training, on held-out pairs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from caldpo.metric_definitions import MetricDefinition
from caldpo.report import shown_metrics
from caldpo.report.comparison_facts import seeds_text
from caldpo.report.comparison_facts import unit as unit_of
from caldpo.report.grouping import Setting
from caldpo.report.plot_style import Look, drawing, linear_limit, looks, set_symmetric_log
from caldpo.report.statistics import Band, BandKind, band

BAND_TEXT = {"range": "band: lowest to highest seed", "sd": "band: ± 1 standard deviation"}


@dataclass(frozen=True)
class Panel:
    """One small multiple: what it shows, its title, and the value that its curves start from or hinge on."""

    metric: MetricDefinition
    title: str
    neutral: float
    shaded: bool = False  # tint the side where the chosen response lost likelihood
    share: bool = False  # between 0 and 1, never on a logarithmic axis


PANELS = (
    (
        Panel(shown_metrics.CHOSEN, "Chosen log-ratio", 0.0, shaded=True),
        Panel(shown_metrics.REJECTED, "Rejected log-ratio", 0.0),
        Panel(shown_metrics.MARGIN, "Log-ratio margin", 0.0),
        Panel(shown_metrics.ACCURACY, "Accuracy", 0.5, share=True),
    ),
    (
        Panel(shown_metrics.CHOSEN_REWARD, "Chosen implicit reward", 0.0, shaded=True),
        Panel(shown_metrics.REJECTED_REWARD, "Rejected implicit reward", 0.0),
        Panel(shown_metrics.REWARD_MARGIN, "Reward margin", 0.0),
        Panel(shown_metrics.DISPLACEMENT, "Displacement", 0.0, share=True),
    ),
)


def reward_dynamics(settings: Sequence[Setting], headline: str, kind: BandKind) -> Figure:
    """Log-ratios, implicit rewards, margin, accuracy and displacement of every setting over optimiser steps.

    Args:
        settings: with at least one finished run each.
        headline: what was trained on what, for the title.
        kind: what the bands show.
    """
    with drawing():
        names = [textwrap.fill(label, 60) for label in _legend_labels(settings)]
        columns = _legend_columns(names)
        rows = -(-len(names) // columns)
        # What is beyond two lines a column is added to the figure, not taken from the panels.
        lines = max(sum(name.count("\n") + 1 for name in names[i * rows : (i + 1) * rows]) for i in range(columns))
        size = 15, 7.6 + 0.23 * max(0, lines - 2)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        figure.suptitle(
            f"Held-out reward dynamics\n{headline} · {seeds_text(settings)}, {BAND_TEXT[kind]}", fontsize=11
        )
        styles = looks(settings)
        grid = figure.subplots(2, 4, sharex=True)
        for axes, panel in zip(grid.flat, (panel for row in PANELS for panel in row), strict=True):
            _draw_panel(axes, panel, settings, styles, kind)
        for axes in grid[1]:
            axes.set_xlabel("optimiser step")
        handles = [
            Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, markersize=5, label=label)
            for s, label in zip(styles, names, strict=True)
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=10,
            handlelength=3.2,
        )
    return figure


def _draw_panel(axes: Axes, panel: Panel, settings: Sequence[Setting], styles: Sequence[Look], kind: BandKind) -> None:
    bands = [band(setting.curves(panel.metric.curve), kind) for setting in settings]
    for place, (look, found) in enumerate(zip(styles, bands, strict=True)):
        if found is not None:
            _draw_band(axes, look, found, place)
    axes.axhline(panel.neutral, color="#222222", linewidth=1.6 if panel.shaded else 0.9, zorder=1.5)
    axes.set_title(panel.title)
    unit = unit_of(panel.metric, settings)
    limit = linear_limit([float(np.abs(b.mean).max()) for b in bands if b is not None])
    if limit is not None and not panel.share:
        set_symmetric_log(axes, limit)
        unit += f"\n(logarithmic beyond ±{limit:g})"
    axes.set_ylabel(unit)
    if panel.shaded:
        _shade_below_zero(axes)


def _draw_band(axes: Axes, look: Look, found: Band, place: int) -> None:
    if found.n > 1:
        axes.fill_between(found.steps, found.low, found.high, color=look.colour, alpha=0.16, linewidth=0)
    every = max(1, len(found.steps) // 5)
    # Others for each setting, so that those of equal curves are all seen; the final value always carries its marker.
    marked = {*range((len(found.steps) - 1 + place) % every, len(found.steps), every), len(found.steps) - 1}
    axes.plot(
        found.steps,
        found.mean,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markevery=sorted(marked),
        markersize=4.5,
        linewidth=look.width,
        zorder=look.zorder,
    )


def _shade_below_zero(axes: Axes) -> None:
    if axes.get_ylim()[0] >= 0:
        return
    # Room for the words below every curve, on whatever scale the axis has.
    low = axes.transData.inverted().transform(axes.transAxes.transform((0, -0.09)))[1]
    high = axes.get_ylim()[1]
    axes.axhspan(low, 0, color="#d9534f", alpha=0.07, zorder=0)
    axes.set_ylim(low, high)
    words = "below 0: chosen less likely than under the reference"
    axes.text(0.02, 0.02, words, transform=axes.transAxes, fontsize=7.5, color="#8c2f2c")


def _legend_columns(labels: Sequence[str]) -> int:
    """Columns of a legend as wide as the figure, its rows evenly filled."""
    widest = max(len(line) for label in labels for line in label.splitlines())
    fitting = max(1, 150 // (widest + 9))
    rows = -(-len(labels) // fitting)
    return -(-len(labels) // rows)


def _legend_labels(settings: Sequence[Setting]) -> list[str]:
    """Labels; with the number of seeds where it is not the same for all."""
    if len({setting.seeds for setting in settings}) == 1:
        return [setting.label for setting in settings]
    return [f"{s.label} ({s.seeds} seed{'s' if s.seeds > 1 else ''})" for s in settings]
