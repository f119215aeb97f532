"""Check ``optimized_metric`` and the metrics that callbacks watch: the run will log them, in their better direction.

Most names are the same for every run. Those that depend on the loss (its terms, its diagnostics, whether training rows
have a reference) are read from the loss itself, on two made-up pairs: that imports torch, only for such a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from caldpo import metric_definitions as m
from caldpo.config.did_you_mean import suggest
from caldpo.config.path_checks import text_at
from caldpo.config.signatures import read_signature
from caldpo.config.validation import Problem
from caldpo.errors import CaldpoError

_ORACLE = "oracle/"
_ALWAYS_HELD_OUT = (m.LOSS, *m.WITHOUT_REFERENCE, *m.WITH_REFERENCE)
_MODIFIED = "caldpo.modifiers.modified_loss.modified"
_SEARCH = ".OptunaSweeper"
_DIRECTIONS = {"higher": "maximize", "lower": "minimize"}
_WATCHING = (".checkpoint_callback.Checkpoints", ".EarlyStopping")  # classes whose ``monitor`` is a metric


def find_metric_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield the problem of ``optimized_metric``, if it names a metric that the configured run will not log."""
    name = OmegaConf.select(cfg, "optimized_metric")
    always = _names(m.LOSS, *m.WITHOUT_REFERENCE, *m.STEP_METRICS) + _names(*(x.held_out for x in _ALWAYS_HELD_OUT))
    if not isinstance(name, str) or name in always:
        return  # other types are refused by the signature
    known: list[str] | None = always
    reason = ""
    if name.startswith(_ORACLE):
        known, reason = _oracle_names(cfg)
    elif m.definition_of(name) in m.OF_LOSS or name in _names(*m.WITH_REFERENCE):
        known, reason = _loss_names(cfg)
    if known is None or name in known:
        return
    near = "" if reason else suggest(name, [*known, *always])
    listed = ", ".join(sorted(known) or always)
    yield Problem("optimized_metric", name, f"this run will not log it{reason}{near}", f"choose among {listed}")


def find_search_problems(cfg: DictConfig, searched: Iterable[str]) -> Iterator[Problem]:
    """Yield the problems of the metric of a search over the keys ``searched``, and of its direction."""
    name = str(OmegaConf.select(cfg, "optimized_metric"))
    metric = m.definition_of(name)
    if metric is None or not str(OmegaConf.select(cfg, "hydra.sweeper._target_")).endswith(_SEARCH):
        return
    varying: list[str] = []  # searched keys that change what the metric measures
    if metric in (m.LOSS, *m.OF_LOSS):
        varying = [key for key in searched if key.split(".")[0] in ("loss", "modifier")]
    elif metric.unit == m.REWARD_UNIT:  # which changes where reward_beta is drawn, or written as ${loss.beta}
        refers = str(OmegaConf.to_container(cfg, resolve=False).get("reward_beta"))  # type: ignore[union-attr]
        varying = [key for key in searched if key == "reward_beta" or f"{{{key}}}" in refers]
    if varying:
        yield Problem(
            "optimized_metric",
            name,
            f"is not comparable between values of {', '.join(sorted(varying))}, which change what it measures",
            "choose a metric that means the same in every run, such as optimized_metric=val/rewards/accuracies"
            " hydra.sweeper.direction=maximize",
        )
    direction = str(OmegaConf.select(cfg, "hydra.sweeper.direction")).rpartition(".")[2].lower()
    better = _DIRECTIONS.get(metric.direction or "")
    if better and direction in _DIRECTIONS.values() and direction != better:
        message = f"{name} is better when it is {'larger' if better == 'maximize' else 'smaller'}"
        yield Problem("hydra.sweeper.direction", direction, message, f"set it to {better}")


def find_monitor_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield the problems of the metrics that callbacks watch: each is to be measured at evaluations during training."""
    callbacks = OmegaConf.select(cfg, "callbacks") or {}
    for name, section in callbacks.items():
        metric = OmegaConf.select(section, "monitor") if isinstance(section, DictConfig) else None
        if not isinstance(metric, str) or not str(section.get("_target_")).endswith(_WATCHING):
            continue
        key, definition = f"callbacks.{name}", m.definition_of(metric)
        known = _names(*(x.held_out for x in _ALWAYS_HELD_OUT))
        if metric not in known and metric.startswith(m.HELD_OUT) and definition in m.OF_LOSS:
            known += [f"{m.HELD_OUT}{own}" for own in _loss_outputs(cfg)[0]]
        if metric not in known:
            near = suggest(metric, known)
            wrong = f"is not measured at evaluations during training{near}"
            yield Problem(f"{key}.monitor", metric, wrong, f"choose among {', '.join(sorted(known))}")
            continue
        mode = str(section.get("mode", "min"))  # as of Lightning's
        better = definition.mode if definition else None
        if mode == "auto" and better is None:
            yield Problem(
                f"{key}.mode", mode, f"{metric} is not plainly better in one direction", "set it to min or max"
            )
        elif mode in ("min", "max") and better is not None and mode != better:
            is_larger = "larger" if better == "max" else "smaller"
            yield Problem(f"{key}.mode", mode, f"{metric} is better when it is {is_larger}", f"set it to {better}")


def _names(*metrics: m.MetricDefinition) -> list[str]:
    return [metric.name for metric in metrics]


def _loss_names(cfg: DictConfig) -> tuple[list[str], str]:
    """List the metrics that depend on the loss, in training and held out; and why one of them is missing."""
    own, needs_reference = _loss_outputs(cfg)
    training = [*own, *(_names(*m.WITH_REFERENCE) if needs_reference else ())]
    known = [*training, *(f"{m.HELD_OUT}{name}" for name in own)]
    if not needs_reference and m.definition_of(str(cfg.optimized_metric)) in m.WITH_REFERENCE:
        return known, f": this loss trains without a reference, which {m.HELD_OUT}{cfg.optimized_metric} has"
    return known, ""


def _loss_outputs(cfg: DictConfig) -> tuple[list[str], bool]:
    """List the terms and diagnostics of the modified loss, and tell whether it reads the reference in training."""
    import torch
    from hydra.utils import instantiate

    from caldpo.metrics import loss_metrics
    from caldpo.types import PairLogps

    parts = {"loss": cfg.loss, "modifiers": cfg.get("modifier") or {}}
    loss: Any = instantiate({"_target_": _MODIFIED, **parts}, _convert_="all")
    logps: list[Any] = [torch.tensor(two) for two in ([-2.0, -3.0], [-4.0, -3.0], [-2.5, -3.0], [-3.5, -3.0])]
    tokens = [torch.tensor([4.0, 5.0]), torch.tensor([5.0, 4.0])]
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])]
    pairs = PairLogps(*logps, *tokens, *scores)
    output = loss(replace(pairs, chosen_alignment=logps[0], rejected_alignment=logps[1]))
    return [name for name in loss_metrics(output) if name != m.LOSS.name], loss.needs_reference


def _oracle_names(cfg: DictConfig) -> tuple[list[str] | None, str]:
    """List the metrics of the true reward (None: a foreign source may add any), and why there are none."""
    callbacks = OmegaConf.select(cfg, "callbacks") or {}
    sections = [section for section in callbacks.values() if isinstance(section, DictConfig)]
    oracles = [s for s in sections if str(OmegaConf.select(s, "_target_")).endswith(".OracleEvaluation")]
    if not any(OmegaConf.select(section, "prompts", default=1) for section in oracles):
        return [], ": the evaluation by the true reward is switched off (callbacks.oracle.prompts)"
    source = str(text_at(cfg, "data.source._target_"))
    if not source.startswith("caldpo."):
        return None, ""
    if not _has_method(source, "reward"):
        return [], ": the true reward of this data is not known"
    return _names(*m.SAMPLED, *m.AGREEMENT, *(m.EXACT if _has_method(source, "exact_metrics") else ())), ""


def _has_method(target: str, method: str) -> bool:
    try:
        return read_signature(f"{target}.{method}") is not None
    except CaldpoError:
        return False
