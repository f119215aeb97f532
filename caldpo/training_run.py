"""One training run, from its configuration to its trained policy: :func:`train_run` is the story."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.callbacks.callback_base import RunCallback
from caldpo.callbacks.past_early_stop import PastEarlyStop
from caldpo.callbacks.reseed import Reseed
from caldpo.callbacks.too_few_evaluations import too_few_evaluations
from caldpo.checkpointing.best_checkpoint import find_best
from caldpo.checkpointing.checkpoint_callback import Checkpoints
from caldpo.checkpointing.checkpoint_plan import CheckpointPlan
from caldpo.components import Components
from caldpo.console import (
    adapter_rate_note,
    note_rounding,
    on_one_line,
    print_clipping,
    print_end,
    print_facts,
    recipe_note,
    training_facts,
)
from caldpo.data.batching import StepPlan
from caldpo.data.end_tokens import end_tokens, inner_end_notes
from caldpo.distributed.fsdp import full_state_dict
from caldpo.errors import CaldpoError
from caldpo.estimation.oom_report import out_of_memory_error
from caldpo.estimation.token_budget import TokenBudget, choose_budget, describe_recomputed
from caldpo.exporting.export_policy import export_notes, write_policy
from caldpo.exporting.model_card import CARD, Exported, write_card
from caldpo.lightning_module import PreferenceModule
from caldpo.loggers.metrics_logger import MetricsFile
from caldpo.loggers.tracker_base import run_totals
from caldpo.logprobs.layout import choose_layout
from caldpo.metrics_file import NAME
from caldpo.model_data_checks import check_fit
from caldpo.models.adapted_policy import is_adapted, print_adapter_coverage
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.models.model_source import load_on_rank
from caldpo.models.sampling import sampling_notes
from caldpo.nonfinite.guard import NonFiniteGuard
from caldpo.reference.moving_reference import build_reference
from caldpo.reference.reference_base import in_run_dtype, reference_context
from caldpo.resume.extended_run import EXTENSIONS, PAST_EARLY_STOP, Extension
from caldpo.resume.pins import RECOMPUTE_ABOVE, TOKEN_BUDGET
from caldpo.resume.resume_point import ResumePoint
from caldpo.resume.run_inputs import data_inputs, environment, frozen_inputs, policy_inputs
from caldpo.rollouts.rollout_base import RolloutContext
from caldpo.run_record import PLANNED, RunRecord, tracked_name
from caldpo.run_settings import RunSettings
from caldpo.utils.atomic_io import atomic_folder
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.devices import is_out_of_memory
from caldpo.utils.heap import map_large_blocks
from caldpo.utils.notes import print_notes

Announce = Callable[[str], None]


@dataclass(frozen=True)
class PreparedData:
    """What training needs of the prepared data besides the pairs."""

    tokenizer: PreTrainedTokenizerBase
    inputs: dict[str, str]  # digests for checkpoints, see data_inputs


def train_run(
    cfg: DictConfig, settings: RunSettings, run_dir: Path, announce: Announce | None = None
) -> dict[str, Any]:
    """Train one policy, and return the content of ``summary.json``.

    ``announce`` prints a line past the redirected output, with ``console=compact``.
    """
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    components = Components.from_config(cfg)
    components.check()
    if components.trainer.accelerator == "cpu":
        map_large_blocks()
    record = RunRecord.open(run_dir, cfg, settings, components)
    announce_start(cfg, record, announce)
    resume = ResumePoint.find(run_dir, resumed=record.resumed)
    data = prepare_data(cfg, components, record, resume)
    note_evaluations(components, announce)
    with closing(components), oom_explained(cfg, components):
        policy = load_checked_policy(components, data.tokenizer, settings)
        loggers = open_loggers(components, record, resume)
        plan = plan_steps(cfg, components, record, policy)
        note_extension(components, record, resume, plan, announce)
        own = [Reseed(settings.seed), *components.callbacks.values()]
        callbacks = [*own, *past_early_stop(record, resume, announce)]
        trainer = components.trainer.build(run_dir, loggers, callbacks, plan.accumulation, plan.steps)
        module = build_module(components, record, resume, trainer, policy, plan, data)
        announce_training(cfg, record, module, plan, announce)
        fit(trainer, module, components.data, resume)
        components.logger.summarize(run_totals(record.totals(module, resume.seconds)))
    export_policy(module, record)
    return finish(trainer, module, components, record, resume)


def announce_start(cfg: DictConfig, record: RunRecord, announce: Announce | None) -> None:
    """Print what is going to be trained, before anything expensive."""
    print_facts(
        "Run",
        {
            "loss": f"{record.loss_name}: {record['formula']}",
            **({"rollouts": record["rollouts"]} if record["rollouts"] else {}),
            "policy": record["policy"],
            "reference": record["reference"],
            "rewards/*": f"{record.settings.reward_beta:g} x log-ratio (nats), the same for every loss",
            "seed": str(record.settings.seed),
            "folder": str(record.run_dir),
        },
    )
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    model, typed = choices.get("model"), hydra.overrides.task
    for note in (
        recipe_note(model, cfg.model.get("path"), typed, choices.get("data")),
        adapter_rate_note(model, choices.get("adapter"), cfg.optim.lr, typed),
    ):
        if note is not None:
            (announce or print)(note)


def prepare_data(cfg: DictConfig, components: Components, record: RunRecord, resume: ResumePoint) -> PreparedData:
    """Read, check, split and tokenise the pairs, and compare them with the models and with the resumed run."""
    tokenizer, data = components.model.load_tokenizer(), components.data
    report = data.prepare_pairs(tokenizer, record.run_dir, loss_name=record.loss_name, **components.row_needs())
    record.note({"data": report.as_dict()})
    check_fit(
        components.model,
        tokenizer,
        data,
        reference=components.reference,
        model_section=cfg.model,
        callbacks=components.callbacks,
        rollouts=components.rollouts,
    )
    inputs = data_inputs(record.config, data, tokenizer)
    resume.require_same_inputs(inputs)  # before weights load; the others are compared when the checkpoint does
    return PreparedData(tokenizer, inputs)


def note_evaluations(components: Components, announce: Announce | None) -> None:
    """Print which callbacks watch a metric that is measured too rarely."""
    trainer = components.trainer
    if trainer.extra.dev_steps is not None or not is_first_rank():
        return
    plan, every = components.data.plan_by_count(**trainer.extent()), trainer.val_check_interval
    for note in too_few_evaluations(
        components.callbacks, steps=plan.steps, steps_per_epoch=plan.steps_per_epoch, val_check_interval=every
    ):
        (announce or print)(f"note: {note}")


def load_checked_policy(
    components: Components, tokenizer: PreTrainedTokenizerBase, settings: RunSettings
) -> PreTrainedModel:
    """Load the policy, put its adapter on, and print what a user should know of it."""
    policy = components.adapter.apply(load_on_rank(components.model, sharded=components.trainer.is_sharded))
    print_adapter_coverage(policy)
    print_notes(sampling_notes(policy, tokenizer, end_tokens(tokenizer, policy)))
    print_notes(inner_end_notes(tokenizer, policy, components.data.train_pairs))
    print_notes(export_notes(policy, tokenizer) if settings.export else [])
    return policy


def open_loggers(components: Components, record: RunRecord, resume: ResumePoint) -> list[Logger]:
    """Open ``metrics.csv`` and the run's trackers."""
    name = tracked_name(record.run_dir, record.loss_name, record.settings.seed)
    tracked = components.logger.open(record.run_dir, name, record.sweep_name, record.config, resume.earlier)
    return [MetricsFile(record.run_dir), *tracked]


def plan_steps(cfg: DictConfig, components: Components, record: RunRecord, policy: PreTrainedModel) -> StepPlan:
    """Probe the policy, choose the layout of its batches, and plan the optimiser steps."""
    data, trainer = components.data, components.trainer
    require_valid_logprobs(policy, training=True, max_length=data.max_length, dropout=bool(cfg.model.get("dropout")))
    layout, reason = choose_layout(record.settings.layout, policy, data.max_length, sharded=trainer.is_sharded)
    print(f"layout: {layout} ({reason})", flush=True)
    budget = TokenBudget(data.token_budget or 0, "as the run began")

    def choose(plan: StepPlan) -> int:
        nonlocal budget
        budget = choose_budget(components, policy, plan, layout, logits_cache_mib=record.settings.logits_cache_mib)
        return budget.tokens

    plan = data.plan_steps(layout, **trainer.extent(), choose_budget=choose, **components.step_reading())
    recompute_above = components.recompute_above(policy, data.budget)
    if data.token_budget is not None:
        print(f"micro-batches: {budget.describe(plan)}", flush=True)
    if recomputed := describe_recomputed(plan, recompute_above):
        print(f"activations recomputed: {recomputed} (model.gradient_checkpointing=auto)", flush=True)
    print_notes(filter(None, [budget.warning]))
    record.note({PLANNED: plan.steps, TOKEN_BUDGET: data.token_budget, RECOMPUTE_ABOVE: recompute_above})
    return plan


def note_extension(
    components: Components, record: RunRecord, resume: ResumePoint, plan: StepPlan, announce: Announce | None
) -> None:
    """Print and record that a resumed run was planned with fewer steps, and what its learning rate does."""
    before, optim = record.earlier.get(PLANNED), components.optim
    if resume.manifest is None or before is None or before >= plan.steps:
        return
    extension = Extension.of_schedule(resume.manifest.step, before, plan.steps, optim.lr, optim.schedule.factor)
    record.note({EXTENSIONS: [*record.extensions, asdict(extension)]})
    if is_first_rank():
        (announce or print)(f"note: {extension.describe()}")


def past_early_stop(record: RunRecord, resume: ResumePoint, announce: Announce | None) -> list[pl.Callback]:
    """Let early stopping not end a run where it was made longer, also where it begins there a second time."""
    *others, last = record.extensions or [{}]
    if resume.manifest is None or last.get("step") != resume.manifest.step:
        return []

    def tell() -> None:
        record.note({EXTENSIONS: [*others, {**last, "past_early_stop": True}]})
        if is_first_rank():
            (announce or print)(f"note: made longer at step {last['step']:,}: {PAST_EARLY_STOP}")

    return [PastEarlyStop(last["step"], tell)]


def build_module(
    components: Components,
    record: RunRecord,
    resume: ResumePoint,
    trainer: pl.Trainer,
    policy: PreTrainedModel,
    plan: StepPlan,
    data: PreparedData,
) -> PreferenceModule:
    """Build the training module, with the policy in the run's dtype and the reference beside it."""
    loss, optim, settings = components.loss, components.optim, components.trainer
    policy = in_run_dtype(trainer, policy)
    inputs = {**data.inputs, **policy_inputs(policy)}
    if not optim.rounds_stochastically:
        note_rounding(next(p.dtype for p in policy.parameters() if p.requires_grad), optim.lr)
    facts = {
        "model": components.model.identity(),
        "tokenizer": data.tokenizer.name_or_path,
        "prompts": record["data"]["prompts"],
    }
    rollouts = components.rollouts
    context = reference_context(
        policy, components.model, loss, components.data, trainer, plan.pairs_seen, facts, sampled=rollouts.on
    )
    reference = build_reference(components.reference, context, loss.reference_move)
    fitting = RolloutContext(
        record.run_dir,
        policy,
        reference,
        data.tokenizer,
        components.data,
        optim,
        context.device,
        trainer=lambda steps: settings.for_steps(steps).build(
            record.run_dir, [], [Reseed(record.settings.seed)], plan.accumulation
        ),
        resumed=record.resumed,
    )
    record.note(dict(rollouts.prepare(fitting)))
    return PreferenceModule(
        policy,
        reference,
        loss,
        optim,
        data.tokenizer,
        record.settings.reward_beta,
        same_start=not components.reference.distinct,
        metrics_sync_every=settings.metrics_sync_every,
        logits_cache_mib=record.settings.logits_cache_mib,
        recompute_above=components.recompute_above(policy, components.data.budget),
        nonfinite=NonFiniteGuard(settings.on_nonfinite, settings.max_skipped_steps),
        checkpoint_plan=CheckpointPlan(
            inputs=lambda: {**inputs, **frozen_inputs(policy, reference, components.reference), **rollouts.inputs()},
            environment=environment(policy, trainer.strategy.root_device, components.data.layout),
            cut=resume.truncate_files,
        ),
        rollouts=rollouts,
    )


def announce_training(
    cfg: DictConfig, record: RunRecord, module: PreferenceModule, plan: StepPlan, announce: Announce | None
) -> None:
    """Print how the policy is going to be trained."""
    facts = training_facts(
        cfg,
        module.policy,
        plan,
        optimizer=str(HydraConfig.get().runtime.choices.get("optim")),
        reference=type(module.reference).__name__.removesuffix("Reference").lower(),
    )
    print_facts("Training", facts)
    if announce is not None:
        announce(f"{record.run_dir.name}: {on_one_line(facts)}")


def fit(
    trainer: pl.Trainer, module: PreferenceModule, data: pl.LightningDataModule, resume: ResumePoint | None = None
) -> None:
    """Evaluate, train, evaluate once more where training did not end with that, and call the callbacks' ``on_trained``.

    After a checkpoint the first evaluation is done already; without ``resume`` the run starts again.
    """
    checkpoint = None if resume is None else resume.checkpoint
    if checkpoint is None:
        if resume is not None and is_first_rank():
            resume.truncate_files()
        trainer.validate(module, data, verbose=False)
    trainer.fit(module, data, ckpt_path=checkpoint)
    if module.evaluated_at != module.global_step:
        trainer.validate(module, data, verbose=False)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunCallback):
            callback.on_trained(trainer, module)


@contextlib.contextmanager
def closing(components: Components) -> Iterator[None]:
    """Close the data's workers and the trackers, whatever happens."""
    failed = True
    try:
        yield
        failed = False
    finally:
        components.data.close_loaders()
        components.logger.close(failed=failed)


@contextlib.contextmanager
def oom_explained(cfg: DictConfig, components: Components) -> Iterator[None]:
    """Explain an out-of-memory error by the estimate: where memory goes, and what to change."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(error, cfg, components) from error


def export_policy(module: PreferenceModule, record: RunRecord) -> None:
    """Write the trained policy into ``policy/`` of the run's folder; all ranks have to call."""
    if record.settings.export:
        weights = full_state_dict(module.policy)
        if is_first_rank():
            with atomic_folder(record.run_dir / "policy") as draft:
                write_policy(module.policy, module.tokenizer, draft, weights=weights)


def best_checkpoint(components: Components, record: RunRecord) -> dict[str, Any] | None:
    """Describe the best checkpoint for ``summary.json``; None where no metric was watched, or none was kept."""
    watching = [c for c in components.callbacks.values() if isinstance(c, Checkpoints) and c.monitor is not None]
    if not watching or not is_first_rank():
        return None
    try:
        best = find_best(record.run_dir, {"monitor": watching[0].monitor, "mode": watching[0].mode})
    except CaldpoError:  # shorter than the first evaluation
        return None
    return {"metric": best.metric, "mode": best.mode, "step": best.step, "value": best.value, "note": best.note}


def finish(
    trainer: pl.Trainer, module: PreferenceModule, components: Components, record: RunRecord, resume: ResumePoint
) -> dict[str, Any]:
    """Write the final ``summary.json`` and the model card, and print the outcome; returns the summary."""
    watchers = [callback for callback in components.callbacks.values() if isinstance(callback, RunCallback)]
    summary = record.finish(
        module,
        earlier_seconds=resume.seconds,
        upload=components.logger.upload,
        tracker_url=components.logger.url,
        tracker_views=components.logger.views,
        alarms=[alarm for callback in watchers for alarm in callback.alarms],
        rejected_rows=components.data.rejected_rows(),
        best_checkpoint=best_checkpoint(components, record),
        stopped_early=module.global_step < record[PLANNED],
    )
    if trainer.is_global_zero:
        run_dir, adapted = record.run_dir, is_adapted(module.policy)
        if record.settings.export:
            exported = Exported(module.global_step, is_end=True, adapter=adapted)
            write_card(run_dir, run_dir / "policy" / CARD, exported, picture=False)
        print_end(summary, run_dir, exported=record.settings.export, adapted=adapted)
        print_clipping(run_dir / NAME, components.trainer.gradient_clip_val)
    return summary
