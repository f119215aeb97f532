"""Write metrics.md, the page of every logged metric, from caldpo/metric_definitions.py: ``make docs`` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caldpo import metric_definitions as m

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Metrics

Every metric that a run logs, by its name in `metrics.csv`, `summary.json` and the tracker. *Better* is the direction
that is plainly better: tables mark the best value by it. A direction in brackets only limits a
[search](clusters.md#search) (`optimized_metric=NAME`), which may optimise the metric in that direction only. Losses
that train without a reference log the metrics that need one only for held-out pairs. Of rows with
[one response and a label](data.md#one-response-and-a-label), metrics of a response are means over those that have it.
This page is made from `caldpo/metric_definitions.py`. After a change there, regenerate it:

```sh
python docs/metrics.py
```
"""
SECTIONS = {
    "Loss and pairs: each optimiser step under the name, held-out pairs under `val/` + name": (
        *(m.LOSS, *m.OF_LOSS),
        *(*m.WITHOUT_REFERENCE, *m.WITH_REFERENCE),
    ),
    "Optimiser step": (*m.STEP_METRICS, m.SKIPPED_STEPS),
    "Optimiser step, where the policy's own samples are trained on (`rollouts=`)": m.ROLLOUTS,
    "End of training, on data whose true reward is known": (*m.SAMPLED, *m.AGREEMENT, *m.BEST_OF_N),
    "End of training, if the optimum is also known": m.EXACT,
}


def page() -> str:
    """Lay out the page, a table per section."""
    assert {metric for metrics in SECTIONS.values() for metric in metrics} == set(m.DEFINITIONS)
    return "\n".join([HEAD, *(f"## {title}\n\n{table(metrics)}\n" for title, metrics in SECTIONS.items())])


def table(metrics: Sequence[m.MetricDefinition]) -> str:
    """Lay out a table of metrics."""
    rows = [
        f"| `{metric.name}` | {metric.title} | {metric.unit} | {direction(metric)} | {escaped(metric.meaning)} |"
        for metric in metrics
    ]
    return "\n".join(["| name | title | unit | better | meaning |", "| :-- | :-- | :-- | :-- | :-- |", *rows])


def direction(metric: m.MetricDefinition) -> str:
    """Name the better direction; in brackets a direction that only limits a search."""
    return metric.better or (f"({metric.optimize})" if metric.optimize else "-")


def escaped(text: str) -> str:
    """Escape what Markdown would read as the border of a cell or as emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
