"""Draw what the reward costs: true reward of the policy's samples against their KL to the reference."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from caldpo.metric_definitions import KL, REFERENCE_REWARD, TRUE_REWARD
from caldpo.report.comparison_facts import count_text
from caldpo.report.evaluation_results import PREFIX, details, evaluated
from caldpo.report.grouping import RunGroup
from caldpo.report.loss_style import DASHES, Look, looks
from caldpo.report.plot_style import drawing, set_square_root
from caldpo.report.statistics import LARGEST, Estimate, band, estimate

SUITE = "oracle"
_FOLLOWS_BETA = ("loss.beta", "reward_beta")
_REFERENCE = "reference"
_MOST_BETAS = 8  # that label a frontier
_MOST_ROWS = 60  # of the legend in a column


def reward_kl(groups: Sequence[RunGroup], headline: str) -> Figure | None:
    """Draw mean true reward over mean KL per group, bars of one standard deviation over seeds.

    Where checkpoints were evaluated, a thin line shows the path; where groups differ only in ``loss.beta``, a
    dashed line joins them in the order of their KL: the frontier. None where no group has both, as on data whose true
    reward nobody knows.
    """
    entries = [(s, look, p) for s, look in zip(groups, looks(groups), strict=True) if (p := frontier_point(s))]
    if not entries:
        return None
    drawn, points = [group for group, *_ in entries], [p for *_, p in entries]
    with drawing():
        names = [textwrap.fill(group.label, 44) for group in drawn]
        longest = max(len(line) for name in names for line in name.splitlines())
        joined = frontiers(drawn)
        lines = len(joined) + sum(1 + name.count("\n") for name in names)
        columns = -(-lines // _MOST_ROWS)
        beside = 2.2 + 0.07 * max(0, longest - 20)  # inches of a column of the legend
        size = 5.4 + beside * columns, max(5.0, 1.6 + 0.2 * -(-lines // columns))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        seeds = count_text(p.kl.n for p in points)
        figure.suptitle(f"True reward against KL to the reference\n{headline} · {seeds}, bars: ± 1 sd")
        mixed = len({p.evaluated for p in points}) > 1
        for (_, look, p), name in zip(entries, names, strict=True):
            label = name + (" (as training logged it)" if mixed and not p.evaluated else "")
            style: dict[str, Any] = {"color": look.colour, "linewidth": 0.9, "marker": ".", "markersize": 3.5}
            if p.path.shape[1] > 1:
                axes.plot(*p.path, alpha=0.4 if joined else 0.7, **style)
            style = {"marker": look.marker, "markersize": 8, "linestyle": "none", "color": look.colour}
            axes.add_line(Line2D([p.kl.mean], [p.reward.mean], zorder=2, label=label, **style))
        _draw_spreads(axes, [(look, p) for _, look, p in entries])
        _draw_frontiers(axes, entries, joined)
        references = [value for p in points for value in p.references]
        if references:
            level = sum(references) / len(references)
            axes.axhline(level, color="#222222", linewidth=0.9, linestyle="--", label=_REFERENCE)
        set_square_root(axes)  # of KL, in which reward is nearly linear at first (Gao et al. 2022, arXiv 2210.10760)
        axes.set_xlabel("KL(policy || reference), nats per sequence, square-root axis")
        axes.set_ylabel("true reward, units of the data's reward")
        handles, labels = axes.get_legend_handles_labels()
        # the groups first, then the lines that join them
        joins = [isinstance(handle, Line2D) and handle.get_linestyle() != "None" for handle in handles]
        order = sorted(range(len(labels)), key=lambda i: (labels[i] == _REFERENCE, joins[i]))
        shown = [handles[i] for i in order], [labels[i] for i in order]
        figure.legend(*shown, loc="outside right center", ncols=columns, frameon=False)
    return figure


def _draw_spreads(axes: Axes, points: Sequence[tuple[Look, FrontierPoint]]) -> None:
    """Bars of one standard deviation along both axes, with caps; one artist a kind, since each has its cost."""
    for along, cap in ((0, "|"), (1, "_")):
        bars, colours = [], []
        for look, p in points:
            middle, sd = (p.kl.mean, p.reward.mean), (p.kl, p.reward)[along].sd
            if sd is not None:
                ends = np.array([middle, middle])
                ends[:, along] += (-sd, sd)
                bars.append(ends)
                colours.append(look.colour)
        if bars:
            axes.add_collection(LineCollection(bars, colors=colours, linewidths=1))
            x, y = np.concatenate(bars).T
            axes.scatter(x, y, s=16, marker=cap, c=np.repeat(colours, 2), linewidths=1, zorder=2)
    axes.autoscale_view()


def _draw_frontiers(
    axes: Axes, entries: Sequence[tuple[RunGroup, Look, FrontierPoint]], joined: Sequence[Sequence[int]]
) -> None:
    """A dashed line per loss over its betas, in its colour where it has one, and the beta beside each end."""
    for members, dash in zip(joined, itertools.cycle(pattern for pattern, _ in DASHES[1:])):
        ordered = sorted((entries[i] for i in members), key=lambda entry: entry[2].kl.mean)
        colours = {look.colour for _, look, _ in ordered}
        ends = [(p.kl.mean, p.reward.mean) for *_, p in ordered]
        colour = colours.pop() if len(colours) == 1 else "#777777"
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.3, "zorder": 1.8}
        axes.plot(*zip(*ends, strict=True), label=f"{ordered[0][0].loss} over β", **style)
        labelled = list(enumerate(zip(ends, ordered, strict=True)))
        for place, (end, (group, *_)) in labelled[:: -(-len(labelled) // _MOST_BETAS)]:
            outlined = [withStroke(linewidth=2, foreground="white")]
            style = {"textcoords": "offset points", "fontsize": 7, "path_effects": outlined, "zorder": 4}
            side = 6, -12 if place % 2 else 7  # neighbours on different ones
            axes.annotate(f"β {beta(group):g}", end, xytext=side, **style)


# ---- where groups stand: at the end, over checkpoints, and over several beta


class FrontierPoint(NamedTuple):
    """One group between KL and reward."""

    kl: Estimate  # of the final policy to the reference, nats per sequence
    reward: Estimate  # true reward of its samples
    evaluated: bool  # by the suite; else as training logged it
    references: Sequence[float]  # the reference's reward, one per seed
    path: NDArray[np.float64]  # KL and reward over checkpoints, mean over seeds, ``(2, checkpoints)``


def frontier_point(group: RunGroup) -> FrontierPoint | None:
    """Return KL and reward by the suite, else as training logged them; None where one is unknown or not finite."""
    for measured in (True, False):
        kl, reward, reference = (
            replace(metric, name=f"{PREFIX}/{metric.name}") if measured else metric
            for metric in (KL, TRUE_REWARD, REFERENCE_REWARD)
        )
        x, y = estimate(group.finals(kl.final)), estimate(group.finals(reward.final))
        if x is not None and y is not None and all(abs(value.mean) <= LARGEST for value in (x, y)):
            path = _path(group) if measured else np.empty((2, 0))
            return FrontierPoint(x, y, measured, group.finals(reference.final), path)
    return None


def frontiers(groups: Sequence[RunGroup]) -> list[list[int]]:
    """Find the places in ``groups`` of those that differ only in ``loss.beta``, two or more, in groups."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        if beta(group) is None:
            continue
        others = {key: value for key, value in group.config.items() if key not in _FOLLOWS_BETA}
        members.setdefault(json.dumps([group.loss, others], sort_keys=True, default=str), []).append(index)
    return [places for places in members.values() if len({beta(groups[i]) for i in places}) > 1]


def beta(group: RunGroup) -> float | None:
    """Return the loss's beta, None where it has none."""
    return group.runs[0].number("loss.beta")


def _path(group: RunGroup) -> NDArray[np.float64]:
    """Over the checkpoints that every evaluated seed has."""
    runs = [details(run, SUITE).get("points") or () for run in evaluated(group, SUITE)]
    known = [[p for p in points if None not in map(p.get, ("step", "kl", "reward"))] for points in runs]
    means = [band([{p["step"]: p[name] for p in points} for points in known], "range") for name in ("kl", "reward")]
    return np.array([mean.mean for mean in means if mean is not None]).reshape(2, -1)
