"""Where independent reference values and real data lie, outside the project; tests skip without them."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared(path: str) -> Path:
    """A file or folder of the shared material; skips the test where there is none."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {path} of the shared folder beside the checkout")
    return found
