"""Figures of a study: rewards with their intervals, reward against KL, and average ranks with what tells them apart."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from caldpo.report.loss_style import COLOURS, DASHES, MARKERS, colour_of, style_of
from caldpo.report.plot_style import drawing, set_square_root
from caldpo.studies.setting_choice import CHOICES
from caldpo.studies.study_statistics import Ranking, cliques

_MARKERS = dict(zip(CHOICES, "oD", strict=True))
_SHIFTS = dict(zip(CHOICES, (-0.15, 0.15), strict=True))


def rewards(means: pd.DataFrame, title: str) -> Figure:
    """Draw true reward of each row with its interval, by both choices; ``means`` is a condition's table."""
    names = list(dict.fromkeys(means.sort_values("reward", ascending=False)["row"]))
    with drawing():
        figure = Figure(figsize=(6.4, 1.4 + 0.24 * len(names)), layout="constrained")
        axes = figure.subplots()
        for choice, table in means.groupby("choice", sort=False):
            places = [names.index(name) + _SHIFTS[choice] for name in table["row"]]
            errors = [table["reward"] - table["reward_low"], table["reward_high"] - table["reward"]]
            errors = [side.clip(lower=0.0) for side in errors]  # few resamples may miss the mean
            axes.errorbar(table["reward"], places, xerr=errors, fmt="none", ecolor="#888888", elinewidth=1.0, zorder=1)
            colours = [colour_of(name) for name in table["row"]]
            axes.scatter(table["reward"], places, c=colours, marker=_MARKERS[choice], s=22, zorder=2)
            axes.scatter([], [], c="#444444", marker=_MARKERS[choice], s=22, label=f"setting chosen by {choice}")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("true reward of samples, 95 % interval over seeds and prompts")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.9 / (1.0 + len(names))), ncols=2, frameon=False)
        figure.suptitle(title)
    return figure


def reward_against_kl(means: pd.DataFrame, paths: pd.DataFrame, choice: str, matched_kl: float, title: str) -> Figure:
    """Draw what the reward of each row costs in KL to the reference: its path over evaluations, and where it ends."""
    table = means[(means["choice"] == choice) & means["kl"].notna()]
    with drawing():
        figure = Figure(figsize=(7.0, 5.0), layout="constrained")
        axes = figure.subplots()
        axes.axvline(matched_kl, color="#bbbbbb", linestyle=":", linewidth=1.0)
        for _, cells in table.iterrows():
            path = paths[(paths["row"] == cells["row"]) & (paths["choice"] == choice)]
            colour, dash, mark = style_of(cells["row"])
            shade = COLOURS[colour][0]
            axes.plot(path["kl"], path["reward"], color=shade, linestyle=DASHES[dash][0], linewidth=0.8, alpha=0.6)
            axes.scatter([cells["kl"]], [cells["reward"]], color=shade, marker=MARKERS[mark][0], s=26)
            axes.annotate(
                cells["row"], (cells["kl"], cells["reward"]), xytext=(4, 3), textcoords="offset points", fontsize=7
            )
        set_square_root(axes)
        axes.set_xlabel("KL(policy || reference), nats per response, square-root axis")
        axes.set_ylabel("true reward of samples")
        figure.suptitle(title)
    return figure


def critical_differences(ranks: Ranking, title: str) -> Figure:
    """Draw average ranks; a bar joins losses that the blocks do not tell apart (Demsar 2006, figure 1)."""
    ordered = sorted(ranks.ranks.items(), key=lambda item: item[1])
    groups = cliques(ranks)
    with drawing():
        figure = Figure(figsize=(6.8, 1.6 + 0.22 * len(ordered)), layout="constrained")
        axes = figure.subplots()
        for place, (name, rank) in enumerate(ordered):
            mark = MARKERS[style_of(name)[2]][0]
            axes.scatter([rank], [place], color=colour_of(name), marker=mark, s=26, zorder=2)
        for column, group in enumerate(groups):
            places = [place for place, (name, _) in enumerate(ordered) if name in group]
            x = len(ordered) + 0.5 + 0.35 * column
            axes.plot([x, x], [min(places), max(places)], color="#444444", linewidth=2.4)
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        axes.invert_yaxis()
        axes.set_xlabel(
            f"average rank by true reward over {ranks.blocks} blocks of condition and seed, 1 is best;"
            f" critical difference {ranks.critical_difference:.2f}\nbars join losses that are not told apart"
        )
        figure.suptitle(title)
    return figure
