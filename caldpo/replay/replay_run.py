"""Run ``replay=FILE``: compute a dumped step again and inspect it. Nothing is trained."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from transformers import PreTrainedModel

from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.checkpointing.checkpoint_weights import add_frozen
from caldpo.checkpointing.manifest import DamagedCheckpointError, verify
from caldpo.components import Components
from caldpo.config.run_lifecycle import write_json
from caldpo.config.summary_file import known_summary
from caldpo.data.collate import collate
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError
from caldpo.logprobs.layout import choose_layout
from caldpo.losses.base import PreferenceLoss
from caldpo.nonfinite.step_dump import Dump, last_checkpoint, read_dump
from caldpo.reference.reference_base import ReferenceContext, in_run_dtype
from caldpo.replay.inspected_pass import InspectedPass, run_pass
from caldpo.replay.replay_report import print_replay, replay_facts
from caldpo.resume.config_diff import differences, read_config
from caldpo.resume.pins import pin_model
from caldpo.resume.resume_command import recorded_config
from caldpo.run_settings import RunSettings
from caldpo.types import PairBatch

ENDING = ".replay.json"  # in place of a dump's own: several may lie in a folder
FLOAT32 = "32-true"
_MAX_KEYS = 8
_REMEDY = "give the overrides of the run that wrote it"


def replay(cfg: DictConfig, settings: RunSettings, path: Path) -> dict[str, Any]:
    """Compute a dumped step again, in the run's precision and in float32; print it, and write ``step-N.replay.json``.

    The weights are those of the run's last checkpoint from before the step, where it still exists, else those that the
    run started from.

    Args:
        cfg, settings: of the run, whose overrides were given again.
        path: of the dump.

    Returns:
        What was written.

    Raises:
        CaldpoError: the dump, or the checkpoint, is damaged or does not fit this configuration.
    """
    dump, run_dir = read_dump(path), path.absolute().parent.parent
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    components = Components.from_config(cfg, tracked=False)
    loss, trainer_settings = components.loss, components.trainer
    # one rank's share, on one device
    trainer_settings.devices, trainer_settings.num_nodes, trainer_settings.strategy = 1, 1, "auto"
    trainer_settings.progress_bar = trainer_settings.cpu_offload = False
    components.check()
    _print(_changed_keys(cfg, run_dir))
    pin_model(components.model, known_summary(run_dir))
    tokenizer = components.model.load_tokenizer()
    policy = components.adapter.apply(components.model.load_policy())
    require_fit(dump, policy, loss, path)
    layout, _ = choose_layout(dump.header.layout, policy, components.data.max_length)
    trainer = trainer_settings.build(run_dir, [], [])
    policy = in_run_dtype(trainer, policy)
    reference = None
    if loss.needs_reference:  # before other weights are loaded: it may be the policy's start
        with contextlib.redirect_stdout(io.StringIO()):  # a training run's notes on its reference do not apply
            reference = components.reference.build(_live_context(components, policy, trainer))
    weights = load_checkpoint_before(dump, run_dir, policy)
    device = trainer.strategy.root_device
    torch.nn.Module.to(policy, device).train()
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batches = [batch.to(device) for batch in batches_of(dump, int(pad_id), layout)]
    passes: list[InspectedPass] = []
    for precision in dict.fromkeys([str(trainer.precision), FLOAT32]):
        own = precision == trainer.precision
        passes.append(
            run_pass(
                policy,
                reference,
                loss,
                batches,
                precision=precision,
                context=trainer.precision_plugin.forward_context if own else contextlib.nullcontext,
                logits_cache_mib=settings.logits_cache_mib,
                scale=dump.header.gradient_scale if own else 1.0,
                to_float32=not own,
            )
        )
    facts, output = replay_facts(path, dump, weights, passes), path.with_suffix(ENDING)
    write_json(output, facts)
    print_replay(facts)
    _print([f"written to {output}"])
    return facts


def batches_of(dump: Dump, pad_id: int, layout: Any) -> list[PairBatch]:
    """Collate the dumped micro-batches, without a split, so that the reference is run live."""
    batches, start = [], 0
    for size in dump.header.micro_batches:
        rows = slice(start, start + size)
        start += size
        step_pairs = dump.header.step_pairs
        batches.append(
            collate(dump.pairs[rows], pad_id, layout=layout, weight=dump.weight[rows], step_pairs=step_pairs)
        )
    return batches


def require_fit(dump: Dump, policy: PreTrainedModel, loss: PreferenceLoss, path: Path) -> None:
    """Refuse a dump of another model's or loss's run.

    Raises:
        CaldpoError: it has tokens the policy lacks, or lacks scores the loss needs.
    """
    embeddings: Any = policy.get_input_embeddings()
    size = int(embeddings.weight.shape[0])
    largest = max(max(ids) for p in dump.pairs for ids in (p.prompt_ids, p.chosen_ids, p.rejected_ids))
    if largest >= size:
        raise CaldpoError(
            f"has the token {largest}, and this policy's vocabulary has {size:,}: it is of another model's run",
            key="replay",
            value=path,
            remedy=_REMEDY,
        )
    if loss.needs_scores and dump.pairs[0].score_chosen is None:
        raise CaldpoError("has no scores, which this loss needs", key="replay", value=path, remedy=_REMEDY)


def load_checkpoint_before(dump: Dump, run_dir: Path, policy: PreTrainedModel) -> str:
    """Load the weights of the last checkpoint from before the step into the policy, and describe them.

    Raises:
        CaldpoError: the checkpoint is damaged, or of another policy.
    """
    name = last_checkpoint(run_dir, dump.header.step)
    if name is None:
        missing = "" if dump.header.checkpoint is None else f" ({dump.header.checkpoint} no longer exists)"
        return f"those that the run started from{missing}"
    folder = run_dir / name
    try:
        verify(folder)
    except DamagedCheckpointError as error:
        raise CaldpoError(
            f"it is damaged: {error}", key="replay", value=folder, remedy="remove it, to use the one before it"
        ) from error
    weights = {key.removeprefix("policy."): value for key, value in load_weights(folder).items()}
    add_frozen(weights, policy)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:  # a shape differs
        detail = " ".join(str(error).split())[:300]
        raise CaldpoError(f"is of another policy: {detail}", key="replay", value=folder, remedy=_REMEDY) from error
    before = dump.header.step - int(name.rpartition("-")[2])
    return f"{name}, {before} optimiser steps before the batch" if before else f"{name}, those of the step itself"


def _changed_keys(cfg: DictConfig, run_dir: Path) -> list[str]:
    """Note where the configuration is not the run's, on purpose or by mistake."""
    try:
        run_config = read_config(run_dir)
    except CaldpoError:
        run_config = None
    if run_config is None:
        return ["note: the run's configuration cannot be read: it is not known whether this is the same"]
    keys = list(differences(run_config, recorded_config(cfg, str(HydraConfig.get().runtime.choices["loss"]))))
    more = f" and {len(keys) - _MAX_KEYS} more" if len(keys) > _MAX_KEYS else ""
    return [f"note: not the run's configuration: {'; '.join(keys[:_MAX_KEYS])}{more}"] if keys else []


def _live_context(components: Components, policy: PreTrainedModel, trainer: pl.Trainer) -> ReferenceContext:
    """Make the context of a reference that is only run live, with no pairs to prepare."""
    return ReferenceContext(
        policy=policy,
        reload=lambda: in_run_dtype(trainer, components.model.load_policy()),
        splits={"train": TokenizedPairs(), "test": TokenizedPairs()},
        needed_splits=("train", "test"),
        batches=lambda split, rows: [],
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin.forward_context,
        pairs_seen=0,
        facts={},
    )


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        Console().print(line, soft_wrap=True, highlight=False, markup=False)
