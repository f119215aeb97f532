"""Write study/cal_dpo_map.csv and .svg from the runs below a folder: ``python docs/cal_dpo_map.py FOLDER``."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from caldpo.report.plot_style import drawing, save
from caldpo.report.read_runs import read_run
from caldpo.report.run_files import Run

PAGES = Path(__file__).with_name("study")
SUMMARIES = "*/*/summary.json"  # of the runs, below the folders of the sweeps
SERIES = ("steps", "hidden size", "clipping")  # what tells the lines of the figure apart
PANELS = {
    "chosen log-ratio": "chosen log-ratio, nats (held out)",
    "true reward": "true reward of samples",
    "KL": "KL to the reference, nats",
    "calibration's share": "calibration's share of the gradient, at the end",
}


def row(run: Run) -> dict[str, float]:
    """One run as a row of the table. The share is that of the gradient by the chosen log-ratio at its mean."""
    beta, c = float(run.resolved["loss.beta"]), float(run.resolved["loss.calibration_weight"])
    chosen, rejected = (run.final[f"val/log_ratios/{side}"] for side in ("chosen", "rejected"))
    calibration = 2 * c * abs(chosen - 1 / (2 * beta))
    contrast = 1 / (1 + math.exp(chosen - rejected))
    clip = run.resolved["trainer.gradient_clip_val"]
    return {
        "beta": beta,
        "target": 1 / (2 * beta),
        "clipping": float("inf") if clip is None else float(clip),
        "steps": int(run.resolved["trainer.max_steps"]),
        "hidden size": int(run.resolved["model.hidden_size"]),
        "chosen log-ratio": chosen,
        "rejected log-ratio": rejected,
        "chosen log-prob": run.final["val/logps/chosen"],
        "accuracy": run.final["val/rewards/accuracies"],
        "true reward": run.final["oracle/reward"],
        "win rate": run.final["oracle/win_rate"],
        "KL": run.final["oracle/kl"],
        "clipped steps": run.final["clip_fraction"],
        "calibration's share": calibration / (calibration + contrast),
    }


def main(folder: Path) -> None:
    """Read all runs below the folder, and write table and figure."""
    runs = [read_run(file.parent, folder) for file in sorted(folder.glob(SUMMARIES))]
    table = pd.DataFrame([row(run) for run in runs]).drop_duplicates(["beta", *SERIES])
    table = table.sort_values(["hidden size", "steps", "clipping", "beta"])
    PAGES.mkdir(exist_ok=True)
    table.to_csv(PAGES / "cal_dpo_map.csv", index=False, float_format="%.4g")
    with drawing():
        figure = Figure(figsize=(10, 7), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            for (steps, hidden, clip), cells in table.groupby(list(SERIES)):
                clipping = f"clipped at {clip:g}" if math.isfinite(clip) else "not clipped"
                label = f"{steps} steps, hidden {hidden}, {clipping}"
                axes.plot(cells["beta"], cells[name], marker="o", markersize=4, label=label)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
            axes.set_xlabel("beta")
            axes.set_title(title)
        figure.axes[0].axhline(0, color="#222222", linewidth=0.9, linestyle="--")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, PAGES / "cal_dpo_map.svg", dpi=150)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
