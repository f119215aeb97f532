"""Draw what happens over training on held-out pairs: log-ratios, implicit rewards, accuracy and displacement."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from caldpo.metric_definitions import MetricDefinition
from caldpo.report import shown_metrics
from caldpo.report.comparison_facts import count_text
from caldpo.report.comparison_facts import unit as unit_of
from caldpo.report.grouping import RunGroup
from caldpo.report.loss_style import OVER, Look, looks
from caldpo.report.plot_style import drawing, linear_limit, set_symmetric_log
from caldpo.report.statistics import Band, BandKind, band, thinned

Drawn = tuple[Look, Band, int]  # a curve, its look, and the place of its group
_MARKER_SIZE = 4.5  # points
_MOST_LABELS = 12  # at the ends of the curves of a panel; of more curves those on top have one
_LABEL_HEIGHT = 0.05  # of a panel
_LONGEST = 12  # characters of such a label
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
    Panel(shown_metrics.CHOSEN, "Chosen log-ratio", 0.0, shaded=True),
    Panel(shown_metrics.REJECTED, "Rejected log-ratio", 0.0),
    Panel(shown_metrics.MARGIN, "Log-ratio margin", 0.0),
    Panel(shown_metrics.ACCURACY, "Accuracy", 0.5, share=True),
    Panel(shown_metrics.CHOSEN_REWARD, "Chosen implicit reward", 0.0, shaded=True),
    Panel(shown_metrics.REJECTED_REWARD, "Rejected implicit reward", 0.0),
    Panel(shown_metrics.REWARD_MARGIN, "Reward margin", 0.0),
    Panel(shown_metrics.DISPLACEMENT, "Displacement", 0.0, share=True),
)


def reward_dynamics(groups: Sequence[RunGroup], headline: str, kind: BandKind) -> Figure:
    """Draw log-ratios, implicit rewards, margin, accuracy and displacement of every group over optimiser steps.

    Each group has a finished run; ``headline`` is the title's second line.
    """
    with drawing():
        names = [textwrap.fill(label, 60) for label in _legend_labels(groups)]
        columns = _legend_columns(names)
        rows = -(-len(names) // columns)
        # What is beyond two lines a column is added to the figure, not taken from the panels.
        lines = max(sum(name.count("\n") + 1 for name in names[i * rows : (i + 1) * rows]) for i in range(columns))
        size = 15, 7.6 + 0.23 * max(0, lines - 2)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        seeds = count_text(group.seeds for group in groups)
        figure.suptitle(f"Held-out reward dynamics\n{headline} · {seeds}, {BAND_TEXT[kind]}", fontsize=11)
        styles, grid = looks(groups), figure.subplots(2, 4, sharex=True)
        for axes, panel in zip(grid.flat, PANELS, strict=True):
            _draw_panel(axes, panel, groups, styles, kind)
        for axes in grid[1]:
            axes.set_xlabel("optimiser step")
        handles = [
            Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, markersize=5, label=label)
            for s, label in zip(styles, names, strict=True)
        ]
        style: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": 10, "handlelength": 3.2}
        figure.legend(handles=handles, loc="outside lower center", **style)
    return figure


def _draw_panel(axes: Axes, panel: Panel, groups: Sequence[RunGroup], styles: Sequence[Look], kind: BandKind) -> None:
    bands = [band(group.curves(panel.metric.curve), kind) for group in groups]
    curves = [(look, thinned(b), place) for place, (look, b) in enumerate(zip(styles, bands, strict=True)) if b]
    curves.sort(key=lambda curve: curve[0].zorder)
    # An artist for all curves: one for each costs as much as thousands of points.
    _draw_spreads(axes, curves)
    _draw_means(axes, curves)
    _draw_markers(axes, curves)
    axes.autoscale_view()
    axes.axhline(panel.neutral, color="#222222", linewidth=1.6 if panel.shaded else 0.9, zorder=1.5)
    axes.set_title(panel.title)
    unit = unit_of(panel.metric, groups)
    limit = linear_limit([float(np.abs(b.mean).max()) for b in bands if b is not None])
    if limit is not None and not panel.share:
        set_symmetric_log(axes, limit)
        unit += f"\n(logarithmic beyond ±{limit:g})"
    axes.set_ylabel(unit)
    if panel.shaded:
        _shade_below_zero(axes)
    _label_ends(axes, curves, groups)


def _draw_spreads(axes: Axes, curves: Sequence[Drawn]) -> None:
    """Shade from low to high of every curve of several seeds; a gap in it divides the area."""
    areas, colours = [], []
    for look, curve, _ in curves:
        if curve.n > 1:
            for part in np.ma.clump_unmasked(np.ma.masked_invalid(curve.low)):
                there, back = (np.column_stack([curve.steps[part], side[part]]) for side in (curve.low, curve.high))
                areas.append(np.concatenate([there, back[::-1]]))
                colours.append(look.colour)
    if areas:
        axes.add_collection(PolyCollection(areas, facecolors=colours, alpha=0.16, linewidths=0))


def _draw_means(axes: Axes, curves: Sequence[Drawn]) -> None:
    lines = [np.column_stack([curve.steps, curve.mean]) for _, curve, _ in curves]
    looks_of = [look for look, *_ in curves]
    style = {"colors": [look.colour for look in looks_of], "linestyles": [look.dash for look in looks_of]}
    axes.add_collection(LineCollection(lines, linewidths=[look.width for look in looks_of], zorder=2, **style))


def _draw_markers(axes: Axes, curves: Sequence[Drawn]) -> None:
    """Mark some points of each curve, others for each, so that those of equal curves are all seen; and its end."""
    by_shape: dict[str, list[tuple[float, float, str]]] = {}
    for look, curve, place in curves:
        last = len(curve.steps) - 1
        every = max(1, len(curve.steps) // 5)
        marked = sorted({*range((last + place) % every, last, every), last})
        by_shape.setdefault(look.marker, []).extend(
            zip(curve.steps[marked], curve.mean[marked], itertools.repeat(look.colour))
        )
    for shape, points in by_shape.items():
        steps, means, colours = zip(*points, strict=True)
        axes.scatter(steps, means, s=_MARKER_SIZE**2, c=colours, marker=shape, linewidths=1, zorder=3)


def _label_ends(axes: Axes, curves: Sequence[Drawn], groups: Sequence[RunGroup]) -> None:
    """Write each group's label at the height where its curve ends, moved apart where labels would overlap."""
    ends = [(float(curve.mean[-1]), look, groups[place].label) for look, curve, place in curves]
    ends = [end for end in ends if np.isfinite(end[0])]
    if len(ends) > _MOST_LABELS:
        ends = [end for end in ends if end[1].zorder >= OVER]
    if len(ends) > _MOST_LABELS:
        return
    ends.sort(key=lambda end: end[0])
    to_axes = axes.transData + axes.transAxes.inverted()
    height = 0.0
    for place, (value, look, label) in enumerate(ends):
        room = 1 - (len(ends) - 1 - place) * _LABEL_HEIGHT
        at = float(to_axes.transform((0, value))[1])
        height = min(max(at, height), room)
        style: dict[str, Any] = {"color": look.colour, "fontsize": 6.5, "va": "center", "transform": axes.transAxes}
        axes.text(1.02, height, _ends_of(label), **style)
        height += _LABEL_HEIGHT


def _ends_of(label: str) -> str:
    """Of a long label its ends: the loss, and the value that tells it from its neighbours."""
    tail = _LONGEST // 3
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - tail - 1]}…{label[-tail:]}"


def _shade_below_zero(axes: Axes) -> None:
    if axes.get_ylim()[0] >= 0:
        return
    # Room for the note below every curve, on whatever scale the axis has.
    low = axes.transData.inverted().transform(axes.transAxes.transform((0, -0.09)))[1]
    high = axes.get_ylim()[1]
    axes.axhspan(low, 0, color="#d9534f", alpha=0.07, zorder=0)
    axes.set_ylim(low, high)
    note = "below 0: chosen less likely than under the reference"
    axes.text(0.02, 0.02, note, transform=axes.transAxes, fontsize=7.5, color="#8c2f2c")


def _legend_columns(labels: Sequence[str]) -> int:
    """Columns of a legend as wide as the figure, its rows evenly filled."""
    widest = max(len(line) for label in labels for line in label.splitlines())
    fitting = max(1, 150 // (widest + 9))
    rows = -(-len(labels) // fitting)
    return -(-len(labels) // rows)


def _legend_labels(groups: Sequence[RunGroup]) -> list[str]:
    """Labels; with the number of seeds where it is not the same for all."""
    if len({group.seeds for group in groups}) == 1:
        return [group.label for group in groups]
    return [f"{group.label} ({group.seeds} seed{'s' if group.seeds > 1 else ''})" for group in groups]
