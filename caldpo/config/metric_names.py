"""The names under which a run logs its metrics, known before it starts; no heavy imports at the top.

Most names are the same for every run. Those that depend on the loss (its terms, its diagnostics, whether training rows
have a reference) are read from the loss itself, on two made-up pairs: that imports torch, for such a name alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from caldpo import metric_definitions as m
from caldpo.config.did_you_mean import suggest
from caldpo.config.signatures import read_signature
from caldpo.config.validation import Problem
from caldpo.errors import CaldpoError

_ORACLE = "oracle/"
_ALWAYS_HELD_OUT = (m.LOSS, *m.LOGPS, *m.WITH_REFERENCE)


def find_metric_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield the problem of ``optimized_metric``, if it names a metric that the configured run will not log.

    Args:
        cfg: the composed configuration of a training run.
    """
    name = OmegaConf.select(cfg, "optimized_metric")
    always = _names(m.LOSS, *m.LOGPS, *m.STEP_METRICS) + _names(*(x.held_out for x in _ALWAYS_HELD_OUT))
    if not isinstance(name, str) or name in always:
        return  # other types are refused by the signature
    reason = ""
    if name.startswith(_ORACLE):
        known, reason = _oracle_names(cfg)
    elif m.definition_of(name) in m.OF_LOSS or name in _names(*m.WITH_REFERENCE):
        known, reason = _loss_names(cfg)
    else:
        known = always
    if known is None or name in known:
        return
    near = "" if reason else suggest(name, [*known, *always])
    listed = ", ".join(sorted(known) or always)
    yield Problem("optimized_metric", name, f"this run will not log it{reason}{near}", f"choose among {listed}")


def _names(*metrics: m.MetricDefinition) -> list[str]:
    return [metric.name for metric in metrics]


def _loss_names(cfg: DictConfig) -> tuple[list[str], str]:
    """Names of metrics that depend on the loss, in training and held out; and why one of them is missing."""
    own, needs_reference = _loss_outputs(cfg.loss)
    training = [*own, *(_names(*m.WITH_REFERENCE) if needs_reference else ())]
    known = [*training, *(f"{m.HELD_OUT}{name}" for name in own)]
    if not needs_reference and m.definition_of(str(cfg.optimized_metric)) in m.WITH_REFERENCE:
        return known, f": this loss trains without a reference, which {m.HELD_OUT}{cfg.optimized_metric} has"
    return known, ""


def _loss_outputs(section: DictConfig) -> tuple[list[str], bool]:
    """Names of the terms and diagnostics of a loss, and whether it reads the reference in training."""
    import torch
    from hydra.utils import instantiate

    from caldpo.metrics import loss_metrics
    from caldpo.types import PairLogps

    loss: Any = instantiate(section, _convert_="all")
    logps = [torch.tensor(two) for two in ([-2.0, -3.0], [-4.0, -3.0], [-2.5, -3.0], [-3.5, -3.0])]
    tokens = [torch.tensor([4.0, 5.0]), torch.tensor([5.0, 4.0])]
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])]
    output = loss(PairLogps(*logps, *tokens, *scores))
    return [name for name in loss_metrics(output) if name != m.LOSS.name], loss.needs_reference


def _oracle_names(cfg: DictConfig) -> tuple[list[str] | None, str]:
    """Names of metrics of the true reward (None: a source outside the package may add any), and why there are none."""
    callbacks = OmegaConf.select(cfg, "callbacks") or {}
    sections = [section for section in callbacks.values() if isinstance(section, DictConfig)]
    oracles = [s for s in sections if str(OmegaConf.select(s, "_target_")).endswith(".OracleEvaluation")]
    if not any(OmegaConf.select(section, "prompts", default=1) for section in oracles):
        return [], ": the evaluation by the true reward is switched off (callbacks.oracle.prompts)"
    source = str(OmegaConf.select(cfg, "data.source._target_"))
    if not source.startswith("caldpo."):
        return None, ""
    if not _has(source, "reward"):
        return [], ": the true reward of this data is not known"
    return _names(*m.SAMPLED, *m.AGREEMENT, *(m.EXACT if _has(source, "exact_metrics") else ())), ""


def _has(target: str, method: str) -> bool:
    try:
        return read_signature(f"{target}.{method}") is not None
    except CaldpoError:
        return False
