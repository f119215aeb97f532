"""``python -m caldpo.train loss=cal_dpo model=zephyr``: train one policy, or with ``-m`` a sweep of them."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.resume.resume_command import finished_outcome, with_run_overrides
from caldpo.run_settings import SETTINGS, find_config_problems
from caldpo.utils.collector import exempt_from_collection

if TYPE_CHECKING:
    from caldpo.api import TrainingResult


@hydra_entry("train", settings=SETTINGS, agree=find_config_problems, expand=with_run_overrides, done=finished_outcome)
def main(cfg: DictConfig) -> float | None:
    """Train as ``cfg`` says; returns the value that an optimising sweeper minimises or maximises."""
    with exempt_from_collection():
        from caldpo.training_command import run  # torch and transformers only for a configuration known to be good

    return run(cfg)


class _Callable(types.ModuleType):
    """Makes ``caldpo.train``, this module, the function of the same name in :mod:`caldpo.api`, too."""

    def __call__(self, cfg: DictConfig) -> TrainingResult:
        from caldpo.api import train

        return train(cfg)


if __name__ == "__main__":
    main()
else:
    sys.modules[__name__].__class__ = _Callable
