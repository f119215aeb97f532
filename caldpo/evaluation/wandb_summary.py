"""Results of an evaluation for the tracker of the run, where it has one."""

from __future__ import annotations

from collections.abc import Mapping

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from caldpo.config.run_lifecycle import one_line
from caldpo.evaluation.evaluation_target import Target
from caldpo.evaluation.suite_result import FOLDER, read_results

# by name, not by package: nothing else that a run's file may name is built for this
_TRACKERS = ("caldpo.loggers.NoTracker", "caldpo.loggers.WandB")


def tell_tracker(target: Target) -> str | None:
    """Add every measure in the run's results to its summary, as ``evaluation/SUITE/MEASURE``.

    All of them, because W&B takes the summary of the last stretch of a run for that of the run. Those of earlier
    checkpoints are left out: a summary is of the end.

    Returns:
        A line for the terminal, if there is something to say.
    """
    section = target.config.get("logger")
    if target.run is None or target.folder != target.run:  # elsewhere lies what is not the run's own, by its output=
        return None
    if not isinstance(section, Mapping) or section.get("_target_") not in _TRACKERS:
        return None
    values = {
        f"{FOLDER}/{suite}/{name}": float(measure["value"])
        for suite, content in read_results(target.folder, []).items()
        for name, measure in content["measures"].items()
        if measure.get("value") is not None
    }
    try:
        tracker = instantiate(dict(section), _recursive_=False)
    except InstantiationException as error:  # keys of another version
        return f"the tracker was not told: {one_line(error)}"
    told: str | None = tracker.add_summary(target.run, values)
    return told
