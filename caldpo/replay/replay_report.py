"""Report a replayed step: tables on the terminal, and plain values for ``step-N.replay.json``."""

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
WIDTH = 150  # of the tables, at the least: numbers must not be cut
_SHORT = {"policy_chosen": "p_w", "policy_rejected": "p_l", "reference_chosen": "r_w", "reference_rejected": "r_l"}


def verdict(dump: Dump, weights: str, passes: list[InspectedPass]) -> str:
    """Judge whether the non-finite values were reproduced, and whether precision causes them."""
    bad = [one.precision for one in passes if one.is_nonfinite(dump.weight)]
    good = [one.precision for one in passes if one.precision not in bad]
    if not bad:
        return f"not reproduced: everything is finite in {' and in '.join(good)} (weights: {weights})"
    if not good:
        return f"reproduced in {' and in '.join(bad)}: the precision is not what is wrong"
    return f"reproduced in {' and in '.join(bad)}, and not in {' and in '.join(good)}: the precision is too narrow"


def print_replay(dump: Dump, weights: str, passes: list[InspectedPass]) -> None:
    """Print a table of the pairs and one of the gradient for each pass."""
    console = Console()
    console.width = max(console.width, WIDTH)
    metadata = dump.metadata
    facts = Table(title="Replay: nothing is trained", title_justify="left", show_header=False)
    for name, value in {
        "step": f"{metadata['step']}, rank {metadata.get('rank', 0)} of {metadata.get('ranks', 1)}",
        "reason then": metadata.get("reason", ""),
        "loss": metadata.get("formula", ""),
        "weights": weights,
        "pairs": f"{sum(w > 0 for w in dump.weight)} in {len(dump.micro_batches)} micro-batches ({metadata['layout']})",
    }.items():
        facts.add_row(name, Text(str(value)))
    console.print(facts)
    for one in passes:
        console.print(_pairs(dump, one))
        norms = Table(title=f"Gradient in {one.precision}", title_justify="left")
        norms.add_column("parameters")
        norms.add_column("norm", justify="right")
        norms.add_column("not finite in")
        for group, norm in one.norms.items():
            names = [name.removeprefix(f"{group}.") for name in one.nonfinite if group_of(name) == group]
            norms.add_row(group, f"{norm:.4g}", Text(", ".join(names)))
        console.print(norms)


def _pairs(dump: Dump, one: InspectedPass) -> Table:
    """Tabulate the pairs of a pass, those that are not finite now, or were not then, first."""
    then = [
        i for i, w in enumerate(dump.weight) if w > 0 and any(not bool(v[i].isfinite()) for v in dump.values.values())
    ]
    real = [i for i, weight in enumerate(dump.weight) if weight > 0]
    first = list(dict.fromkeys([*one.nonfinite_pairs(dump.weight), *then, *real]))
    more = f", {MAX_PAIRS} of {len(real)} pairs" if len(real) > MAX_PAIRS else ""
    table = Table(title=f"Pairs in {one.precision}{more}; nats", title_justify="left")
    table.add_column("pair")
    table.add_column("tokens", justify="right")
    names = [name for name in one.values if not name.startswith("diagnostics/")]
    has_reference = "reference_chosen" in one.values
    for name in names:
        table.add_column(_SHORT.get(name, name), justify="right")
    for side in ("a", "b") if has_reference else ():
        table.add_column(side, justify="right")
    table.add_column("loss then", justify="right")
    table.add_column("not finite")
    for i in first[:MAX_PAIRS]:
        pair = dump.pairs[i]
        cells = [f"{one.values[name][i].item():.4g}" for name in names]
        if has_reference:
            cells += [f"{ratio:.4g}" for ratio in _ratios(one, i)]
        earlier = f"{dump.values['loss'][i].item():.4g}" if "loss" in dump.values else ""
        lengths = f"{len(pair.prompt_ids)}+{len(pair.chosen_ids)}/{len(pair.rejected_ids)}"
        nonfinite = ", ".join(_SHORT.get(name, name) for name in one.nonfinite_values(i))
        table.add_row(Text(pair.origin), lengths, *cells, earlier, Text(nonfinite, style="bold red"))
    return table


def as_dict(path: Path, dump: Dump, weights: str, passes: list[InspectedPass]) -> dict[str, Any]:
    """Convert to plain values: log-probs in nats; non-finite numbers as text."""
    return {
        "dump": str(path),
        **{name: dump.metadata.get(name) for name in ("step", "rank", "ranks", "reason", "loss", "formula")},
        "weights": weights,
        "verdict": verdict(dump, weights, passes),
        "reproduced": {one.precision: one.is_nonfinite(dump.weight) for one in passes},
        "passes": [
            {
                "precision": one.precision,
                "pairs": [_pair(dump, one, i) for i in range(len(dump.pairs))],
                "gradient_norms": {group: _number(norm) for group, norm in one.norms.items()},
                "bad_gradients": one.nonfinite,
            }
            for one in passes
        ],
    }


def _pair(dump: Dump, one: InspectedPass, i: int) -> dict[str, Any]:
    pair = dump.pairs[i]
    fields: dict[str, Any] = {
        "origin": pair.origin,
        "real": dump.weight[i] > 0,
        "tokens": {
            "prompt": len(pair.prompt_ids),
            "chosen": len(pair.chosen_ids),
            "rejected": len(pair.rejected_ids),
        },
        **{name: _number(value[i].item()) for name, value in one.values.items()},
        "then": {name: _number(value[i].item()) for name, value in dump.values.items()},
        "not_finite": one.nonfinite_values(i),
    }
    if "reference_chosen" in one.values:
        fields["log_ratio_chosen"], fields["log_ratio_rejected"] = map(_number, _ratios(one, i))
    return fields


def _ratios(one: InspectedPass, i: int) -> tuple[float, float]:
    """Compute the log-ratios policy/reference of a pair's chosen and rejected response, nats."""
    v = one.values
    sides = ("chosen", "rejected")
    chosen, rejected = ((v[f"policy_{side}"][i] - v[f"reference_{side}"][i]).item() for side in sides)
    return chosen, rejected


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
