"""``python -m caldpo.train loss=cal_dpo model=zephyr``: train one policy, or with ``-m`` a sweep of them."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from caldpo.config.check import Problem
from caldpo.config.entry import hydra_entry
from caldpo.config.groups import find_missing_groups
from caldpo.config.logged import objective_problems
from caldpo.config.places import find_misplaced
from caldpo.resuming.ask import require_same_run, with_run
from caldpo.resuming.before import settle


def agree(cfg: DictConfig) -> Iterator[Problem]:
    """What can be said of a training run beyond its single values, before anything heavy is imported."""
    missing = list(find_missing_groups(cfg))
    if missing:
        yield from missing
        return
    yield from find_misplaced(cfg)
    yield from objective_problems(cfg)
    require_same_run(cfg)


@hydra_entry("train", settings="caldpo.settings.RunSettings", agree=agree, expand=with_run, done=settle)
def main(cfg: DictConfig) -> float | None:
    """Train as ``cfg`` says; returns the value that an optimising sweeper minimises or maximises."""
    from caldpo.run import run  # torch and transformers load only for a configuration known to be good

    return run(cfg)


if __name__ == "__main__":
    main()
