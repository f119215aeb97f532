"""How many inputs each fuzzing test tries, and how many were tried.

By default few, always the same ones, so that a run of the suite is short and says the same everywhere.
``CALDPO_FUZZ=20000 python -m pytest tests/fuzz`` tries 20,000 new ones per test, and Hypothesis prints how to repeat a
failure. How many were tried is said at the end, by ``tests/conftest.py``, which adds up what several processes did.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

ASKED = int(os.environ.get("CALDPO_FUZZ", "0"))
tried: Counter[str] = Counter()


def fuzz(
    default: int, cost: int = 1, **inputs: SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``given`` with the number of inputs asked for, each of them counted.

    Args:
        default: inputs where nothing is asked for.
        cost: how many times longer than the others this test takes for an input; it tries so many times fewer.
        inputs: as for ``given``.
    """

    def decorator(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            tried[test.__name__] += 1
            test(*args, **kwargs)

        limits = settings(
            max_examples=max(ASKED // cost, 1) if ASKED else default,
            derandomize=not ASKED,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=bool(ASKED),
        )
        return limits(given(**inputs)(counted))

    return decorator
