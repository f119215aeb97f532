"""Write the figures of chosen_reward.md from study/: ``python docs/chosen_reward.py``.

Prints the correlations that the page quotes, replaces its table between the two markers, and draws
``study/chosen_reward.svg``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from caldpo.report.loss_style import COLOURS, MARKERS, style_of
from caldpo.report.plot_style import drawing, save, set_symmetric_log
from caldpo.studies.setting_choice import PRACTITIONER

PAGE = Path(__file__).with_name("chosen_reward.md")
STUDY = Path(__file__).with_name("study")
BEGIN = "<!-- table: python docs/chosen_reward.py -->"
END = "<!-- end of table -->"
CONDITIONS = ("reviews", "arithmetic")
REMEDIES = {
    "contrast alone": ("dpo", "ipo", "simpo"),
    "adds the likelihood of chosen responses": ("rpo", "cpo", "orpo", "dpop"),
    "pulls each log-ratio to a target": ("cal_dpo", "sppo", "c2_dpo"),
    "pushes rejected responses down less": ("dpo_shift", "bpo", "minor_dpo"),
    "judges each response alone": ("kto", "apo_zero", "nca"),
    "no rejected responses": ("sft",),
}
LABELLED = {  # not all: points lie close
    "reviews": (
        "dpo",
        "cal_dpo",
        "sft",
        "orpo",
        "simper",
        "dpo_shift",
        "rpo",
        "slic",
        "ipo",
        "f_dpo",
        "apo_down",
        "bpo",
    ),
    "arithmetic": ("dpo", "cal_dpo", "sft", "simper", "kto", "ipo", "f_dpo", "apo_down"),
}


def losses_of(condition: str) -> pd.DataFrame:
    """Read the means of each loss at the setting that a practitioner would choose."""
    means = pd.read_csv(STUDY / f"{condition}.csv")
    return means[(means["choice"] == PRACTITIONER) & (means["kind"] == "loss")].set_index("row")


def print_figures() -> None:
    """Print how the two log-ratios go with KL(reference || policy) over all runs, and with the true reward."""
    runs = pd.read_csv(STUDY / "runs.csv")
    for condition in CONDITIONS:
        found = runs[(runs["condition"] == condition) & runs["rejected_log_ratio"].notna() & runs["reverse_kl"].notna()]
        middle = (found["chosen_log_ratio"] + found["rejected_log_ratio"]) / 2
        of_kl = middle.corr(-found["reverse_kl"])
        print(f"{condition}: mean of both log-ratios with -KL(reference || policy) {of_kl:.4f} over {len(found)} runs")
        losses = losses_of(condition)
        for measure in ("chosen_log_ratio", "displaced"):
            rank = losses["reward"].corr(losses[measure], method="spearman")
            print(f"{condition}: true reward with {measure}, rank correlation {rank:+.2f} over {len(losses)} losses")


def table() -> str:
    """Lay out the remedies, each loss with both environments."""
    measures = {"chosen_log_ratio": "chosen", "rejected_log_ratio": "rejected", "reward": "true reward"}
    head = ["what it does", "loss", *(f"{condition}: {name}" for condition in CONDITIONS for name in measures.values())]
    lines = [head, [":--", ":--", *["--:"] * (len(head) - 2)]]
    means = {condition: losses_of(condition) for condition in CONDITIONS}
    for remedy, losses in REMEDIES.items():
        for loss in losses:
            values = [f"{means[condition].loc[loss, key]:.2f}" for condition in CONDITIONS for key in measures]
            lines.append([remedy if loss == losses[0] else "", f"`{loss}`", *values])
    reference = [f"{reward_of_reference(condition):.2f}" for condition in CONDITIONS]
    lines.append(["", "the reference", "0", "0", reference[0], "0", "0", reference[1]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reward_of_reference(condition: str) -> float:
    """Read the true reward of the policy that training starts from."""
    means = pd.read_csv(STUDY / f"{condition}.csv")
    return float(means[(means["row"] == "reference") & (means["choice"] == PRACTITIONER)]["reward"].iloc[0])


def draw() -> None:
    """Draw true reward over chosen log-ratio, a panel per environment, a point per loss."""
    with drawing():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        for axes, condition in zip(figure.subplots(1, len(CONDITIONS)), CONDITIONS, strict=True):
            draw_condition(axes, condition)
        save(figure, STUDY / "chosen_reward.svg", dpi=150)


def draw_condition(axes: Axes, condition: str) -> None:
    """Draw the panel of one environment."""
    losses = losses_of(condition)
    for loss, row in losses.iterrows():
        colour, _, mark = style_of(str(loss))
        place = row["chosen_log_ratio"], row["reward"]
        axes.scatter(*place, color=COLOURS[colour][0], marker=MARKERS[mark][0], s=38, zorder=3)
        if loss in LABELLED[condition]:
            outline = [withStroke(linewidth=2, foreground="white")]
            axes.annotate(
                str(loss),
                place,
                xytext=(5, -11 if loss == "apo_down" else 4),
                textcoords="offset points",
                fontsize=8,
                path_effects=outline,
                zorder=4,
            )
    axes.axvline(0, color="#777777", linewidth=1)
    reference = reward_of_reference(condition)
    axes.axhline(reference, color="#777777", linewidth=1, linestyle="--")
    axes.annotate(
        "reference", (0.01, reference), xycoords=axes.get_yaxis_transform(), xytext=(0, 3), textcoords="offset points"
    )
    if condition == "arithmetic":  # from 0.4 to -49 nats
        axes.set(xlim=(-80, 0.7), ylim=(-15, 0.2))
        set_symmetric_log(axes, 0.5, across=True)
        set_symmetric_log(axes, 1.0)
    rank = losses["reward"].corr(losses["chosen_log_ratio"], method="spearman")
    axes.set_title(f"{condition}: rank correlation {rank:+.2f}")
    axes.set_xlabel("chosen log-ratio, nats (held out)")
    axes.set_ylabel("true reward of samples")


def main() -> None:
    """Write all."""
    print_figures()
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{after}", encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
