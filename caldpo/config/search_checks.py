"""Check that a searching sweep optimises a metric that is comparable between its runs, in its better direction.

No heavy imports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from omegaconf import DictConfig, OmegaConf

from caldpo.config.validation import Problem
from caldpo.metric_definitions import LOSS, OF_LOSS, REWARD_UNIT, definition_of

_SWEEPER = "OptunaSweeper"
_DIRECTIONS = {"higher": "maximize", "lower": "minimize"}


def find_search_problems(cfg: DictConfig, searched: Iterable[str]) -> Iterator[Problem]:
    """Yield the problems of the metric of a search, and of its direction.

    Args:
        cfg: of the sweep, with Hydra's own section.
        searched: keys that the sweeper draws values for.
    """
    if not str(OmegaConf.select(cfg, "hydra.sweeper._target_")).endswith(f".{_SWEEPER}"):
        return
    searched = sorted(searched)
    name = str(OmegaConf.select(cfg, "optimized_metric"))
    metric = definition_of(name)
    if metric is None:
        return
    varying: list[str] = []  # searched keys that change what the metric measures
    if metric in (LOSS, *OF_LOSS):
        varying = [key for key in searched if key == "loss" or key.startswith("loss.")]
    elif metric.unit == REWARD_UNIT:  # which changes where reward_beta is drawn, or written as ${loss.beta}
        refers = str(OmegaConf.to_container(cfg, resolve=False).get("reward_beta"))  # type: ignore[union-attr]
        varying = [key for key in searched if key == "reward_beta" or f"{{{key}}}" in refers]
    if varying:
        yield Problem(
            "optimized_metric",
            name,
            f"is not comparable between values of {', '.join(varying)}, which change what it measures",
            "choose a metric that means the same in every run, such as optimized_metric=val/rewards/accuracies"
            " hydra.sweeper.direction=maximize",
        )
    direction = str(OmegaConf.select(cfg, "hydra.sweeper.direction")).rpartition(".")[2].lower()
    better = _DIRECTIONS[metric.direction] if metric.direction else None
    if better is not None and direction in ("minimize", "maximize") and direction != better:
        message = f"{name} is better when it is {'larger' if better == 'maximize' else 'smaller'}"
        yield Problem("hydra.sweeper.direction", direction, message, f"set it to {better}")
