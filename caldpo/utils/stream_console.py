"""The console of what a run prints: a stream, also in a notebook."""

from __future__ import annotations

from typing import Any

import rich.console


class Console(rich.console.Console):
    """Rich's console, but writing to standard output (or error) in a notebook too.

    Rich displays its output there as cells of its own, past ``redirect_stdout`` and with it ``output.txt`` of a run.
    """

    def __init__(self, **keys: Any) -> None:
        super().__init__(force_jupyter=False, **keys)
