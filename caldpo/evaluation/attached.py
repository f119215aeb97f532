"""The suites that runs were given when they were trained: what is measured where the command line names none."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from caldpo.compare.discover import find_runs
from caldpo.config.tree import read_yaml
from caldpo.errors import CaldpoError
from caldpo.settings import SuiteName

_KNOWN = get_args(SuiteName)


def with_attached_suites(overrides: Sequence[str], multirun: bool) -> list[str]:
    """The overrides of an evaluation with the suites of its runs, if it names a run and no suite.

    Names alone are taken from a run's folder, and those of this project's suites alone. ``judge`` is left out, which is
    said, unless the command line has keys of it: without an endpoint it could measure nothing.

    Args:
        overrides: of the command line, ``run=FOLDER`` among them or not.
        multirun: whether it is a sweep.
    """
    told = list(overrides)
    if any(text.lstrip("+~").partition("=")[0].partition("@")[0] == "suite" for text in told):
        return told
    run = next((text.partition("=")[2].strip("'\"") for text in told if text.startswith("run=")), None)
    found = list(dict.fromkeys(_of_runs(Path(run).expanduser()))) if run else []
    if not found:
        return told  # the command's own default
    if "judge" in found and not any(text.lstrip("+").startswith("judge.") for text in told):
        found.remove("judge")
        print("suite judge of this run is left out: it needs judge.base_url=URL judge.model=NAME", file=sys.stderr)
    return [*told, f"suite=[{','.join(found)}]"]


def _of_runs(folder: Path) -> Iterator[str]:
    """Names of the suites of every run at or below a folder; none where that cannot be told."""
    try:
        runs = find_runs(folder, key="run")
    except CaldpoError:
        return  # the command itself says what is wrong
    for run in runs:
        try:
            config: Any = read_yaml(run / "config.yaml")
        except (OSError, ValueError):
            continue
        named = config.get("suites") if isinstance(config, dict) else None
        yield from (name for name in named if name in _KNOWN) if isinstance(named, list) else ()
