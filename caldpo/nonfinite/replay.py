"""``replay=FILE``: one step that went bad, computed again with everything in it looked at. Nothing is trained."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from transformers import PreTrainedModel

from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.checkpointing.manifest import DamagedCheckpointError, verify
from caldpo.components import Components
from caldpo.config.run_lifecycle import write_json
from caldpo.data.collate import collate
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError
from caldpo.logprobs.layout import settle_layout
from caldpo.models.revision import keep_commit
from caldpo.nonfinite.inspected_pass import Pass, run_pass
from caldpo.nonfinite.replay_report import as_dict, print_replay, verdict
from caldpo.nonfinite.step_dump import Dump, last_checkpoint, read_dump
from caldpo.reference.reference_base import ReferenceContext, in_run_dtype
from caldpo.resume.config_diff import config_digest, read_config
from caldpo.resume.config_diff import differences as differing_keys
from caldpo.resume.resume_overrides import as_kept
from caldpo.run_settings import RunSettings
from caldpo.types import PairBatch

FILE = ".replay.json"  # in place of a dump's ending: several may lie in a folder
FLOAT32 = "32-true"


def replay(cfg: DictConfig, settings: RunSettings, path: Path) -> dict[str, Any]:
    """Compute a dumped step again, in the run's precision and in float32; print it, and write ``step-N.replay.json``.

    The weights are those of the run's last checkpoint from before the step, if it is still there, else those that the
    run started from.

    Args:
        cfg, settings: of the run, whose overrides were given again.
        path: of the dump.

    Returns:
        What was written.

    Raises:
        CaldpoError: the dump, or the checkpoint, is damaged or does not go with this configuration.
    """
    dump, run_dir, console = read_dump(path), path.absolute().parent.parent, Console()
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    components = Components.from_config(cfg, tracked=False)
    steps = components.trainer
    steps.devices, steps.num_nodes, steps.strategy, steps.progress_bar = 1, 1, "auto", False  # one rank's share
    steps.cpu_offload = False  # of strategies that divide something
    steps.check()
    components.check()
    for line in differences(cfg, run_dir, dump):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    keep_commit(components.model, run_dir, resumed=True)
    tokenizer = components.model.load_tokenizer()
    policy = components.adapter.apply(components.model.load_policy())
    require_vocabulary(dump, policy, path)
    require_scores(dump, components.loss, path)
    layout, _ = settle_layout(dump.said["layout"], policy, components.data.max_length)
    trainer = steps.build(run_dir, [], [])
    policy = in_run_dtype(trainer, policy)
    device = trainer.strategy.root_device
    reference = None
    if components.loss.needs_reference:  # before other weights are loaded: it may be the policy's start
        with contextlib.redirect_stdout(io.StringIO()):  # how a run would keep it is not what a replay does
            reference = components.reference.build(_context(components, policy, trainer))
    weights = load_trained(run_dir, dump, policy)
    torch.nn.Module.to(policy, device).train()
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batches = [batch.to(device) for batch in batches_of(dump, int(pad), layout)]
    passes: list[Pass] = []
    for precision in dict.fromkeys([trainer.precision, FLOAT32]):
        own = precision == trainer.precision
        passes.append(
            run_pass(
                policy,
                reference,
                components.loss,
                batches,
                precision=str(precision),
                context=trainer.precision_plugin.forward_context if own else contextlib.nullcontext,
                logits_cache_mib=settings.logits_cache_mib,
                scale=dump.said["gradient_scale"] if own else 1.0,
                wide=not own,
            )
        )
    content = as_dict(path, dump, weights, passes)
    print_replay(dump, weights, passes)
    written = path.with_suffix(FILE)
    write_json(written, content)
    console.print(
        f"{verdict(dump, weights, passes)}\nwritten to {written}", soft_wrap=True, highlight=False, markup=False
    )
    return content


def batches_of(dump: Dump, pad_id: int, layout: Any) -> list[PairBatch]:
    """The micro-batches as they were, but of no split, so that a reference is asked live."""
    found, start = [], 0
    for size in dump.micro_batches:
        rows = slice(start, start + size)
        start += size
        found.append(
            collate(
                dump.pairs[rows],
                pad_id,
                layout=layout,
                weight=dump.weight[rows],
                step_pairs=dump.said["step_pairs"],
            )
        )
    return found


def load_trained(run_dir: Path, dump: Dump, policy: PreTrainedModel) -> str:
    """Give the policy the weights of the last checkpoint from before the step, and say which it has now.

    Raises:
        CaldpoError: the checkpoint is damaged, or of another policy.
    """
    name = last_checkpoint(run_dir, dump.said["step"])
    if name is None:
        gone = "" if dump.said["checkpoint"] is None else f" ({dump.said['checkpoint']} is no longer there)"
        return f"those that the run started from{gone}"
    folder = run_dir / name
    try:
        verify(folder)
        weights = {key.removeprefix("policy."): value for key, value in load_weights(folder).items()}
    except DamagedCheckpointError as error:
        raise CaldpoError(
            f"it is damaged: {error}", key="replay", value=folder, remedy="remove it, to use the one before it"
        ) from error
    named = policy.named_parameters(remove_duplicate=False)
    trained = {key for key, parameter in named if parameter.requires_grad}
    known = policy.state_dict()
    odd = {*(trained - set(weights)), *(set(weights) - set(known))}
    odd |= {key for key, value in weights.items() if key in known and known[key].shape != value.shape}
    if odd:
        raise CaldpoError(
            f"it holds the weights of another policy: {', '.join(sorted(odd)[:3])} do not go with this one",
            key="replay",
            value=folder,
            remedy="give the overrides of the run that wrote it",
        )
    policy.load_state_dict(weights, strict=False)
    before = dump.said["step"] - int(name.rpartition("-")[2])
    return f"{name}, {before} optimiser steps before the batch" if before else f"{name}, those of the step itself"


def differences(cfg: DictConfig, run_dir: Path, dump: Dump) -> list[str]:
    """What to say of a configuration that is not the run's: meant, or a mistake."""
    ours = as_kept(cfg, str(HydraConfig.get().runtime.choices["loss"]))
    if dump.said.get("config_digest") in (None, config_digest(ours)):
        return []
    try:
        theirs = read_config(run_dir)
    except CaldpoError:
        theirs = None
    if theirs is None:
        return ["note: this is not the configuration that the batch went bad under"]
    found = list(differing_keys(theirs, ours))
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return [f"note: not the run's configuration: {'; '.join(found[:8])}{more}"] if found else []


def require_vocabulary(dump: Dump, policy: PreTrainedModel, path: Path) -> None:
    """Refuse token ids that the policy does not have.

    Raises:
        CaldpoError: there are some.
    """
    embeddings: Any = policy.get_input_embeddings()
    size = int(embeddings.weight.shape[0])
    largest = max(max(ids) for p in dump.pairs for ids in (p.prompt_ids, p.chosen_ids, p.rejected_ids))
    if largest >= size:
        raise CaldpoError(
            f"has the token {largest}, and this policy's vocabulary has {size:,}: it is of another model's run",
            key="replay",
            value=path,
            remedy="give the overrides of the run that wrote it",
        )


def require_scores(dump: Dump, loss: Any, path: Path) -> None:
    """Refuse a dump without scores for a loss that reads them.

    Raises:
        CaldpoError: it is one.
    """
    if loss.needs_scores and dump.pairs[0].score_chosen is None:
        raise CaldpoError(
            "has no scores, and this loss takes its targets from them",
            key="replay",
            value=path,
            remedy="give the overrides of the run that wrote it",
        )


def _context(components: Components, policy: PreTrainedModel, trainer: pl.Trainer) -> ReferenceContext:
    """For a reference that is only asked live: it is told of no pairs, and has nothing to prepare."""
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
