"""Where the files of one run contradict each other: a remark that names both values. The summary's are used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from caldpo.report.run_files import Curve, as_float, is_number

_SAME = 1e-6  # relative; both files are written from the same float64
_NAMED = 3  # metrics that are named, the others counted


def contradictions(curves: Mapping[str, Curve], summary: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """What ``summary.json`` of a finished run says otherwise than ``metrics.csv`` and ``config.yaml``.

    Args:
        curves: of ``metrics.csv``.
        summary: of ``summary.json``.
        config: of ``config.yaml``, flat.
    """
    for key, name in (("loss_name", "loss_name"), ("seed", "seed")):
        said, composed = summary.get(key), config.get(name)
        if said is not None and composed is not None and str(said) != str(composed):
            yield f"summary.json says {key} {said}, config.yaml {composed}; the summary's counts"
    last = max((step for curve in curves.values() for step in curve), default=None)
    steps = summary.get("steps")
    if is_number(steps) and last is not None and steps != last:
        yield f"summary.json says that it took {steps} steps, metrics.csv ends at step {last}"
    metrics = summary.get("metrics")
    differing = []
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        curve = curves.get(name)
        if curve and (value is None or is_number(value)):
            logged = curve[max(curve)]
            if not _same(as_float(value), logged):
                differing.append(f"{name} {_shown(value)} against {logged:.6g} at step {max(curve)}")
    if differing:
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        told = ", ".join(differing[:_NAMED])
        yield (
            f"summary.json and the last rows of metrics.csv differ: {told}{more}; tables show the summary's, figures"
            " the rows"
        )


def _shown(value: float | None) -> str:
    return "null" if value is None else f"{as_float(value):.6g}"


def _same(said: float, logged: float) -> bool:
    if not math.isfinite(said):  # JSON has null for all that is not finite
        return not math.isfinite(logged)
    return math.isclose(said, logged, rel_tol=_SAME, abs_tol=1e-12)
