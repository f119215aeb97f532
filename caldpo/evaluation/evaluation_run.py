"""Run every suite on every policy of ``python -m caldpo.evaluate``, and write the results beside the runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from caldpo.components import build
from caldpo.config.run_lifecycle import describe_error, write_json
from caldpo.config.run_lock import EVALUATION, run_lock
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_cache import EvaluationCache
from caldpo.evaluation.evaluation_console import print_end, print_failure, print_left_out, print_policy, print_result
from caldpo.evaluation.evaluation_provenance import consistency_notes, digest_of, provenance_of
from caldpo.evaluation.evaluation_settings import EvaluateSettings
from caldpo.evaluation.evaluation_target import Target, find_folders, name_of, read_target
from caldpo.evaluation.model_loading import find_device
from caldpo.evaluation.suite_base import FOLDER, Suite, UnsuitableDataError, read_results
from caldpo.loggers.tracker_base import Trackers

_NO_SUITES = ("model", "reference", "data")  # sections that build something else
# by name, not by package: nothing else that a run's file may name is built for its summary
_TRACKERS = (
    "caldpo.loggers.mlflow_tracker.MLflow",
    "caldpo.loggers.tensorboard_tracker.TensorBoard",
    "caldpo.loggers.tracker_base.NoTracker",
    "caldpo.loggers.trackio_tracker.Trackio",
    "caldpo.loggers.wandb_tracker.WandB",
)


def evaluate(cfg: DictConfig, write_report: Callable[[str], object]) -> list[tuple[str, Path]]:
    """Evaluate the run, the sweep or the model of ``cfg`` by its suites; ``write_report`` compares a sweep's runs.

    Returns:
        The name of each policy with the file of each suite's results.

    Raises:
        CaldpoError: a suite or the only policy cannot be evaluated.
        SystemExit: with code 1 when some of several runs failed.
    """
    settings = EvaluateSettings(**{f.name: cfg[f.name] for f in fields(EvaluateSettings)})
    find_device(settings.device)
    suites, folders = build_suites(cfg), find_folders(cfg)
    cache = EvaluationCache(settings, cfg.reference.path)
    console = Console()
    transformers.utils.logging.disable_progress_bar()
    single = len(folders) == 1
    failed, results = 0, list[tuple[str, Path]]()
    for number, folder in enumerate(folders, start=1):
        name = name_of(cfg, folder)
        print_policy(console, name, number, len(folders))
        try:
            policy = EvaluatedPolicy(read_target(cfg, folder), cache)
            with run_lock(policy.folder, EVALUATION):
                files = _run_suites(policy, suites, settings, console, single=single)
            results += [(name, file) for file in files]
        except Exception as error:  # the other runs of a sweep are evaluated all the same
            if single:
                raise
            failed += 1
            print_failure(console, folder, error)
    report = None
    if settings.report and failed < len(folders) > 1:
        write_report(str(cfg.run))
        report = Path(cfg.run) / "report.md"
    print_end(console, len(folders), failed, report, cfg.run)
    if failed:
        raise SystemExit(1)
    return results


def build_suites(cfg: DictConfig) -> list[Suite]:
    """Build and check the suites of the configuration, in its order; refuse one without any."""
    names = [str(name) for name in cfg if isinstance(cfg[name], DictConfig) and "_target_" in cfg[name]]
    suites: list[Suite] = [build(cfg[name], name) for name in names if name not in _NO_SUITES]
    if not suites:
        raise CaldpoError("no suite is chosen", key="suite", remedy="choose one or several: suite=[preference]")
    for suite in suites:
        suite.check()
    return suites


def _run_suites(
    policy: EvaluatedPolicy, suites: list[Suite], settings: EvaluateSettings, console: Console, *, single: bool
) -> list[Path]:
    """Run the suites whose results are not up to date, after every check of all of them; return their files."""
    written, files = False, list[Path]()
    for suite in _suitable(policy, suites, console):
        name = suite.result_name
        file = policy.folder / f"{name}.json"
        files.append(file)
        provenance = provenance_of(suite, policy)
        digest = digest_of(provenance)
        if not settings.overwrite and _digest_in(file) == digest:
            console.print(f"  {name}: unchanged, not run again (overwrite=true reruns it)", highlight=False)
            continue
        started = time.perf_counter()
        with torch.no_grad():
            result = suite.run(policy)
        result = replace(result, notes=[*consistency_notes(policy), *result.notes])
        seconds = time.perf_counter() - started
        content = {
            "name": name,
            "examples": result.examples,
            "measures": {key: asdict(measure) for key, measure in result.measures.items()},
            "details": dict(result.details),  # as they are: asdict copies a Counter into one of its items
            "notes": list(result.notes),
            "determined_by": provenance,
            "digest": digest if result.reusable else None,
            "seconds": seconds,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(policy.device),
        }
        write_json(file, content)
        print_result(console, name, result, seconds, file, full=single)
        written = True
    is_end_of_run = settings.wanted in ("final", "last") and policy.target.own_data and policy.cache.reference is None
    if written and is_end_of_run and (message := update_tracker(policy.target)):
        console.print(f"  {message}", highlight=False, markup=False, soft_wrap=True)
    return files


def _suitable(policy: EvaluatedPolicy, suites: list[Suite], console: Console) -> list[Suite]:
    """Check all suites; print which do not suit the policy's data and return the others, refuse where none is left."""
    suitable, unsuitable = list[Suite](), list[UnsuitableDataError]()
    for suite in suites:
        if suite.needs_reference:
            policy.require_reference(suite.name)
        try:
            suite.check_policy(policy)
            suitable.append(suite)
        except UnsuitableDataError as error:
            unsuitable.append(error)
    if not suitable:
        raise unsuitable[0]
    for reason in unsuitable:
        print_left_out(console, reason)
    return suitable


def _digest_in(file: Path) -> str | None:
    """Read the digest of a reusable result; None where there is none."""
    try:
        digest: str | None = json.loads(file.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest


def update_tracker(target: Target) -> str | None:
    """Add every measure in the run's results to its trackers, and return lines for the terminal, if any.

    As ``evaluation/SUITE/MEASURE``, and all of them, since W&B takes the last summary of a run for the whole run's.
    Those of earlier checkpoints are left out: a summary is of the end.
    """
    sections = target.config.get("logger")
    if target.run is None or target.folder != target.run:  # output= may hold results of something else
        return None
    if not isinstance(sections, Mapping):
        return None
    own = {
        name: dict(section)
        for name, section in sections.items()
        if isinstance(section, Mapping) and section.get("_target_") in _TRACKERS
    }
    values = {
        f"{FOLDER}/{suite}/{name}": float(measure["value"])
        for suite, content in read_results(target.folder, []).items()
        for name, measure in content["measures"].items()
        if measure.get("value") is not None
    }
    try:
        trackers = Trackers({name: instantiate(section, _recursive_=False) for name, section in own.items()})
        message = trackers.add_summary(target.run, values)
    except InstantiationException as error:  # keys of another version
        return f"the tracker's summary was not updated: {describe_error(error)}"
    return message
