"""Draw the shares of each loss's terms over training on held-out pairs."""

from __future__ import annotations

import functools
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from caldpo.report.comparison_facts import count_text
from caldpo.report.grouping import RunGroup
from caldpo.report.logged_curve import LoggedCurve
from caldpo.report.plot_style import drawing, grid_shape
from caldpo.report.statistics import band

TERM_COLOURS = ("#88CCEE", "#CC6677", "#DDCC77", "#117733")
_MOST = 20  # panels of full size; of more each is smaller
_MARGINS = {"left": 0.6, "right": 0.15, "top": 0.5, "bottom": 0.75}  # inches around small panels
_SMALL = 1.55, 1.25  # inches of one
Terms = tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]  # steps, and shares by term, each ``(steps,)``


def loss_terms(groups: Sequence[RunGroup], headline: str) -> Figure | None:
    """Draw the shares of each loss's terms, stacked to 1 over steps; None when no loss has two terms."""
    with_shares = [(group, terms) for group in groups if (terms := term_shares(group)) is not None]
    panels = [(group.label, terms) for group, terms in with_shares if len(terms[1]) > 1]
    if not panels:
        return None
    names = dict.fromkeys(name for _, (_, shares) in panels for name in shares)
    colours = dict(zip(names, itertools.cycle(TERM_COLOURS)))
    seeds = count_text(group.seeds for group, (_, shares) in with_shares if len(shares) > 1)
    with drawing():
        figure = (_small_panels if len(panels) > _MOST else _panels)(panels, colours)
        figure.suptitle(f"Shares of the loss terms on held-out pairs\n{headline} · {seeds}", fontsize=11)
        handles = [Patch(color=colours[name], label=name) for name in names]
        side: Literal["outside lower center", "lower center"]
        side = "outside lower center" if figure.get_layout_engine() else "lower center"
        figure.legend(handles=handles, loc=side, ncols=len(handles), frameon=False)
    return figure


def _panels(panels: Sequence[tuple[str, Terms]], colours: Mapping[str, str]) -> Figure:
    rows, columns = grid_shape(len(panels))
    figure = Figure(figsize=(max(7.0, 1.0 + 3.2 * columns), 1.5 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (label, (steps, shares)) in zip(grid.flat, panels, strict=False):
        axes.stackplot(steps, *shares.values(), colors=[colours[name] for name in shares])
        axes.set(title=textwrap.fill(label, 40), xlabel="optimiser step")
        axes.set(ylim=(0, 1), xlim=(steps[0], steps[-1]))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of the loss")
    return figure


def _small_panels(panels: Sequence[tuple[str, Terms]], colours: Mapping[str, str]) -> Figure:
    """Draw as many columns as rows into one plane, in inches: axes of their own take a hundredth of a second each."""
    columns = math.ceil(math.sqrt(len(panels)))
    rows = -(-len(panels) // columns)
    titles = [textwrap.fill(label, 30) for label, _ in panels]
    gap = 0.27 + 0.12 * max(title.count("\n") + 1 for title in titles)  # the steps above, the title below
    wide, high = _SMALL
    size = (
        _MARGINS["left"] + _MARGINS["right"] + (wide + 0.2) * columns,
        _MARGINS["top"] + _MARGINS["bottom"] + (high + gap) * rows,
    )
    figure = Figure(figsize=size)
    plane = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(0, size[1]))
    plane.set_axis_off()
    areas: dict[str, list[NDArray[np.float64]]] = {name: [] for name in colours}
    frames = []
    for place, (title, (_, (steps, shares))) in enumerate(zip(titles, panels, strict=True)):
        row, column = divmod(place, columns)
        x, y = _MARGINS["left"] + (wide + 0.2) * column, _MARGINS["bottom"] + (high + gap) * (rows - 1 - row)
        along = x + wide * (steps - steps[0]) / (steps[-1] - steps[0])
        below = np.zeros(len(steps))
        for name, share in shares.items():
            sides = [np.column_stack([along, y + high * side]) for side in (below, below + share)]
            areas[name].append(np.concatenate([sides[0], sides[1][::-1]]))
            below = below + share
        frames.append([(x, y + high), (x, y), (x + wide, y)])
        plane.text(x + wide / 2, y + high + 0.03, title, ha="center", va="bottom", fontsize=6.5)
        for end, step in ((x, steps[0]), (x + wide, steps[-1])):
            plane.text(end, y - 0.04, f"{step}", ha="center", va="top", fontsize=6.5)
        if column == 0:
            for level in (0, 0.5, 1):
                plane.text(x - 0.04, y + high * level, f"{level:g}", ha="right", va="center", fontsize=6.5)
            plane.text(x - 0.3, y + high / 2, "share of the loss", rotation=90, ha="right", va="center", fontsize=7)
        if place >= len(panels) - columns:
            plane.text(x + wide / 2, y - 0.17, "optimiser step", ha="center", va="top", fontsize=7)
    for name, polygons in areas.items():
        plane.add_collection(PolyCollection(polygons, facecolors=colours[name], linewidths=0), autolim=False)
    plane.add_collection(LineCollection(frames, colors="black", linewidths=0.8), autolim=False)
    return figure


def term_shares(group: RunGroup) -> Terms | None:
    """Compute steps, and shares of the terms in the sum of their absolute values, means over seeds, ``(steps,)``.

    Terms that are 0 throughout are left out. None where no term was logged, or only at a single step.
    """
    prefix = "val/terms/"
    names = sorted({name for run in group.finished for name in run.curves if name.startswith(prefix)})

    def share(curves: Mapping[str, LoggedCurve], name: str) -> dict[int, float]:
        terms: list[Mapping[int, float]] = [curves.get(other, {}) for other in names]
        totals = {step: sum(abs(term.get(step, 0.0)) for term in terms) for step in set().union(*terms)}
        own: Mapping[int, float] = curves.get(name, {})
        return {step: abs(own.get(step, 0.0)) / total for step, total in totals.items() if total > 0}

    bands = {name: band(group.curves(functools.partial(share, name=name)), "range") for name in names}
    shares = {name.removeprefix(prefix): b for name, b in bands.items() if b is not None and b.mean.any()}
    steps = next((b.steps for b in shares.values()), np.array([], dtype=np.int64))  # the same for every term
    return (steps, {name: b.mean for name, b in shares.items()}) if len(steps) > 1 else None
