"""``python -m caldpo.train loss=cal_dpo model=zephyr``: train one policy, or with ``-m`` a sweep of them."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.config.metric_names import objective_problems
from caldpo.config.validation import Problem, find_missing_groups
from caldpo.data.source_paths import find_misplaced
from caldpo.evaluation.default_suites import find_unknown_suites
from caldpo.resume.restart_policy import settle
from caldpo.resume.resume_overrides import require_same_run, with_run

if TYPE_CHECKING:
    from caldpo.api import TrainingResult


SCHEMAS = {"": "caldpo.run_settings.RunSettings"}  # of the plain top-level keys


def agree(cfg: DictConfig) -> Iterator[Problem]:
    """What can be said of a training run beyond its single values, before anything heavy is imported."""
    missing = list(find_missing_groups(cfg))
    if missing:
        yield from missing
        return
    yield from find_misplaced(cfg)
    yield from objective_problems(cfg)
    yield from find_unknown_suites(cfg)
    require_same_run(cfg)


@hydra_entry("train", settings=SCHEMAS[""], agree=agree, expand=with_run, done=settle)
def main(cfg: DictConfig) -> float | None:
    """Train as ``cfg`` says; returns the value that an optimising sweeper minimises or maximises."""
    from caldpo.training_run import run  # torch and transformers load only for a configuration known to be good

    return run(cfg)


class _Callable(types.ModuleType):
    """``caldpo.train`` is this module and, from Python, the function of :mod:`caldpo.api` that it is named after."""

    def __call__(self, cfg: DictConfig) -> TrainingResult:
        from caldpo.api import train

        return train(cfg)


if __name__ == "__main__":
    main()
else:
    sys.modules[__name__].__class__ = _Callable
