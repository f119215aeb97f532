"""``python -m caldpo.evaluate``: every suite on every policy, results beside the runs, and the report."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig
from rich.console import Console

from caldpo.components import build
from caldpo.config.run_lifecycle import write_json
from caldpo.config.run_lock import EVALUATION, run_lock
from caldpo.errors import CaldpoError
from caldpo.evaluation.consistency_checks import doubts
from caldpo.evaluation.eval_precision import find_device
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.evaluation_cache import EvaluationCache
from caldpo.evaluation.evaluation_console import print_end, print_left_out, print_result, print_subject
from caldpo.evaluation.evaluation_fingerprint import determined_by, digest_of
from caldpo.evaluation.evaluation_settings import EvaluateSettings
from caldpo.evaluation.evaluation_target import Target, find_folders, name_of, read_target
from caldpo.evaluation.suite_base import Suite
from caldpo.evaluation.suite_result import Result
from caldpo.evaluation.wandb_summary import tell_tracker
from caldpo.report.comparison import compare_runs


def evaluate(cfg: DictConfig) -> None:
    """Evaluate what ``cfg`` names by the suites that it names.

    Raises:
        CaldpoError: nothing can be evaluated as it is asked for.
        SystemExit: with code 1 when some of several runs could not be.
    """
    settings = EvaluateSettings(**{f.name: cfg[f.name] for f in fields(EvaluateSettings)})
    find_device(settings.device)
    suites, folders = find_suites(cfg), find_folders(cfg)
    bench = EvaluationCache(settings, cfg.reference.path)
    console = Console()
    transformers.utils.logging.disable_progress_bar()
    failed: list[str] = []
    for number, folder in enumerate(folders, start=1):
        name = name_of(cfg, folder)
        print_subject(console, name, number, len(folders))
        try:
            _evaluate_one(read_target(cfg, folder), suites, bench, settings, console, alone=len(folders) == 1)
        except Exception as error:  # whatever ails one run of a sweep, the others are measured
            if len(folders) == 1:
                raise
            failed.append(name)
            print_left_out(console, folder, error)
    report = None
    if settings.report and len(failed) < len(folders) > 1:
        compare_runs(str(cfg.run))
        report = Path(cfg.run) / "report.md"
    print_end(console, len(folders), len(failed), report, cfg.run)
    if failed:
        raise SystemExit(1)


def find_suites(cfg: DictConfig) -> list[Suite]:
    """The suites of the configuration, in its order, each checked as far as one can without data and weights.

    Raises:
        CaldpoError: one cannot be had, or there is none.
    """
    sections = [name for name in cfg if isinstance(cfg[name], DictConfig) and "_target_" in cfg[name]]
    suites = [build(cfg[name], str(name)) for name in sections if name not in ("model", "reference", "data")]
    if not suites:
        raise CaldpoError(
            "there is nothing to measure", key="suite", remedy="choose one or several: suite=[preference]"
        )
    for suite in suites:
        suite.check()
    return suites


def _evaluate_one(
    target: Target,
    suites: list[Suite],
    bench: EvaluationCache,
    settings: EvaluateSettings,
    console: Console,
    *,
    alone: bool,
) -> None:
    subject = EvaluatedPolicy(target, bench)
    with run_lock(subject.folder, EVALUATION):
        _measure(subject, suites, settings, console, alone=alone)


def _measure(
    subject: EvaluatedPolicy, suites: list[Suite], settings: EvaluateSettings, console: Console, *, alone: bool
) -> None:
    for suite in suites:
        if suite.needs_reference:
            subject.require_reference(suite.name)
        suite.check_subject(subject)
    measured = False
    for suite in suites:
        file = subject.folder / f"{suite.result}.json"
        facts = determined_by(suite, subject)
        if not settings.again and _kept(file, facts):
            console.print(f"  {suite.result}: as before (again=true measures anew)", highlight=False)
            continue
        started = time.perf_counter()
        with torch.no_grad():
            result = suite.run(subject)
        result = replace(result, notes=[*doubts(subject), *result.notes])
        seconds = time.perf_counter() - started
        write_json(file, content_of(suite, subject, result, facts, seconds))
        print_result(console, suite.result, result, seconds, file, whole=alone)
        measured = True
    of_the_run = isinstance(settings.wanted, str) and subject.target.own_data and subject.bench.reference is None
    if measured and of_the_run and (told := tell_tracker(subject.target)):
        console.print(f"  {told}", highlight=False, markup=False, soft_wrap=True)


def content_of(
    suite: Suite, subject: EvaluatedPolicy, result: Result, facts: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Everything that is kept of a result."""
    return {
        "name": suite.result,
        **result.as_dict(),
        "determined_by": facts,
        "digest": digest_of(facts) if result.settled else None,
        "seconds": seconds,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(subject.device),
    }


def _kept(file: Path, facts: dict[str, Any]) -> bool:
    """Whether ``file`` holds a result of just these facts."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["digest"] == digest_of(facts)
    except (OSError, ValueError, KeyError, TypeError):
        return False
