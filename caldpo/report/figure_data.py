"""Whether what an evaluation left for figures has the shape that they draw; what has not is left out, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caldpo.evaluation.suite_base import FOLDER
from caldpo.report.run_files import as_float, is_number
from caldpo.report.statistics import LARGEST

Check = Callable[[Any], bool]


def drawable(results: Mapping[str, Mapping[str, Any]], notes: list[str]) -> dict[str, dict[str, Any]]:
    """The results without the details that no figure could draw, and without notes that are no texts.

    Args:
        results: a run's ``evaluation/*.json`` by suite.
        notes: takes what was left out, a phrase an entry, with the file's name.
    """
    return {suite: _of_suite(suite, content, notes) for suite, content in results.items()}


def _of_suite(suite: str, content: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    found = dict(content)
    if not _is_list_of(_is_text)(found.get("notes") or []):
        notes.append(f"{FOLDER}/{suite}.json: its notes are no list of texts and are left out")
        found["notes"] = []
    details = found.get("details")
    if details is not None and not isinstance(details, Mapping):
        notes.append(f"{FOLDER}/{suite}.json: its details are no mapping and are left out")
        found["details"] = {}
    elif details:
        wrong = [key for key, fits in _SHAPES.get(suite, {}).items() if details.get(key) and not fits(details[key])]
        for key in wrong:
            notes.append(f"{FOLDER}/{suite}.json: details.{key} has another shape than figures draw and is left out")
        found["details"] = {key: value for key, value in details.items() if key not in wrong}
    return found


def _is_number(value: Any) -> bool:
    return is_number(value) and abs(as_float(value)) <= LARGEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(fits: Check) -> Check:
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(fits, value))


def _has_numbers(*names: str) -> Check:
    return lambda value: isinstance(value, Mapping) and all(_is_number(value.get(name)) for name in names)


def _is_bin(value: Any) -> bool:
    """Of a reliability diagram: one that holds pairs."""
    return _has_numbers("low", "high", "claimed", "observed", "count")(value) and bool(value["count"] > 0)


def _are_quantiles(value: Any) -> bool:
    names = ("levels", "chosen", "rejected")
    if not isinstance(value, Mapping) or not all(_is_list_of(_is_number)(value.get(name)) for name in names):
        return False
    return len({len(value[name]) for name in names}) == 1


def _is_point(value: Any) -> bool:
    """Of a path over checkpoints: figures that were not measured may be missing."""
    return isinstance(value, Mapping) and all(
        value.get(name) is None or _is_number(value[name]) for name in ("step", "kl", "reward")
    )


# What figures read of each suite's details.
_SHAPES: dict[str, dict[str, Check]] = {
    "preference": {"reliability": _is_list_of(_is_bin)},
    "displacement": {
        "log_ratios": _are_quantiles,
        "by_length": _is_list_of(_has_numbers("low", "high", "count", "both_fell")),
    },
    "oracle": {"points": _is_list_of(_is_point)},
}
