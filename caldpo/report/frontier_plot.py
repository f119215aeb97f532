"""What the reward costs: true reward of the policy's samples against their KL to the reference."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from caldpo.report.comparison_facts import count_text
from caldpo.report.frontier_points import Place, beta, frontiers, place
from caldpo.report.grouping import Setting
from caldpo.report.plot_style import CRUSHING, DASHES, Look, drawing, looks
from caldpo.report.statistics import Estimate

_REFERENCE = "reference"
_MOST_BETAS = 8  # that are written beside a frontier


def reward_kl(settings: Sequence[Setting], headline: str) -> Figure | None:
    """Mean true reward over mean KL per setting, bars of one standard deviation over seeds.

    Where checkpoints were evaluated, a thin line shows the way there; where settings differ in ``loss.beta`` alone, a
    dashed line joins them in the order of their KL: the frontier.

    Returns:
        None where no setting has both, as on data whose true reward nobody knows.
    """
    found = [(s, look, p) for s, look in zip(settings, looks(settings), strict=True) if (p := place(s))]
    if not found:
        return None
    shown, places = [setting for setting, *_ in found], [p for *_, p in found]
    with drawing():
        names = [textwrap.fill(setting.label, 44) for setting in shown]
        longest = max(len(line) for name in names for line in name.splitlines())
        joined = frontiers(shown)
        lines = len(joined) + sum(1 + name.count("\n") for name in names)
        size = 7.6 + 0.07 * max(0, longest - 20), max(5.0, 1.6 + 0.2 * lines)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        seeds = count_text(p.kl.n for p in places)
        figure.suptitle(f"True reward against KL to the reference\n{headline} · {seeds}, bars: ± 1 sd")
        mixed = len({p.evaluated for p in places}) > 1
        for (_, look, p), name in zip(found, names, strict=True):
            _draw_path(axes, look, p, 0.4 if joined else 0.7)
            _draw_end(axes, look, p, name + (" (as training logged it)" if mixed and not p.evaluated else ""))
        _draw_frontiers(axes, found, joined)
        references = [value for p in places for value in p.references]
        if references:
            level = sum(references) / len(references)
            axes.axhline(level, color="#222222", linewidth=0.9, linestyle="--", label=_REFERENCE)
        label = "KL(policy || reference), nats per sequence"
        if _wide([p.kl for p in places]):
            axes.set_xscale("log", nonpositive="mask")  # a path starts at a KL of 0
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            label += " (logarithmic)"
        axes.set_xlabel(label)
        axes.set_ylabel("true reward, units of the data's reward")
        handles, labels = axes.get_legend_handles_labels()
        # the settings first, then the lines that join them
        order = sorted(range(len(labels)), key=lambda i: (labels[i] == _REFERENCE, isinstance(handles[i], Line2D)))
        figure.legend(
            [handles[i] for i in order], [labels[i] for i in order], loc="outside right center", frameon=False
        )
    return figure


def _draw_path(axes: Axes, look: Look, p: Place, alpha: float) -> None:
    if p.path.shape[1] > 1:
        axes.plot(*p.path, color=look.colour, linewidth=0.9, alpha=alpha, marker=".", markersize=3.5)


def _draw_end(axes: Axes, look: Look, p: Place, label: str) -> None:
    axes.errorbar(
        p.kl.mean,
        p.reward.mean,
        xerr=p.kl.sd,
        yerr=p.reward.sd,
        color=look.colour,
        marker=look.marker,
        markersize=8,
        capsize=2,
        elinewidth=1,
        linestyle="none",
        label=label,
    )


def _draw_frontiers(axes: Axes, found: Sequence[tuple[Setting, Look, Place]], groups: Sequence[Sequence[int]]) -> None:
    """A dashed line per loss over its betas, in its colour where it has one, and the beta beside each end."""
    for group, dash in zip(groups, itertools.cycle(DASHES[1:])):
        ordered = sorted((found[i] for i in group), key=lambda entry: entry[2].kl.mean)
        colours = {look.colour for _, look, _ in ordered}
        ends = [(p.kl.mean, p.reward.mean) for *_, p in ordered]
        axes.plot(
            *zip(*ends, strict=True),
            color=colours.pop() if len(colours) == 1 else "#777777",
            linestyle=dash,
            linewidth=1.3,
            zorder=1.8,
            label=f"{ordered[0][0].loss} over β",
        )
        labelled = list(enumerate(zip(ends, ordered, strict=True)))
        for place_of, (end, (setting, *_)) in labelled[:: -(-len(labelled) // _MOST_BETAS)]:
            axes.annotate(
                f"β {beta(setting):g}",
                end,
                xytext=(6, -12 if place_of % 2 else 7),  # neighbours on different sides
                textcoords="offset points",
                fontsize=7,
                path_effects=[withStroke(linewidth=2, foreground="white")],
                zorder=4,
            )


def _wide(kls: Sequence[Estimate]) -> bool:
    """Whether the KLs lie so far apart that a linear axis would press the small ones together."""
    lowest = min(kl.mean - (kl.sd or 0.0) for kl in kls)
    return lowest > 0 and max(kl.mean for kl in kls) > CRUSHING * min(kl.mean for kl in kls)
