"""Read run folders. A damaged file costs what it lacks, never the other runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from caldpo.config.find_runs import natural
from caldpo.config.run_lifecycle import (
    DIED,
    DIED_REASON,
    FINISHED,
    INCOMPLETE,
    INTERRUPTED,
    RUNNING,
    UNREADABLE,
    describe_error,
    status_of,
)
from caldpo.config.run_lock import is_held
from caldpo.config.summary_file import SUMMARY, read_summary
from caldpo.errors import CaldpoError
from caldpo.evaluation.suite_base import read_results
from caldpo.report.escaping import first_of, one_line
from caldpo.report.evaluation_results import drawable, final_values
from caldpo.report.logged_curve import LoggedCurve
from caldpo.report.read_curves import IsWhole, contradictions, every_curve, read_curves
from caldpo.report.repeated_yaml import read_config, read_job
from caldpo.report.run_files import Run, as_float, in_one_unit, is_number
from caldpo.report.wandb_export import read_exports
from caldpo.resume.extended_run import extension_notes
from caldpo.security.secrets import redact_text
from caldpo.utils.yaml_io import read_json, read_yaml

_NO_END = {
    RUNNING: "it is still training",
    DIED: DIED_REASON,
    INTERRUPTED: "it was stopped from outside",
    INCOMPLETE: "it left no summary",
}

CurvesOf = Callable[[Path, list[str], IsWhole], dict[str, LoggedCurve]]  # as read_curves


def read_runs(
    folders: Iterable[Path], root: Path, is_whole: IsWhole = every_curve, exports: Iterable[Path] = ()
) -> list[Run]:
    """Read the runs of ``folders`` in the order in which their sweeps started them; names relative to ``root``.

    Those of ``exports``, files of W&B's, come last. The rewards of all are in one unit. A run that cannot be read costs
    that run, which says why. Of metrics that ``is_whole`` does not ask for at every step, curves hold the last one.
    """
    return in_order([*(read_or_named(folder, root, is_whole) for folder in folders), *read_exports(exports)])


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Put the rewards of all runs in one unit, and the runs in the order in which their sweeps started them."""
    runs = in_one_unit(runs)

    def started(run: Run) -> tuple[Any, ...]:
        job = len(runs) if run.job is None else run.job
        if run.exported:
            return True, [], 0, natural(run.name)
        return False, natural(str(Path(run.name).parent)), job, natural(run.name)

    return sorted(runs, key=started)


def read_run(folder: Path, root: Path, is_whole: IsWhole = every_curve, curves_of: CurvesOf = read_curves) -> Run:
    """Read one run folder; what is missing or unreadable is named in ``notes`` or ``error``."""
    notes: list[str] = []
    raw, resolved = (_read(read_config, folder / name, notes) or {} for name in (".hydra/config.yaml", "config.yaml"))
    job, chosen = _read(read_job, folder / ".hydra/hydra.yaml", notes) or (None, {})
    summary = _summary(folder, notes)
    status = _status(folder, summary)
    curves = curves_of(folder / "metrics.csv", notes, is_whole)
    evaluation = drawable(read_results(folder, notes), notes)
    flat_resolved = resolved or raw
    overrides = _overrides(_read(read_yaml, folder / ".hydra/overrides.yaml", notes), notes)
    if status == FINISHED:
        notes += contradictions(curves, summary, flat_resolved)
    notes += extension_notes(summary)
    run = Run(
        folder=folder,
        name=_name(folder, root),
        status=status,
        error=None if status == FINISHED else one_line(_error(status, summary, notes)),
        loss=_loss(summary, flat_resolved, overrides),
        seed=_integer(summary.get("seed", flat_resolved.get("seed"))),
        config=raw or resolved,
        resolved=flat_resolved,
        overrides=overrides,
        choices={key: one_line(option) for key, option in chosen.items() if isinstance(option, str)},
        curves=curves,
        final=_final(curves, _mapping(summary, "metrics"), notes) | final_values(evaluation),
        summary=summary,
        evaluation=evaluation,
        notes=tuple(map(one_line, notes)),
        job=_integer(job),
    )
    beta = run.number("reward_beta")
    return replace(run, reward_beta=beta if beta is not None and math.isfinite(beta) and beta > 0 else None)


def read_or_named(folder: Path, root: Path, is_whole: IsWhole, curves_of: CurvesOf = read_curves) -> Run:
    """Read one run folder as :func:`read_run`; of one that cannot be read, the run says why."""
    try:
        return read_run(folder, root, is_whole, curves_of)
    except Exception as error:  # the other runs' figures must not be lost by an unforeseen fault in this one's files
        message = one_line(f"it cannot be read: {describe_error(error)}")
        return Run(folder, _name(folder, root), UNREADABLE, message, "unknown", None, {}, {})


def _name(folder: Path, root: Path) -> str:
    return one_line(folder.relative_to(root).as_posix() if folder != root else folder.name)


def _overrides(typed: Any, notes: list[str]) -> tuple[str, ...]:
    """Mask secrets in the overrides: what is read here may be printed, and Hydra keeps them as they were typed."""
    overrides = [redact_text(str(text)) for text in typed] if isinstance(typed, list) else []
    options = [text for text in overrides if text.startswith("-")]
    if options:
        notes.append(f"overrides.yaml: {', '.join(options[:3])}: an option of a command is no override, and left out")
    return tuple(text for text in overrides if text not in options)


def _final(curves: Mapping[str, LoggedCurve], summarised: Mapping[str, Any], notes: list[str]) -> dict[str, float]:
    """The summary's metrics; the last logged value of those that it lacks. JSON's null is not a number."""
    last = {name: curve.last for name, curve in curves.items() if name != "epoch"}
    numbers = {name: as_float(value) for name, value in summarised.items() if value is None or is_number(value)}
    wrong = [f"{name} {str(value)[:40]!r}" for name, value in summarised.items() if name not in numbers]
    if wrong:
        notes.append(f"{SUMMARY}: metrics that are not numbers are left out: {first_of(wrong, 5)}")
    return last | numbers


def _error(status: str, summary: Mapping[str, Any], notes: list[str]) -> str:
    if summary.get("error"):
        return redact_text(str(summary["error"]))
    unreadable = (note for note in notes if note.startswith(SUMMARY))
    return next(unreadable, _NO_END.get(status, "no error was recorded"))


def _status(folder: Path, summary: Mapping[str, Any]) -> str:
    """The status in the summary, unless it says running and no process holds the run."""
    if not summary:
        return RUNNING if is_held(folder) else INCOMPLETE
    return status_of(folder, str(summary.get("status", INCOMPLETE)))


def _loss(summary: Mapping[str, Any], config: Mapping[str, Any], overrides: Iterable[str]) -> str:
    options = [text.partition("=")[2] for text in overrides if text.startswith("loss=")]
    names = (summary.get("loss_name"), config.get("loss_name"), *options, config.get("loss._target_"))
    return next((one_line(name) for name in names if name), "unknown")


def _read(read: Callable[[Path], Any], path: Path, notes: list[str]) -> Any:
    """Read a yaml file; None where it is missing, or cannot be read, which is noted."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except (OSError, ValueError):
        notes.append(f"{path.name} cannot be read")
        return None


def _summary(folder: Path, notes: list[str]) -> Mapping[str, Any]:
    try:
        summary = read_summary(folder)
    except CaldpoError as error:
        notes.append(f"{SUMMARY} {error.message}")
        return {}
    written = read_json(folder / SUMMARY) if summary else {}
    measured = {key: written.get(key) for key in ("wall_seconds", "peak_memory_bytes")}
    odd = [key for key, value in written.items() if value is not None and key not in summary]
    odd += [key for key, value in measured.items() if value is not None and not is_number(value)]
    if odd:
        notes.append(f"{SUMMARY}: {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} of another type, and left out")
    return {key: value for key, value in summary.items() if key not in odd}


def _mapping(tree: Any, key: str) -> Mapping[str, Any]:
    branch = tree.get(key) if isinstance(tree, Mapping) else None
    return branch if isinstance(branch, Mapping) else {}


def _integer(value: Any) -> int | None:
    """Read a whole number, also from text; a fraction or true is none."""
    try:
        whole = int(value)
        return whole if not isinstance(value, bool) and (value == whole or str(value) == str(whole)) else None
    except (TypeError, ValueError, OverflowError):
        return None
