"""Draw what happens over training on held-out pairs: log-ratios and implicit rewards, and the shares of loss terms."""

from __future__ import annotations

import functools
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from caldpo.metric_definitions import MetricDefinition
from caldpo.report import shown_metrics
from caldpo.report.comparison_facts import count_text
from caldpo.report.comparison_facts import unit as unit_of
from caldpo.report.grouping import RunGroup
from caldpo.report.logged_curve import LoggedCurve
from caldpo.report.plot_style import Look, drawing, grid_shape, linear_limit, looks, set_symmetric_log
from caldpo.report.statistics import Band, BandKind, band

TERM_COLOURS = ("#88CCEE", "#CC6677", "#DDCC77", "#117733")
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
    drawn = [(place, look, b) for place, (look, b) in enumerate(zip(styles, bands, strict=True)) if b is not None]
    _draw_spreads(axes, [(look, curve) for _, look, curve in drawn])
    for place, look, curve in drawn:
        axes.add_line(_mean_line(look, curve, place))
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


def _draw_spreads(axes: Axes, curves: Sequence[tuple[Look, Band]]) -> None:
    """Shade from low to high of every curve of several seeds; a gap in it divides the area."""
    areas, colours = [], []
    for look, curve in curves:
        if curve.n > 1:
            for part in np.ma.clump_unmasked(np.ma.masked_invalid(curve.low)):
                there, back = (np.column_stack([curve.steps[part], side[part]]) for side in (curve.low, curve.high))
                areas.append(np.concatenate([there, back[::-1]]))
                colours.append(look.colour)
    if areas:
        # one artist for all: each costs as much as thousands of points
        axes.add_collection(PolyCollection(areas, facecolors=colours, alpha=0.16, linewidths=0))


def _mean_line(look: Look, curve: Band, place: int) -> Line2D:
    every = max(1, len(curve.steps) // 5)
    # Others for each group, so that those of equal curves are all seen; the final value always carries its marker.
    marked = {*range((len(curve.steps) - 1 + place) % every, len(curve.steps), every), len(curve.steps) - 1}
    style = {"color": look.colour, "linestyle": look.dash, "linewidth": look.width, "zorder": look.zorder}
    line = Line2D(curve.steps, curve.mean, marker=look.marker, markevery=sorted(marked), markersize=4.5, **style)
    line.set_in_layout(False)  # it stays inside its panel
    return line


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


# ---- terms of the losses


def loss_terms(groups: Sequence[RunGroup], headline: str) -> Figure | None:
    """Draw the shares of each loss's terms, stacked to 1 over steps; None when no loss has two terms."""
    with_shares = [(group, terms) for group in groups if (terms := term_shares(group)) is not None]
    panels = [(group, terms) for group, terms in with_shares if len(terms[1]) > 1]
    if not panels:
        return None
    rows, columns = grid_shape(len(panels))
    names = dict.fromkeys(name for _, (_, shares) in panels for name in shares)
    colours = dict(zip(names, itertools.cycle(TERM_COLOURS)))
    with drawing():
        figure = Figure(figsize=(max(7.0, 1.0 + 3.2 * columns), 1.5 + 2.4 * rows), layout="constrained")
        seeds = count_text(group.seeds for group, _ in panels)
        figure.suptitle(f"Shares of the loss terms on held-out pairs\n{headline} · {seeds}", fontsize=11)
        # Not sharey: each of n panels that share an axis looks at all the others, again and again.
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (group, (steps, shares)) in zip(grid.flat, panels, strict=False):
            axes.stackplot(steps, *shares.values(), colors=[colours[name] for name in shares])
            axes.set(title=textwrap.fill(group.label, 40), xlabel="optimiser step")
            axes.set(ylim=(0, 1), xlim=(steps[0], steps[-1]))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 1:].flat:
            axes.tick_params(labelleft=False)
        for axes in grid[:, 0]:
            axes.set_ylabel("share of the loss")
        handles = [Patch(color=colours[name], label=name) for name in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def term_shares(group: RunGroup) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]] | None:
    """Compute steps, and shares of the terms in the sum of their absolute values, means over seeds, ``(steps,)``.

    Terms that are 0 throughout are left out. None where no term was logged, or only at a single step.
    """
    prefix = "val/terms/"
    names = sorted({name for run in group.finished for name in run.curves if name.startswith(prefix)})

    def share(curves: Mapping[str, LoggedCurve], name: str) -> dict[int, float]:
        terms = [curves.get(other, {}) for other in names]
        totals = {step: sum(abs(term.get(step, 0.0)) for term in terms) for step in set().union(*terms)}
        own = curves.get(name, {})
        return {step: abs(own.get(step, 0.0)) / total for step, total in totals.items() if total > 0}

    bands = {name: band(group.curves(functools.partial(share, name=name)), "range") for name in names}
    shares = {name.removeprefix(prefix): b for name, b in bands.items() if b is not None and b.mean.any()}
    steps = next((b.steps for b in shares.values()), np.array([], dtype=np.int64))  # the same for every term
    return (steps, {name: b.mean for name, b in shares.items()}) if len(steps) > 1 else None
