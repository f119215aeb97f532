"""The names under which a run logs its metrics, known before it starts; no heavy imports at the top.

Most names are the same for every run. What depends on the loss (its terms, its diagnostics, whether training rows have
a reference) is asked of the loss itself, on two made-up pairs: that imports torch, and happens for such a name alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from caldpo.config.did_you_mean import suggest
from caldpo.config.signatures import read_signature
from caldpo.config.validation import Problem
from caldpo.errors import CaldpoError

HELD_OUT = "val/"
ORACLE = "oracle/"

# of pairs, whatever the loss: caldpo.metrics
LOGPS = ("logps/chosen", "logps/rejected")
WITH_REFERENCE = (
    "log_ratios/chosen",
    "log_ratios/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "displacement",
)
OF_LOSS = ("terms/", "diagnostics/")
# of an optimiser step: caldpo.step_metrics
OF_STEP = ("grad_norm", "clip_fraction", "lr", "tokens_per_second")
# where the true reward is known: caldpo.callbacks.true_reward
SAMPLED = ("reward", "reference_reward", "win_rate", "kl")
AGREEMENT = ("slope", "pearson", "spearman", "error")
# where the optimum is known, too: caldpo.environments.tabular_environment
EXACT = ("exact_reward", "exact_kl", "objective", "objective_optimum", "kl_to_optimum", "kl_from_optimum")


def objective_problems(cfg: DictConfig) -> Iterator[Problem]:
    """The problem of ``optimized_metric``, if it names a metric that the configured run will not log.

    Args:
        cfg: the composed configuration of a training run.
    """
    name = OmegaConf.select(cfg, "optimized_metric")
    if not isinstance(name, str) or name in _of_every_run():
        return  # what is no text, the signature refuses
    if name.startswith(ORACLE):
        known, why_not = _of_oracle(cfg)
    elif _of_the_loss(name):
        known, why_not = _of_loss(cfg)
    else:
        known, why_not = _of_every_run(), ""
    if known is None or name in known:
        return
    near = "" if why_not else suggest(name, [*known, *_of_every_run()])
    listed = ", ".join(sorted(known) or _of_every_run())
    yield Problem("optimized_metric", name, f"this run will not log it{why_not}{near}", f"choose among {listed}")


def _of_every_run() -> list[str]:
    held_out = [f"{HELD_OUT}{name}" for name in ("loss", *LOGPS, *WITH_REFERENCE)]
    return [*held_out, "loss", *LOGPS, *OF_STEP]


def _of_the_loss(name: str) -> bool:
    """Whether it takes the loss to say if there is such a metric."""
    return name.removeprefix(HELD_OUT).startswith(OF_LOSS) or name in WITH_REFERENCE


def _of_loss(cfg: DictConfig) -> tuple[list[str], str]:
    """Metrics that depend on the loss, held out and in training."""
    own, needs_reference = _asked(cfg.loss)
    training = [*own, *(WITH_REFERENCE if needs_reference else ())]
    known = [*training, *(f"{HELD_OUT}{name}" for name in own)]
    if not needs_reference and str(cfg.optimized_metric) in WITH_REFERENCE:
        return known, f": this loss trains without a reference, which {HELD_OUT}{cfg.optimized_metric} has"
    return known, ""


def _asked(section: DictConfig) -> tuple[list[str], bool]:
    """Terms and diagnostics of a loss, and whether it reads the reference in training."""
    import torch
    from hydra.utils import instantiate

    from caldpo.metrics import loss_metrics
    from caldpo.types import PairLogps

    loss: Any = instantiate(section, _convert_="all")
    logps = [torch.tensor(two) for two in ([-2.0, -3.0], [-4.0, -3.0], [-2.5, -3.0], [-3.5, -3.0])]
    tokens = [torch.tensor([4.0, 5.0]), torch.tensor([5.0, 4.0])]
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])]
    output = loss(PairLogps(*logps, *tokens, *scores))
    return [name for name in loss_metrics(output) if name != "loss"], loss.needs_reference


def _of_oracle(cfg: DictConfig) -> tuple[list[str] | None, str]:
    """Metrics of the oracle; None where a source outside the package may add any."""
    callbacks = OmegaConf.select(cfg, "callbacks") or {}
    evaluations = [c for c in callbacks.values() if isinstance(c, DictConfig) and _ends(c, ".OracleEvaluation")]
    if not any(OmegaConf.select(c, "prompts", default=1) for c in evaluations):
        return [], ": the evaluation by the true reward is switched off (callbacks.oracle.prompts)"
    target = str(OmegaConf.select(cfg, "data.source._target_"))
    if not target.startswith("caldpo."):
        return None, ""
    if not _has(target, "reward"):
        return [], ": the true reward of this data is not known"
    exact = EXACT if _has(target, "exact_metrics") else ()
    return [f"{ORACLE}{name}" for name in (*SAMPLED, *AGREEMENT, *exact)], ""


def _ends(section: DictConfig, ending: str) -> bool:
    return str(OmegaConf.select(section, "_target_")).endswith(ending)


def _has(target: str, method: str) -> bool:
    try:
        return read_signature(f"{target}.{method}") is not None
    except CaldpoError:
        return False
