"""Which term of a loss does the work: shares of the terms on held-out pairs, over training."""

from __future__ import annotations

import functools
import itertools
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from caldpo.report.comparison_facts import seeds_text
from caldpo.report.grouping import Setting
from caldpo.report.plot_style import drawing, grid_shape
from caldpo.report.run_files import Curve
from caldpo.report.statistics import band

TERM_COLOURS = ("#88CCEE", "#CC6677", "#DDCC77", "#117733")


def loss_terms(settings: Sequence[Setting], headline: str) -> Figure | None:
    """How much of each loss its terms make, stacked to 1 over steps; None when no loss has two terms."""
    shown = [(s, found) for s in settings if (found := term_shares(s)) is not None and len(found[1]) > 1]
    if not shown:
        return None
    rows, columns = grid_shape(len(shown))
    names = dict.fromkeys(name for _, (_, shares) in shown for name in shares)
    colours = dict(zip(names, itertools.cycle(TERM_COLOURS)))
    with drawing():
        figure = Figure(figsize=(max(7.0, 1.0 + 3.2 * columns), 1.5 + 2.4 * rows), layout="constrained")
        seeds = seeds_text([setting for setting, _ in shown])
        figure.suptitle(f"Shares of the loss terms on held-out pairs\n{headline} · {seeds}", fontsize=11)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, (setting, (steps, shares)) in zip(grid.flat, shown, strict=False):
            axes.stackplot(steps, *shares.values(), colors=[colours[name] for name in shares])
            axes.set(
                title=textwrap.fill(setting.label, 40), ylim=(0, 1), xlim=(steps[0], steps[-1]), xlabel="optimiser step"
            )
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
        Steps and shares; terms that are 0 throughout are left out. None where no term was logged, or only
        at a single step.
    """
    prefix = "val/terms/"
    names = sorted({name for run in setting.finished for name in run.curves if name.startswith(prefix)})

    def share(curves: Mapping[str, Curve], name: str) -> dict[int, float]:
        terms = [curves.get(other, {}) for other in names]
        totals = {step: sum(abs(term.get(step, 0.0)) for term in terms) for step in set().union(*terms)}
        own = curves.get(name, {})
        return {step: abs(own.get(step, 0.0)) / total for step, total in totals.items() if total > 0}

    bands = {name: band(setting.curves(functools.partial(share, name=name)), "range") for name in names}
    shares = {name.removeprefix(prefix): b for name, b in bands.items() if b is not None and b.mean.any()}
    steps = next((b.steps for b in shares.values()), np.array([], dtype=np.int64))  # the same for every term
    return (steps, {name: b.mean for name, b in shares.items()}) if len(steps) > 1 else None
