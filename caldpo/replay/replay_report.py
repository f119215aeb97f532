"""Report a replayed step as plain values (``step-N.replay.json``), and those as tables on the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.nonfinite.step_dump import Dump
from caldpo.replay.inspected_pass import InspectedPass, group_of

MAX_PAIRS = 20  # in a table, the non-finite ones first; the file has all
MIN_WIDTH = 150  # of the tables: numbers must not be cut
_SHORT = {"policy_chosen": "p_w", "policy_rejected": "p_l", "reference_chosen": "r_w", "reference_rejected": "r_l"}
_SHORT |= {"log_ratio_chosen": "a", "log_ratio_rejected": "b"}


def replay_facts(path: Path, dump: Dump, weights: str, passes: list[InspectedPass]) -> dict[str, Any]:
    """Collect a replay as plain values: log-probs in nats; non-finite numbers as text.

    Args:
        path: of the dump.
        dump: what it holds.
        weights: which weights were used.
        passes: the first in the run's precision.
    """
    copied = {"step", "rank", "ranks", "reason", "loss", "formula", "layout", "micro_batches"}
    return {
        "dump": str(path),
        **dump.header.model_dump(include=copied),
        "weights": weights,
        "verdict": verdict(dump, weights, passes),
        "reproduced": {one.precision: one.is_nonfinite(dump.weight) for one in passes},
        "passes": [
            {
                "precision": one.precision,
                "pairs": [_pair_facts(dump, one, i) for i in range(len(dump.pairs))],
                "gradient_norms": {group: _plain(norm) for group, norm in one.norms.items()},
                "bad_gradients": one.nonfinite,
            }
            for one in passes
        ],
    }


def verdict(dump: Dump, weights: str, passes: list[InspectedPass]) -> str:
    """State whether the non-finite values were reproduced, and whether the precision causes them."""
    bad = " and in ".join(one.precision for one in passes if one.is_nonfinite(dump.weight))
    good = " and in ".join(one.precision for one in passes if not one.is_nonfinite(dump.weight))
    if not bad:
        return f"not reproduced: everything is finite in {good} (weights: {weights})"
    if not good:
        return f"reproduced in {bad}: the precision is not the cause"
    return f"reproduced in {bad}, and not in {good}: the precision is too narrow"


def print_replay(facts: dict[str, Any]) -> None:
    """Print a table of the pairs and one of the gradient for each pass, and the verdict."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    table = Table(title="Replay: nothing is trained", title_justify="left", show_header=False)
    table.add_row("step", f"{facts['step']}, rank {facts['rank']} of {facts['ranks']}")
    table.add_row("reason of the dump", Text(facts["reason"]))
    table.add_row("loss", Text(facts["formula"]))
    table.add_row("weights", facts["weights"])
    table.add_row("micro-batches", f"{len(facts['micro_batches'])} ({facts['layout']})")
    console.print(table)
    for one in facts["passes"]:
        console.print(_pairs_table(one))
        norms = Table("parameters", "norm", "not finite in", title=f"Gradient in {one['precision']}")
        for group, norm in one["gradient_norms"].items():
            names = [name.removeprefix(f"{group}.") for name in one["bad_gradients"] if group_of(name) == group]
            norms.add_row(group, _cell(norm), Text(", ".join(names)))
        console.print(norms)
    console.print(facts["verdict"], soft_wrap=True, highlight=False, markup=False)


def _pair_facts(dump: Dump, one: InspectedPass, i: int) -> dict[str, Any]:
    pair, values = dump.pairs[i], {name: value[i].item() for name, value in one.values.items()}
    if "reference_chosen" in values:
        for side in ("chosen", "rejected"):
            values[f"log_ratio_{side}"] = values[f"policy_{side}"] - values[f"reference_{side}"]
    lengths = {"prompt": len(pair.prompt_ids), "chosen": len(pair.chosen_ids), "rejected": len(pair.rejected_ids)}
    return {
        "origin": pair.origin,
        "real": dump.weight[i] > 0,
        "tokens": lengths,
        **{name: _plain(value) for name, value in values.items()},
        "then": {name: _plain(value[i].item()) for name, value in dump.values.items()},
        "not_finite": one.nonfinite_values(i),
    }


def _pairs_table(one: dict[str, Any]) -> Table:
    """Tabulate a pass's pairs: first those that are not finite now, then those that were not when dumped."""
    pairs = [pair for pair in one["pairs"] if pair["real"]]
    pairs.sort(key=lambda pair: (not pair["not_finite"], all(isinstance(v, float) for v in pair["then"].values())))
    more = f", {MAX_PAIRS} of {len(pairs)} pairs" if len(pairs) > MAX_PAIRS else ""
    other = ("origin", "real", "tokens", "then", "not_finite")
    names = [name for name in one["pairs"][0] if name not in other and not name.startswith("diagnostics/")]
    table = Table("pair", "tokens", title=f"Pairs in {one['precision']}{more}; nats", title_justify="left")
    for name in (*names, "loss then"):
        table.add_column(_SHORT.get(name, name), justify="right")
    table.add_column("not finite", style="bold red")
    for pair in pairs[:MAX_PAIRS]:
        tokens = "{prompt}+{chosen}/{rejected}".format(**pair["tokens"])
        cells = [*(_cell(pair[name]) for name in names), _cell(pair["then"].get("loss", ""))]
        nonfinite = ", ".join(_SHORT.get(name, name) for name in pair["not_finite"])
        table.add_row(Text(pair["origin"]), tokens, *cells, Text(nonfinite))
    return table


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
