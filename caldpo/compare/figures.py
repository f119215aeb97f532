"""The pictures of a report: reward dynamics and shares of the loss terms, held-out pairs over steps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from caldpo.compare import quantities as q
from caldpo.compare.facts import beta_text, seeds_text
from caldpo.compare.grouping import Setting
from caldpo.compare.quantities import Quantity
from caldpo.compare.run import Curve
from caldpo.compare.statistics import Band, BandKind, band
from caldpo.compare.style import Look, linear_limit, looks, set_symmetric_log

BAND_TEXT = {"range": "band: lowest to highest seed", "sd": "band: ± 1 standard deviation"}
TERM_COLOURS = ("#88CCEE", "#CC6677", "#DDCC77", "#117733")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.hashsalt": "caldpo",  # the same runs give the same file
}


@dataclass(frozen=True)
class Panel:
    """One small multiple: what it shows, its title, and the value that its curves start from or hinge on."""

    quantity: Quantity
    title: str
    neutral: float
    shaded: bool = False  # tint the side where the chosen response lost likelihood
    share: bool = False  # between 0 and 1, never on a logarithmic axis


PANELS = (
    (
        Panel(q.CHOSEN, "Chosen log-ratio", 0.0, shaded=True),
        Panel(q.REJECTED, "Rejected log-ratio", 0.0),
        Panel(q.MARGIN, "Log-ratio margin", 0.0),
        Panel(q.ACCURACY, "Accuracy", 0.5, share=True),
    ),
    (
        Panel(q.REWARD_CHOSEN, "Chosen implicit reward", 0.0, shaded=True),
        Panel(q.REWARD_REJECTED, "Rejected implicit reward", 0.0),
        Panel(q.REWARD_MARGIN, "Reward margin", 0.0),
        Panel(q.DISPLACEMENT, "Displacement", 0.0, share=True),
    ),
)


def reward_dynamics(settings: Sequence[Setting], headline: str, kind: BandKind) -> Figure:
    """Log-ratios, implicit rewards, margin, accuracy and displacement of every setting over optimiser steps.

    Args:
        settings: with at least one finished run each.
        headline: what was trained on what, for the title.
        kind: what the bands show.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(15, 7.6), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
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
            for s, label in zip(styles, _legend_labels(settings), strict=True)
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=_legend_columns([handle.get_label() for handle in handles]),
            frameon=False,
            fontsize=10,
            handlelength=3.2,
        )
    return figure


def loss_terms(settings: Sequence[Setting], headline: str) -> Figure | None:
    """How much of each loss its terms make, stacked to 1 over steps; None when no loss has two terms."""
    shown = [(setting, *shares) for setting in settings if (shares := term_shares(setting)) and len(shares[1]) > 1]
    if not shown:
        return None
    columns = len(shown) if len(shown) <= 4 else min(5, -(-len(shown) // 2))
    rows = -(-len(shown) // columns)
    names = dict.fromkeys(name for _, _, shares in shown for name in shares)
    colours = dict(zip(names, itertools.cycle(TERM_COLOURS)))  # noqa: B905 the cycle has no end
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(max(7.0, 1.0 + 3.2 * columns), 1.5 + 2.4 * rows), layout="constrained")
        seeds = seeds_text([setting for setting, _, _ in shown])
        figure.suptitle(f"Shares of the loss terms on held-out pairs\n{headline} · {seeds}", fontsize=11)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, (setting, steps, shares) in zip(grid.flat, shown, strict=False):
            axes.stackplot(steps, *shares.values(), colors=[colours[name] for name in shares])
            axes.set(title=setting.label, ylim=(0, 1), xlim=(steps[0], steps[-1]), xlabel="optimiser step")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("share of the loss")
        handles = [Patch(color=colours[name], label=name) for name in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def term_shares(setting: Setting) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]] | None:
    """Share of each term in the sum of the terms' absolute values, mean over seeds, shape ``(steps,)``.

    Returns:
        Steps and shares; terms that are 0 throughout are left out. None where no term was logged.
    """
    prefix = "val/terms/"
    names = list(dict.fromkeys(name for run in setting.finished for name in run.curves if name.startswith(prefix)))

    def share(curves: Mapping[str, Curve], name: str) -> dict[int, float]:
        terms = [curves.get(other, {}) for other in names]
        totals = {step: sum(abs(term.get(step, 0.0)) for term in terms) for step in curves.get(name, {})}
        return {step: abs(curves[name][step]) / total for step, total in totals.items() if total > 0}

    bands = {name: band(setting.curves(functools.partial(share, name=name)), "range") for name in names}
    shares = {name.removeprefix(prefix): b for name, b in bands.items() if b is not None and b.mean.any()}
    if not shares:
        return None
    steps = next(iter(shares.values())).steps
    return steps, {name: b.mean for name, b in shares.items() if len(b.steps) == len(steps)}


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure; the format follows the file's name. The same figure gives the same bytes."""
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=dpi, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_panel(
    axes: Axes, panel: Panel, settings: Sequence[Setting], styles: Sequence[Look], kind: BandKind
) -> None:
    bands = [band(setting.curves(panel.quantity.curve), kind) for setting in settings]
    for look, found in zip(styles, bands, strict=True):
        if found is not None:
            _draw_band(axes, look, found)
    axes.axhline(panel.neutral, color="#222222", linewidth=1.6 if panel.shaded else 0.9, zorder=1.5)
    axes.set_title(panel.title)
    unit = beta_text(settings) if panel.quantity.unit.startswith("beta") else panel.quantity.unit
    limit = linear_limit([float(np.abs(b.mean).max()) for b in bands if b is not None])
    if limit is not None and not panel.share:
        set_symmetric_log(axes, limit)
        unit += f"\n(logarithmic beyond ±{limit:g})"
    axes.set_ylabel(unit)
    if panel.shaded:
        _shade_below_zero(axes)


def _draw_band(axes: Axes, look: Look, found: Band) -> None:
    if found.n > 1:
        axes.fill_between(found.steps, found.low, found.high, color=look.colour, alpha=0.16, linewidth=0)
    every = max(1, len(found.steps) // 5)
    # Counted from the end, so that the final value always carries its marker.
    marked = range((len(found.steps) - 1) % every, len(found.steps), every)
    axes.plot(
        found.steps,
        found.mean,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markevery=list(marked),
        markersize=4.5,
        linewidth=1.7,
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


def _legend_columns(labels: Sequence[object]) -> int:
    """Columns of a legend as wide as the figure, its rows evenly filled."""
    fitting = max(1, 150 // (max(len(str(label)) for label in labels) + 9))
    rows = -(-len(labels) // fitting)
    return -(-len(labels) // rows)


def _legend_labels(settings: Sequence[Setting]) -> list[str]:
    """Labels; with the number of seeds where it is not the same for all."""
    if len({setting.seeds for setting in settings}) == 1:
        return [setting.label for setting in settings]
    return [f"{s.label} ({s.seeds} seed{'s' if s.seeds > 1 else ''})" for s in settings]
