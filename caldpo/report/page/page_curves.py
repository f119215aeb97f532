"""What the page draws over optimiser steps, from the same curves as ``report.md``: reward dynamics and loss terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caldpo.report.comparison_facts import unit as unit_of
from caldpo.report.dynamics_plot import PANELS, Panel
from caldpo.report.grouping import RunGroup
from caldpo.report.loss_terms_plot import term_shares
from caldpo.report.page.page_numbers import plain_numbers, share_of
from caldpo.report.plot_style import linear_limit, round_up
from caldpo.report.statistics import DRAWN_POINTS, Band, BandKind, band, thinned
from caldpo.utils.text_format import number

_POINTS = 400_000  # of all curves of a page together; a browser stays fast
_LEAST = 60  # of a curve
_LINEAR_SHARE = 0.1  # of the median curve's extent, where a logarithmic axis is asked for and no outlier asks for it


def panels(groups: Sequence[RunGroup], kind: BandKind) -> list[dict[str, Any]]:
    """Return the panels of the reward dynamics that any group has curves of.

    A curve is ``{group, x, y, low, high}``, without the last two for a single seed; of more points than the page has
    room for its ends and extremes stay, and ``steps`` says how many it has.
    """
    room = share_of(_POINTS, len(groups) * len(PANELS), _LEAST, DRAWN_POINTS)
    drawn = [_panel(panel, groups, kind, room) for panel in PANELS]
    return [panel for panel in drawn if panel["curves"]]


def terms(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Return steps and shares of the terms of each group whose loss has several."""
    entries = []
    room = share_of(_POINTS // 4, len(groups), _LEAST, DRAWN_POINTS)
    for place, group in enumerate(groups):
        found = term_shares(group)
        if found is None or len(found[1]) < 2:
            continue
        steps, shares = found
        kept = _kept_steps(steps, list(shares.values()), room)
        columns = {name: plain_numbers(share[kept]) for name, share in shares.items()}
        entries.append({"group": place, "x": steps[kept].tolist(), "shares": columns, "steps": len(steps)})
    return entries


def _panel(panel: Panel, groups: Sequence[RunGroup], kind: BandKind, room: int) -> dict[str, Any]:
    bands = [band(group.curves(panel.metric.curve), kind) for group in groups]
    extents = [float(np.nanmax(np.abs(b.mean))) for b in bands if b is not None and not np.isnan(b.mean).all()]
    limit = None if panel.share else linear_limit(extents)
    sizes = sorted(size for size in extents if size > 0)
    return {
        "id": panel.metric.name.removeprefix("val/").replace("/", "-") + ("-margin" if panel.metric.minus else ""),
        "title": panel.title,
        "unit": unit_of(panel.metric, groups),
        "scale": _scale(panel),
        "neutral": panel.neutral,
        "crushed": limit is not None,
        "linear": None if panel.share or not sizes else limit or round_up(_LINEAR_SHARE * sizes[len(sizes) // 2]),
        "curves": [_curve(place, b, room) for place, b in enumerate(bands) if b is not None],
    }


def _scale(panel: Panel) -> str:
    """Tell which scale shows a panel, of log-ratios (``nats``) or of implicit rewards; ``share`` is shown with both."""
    if panel.share:
        return "share"
    return "reward" if "rewards/" in panel.metric.name else "nats"


def _curve(place: int, whole: Band, room: int) -> dict[str, Any]:
    kept = thinned(whole, room)
    curve = {"group": place, "x": kept.steps.tolist(), "y": plain_numbers(kept.mean), "steps": len(whole.steps)}
    if kept.n > 1:
        curve |= {"low": plain_numbers(kept.low), "high": plain_numbers(kept.high)}
    return curve


def _kept_steps(steps: np.ndarray, shares: Sequence[np.ndarray], room: int) -> np.ndarray:
    """Places of the steps that stay of all terms alike: those of any of them."""
    kept = [thinned(Band(np.arange(len(steps)), share, share, share, 1), room).steps for share in shares]
    return np.unique(np.concatenate(kept))


def panel_rows(panel: dict[str, Any], groups: Sequence[RunGroup]) -> list[list[str]]:
    """Rows of the panel's text alternative: setting, first and last value, and between which it lay."""
    rows = []
    for curve in panel["curves"]:
        known = [value for value in curve["y"] if value is not None]
        if known:
            ends = (known[0], known[-1], min(known), max(known))
            rows.append([groups[curve["group"]].label, *map(number, ends)])
    return rows


def thinned_count(panels_: Sequence[dict[str, Any]]) -> int:
    """Count the curves of which points were left out."""
    return sum(curve["steps"] > len(curve["x"]) for panel in panels_ for curve in panel["curves"])
