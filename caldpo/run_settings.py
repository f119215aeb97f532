"""The plain top-level keys of a training run, and the checks of its configuration. No heavy imports here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import Field

from caldpo.config.bounds import FolderName, NonNegativeInt, Positive
from caldpo.config.extras import find_missing_packages
from caldpo.config.metric_checks import find_metric_problems, find_monitor_problems
from caldpo.config.signatures import validated
from caldpo.config.validation import Problem, find_missing_groups
from caldpo.data.source_paths import find_misplaced
from caldpo.evaluation.default_suites import find_unknown_suites
from caldpo.resume.resume_command import require_same_run

SuiteName = Annotated[
    str, Field(pattern=r"\A[A-Za-z0-9_]+\Z", description="the name of a suite, of letters, digits and _")
]
Tag = Annotated[str, Field(min_length=1, max_length=64, description="a text of 1 to 64 characters")]  # as in W&B
SETTINGS = "caldpo.run_settings.RunSettings"  # of the plain top-level keys


@validated
@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run is called and how it is seeded and scaled; ``conf/train.yaml`` explains each key."""

    name: FolderName
    notes: str | None
    tags: list[Tag]
    seed: NonNegativeInt
    reward_beta: Positive
    console: Literal["full", "compact"]
    export: bool
    optimized_metric: str
    suites: list[SuiteName]
    dry_run: bool
    resume: str | None
    replay: str | None
    allow_untrusted_code: bool
    layout: Literal["auto", "packed", "padded"]
    logits_cache_mib: NonNegativeInt


def find_config_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Check a training configuration beyond its single values, before anything heavy is imported.

    Raises:
        CaldpoError: ``resume=FOLDER`` names a run that cannot be resumed under it.
    """
    missing = list(find_missing_groups(cfg))
    if missing:
        yield from missing
        return
    yield from find_misplaced(cfg)
    yield from find_metric_problems(cfg)
    yield from find_monitor_problems(cfg)
    yield from find_unknown_suites(cfg)
    if not cfg.get("dry_run"):  # which estimates a run of another machine
        yield from find_missing_packages(cfg)
    require_same_run(cfg)
