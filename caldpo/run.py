"""One training run: build cheap to dear, fit, evaluate, export, sum up."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from caldpo.callbacks.checkpoint import Checkpoints
from caldpo.callbacks.reseed import Reseed
from caldpo.checkpoints.identity import require_same
from caldpo.config.job import FINISHED, write_json
from caldpo.config.redacted import RedactedStream
from caldpo.config.summary import SUMMARY
from caldpo.data.datamodule import PairDataModule
from caldpo.end_tokens import inner_end_notes
from caldpo.estimate.run import estimate
from caldpo.estimate.shortage import is_shortage, out_of_memory
from caldpo.exporting.card import CARD, Exported, write_card
from caldpo.exporting.policy import export, export_notes
from caldpo.generation import sampling_notes
from caldpo.loggers import csv_logger
from caldpo.logprobs.layout import settle_layout
from caldpo.models.adapter import is_adapted
from caldpo.models.pinned import keep_commit
from caldpo.models.placed import load_policy
from caldpo.module import PreferenceModule
from caldpo.numbers.replay import replay
from caldpo.numbers.watch import NumberWatch
from caldpo.parts import build_parts, check_parts
from caldpo.ranks import is_first_rank
from caldpo.reference.context import in_run_dtype, reference_context
from caldpo.resuming.ask import SECTIONS
from caldpo.resuming.record import PLANNED, begun, is_begun, note, save_config
from caldpo.resuming.same import config_digest
from caldpo.resuming.start import find_start
from caldpo.settings import RunSettings
from caldpo.sharding.shard import whole_state
from caldpo.summary import (
    note_rounding,
    peak_memory,
    print_end,
    print_layout,
    print_line,
    print_notes,
    print_start,
    versions,
)


def run(cfg: DictConfig) -> float | None:
    """Train as configured; everything is written into Hydra's output folder.

    Returns:
        The final metric named by ``objective``, for sweepers that search; None of a dry run.

    Raises:
        CaldpoError: something is wrong that the user can mend; before weights load where possible.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    settings = RunSettings(**{k: cfg[k] for k in RunSettings.__dataclass_fields__})
    if settings.dry_run:
        estimate(cfg)
        return None
    if settings.replay is not None:
        replay(cfg, settings, Path(settings.replay).expanduser())
        return None
    first_rank = is_first_rank()
    if settings.console == "full" and first_rank:
        return run_in(run_dir, settings, cfg)["metrics"].get(settings.objective)
    transformers.utils.logging.disable_progress_bar()
    kept = run_dir / "output.txt" if first_rank else Path(os.devnull)  # other ranks would say the same again
    with (
        kept.open("a" if settings.resume else "w", encoding="utf-8") as file,
        contextlib.redirect_stdout(RedactedStream(file)),
    ):
        summary = run_in(run_dir, settings, cfg)
    if first_rank:
        print_line(run_dir.name, summary)
    return summary["metrics"].get(settings.objective)


def run_in(run_dir: Path, settings: RunSettings, cfg: DictConfig) -> dict[str, Any]:
    """The run itself, and what ``summary.json`` says of it."""
    started = time.perf_counter()
    loss_name = str(HydraConfig.get().runtime.choices["loss"])
    resumed = settings.resume is not None and is_begun(run_dir)
    config = save_config(cfg, loss_name, run_dir, resumed=resumed, first_rank=is_first_rank())
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    parts = build_parts(cfg, SECTIONS)
    loss, data, source = parts["loss"], parts["data"], parts["model"]
    parts["trainer"].check()
    check_parts(parts)
    keep_commit(source, run_dir, resumed=resumed)
    tokenizer = source.load_tokenizer()
    start_identity = source.identity()  # asks the hub for its commit, or hashes a recipe
    policy_identity = parts["adapter"].identity(start_identity)
    reference_identity = parts["reference"].identity(parts["adapter"].started_from(start_identity))
    print_start(
        {
            "loss": f"{loss_name}: {loss.formula}",
            "policy": policy_identity,
            "reference": reference_identity,
            "rewards/*": f"{settings.reward_beta:g} x log-ratio",
            "seed": str(settings.seed),
            "folder": str(run_dir),
        }
    )
    start = find_start(run_dir, resumed=resumed, first_rank=is_first_rank())
    needs = {"needs_scores": loss.needs_scores, "needs_rejected": loss.needs_rejected}
    report = data.prepare_pairs(tokenizer, run_dir, loss_name=loss_name, **needs)

    told = {"formula": loss.formula, "policy": policy_identity, "reference": reference_identity}
    note(run_dir, {**told, "data": report.as_dict(), "versions": versions()})
    known = known_identity(config, data)
    if start.manifest is not None:  # what is known before weights load; the reference's are held against it later
        require_same({key: value for key, value in start.manifest.identity.items() if key in known}, known)

    try:
        divided = parts["trainer"].divides
        policy = parts["adapter"].apply(load_policy(source, divided=divided))
        print_notes(sampling_notes(policy, tokenizer))
        print_notes(inner_end_notes(tokenizer, policy, data.train_pairs))
        print_notes(export_notes(policy, tokenizer) if settings.export else [])
        tracked = parts["logger"].open(run_dir, run_dir.name, sweep_name(run_dir), config, start.earlier)
        loggers = [csv_logger(run_dir), *tracked]
        layout, why = settle_layout(settings.layout, policy, data.max_length, divided=divided)
        print_layout(layout, why)
        steps = parts["trainer"]
        plan = data.plan_steps(layout, **steps.extent())
        note(run_dir, {PLANNED: plan.steps})
        callbacks = [Reseed(settings.seed), *parts["callbacks"].values()]
        trainer = steps.build(run_dir, loggers, callbacks, plan.accumulation)
        policy = in_run_dtype(trainer, policy)
        if not parts["optim"].rounds_stochastically:
            note_rounding(next(p.dtype for p in policy.parameters() if p.requires_grad), parts["optim"].lr)
        facts = {"model": start_identity, "tokenizer": tokenizer.name_or_path, "prompts": report.prompts}
        context = reference_context(policy, source, loss, data, trainer, plan.pairs_seen, facts)
        module = PreferenceModule(
            policy,
            parts["reference"].build(context),
            loss,
            parts["optim"],
            tokenizer,
            settings.reward_beta,
            same_start=not parts["reference"].differs,
            fetch_every=parts["trainer"].fetch_every,
            kept_logits_mib=settings.kept_logits_mib,
            numbers=NumberWatch(steps.on_bad_numbers, steps.max_skipped_steps),
        )
        for callback in callbacks:
            if isinstance(callback, Checkpoints):
                callback.of_run(functools.partial(identity, module, known), versions(), steps.val_every, start.cut)
        if start.checkpoint is None and is_first_rank():
            start.cut()
        train(trainer, module, data, start.checkpoint)
    except Exception as error:
        if not is_shortage(error):
            raise
        raise out_of_memory(error, cfg, parts) from error
    finally:
        data.close_loaders()
        sync = parts["logger"].close()

    places = {"metrics": str(run_dir / "metrics.csv")}
    weights = whole_state(module.policy) if settings.export else {}
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
        "formula": loss.formula,
        "policy": policy_identity,
        "reference": reference_identity,
        "start_difference": module.largest_start_ratio,
        "upload": sync,
        "tracker_url": parts["logger"].url,
        "skipped_steps": module.numbers.skipped,
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
    return summary


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


def known_identity(config: dict[str, Any], data: PairDataModule) -> dict[str, str]:
    """What must not change between two stretches of a run, as far as it is known before weights load."""
    return {
        "the configuration": config_digest(config),
        "the tokens of the training pairs": data.train_pairs.digest(),
        "the tokens of the held-out pairs": data.test_pairs.digest(),
    }


def identity(module: PreferenceModule, known: dict[str, str]) -> dict[str, str]:
    """All that must not change between two stretches of a run."""
    return {**known, "the reference's weights": module.reference.digest()}
