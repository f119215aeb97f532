"""What the reward costs: true reward of the policy's samples against their KL to the reference."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from caldpo.compare import quantities as q
from caldpo.compare.facts import seeds_text
from caldpo.compare.grouping import Setting
from caldpo.compare.statistics import Estimate, estimate
from caldpo.compare.style import CRUSHING, drawing, looks


def reward_kl(settings: Sequence[Setting], headline: str) -> Figure | None:
    """Mean true reward over mean KL per setting, bars of one standard deviation over seeds.

    Returns:
        None where no setting has both, as on data whose true reward nobody knows.
    """
    points = [
        (setting, look, kl, reward)
        for setting, look in zip(settings, looks(settings), strict=True)
        if (kl := estimate(setting.finals(q.KL.final))) and (reward := estimate(setting.finals(q.TRUE_REWARD.final)))
    ]
    if not points:
        return None
    with drawing():
        figure = Figure(figsize=(7.6, 5.0), layout="constrained")
        seeds = seeds_text([setting for setting, *_ in points])
        axes = figure.subplots()
        axes.set_title(f"True reward against KL to the reference\n{headline} · {seeds}, bars: ± 1 sd")
        for setting, look, kl, reward in points:
            axes.errorbar(
                kl.mean,
                reward.mean,
                xerr=kl.sd,
                yerr=reward.sd,
                color=look.colour,
                marker=look.marker,
                markersize=8,
                capsize=2,
                elinewidth=1,
                linestyle="none",
                label=setting.label,
            )
        references = [value for setting, *_ in points for value in setting.finals(q.REFERENCE_REWARD.final)]
        if references:
            level = sum(references) / len(references)
            axes.axhline(level, color="#222222", linewidth=0.9, linestyle="--", label="reference")
        label = "KL(policy || reference), nats per sequence"
        if _wide([kl for _, _, kl, _ in points]):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            label += " (logarithmic)"
        axes.set_xlabel(label)
        axes.set_ylabel("true reward, units of the data's reward")
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i] == "reference")  # the settings first
        figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside right upper", frameon=False)
    return figure


def _wide(kls: Sequence[Estimate]) -> bool:
    """Whether the KLs lie so far apart that a linear axis would press the small ones together."""
    lowest = min(kl.mean - (kl.sd or 0.0) for kl in kls)
    return lowest > 0 and max(kl.mean for kl in kls) > CRUSHING * min(kl.mean for kl in kls)
