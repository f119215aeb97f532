"""``python -m caldpo.evaluate``: every suite on every policy, results beside the runs, and the report."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from caldpo.compare.report import compare_runs
from caldpo.config.job import one_line, write_json
from caldpo.errors import CaldpoError
from caldpo.evaluation.bench import Workbench
from caldpo.evaluation.doubts import doubts
from caldpo.evaluation.result import Result
from caldpo.evaluation.settings import EvaluateSettings
from caldpo.evaluation.subject import Subject
from caldpo.evaluation.suite import Suite
from caldpo.evaluation.target import Target, find_targets
from caldpo.evaluation.terminal import print_end, print_result, print_subject
from caldpo.evaluation.tracker import tell_tracker
from caldpo.summary import versions

# Settings of the command that results depend on; the others say where and how fast.
_TELLING = ("checkpoint", "precision", "reward_beta", "max_pairs", "batch", "seed")


def evaluate(cfg: DictConfig) -> None:
    """Evaluate what ``cfg`` names by the suites that it names.

    Raises:
        CaldpoError: nothing can be evaluated as it is asked for.
        SystemExit: with code 1 when some of several runs could not be.
    """
    settings = EvaluateSettings(**{f.name: cfg[f.name] for f in fields(EvaluateSettings)})
    suites = find_suites(cfg)
    targets = find_targets(cfg)
    bench = Workbench(settings, cfg.reference.path)
    console = Console()
    transformers.utils.logging.disable_progress_bar()
    failed: dict[str, str] = {}
    for number, target in enumerate(targets, start=1):
        print_subject(console, target, number, len(targets))
        try:
            _evaluate_one(target, suites, bench, settings, console, alone=len(targets) == 1)
        except CaldpoError as error:
            if len(targets) == 1:
                raise
            failed[target.name] = one_line(error)
            console.print(f"  left out: {failed[target.name]}", style="yellow", markup=False, highlight=False)
    report = None
    if settings.report and len(targets) > 1 and len(failed) < len(targets):
        compare_runs(str(cfg.run))
        report = Path(cfg.run) / "report.md"
    print_end(console, targets, failed, report)
    if failed:
        raise SystemExit(1)


def find_suites(cfg: DictConfig) -> list[Suite]:
    """The suites of the configuration, in its order, each checked as far as one can without data and weights.

    Raises:
        CaldpoError: one cannot be had, or there is none.
    """
    sections = [name for name in cfg if isinstance(cfg[name], DictConfig) and "_target_" in cfg[name]]
    suites = [
        instantiate(cfg[name], _convert_="all") for name in sections if name not in ("model", "reference", "data")
    ]
    if not suites:
        raise CaldpoError(
            "there is nothing to measure", key="suite", remedy="choose one or several: suite=[preference]"
        )
    for suite in suites:
        suite.check()
    return suites


def _evaluate_one(
    target: Target, suites: list[Suite], bench: Workbench, settings: EvaluateSettings, console: Console, *, alone: bool
) -> None:
    subject = Subject(target, bench)
    for suite in suites:
        if suite.needs_reference:
            subject.require_reference(suite.name)
        suite.check_subject(subject)
    measured = False
    for suite in suites:
        file = subject.folder / f"{suite.name}.json"
        facts = determined_by(suite, subject)
        if not settings.again and _kept(file, facts):
            console.print(f"  {suite.name}: as before (again=true measures anew)", highlight=False)
            continue
        started = time.perf_counter()
        with torch.no_grad():
            result = suite.run(subject)
        result = replace(result, notes=[*doubts(subject), *result.notes])
        seconds = time.perf_counter() - started
        write_json(file, content_of(suite, subject, result, facts, seconds))
        print_result(console, suite.name, result, seconds, file, whole=alone)
        measured = True
    if measured and isinstance(settings.checkpoint, str) and (told := tell_tracker(target)):
        console.print(f"  {told}", highlight=False, markup=False, soft_wrap=True)


def determined_by(suite: Suite, subject: Subject) -> dict[str, Any]:
    """What a result depends on: settings, weights, data, versions."""
    own = {name: getattr(subject.settings, name) for name in _TELLING}
    own |= {"precision": subject.precision, "reward_beta": subject.reward_beta}
    return {
        "suite": suite.settings(),
        "settings": own,
        "policy": subject.identity,
        "reference": subject.reference_identity,
        "step": subject.weights.step,
        "weights": subject.weights.stamp(),
        "pairs": subject.data.test_pairs.digest()[:16],
        "versions": versions(),
    }


def content_of(suite: Suite, subject: Subject, result: Result, facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Everything that is kept of a result."""
    return {
        "name": suite.name,
        **result.as_dict(),
        "determined_by": facts,
        "digest": _digest(facts),
        "seconds": seconds,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(subject.device),
    }


def _kept(file: Path, facts: dict[str, Any]) -> bool:
    """Whether ``file`` holds a result of just these facts."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["digest"] == _digest(facts)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
