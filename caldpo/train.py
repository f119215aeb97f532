"""``python -m caldpo.train loss=cal_dpo model=zephyr``: train one policy, or with ``-m`` a sweep of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from caldpo.api.callable_module import make_callable
from caldpo.config.main import hydra_entry
from caldpo.resume.resume_command import finished_outcome, with_run_overrides
from caldpo.run_settings import SETTINGS, find_config_problems
from caldpo.utils.collector import exempt_from_collection

if TYPE_CHECKING:
    from caldpo.api.trained_run import Run


@hydra_entry("train", settings=SETTINGS, agree=find_config_problems, expand=with_run_overrides, done=finished_outcome)
def main(cfg: DictConfig) -> float | None:
    """Train as ``cfg`` says; returns the value that an optimising sweeper minimises or maximises."""
    with exempt_from_collection():
        from caldpo.training_command import run  # torch and transformers only for a configuration known to be good

    return run(cfg)


def function() -> Callable[..., Run]:
    """What a call of this module calls: see :mod:`caldpo.api.callable_module`."""
    from caldpo.api.train_call import train

    return train


make_callable(__name__)
if __name__ == "__main__":
    main()
