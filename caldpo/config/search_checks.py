"""Whether a searching sweep is told of something that can be compared, and which way is better. No heavy imports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from omegaconf import DictConfig, OmegaConf

from caldpo.config.metric_names import HELD_OUT, OF_LOSS
from caldpo.config.validation import Problem

_SWEEPER = "OptunaSweeper"
_LARGER = (
    *("rewards/accuracies", "rewards/chosen", "rewards/margins", "log_ratios/chosen", "logps/chosen"),
    *("oracle/reward", "oracle/win_rate", "oracle/pearson", "oracle/spearman", "oracle/exact_reward"),
)
_SMALLER = ("loss", "displacement", "oracle/kl", "oracle/error", "oracle/exact_kl", "oracle/kl_to_optimum")
_SCALED = ("rewards/chosen", "rewards/rejected", "rewards/margins")  # by reward_beta


def find_search_problems(cfg: DictConfig, searched: Iterable[str]) -> Iterator[Problem]:
    """What is wrong with the metric of a search, or with its direction.

    Args:
        cfg: of the sweep, with Hydra's own section.
        searched: keys that the sweeper draws values for.
    """
    if not str(OmegaConf.select(cfg, "hydra.sweeper._target_")).endswith(f".{_SWEEPER}"):
        return
    searched = sorted(searched)
    metric = str(OmegaConf.select(cfg, "optimized_metric"))
    name = metric.removeprefix(HELD_OUT)
    of_the_loss = sorted({key for key in searched if key == "loss" or key.startswith("loss.")})
    follows = of_the_loss if name == "loss" or name.startswith(OF_LOSS) else []
    if name in _SCALED:  # its unit changes where reward_beta is drawn, or written as ${loss.beta}
        refers = str(OmegaConf.to_container(cfg, resolve=False).get("reward_beta"))  # type: ignore[union-attr]
        follows = sorted(key for key in searched if key == "reward_beta" or f"{{{key}}}" in refers)
    if follows:
        yield Problem(
            "optimized_metric",
            metric,
            f"measures another thing at each value of {', '.join(follows)}, so that a search would compare what"
            " cannot be compared",
            "choose what means the same in every run, such as optimized_metric=val/rewards/accuracies"
            " hydra.sweeper.direction=maximize",
        )
    given = str(OmegaConf.select(cfg, "hydra.sweeper.direction")).rpartition(".")[2].lower()
    better = "maximize" if name in _LARGER else "minimize" if name in _SMALLER or name.startswith("terms/") else None
    if better is not None and given in ("minimize", "maximize") and given != better:
        wrong = f"{metric} is better when it is {'larger' if better == 'maximize' else 'smaller'}"
        yield Problem("hydra.sweeper.direction", given, wrong, f"set it to {better}")
