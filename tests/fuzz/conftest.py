"""Says at the end how many inputs were tried."""

from __future__ import annotations

from typing import Any

from tests.fuzz.effort import tried


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if tried:
        terminalreporter.section("inputs tried")
        for name, count in sorted(tried.items()):
            terminalreporter.write_line(f"{count:>9,}  {name}")
        terminalreporter.write_line(f"{sum(tried.values()):>9,}  in all")
