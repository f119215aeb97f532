"""The story of a study: trials, a choice for each loss, fresh seeds, a report. Everything is made from the records."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.security.secrets import redact_text
from caldpo.studies.run_launch import RunLauncher
from caldpo.studies.run_store import RunStore
from caldpo.studies.setting_choice import CHOICES, PRACTITIONER, Trial, choose, scored_trial
from caldpo.studies.study_plan import Arm, LeftOut, StudyPlan, StudyRun
from caldpo.studies.study_report import print_outcome, write_report
from caldpo.studies.study_results import ArmResult, StudyResults
from caldpo.studies.study_settings import StudySettings
from caldpo.studies.trial_points import Point


def run_study(cfg: DictConfig) -> None:
    """Run what has no record yet, and write the report of all that has."""
    command, hydra = _command(), HydraConfig.instance().cfg
    try:
        _run(StudySettings.of(cfg), HydraConfig.get().launcher, command)
    finally:
        HydraConfig.instance().cfg = hydra  # composing runs has set another one


def _run(settings: StudySettings, launcher_section: DictConfig, command: str) -> None:
    plan, store = StudyPlan(settings), RunStore(Path(settings.output))
    arms, left_out = plan.arms()
    for out in left_out:
        print(f"note: {out.row} is left out of {out.condition}: {out.reason}", flush=True)
    if settings.dry_run:
        announce(settings, plan, store, arms)
        return
    store.open(settings.fixed)
    store.add_arms((arm.name for arm in arms), command)
    announce(settings, plan, store, arms)
    launcher = RunLauncher(store, launcher_section, settings.workers, settings.keep_runs)
    run_trials(plan, store, arms, launcher)
    launcher.run([run for arm in arms for run in final_runs(plan, store, arm)], "seeds")
    report = (Path(settings.report) if settings.report else store.folder / "report").expanduser()
    results = collect(settings, store, left_out)
    write_report(results, report)
    print_outcome(results, report)


def announce(settings: StudySettings, plan: StudyPlan, store: RunStore, arms: Sequence[Arm]) -> None:
    """Print how many runs there are, how many of them are done, and about how long the others take."""
    tuned = [arm for arm in arms if arm.space]
    trials = [plan.trial(arm, n, [])[1] for arm in tuned for n in range(settings.trials) if not plan.needs_earlier(n)]
    waiting = len(tuned) * settings.trials - len(trials)  # trials that only later ones can say
    chosen = sum(len(CHOICES) if arm.space else 1 for arm in arms)
    missing, finals = len(store.missing(trials)) + waiting, chosen * settings.seeds
    known = sum(len(store.missing(final_runs(plan, store, arm))) if _all_tried(plan, store, arm) else 0 for arm in arms)
    open_arms = [arm for arm in arms if not _all_tried(plan, store, arm)]
    open_finals = known + settings.seeds * sum(len(CHOICES) for _ in open_arms)
    seconds = missing * settings.run_seconds["trial"] + open_finals * settings.run_seconds["final"]
    at_a_time = settings.workers if settings.workers > 0 else os.cpu_count() or 1
    rows = len({arm.row for arm in arms})
    print(
        f"{rows} rows under {len(settings.conditions)} conditions: {len(tuned) * settings.trials} trials and at most"
        f" {finals} runs with fresh seeds (fewer where both choices agree); {missing} and at most {open_finals} are"
        f" to be run, about {seconds / at_a_time / 60:.0f} minutes, {at_a_time} at a time",
        flush=True,
    )


def run_trials(plan: StudyPlan, store: RunStore, arms: Sequence[Arm], launcher: RunLauncher) -> None:
    """Run the trials of all arms: together, but for those that TPE can only propose from earlier ones."""
    count = plan.settings.trials
    tuned = [arm for arm in arms if arm.space]
    at_once = [plan.trial(arm, n, [])[1] for n in range(count) if not plan.needs_earlier(n) for arm in tuned]
    launcher.run(at_once, "trials")
    for number in range(count):
        if plan.needs_earlier(number):
            runs = [_trial_after(plan, store, arm, number)[1] for arm in tuned]
            launcher.run(runs, f"trials {number + 1} of {count}")


def trials_of(plan: StudyPlan, store: RunStore, arm: Arm) -> list[Trial]:
    """Read the trials of an arm in their order, as far as they have ended."""
    found: list[Trial] = []
    for number in range(plan.settings.trials if arm.space else 0):
        if plan.needs_earlier(number) and len(found) < number:
            return found
        point, run = plan.trial(arm, number, _scores(found))
        if (record := store.record(run)) is not None:
            found.append(scored_trial(number, point, record, plan.settings.practitioner))
    return found


def final_runs(plan: StudyPlan, store: RunStore, arm: Arm) -> list[StudyRun]:
    """List the runs with fresh seeds of both choices, each once."""
    points = [trial.point for trial in choose(trials_of(plan, store, arm)).values()] if arm.space else [{}]
    return list(dict.fromkeys(run for point in points for run in plan.final_runs(arm, point)))


def collect(settings: StudySettings, store: RunStore, left_out: Sequence[LeftOut]) -> StudyResults:
    """Read all arms that any command of the folder asked for."""
    plan = StudyPlan(_of_all_commands(settings, store))
    arms, _ = plan.arms(set(store.arms))
    found, unfinished = [], []
    for arm in arms:
        trials = trials_of(plan, store, arm)
        chosen = choose(trials) if arm.space else {}
        if not _all_tried(plan, store, arm) or store.missing(final_runs(plan, store, arm)):
            unfinished.append(arm.name)
            continue
        points: dict[str, Point] = {choice: trial.point for choice, trial in chosen.items()}
        if not arm.space:
            points = {choice: {} for choice in CHOICES}
        finals = {
            choice: [_recorded(store, run) for run in plan.final_runs(arm, point)] for choice, point in points.items()
        }
        found.append(ArmResult(arm, trials, chosen, finals))
    return StudyResults(plan.settings, found, list(left_out), unfinished, store.commands)


def _all_tried(plan: StudyPlan, store: RunStore, arm: Arm) -> bool:
    return not arm.space or len(trials_of(plan, store, arm)) == plan.settings.trials


def _trial_after(plan: StudyPlan, store: RunStore, arm: Arm, number: int) -> tuple[Any, StudyRun]:
    return plan.trial(arm, number, _scores(trials_of(plan, store, arm)[:number]))


def _scores(trials: Sequence[Trial]) -> list[tuple[Any, float]]:
    """Points and scores for TPE; where a run diverged, the lowest that a mean of shares can be."""
    return [(trial.point, trial.scores.get(PRACTITIONER, 0.0)) for trial in trials]


def _recorded(store: RunStore, run: StudyRun) -> dict[str, Any]:
    record = store.record(run)
    assert record is not None
    return record


def _of_all_commands(settings: StudySettings, store: RunStore) -> StudySettings:
    """The settings with the conditions and rows of every command of the folder."""
    fixed = store.fixed
    conditions = {k.split(".", 1)[1]: v for k, v in fixed.items() if k.startswith("condition_overrides.")}
    beside = {k.split(".", 1)[1]: v for k, v in fixed.items() if k.startswith("beside_overrides.")}
    of_losses = {k.split(".", 1)[1]: v for k, v in fixed.items() if k.startswith("loss_overrides.")}
    asked = list(dict.fromkeys(row for _, row in store.arms))
    content = dict(vars(settings)) | {
        "conditions": list(conditions),
        "condition_overrides": conditions,
        "loss_overrides": of_losses,
        "beside_overrides": beside,
        "losses": [row for row in asked if row not in beside],
        "beside": [row for row in asked if row in beside],
    }
    return StudySettings(**content)


def _command() -> str:
    typed = HydraConfig.get().overrides
    launcher = [text for text in typed.hydra if text.startswith(("hydra/launcher", "hydra.launcher"))]
    return redact_text(shlex.join(["python", "-m", "caldpo.study", *typed.task, *launcher]))
