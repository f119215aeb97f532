"""What a run is about to do, before its first step: optimiser, learning rate, pairs, steps, precision, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from caldpo.config.conf_dir import conf_dir
from caldpo.data.batching import StepPlan
from caldpo.models.adapted_policy import count_parameters

_OWN_ROWS = ("lr", "schedule", "_target_")  # of an optimiser's section


def training_facts(
    cfg: DictConfig, policy: PreTrainedModel, plan: StepPlan, *, optimizer: str, reference: str
) -> dict[str, str]:
    """What is going to be trained and how, by name.

    Args:
        cfg: the run's configuration, with what ``auto`` stands for in its place.
        policy: with its adapter on.
        plan: of the optimiser steps.
        optimizer: the option that ``optim=`` chose.
        reference: how the reference is kept.
    """
    facts = {
        "optimiser": _optimizer(cfg.optim, optimizer),
        "learning rate": _learning_rate(cfg.optim),
        "pairs per step": _pairs(plan, cfg.data.get("max_tokens_per_micro_batch")),
        "steps": _steps(plan),
        "precision": f"{cfg.trainer.precision} on {cfg.trainer.accelerator}, weights in {_dtype(policy)}",
        "trained": str(count_parameters(policy)),
    }
    clip = cfg.trainer.gradient_clip_val
    return facts | {"clipping": "none" if clip is None else f"gradient norms above {clip:g}", "reference": reference}


def print_training(facts: dict[str, str]) -> None:
    """The facts as a table; on what is no terminal, without lines that fold."""
    console = Console()
    if not console.is_terminal:
        width = max(map(len, facts))
        for name, value in facts.items():
            console.print(f"{name:<{width}}  {value}", soft_wrap=True, highlight=False, markup=False)
        return
    table = Table(title="Training", show_header=False, title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def on_one_line(facts: dict[str, str]) -> str:
    """The facts for a run that is told in one line."""
    optimizer = facts["optimiser"].partition(" (")[0]
    reference = f"reference {facts['reference']}"
    told = [f"{optimizer}, lr {facts['learning rate']}", f"{facts['pairs per step'].partition(' ')[0]} pairs a step"]
    steps = facts["steps"].partition(" ")[0]
    told += [f"{steps} step{'' if steps == '1' else 's'}", facts["precision"].partition(",")[0], facts["trained"]]
    return ", ".join([*told, reference])


def recipe_note(model: str | None, path: Any, overrides: Sequence[str], data: str | None = None) -> str | None:
    """What to say where another model takes the place of the one that an option's settings are made for.

    Args:
        model: the option that ``model=`` chose.
        path: ``model.path``.
        overrides: of the command line.
        data: the option that ``data=`` chose.
    """
    if model == "tiny" and data == "local":
        return (
            "note: the embedded model knows the words of its generated reviews and no others;"
            " for pairs of your own take model=hf model.path=ID_OR_FOLDER"
        )
    file = conf_dir() / "model" / f"{model}.yaml"
    if not file.is_file() or not any(text.lstrip("+").startswith("model.path=") for text in overrides):
        return None
    own = yaml.safe_load(file.read_text(encoding="utf-8")).get("model", {}).get("path")
    if own in (None, "???", path):
        return None
    return (
        f"note: optimiser, learning rate, lengths and steps of model={model} are a recipe for {own};"
        f" model=hf model.path={path} has neutral ones for a model of your own"
    )


def _optimizer(section: DictConfig, option: str) -> str:
    plain: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    told = ", ".join(f"{key} {_number(value)}" for key, value in plain.items() if key not in _OWN_ROWS)
    return f"{option} ({told})" if told else option


def _learning_rate(section: DictConfig) -> str:
    schedule = section.get("schedule")
    lr = _number(section.get("lr"))
    if schedule is None:
        return lr
    steps, ratio = schedule.get("warmup_steps"), schedule.get("warmup_ratio")
    warmup = f"{_number(ratio)} of the steps" if steps is None else f"{steps} steps"
    return f"{lr}, {schedule.decay} after a warm-up of {warmup}"


def _pairs(plan: StepPlan, tokens: int | None) -> str:
    if plan.step_size > plan.pairs:  # an epoch is one step
        return f"{plan.pairs} (all there are; the settings ask for {plan.step_size})"
    each = plan.step_size // plan.world_size
    devices = f" on each of {plan.world_size} devices" if plan.world_size > 1 else ""
    if tokens is not None:
        cut = f"{plan.accumulation} micro-batch{'es' if plan.accumulation > 1 else ''} of at most {tokens:,} tokens"
        return f"{plan.step_size} ({each}{devices}, in {cut})"
    accumulated = f" x {plan.accumulation} micro-batches" if plan.accumulation > 1 else ""
    return f"{plan.step_size} ({plan.micro_batch_size}{accumulated}{devices})"


def _steps(plan: StepPlan) -> str:
    epochs = plan.steps / max(plan.steps_per_epoch, 1)
    named = f"{epochs:.3g} epoch{'' if epochs == 1 else 's'} of {plan.steps_per_epoch:,}"
    return f"{plan.steps:,} ({named}; {plan.pairs:,} training pairs)"


def _dtype(policy: PreTrainedModel) -> str:
    names = {str(p.dtype).removeprefix("torch.") for p in policy.parameters() if p.requires_grad}
    frozen = {str(p.dtype).removeprefix("torch.") for p in policy.parameters() if not p.requires_grad} - names
    return " and ".join(sorted(names)) + (f" (frozen ones in {', '.join(sorted(frozen))})" if frozen else "")


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
