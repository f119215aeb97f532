"""One training run: build cheap to dear, fit, evaluate, export, sum up."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from transformers import PreTrainedModel

from caldpo.callbacks.reseed import Reseed
from caldpo.checkpointing.checkpoint_plan import CheckpointPlan, require_same
from caldpo.components import Components
from caldpo.config.run_lifecycle import FINISHED, write_json
from caldpo.config.summary_file import SUMMARY
from caldpo.console import (
    note_rounding,
    peak_memory,
    print_clipping,
    print_end,
    print_layout,
    print_line,
    print_start,
    versions,
)
from caldpo.data.end_tokens import end_tokens, inner_end_notes
from caldpo.distributed.fsdp import full_state_dict
from caldpo.errors import CaldpoError
from caldpo.estimation.estimate_run import estimate
from caldpo.estimation.oom_report import out_of_memory_error
from caldpo.exporting.export_policy import export, export_notes
from caldpo.exporting.model_card import CARD, Exported, write_card
from caldpo.lightning_module import PreferenceModule
from caldpo.loggers import csv_logger
from caldpo.logprobs.layout import settle_layout
from caldpo.metrics_file import NAME
from caldpo.model_data_checks import check_fit
from caldpo.models.adapted_policy import is_adapted, print_adapter_coverage
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.models.model_source import load_on_rank
from caldpo.models.revision import keep_commit, keep_data_commit
from caldpo.models.sampling import sampling_notes
from caldpo.nonfinite.guard import NonFiniteGuard
from caldpo.reference.reference_base import Reference, ReferenceSource
from caldpo.reference.reference_context import in_run_dtype, reference_context
from caldpo.replay.replay_run import replay
from caldpo.resume.resume_point import find_start
from caldpo.resume.run_inputs import known_inputs, model_inputs, policy_inputs, surroundings
from caldpo.resume.template_date import keep_clock
from caldpo.run_record import PLANNED, begun, is_begun, note, save_config
from caldpo.run_settings import RunSettings
from caldpo.security.redacted_streams import RedactedStream
from caldpo.startup_table import on_one_line, print_training, recipe_note, training_facts
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.devices import resolve_devices
from caldpo.utils.notes import print_notes
from caldpo.utils.out_of_memory import is_out_of_memory


def run(cfg: DictConfig) -> float | None:
    """Train as configured; everything is written into Hydra's output folder.

    Returns:
        The final metric named by ``optimized_metric``, for sweepers that search; None of a dry run.

    Raises:
        CaldpoError: something is wrong that the user can mend; before weights load where possible.
    """
    try:
        run_dir = Path(HydraConfig.get().runtime.output_dir)
    except ValueError:
        raise CaldpoError(
            "a run needs a folder, which a configuration that is composed by Hydra alone does not name",
            remedy='from Python: from caldpo import compose, train; train(compose(["loss=dpo"]))',
        ) from None
    resolve_devices(cfg)
    settings = RunSettings(**{k: cfg[k] for k in RunSettings.__dataclass_fields__})
    if settings.dry_run:
        estimate(cfg)
        return None
    if settings.replay is not None:
        replay(cfg, settings, Path(settings.replay).expanduser())
        return None
    first_rank = is_first_rank()
    if settings.console == "full" and first_rank:
        return run_in(run_dir, settings, cfg)["metrics"].get(settings.optimized_metric)
    transformers.utils.logging.disable_progress_bar()
    tell = functools.partial(print, file=sys.stdout, flush=True) if first_rank else None  # not into the file
    kept = run_dir / "output.txt" if first_rank else Path(os.devnull)  # other ranks would say the same again
    with (
        kept.open("a" if settings.resume else "w", encoding="utf-8") as file,
        contextlib.redirect_stdout(RedactedStream(file)),
    ):
        summary = run_in(run_dir, settings, cfg, tell)
    if first_rank:
        print_line(run_dir.name, summary)
    return summary["metrics"].get(settings.optimized_metric)


def run_in(
    run_dir: Path, settings: RunSettings, cfg: DictConfig, tell: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """The run itself, and what ``summary.json`` says of it.

    Args:
        tell: gets what a run of one line says at its start.
    """
    started = time.perf_counter()
    loss_name = str(HydraConfig.get().runtime.choices["loss"])
    resumed = settings.resume is not None and is_begun(run_dir)
    config = save_config(cfg, loss_name, run_dir, resumed=resumed, first_rank=is_first_rank())
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    components = Components.from_config(cfg)
    loss, data, source = components.loss, components.data, components.model
    components.trainer.check()
    components.check()
    keep_commit(source, run_dir, resumed=resumed)
    keep_data_commit(data.source, run_dir, resumed=resumed)
    keep_clock(data, run_dir, resumed=resumed)
    tokenizer = source.load_tokenizer()
    start_identity = source.identity()  # asks the hub for its commit, or hashes a recipe
    policy_identity = components.adapter.identity(start_identity)
    reference_identity = components.reference.identity(components.adapter.started_from(start_identity))
    print_start(
        {
            "loss": f"{loss_name}: {loss.formula}",
            "policy": policy_identity,
            "reference": reference_identity,
            "rewards/*": f"{settings.reward_beta:g} x log-ratio (nats), the same for every loss",
            "seed": str(settings.seed),
            "folder": str(run_dir),
        }
    )
    hydra, chosen = HydraConfig.get(), HydraConfig.get().runtime.choices
    if note_on_recipe := recipe_note(
        chosen.get("model"), cfg.model.get("path"), hydra.overrides.task, chosen.get("data")
    ):
        (tell or functools.partial(print, flush=True))(note_on_recipe)
    start = find_start(run_dir, resumed=resumed, first_rank=is_first_rank())
    needs = {"needs_scores": loss.needs_scores, "needs_rejected": loss.needs_rejected}
    report = data.prepare_pairs(tokenizer, run_dir, loss_name=loss_name, **needs)

    formula = {"formula": loss.formula, "implicit_reward_beta": loss.implicit_reward_beta}
    told = {**formula, "policy": policy_identity, "reference": reference_identity}
    note(run_dir, {**told, "data": report.as_dict(), "versions": versions()})
    check_fit(source, tokenizer, data, reference=components.reference, callbacks=components.callbacks)
    known = known_inputs(config, data, tokenizer)
    if start.manifest is not None:  # what is known before weights load; the reference's are held against it later
        require_same({key: value for key, value in start.manifest.identity.items() if key in known}, known)

    try:
        sharded = components.trainer.is_sharded
        policy = components.adapter.apply(load_on_rank(source, sharded=sharded))
        print_adapter_coverage(policy)
        print_notes(sampling_notes(policy, tokenizer, end_tokens(tokenizer, policy)))
        print_notes(inner_end_notes(tokenizer, policy, data.train_pairs))
        print_notes(export_notes(policy, tokenizer) if settings.export else [])
        name = tracked_name(run_dir, loss_name, settings.seed)
        tracked = components.logger.open(run_dir, name, sweep_name(run_dir), config, start.earlier)
        loggers = [csv_logger(run_dir), *tracked]
        noise = bool(cfg.model.get("dropout"))
        require_valid_logprobs(policy, training=True, max_length=data.max_length, dropout=noise)
        layout, why = settle_layout(settings.layout, policy, data.max_length, sharded=sharded)
        print_layout(layout, why)
        steps = components.trainer
        plan = data.plan_steps(layout, **steps.extent())
        note(run_dir, {PLANNED: plan.steps})
        callbacks = [Reseed(settings.seed), *components.callbacks.values()]
        trainer = steps.build(run_dir, loggers, callbacks, plan.accumulation)
        policy = in_run_dtype(trainer, policy)
        known |= policy_inputs(policy)
        if not components.optim.rounds_stochastically:
            note_rounding(next(p.dtype for p in policy.parameters() if p.requires_grad), components.optim.lr)
        facts = {"model": start_identity, "tokenizer": tokenizer.name_or_path, "prompts": report.prompts}
        context = reference_context(policy, source, loss, data, trainer, plan.pairs_seen, facts)
        reference = components.reference.build(context)
        inputs = functools.partial(run_inputs, policy, reference, components.reference, known)
        environment = surroundings(policy, trainer.strategy.root_device, layout)
        module = PreferenceModule(
            policy,
            reference,
            loss,
            components.optim,
            tokenizer,
            settings.reward_beta,
            same_start=not components.reference.distinct,
            metrics_sync_every=components.trainer.metrics_sync_every,
            logits_cache_mib=settings.logits_cache_mib,
            nonfinite=NonFiniteGuard(steps.on_nonfinite, steps.max_skipped_steps),
            checkpoint_plan=CheckpointPlan(inputs, environment, start.cut),
        )
        reference_mode = type(reference).__name__.removesuffix("Reference").lower()
        training = training_facts(cfg, policy, plan, optimizer=str(chosen.get("optim")), reference=reference_mode)
        if is_first_rank():
            print_training(training)
        if tell:
            tell(f"{run_dir.name}: {on_one_line(training)}")
        if start.checkpoint is None and is_first_rank():
            start.cut()
        train(trainer, module, data, start.checkpoint)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(error, cfg, components) from error
    finally:
        data.close_loaders()
        sync = components.logger.close()

    places = {"metrics": str(run_dir / "metrics.csv")}
    weights = full_state_dict(module.policy) if settings.export else {}
    if settings.export and trainer.is_global_zero:
        export(module, run_dir / "policy", weights)
        adapter = " (the adapter; its base is loaded beside it)" if is_adapted(policy) else ""
        places["policy"] = str(run_dir / "policy") + adapter
    if sync:
        places["upload to W&B"] = sync
    memory, memory_of = peak_memory()
    summary = {
        "status": FINISHED,
        "loss_name": loss_name,
        "seed": settings.seed,
        "steps": module.global_step,
        "metrics": module.latest,
        "wall_seconds": time.perf_counter() - started + (start.manifest.seconds if start.manifest else 0),
        "peak_memory_bytes": memory,
        "peak_memory_of": memory_of,
        **formula,
        "policy": policy_identity,
        "reference": reference_identity,
        "start_difference": module.largest_start_ratio,
        "upload": sync,
        "tracker_url": components.logger.url,
        "skipped_steps": module.nonfinite.skipped,
        "alarms": [alarm for callback in callbacks for alarm in getattr(callback, "alarms", [])],
        **begun(run_dir),
        "data": report.as_dict(),
        "versions": versions(),
    }
    if trainer.is_global_zero:
        write_json(run_dir / SUMMARY, summary)
        if settings.export:
            done = Exported(module.global_step, is_end=True, adapter=is_adapted(policy))
            write_card(run_dir, run_dir / "policy" / CARD, done, picture=False)
        print_end(summary, places)
        print_clipping(run_dir / NAME, steps.gradient_clip_val)
    return summary


def tracked_name(run_dir: Path, loss_name: str, seed: int) -> str:
    """The run's name in a tracker: its folder's, with loss and seed where that does not say them."""
    told = [text for text in (f"loss={loss_name}", f"seed={seed}") if text not in run_dir.name.split(",")]
    return " ".join([*told, run_dir.name])


def sweep_name(run_dir: Path) -> str | None:
    """The sweep's folder, when this run is one of a sweep: the group of its runs."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return Path(hydra.sweep.dir).name
    return run_dir.absolute().parent.name if (run_dir.parent / "multirun.yaml").is_file() else None  # a resumed one


def train(
    trainer: pl.Trainer, module: PreferenceModule, data: pl.LightningDataModule, checkpoint: Path | None = None
) -> None:
    """Evaluate, fit, evaluate once more where the schedule did not end on the last step, and score the outcome.

    Args:
        trainer, module, data: of the run.
        checkpoint: where a resumed run goes on, its first evaluation long done.
    """
    if checkpoint is None:
        trainer.validate(module, data, verbose=False)
    trainer.fit(module, data, ckpt_path=checkpoint)
    if module.evaluated_at != module.global_step:
        trainer.validate(module, data, verbose=False)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "on_trained"):
            callback.on_trained(trainer, module)


def run_inputs(
    policy: PreTrainedModel, reference: Reference, source: ReferenceSource, known: dict[str, str]
) -> dict[str, str]:
    """Digest all that must not change between two stretches of a run; all ranks have to ask."""
    return {**known, **model_inputs(policy, reference, source)}
