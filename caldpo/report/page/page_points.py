"""What the page draws of evaluations and final figures: reward against KL, calibration, displaced responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caldpo.report.evaluation_plots import (
    PREFERENCE,
    SIDES,
    by_length,
    quantiles,
    reliability,
)
from caldpo.report.evaluation_results import PREFIX, details, evaluated
from caldpo.report.frontier_plot import beta, frontier_point, frontiers
from caldpo.report.grouping import RunGroup
from caldpo.report.page.page_numbers import plain_number, plain_numbers
from caldpo.report.plot_style import linear_limit
from caldpo.report.statistics import Estimate, estimate
from caldpo.report.table_cells import spread
from caldpo.utils.text_format import number

_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def frontier(groups: Sequence[RunGroup]) -> dict[str, Any] | None:
    """Return each group's KL (nats) and true reward with one standard deviation, its path over checkpoints, and which
    groups differ only in beta; None where no group has both.
    """
    points = {place: point for place, group in enumerate(groups) if (point := frontier_point(group)) is not None}
    if not points:
        return None
    references = [value for point in points.values() for value in point.references]
    places = list(points)
    return {
        "points": [
            {
                "group": place,
                "kl": _estimate(point.kl),
                "reward": _estimate(point.reward),
                "evaluated": point.evaluated,
                "path": [plain_numbers(side) for side in point.path],
            }
            for place, point in points.items()
        ],
        "reference": plain_number(sum(references) / len(references)) if references else None,
        "joined": [
            [[places[member], beta(groups[places[member]])] for member in members]
            for members in frontiers([groups[place] for place in places])
        ],
    }


def frontier_rows(groups: Sequence[RunGroup]) -> list[list[str]]:
    """Rows of the text alternative: setting, KL and true reward, and how many checkpoints its path has."""
    rows = []
    for group in groups:
        if (point := frontier_point(group)) is not None:
            rows.append([group.label, spread(point.kl), spread(point.reward), str(point.path.shape[1])])
    return rows


def calibration(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Return each evaluated group's reliability curve, every pair of every seed counting alike."""
    curves = []
    for place, group in enumerate(groups):
        bins = [b for run in evaluated(group, PREFERENCE) if (b := details(run, PREFERENCE).get("reliability"))]
        if bins:
            whole = reliability(bins)
            sides = {name: plain_numbers(getattr(whole, name)) for name in ("claimed", "observed", "share")}
            curves.append({"group": place, **sides, "error": _error(group)})
    return curves


def displacement(groups: Sequence[RunGroup]) -> dict[str, Any] | None:
    """Return quantiles of both sides' log-ratios (nats), and the share of pairs both of whose responses fell, by length
    in tokens; None where no group was evaluated so.
    """
    ranges: list[dict[str, Any]] = []
    lengths: list[dict[str, Any]] = []
    for place, group in enumerate(groups):
        for side in SIDES:
            values = quantiles(group, side)
            if all(level in values for level in _LEVELS):
                ranges.append({"group": place, "side": side, "values": plain_numbers(values[x] for x in _LEVELS)})
        middle, share = by_length(group)
        if len(middle):
            lengths.append({"group": place, "x": plain_numbers(middle), "y": plain_numbers(share)})
    if not ranges and not lengths:
        return None
    sizes = [max(abs(value or 0.0) for value in entry["values"]) for entry in ranges]
    return {"ranges": ranges, "lengths": lengths, "linear": linear_limit(sizes), "levels": list(_LEVELS)}


def calibration_rows(groups: Sequence[RunGroup], curves: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Rows of the text alternative: setting, calibration error, and the bins as claimed and observed probability."""
    return [
        [
            groups[curve["group"]].label,
            curve["error"],
            ", ".join(f"{a:.2f}: {b:.2f}" for a, b in zip(curve["claimed"], curve["observed"], strict=True)),
        ]
        for curve in curves
    ]


def displacement_rows(groups: Sequence[RunGroup], found: dict[str, Any]) -> list[list[str]]:
    """Rows of the text alternative: setting, side, and the quantiles of its log-ratios."""
    return [
        [groups[entry["group"]].label, entry["side"], *("-" if v is None else number(v) for v in entry["values"])]
        for entry in found["ranges"]
    ]


def length_rows(groups: Sequence[RunGroup], found: dict[str, Any]) -> list[list[str]]:
    """Rows of the text alternative: setting, and the share of pairs both of whose responses fell by their length."""
    return [
        [
            groups[entry["group"]].label,
            ", ".join(f"{number(a)}: {number(b)}" for a, b in zip(entry["x"], entry["y"], strict=True)),
        ]
        for entry in found["lengths"]
    ]


def _error(group: RunGroup) -> str:
    return spread(estimate(group.finals(lambda final: final.get(f"{PREFIX}/{PREFERENCE}/calibration_error"))))


def _estimate(value: Estimate) -> list[float | None]:
    return [plain_number(value.mean), plain_number(value.sd)]
