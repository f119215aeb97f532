"""Contents of ``evaluation/SUITE.json`` as evaluation leaves them, with figures that the tests choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def measure(value: float | None, low: float | None = None, high: float | None = None, **words: Any) -> dict[str, Any]:
    """One measure; better when higher and shown in tables unless ``words`` say otherwise."""
    plain = {"title": "accuracy", "unit": "share of pairs", "meaning": "how often it is right", "better": "higher"}
    return {"value": value, "low": low, "high": high, "n": 256, "main": True, **plain, **words}


def content(
    measures: Mapping[str, Mapping[str, Any]],
    *,
    details: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    suite: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """A whole file. ``suite`` and ``settings`` change what the evaluation was asked for, ``facts`` what it was of."""
    asked = {"checkpoint": "final", "precision": "32-true", "reward_beta": 0.1, "max_pairs": None, "seed": 0}
    return {
        "name": "preference",
        "examples": 256,
        "measures": dict(measures),
        "details": dict(details or {}),
        "notes": list(notes),
        "determined_by": {
            "suite": {"bins": 10, **(suite or {})},
            "settings": {**asked, **(settings or {})},
            "reference": "the policy's starting weights",
            "step": 20,
            "pairs": "5de9dab8",
            "versions": {"torch": "2.13.0"},
            **facts,
        },
    }


def accuracy(value: float | None, low: float | None = None, high: float | None = None, **others: Any) -> dict[str, Any]:
    """Results of all suites for a test of one measure."""
    return {"preference": content({"accuracy": measure(value, low, high)}, **others)}


def reliability(*bins: tuple[float, float, float, int]) -> dict[str, Any]:
    """Details of the suite ``preference``: (lower edge, claimed, observed, count) of bins that are 0.1 wide."""
    names = ("low", "claimed", "observed", "count")
    return {"reliability": [dict(zip(names, b, strict=True)) | {"high": b[0] + 0.1} for b in bins]}
