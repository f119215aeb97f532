"""Run ``replay=FILE``: compute a dumped step again and inspect it. Nothing is trained."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from transformers import PreTrainedModel

from caldpo.checkpointing.checkpoint_io import load_into_policy, load_training, policy_weights
from caldpo.components import Components
from caldpo.config.summary_file import known_summary
from caldpo.data.collate import Layout, collate
from caldpo.data.pair import TokenizedPair
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError
from caldpo.logprobs.layout import choose_layout
from caldpo.losses.base import PreferenceLoss
from caldpo.nonfinite.step_dump import PlainFacts, StepDump, last_checkpoint, read_dump
from caldpo.reference.moving_reference import MOVED_REFERENCE, MovingReference, build_reference
from caldpo.reference.reference_base import Reference, ReferenceContext, in_run_dtype
from caldpo.replay.inspected_pass import InspectedPair, InspectedPass, group_of, run_pass
from caldpo.resume.config_diff import differences, read_config
from caldpo.resume.pins import pin_model
from caldpo.resume.resume_command import recorded_config
from caldpo.run_settings import RunSettings
from caldpo.types import PairBatch
from caldpo.utils.atomic_io import write_text
from caldpo.utils.text_format import counted

FLOAT32 = "32-true"
MAX_PAIRS = 20  # that are printed, the non-finite ones first; the file has all


class Replay(PlainFacts):
    """A replayed step, as written to ``step-N.replay.json``."""

    dump: str
    weights: str
    verdict: str
    passes: list[InspectedPass]


def replay(cfg: DictConfig, settings: RunSettings, path: Path) -> Replay:
    """Compute a dumped step again, in the run's precision and in float32; print it, and write ``step-N.replay.json``.

    The weights are those of the run's last checkpoint from before the step, where it still exists, else those that the
    run started from.

    Raises:
        CaldpoError: the dump at ``path``, or the checkpoint, is damaged or does not fit this configuration.
    """
    dump, run_dir = read_dump(path), path.absolute().parent.parent
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    components = Components.from_config(cfg, tracked=False)
    loss, trainer_settings = components.loss, components.trainer
    # one rank's share, on one device
    trainer_settings.devices, trainer_settings.num_nodes, trainer_settings.strategy = 1, 1, "auto"
    trainer_settings.progress_bar = trainer_settings.cpu_offload = False
    components.check()
    _note_changed_keys(cfg, run_dir)
    pin_model(components.model, known_summary(run_dir))
    tokenizer = components.model.load_tokenizer()
    policy = components.adapter.apply(components.model.load_policy())
    require_fit(dump, policy, loss, path)
    layout, _ = choose_layout(dump.layout, policy, components.data.max_length)
    trainer = trainer_settings.build(run_dir, [], [])
    policy = in_run_dtype(trainer, policy)
    reference: Reference | None = None
    if loss.needs_reference:  # before other weights are loaded: it may be the policy's start
        with contextlib.redirect_stdout(io.StringIO()):  # a training run's notes on its reference do not apply
            context = _live_context(components, policy, trainer)
            reference = build_reference(components.reference, context, loss.reference_move)
    weights = load_checkpoint_before(dump, run_dir, policy)
    if isinstance(reference, MovingReference):  # training pairs were compared with the moved model
        reference = _moved(reference, dump, run_dir)
    device = trainer.strategy.root_device
    torch.nn.Module.to(policy, device).train()
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batches = [loss.weighed(batch.to(device), dump.step) for batch in batches_of(dump, int(pad_id), layout)]
    passes = []
    for precision in dict.fromkeys([str(trainer.precision), FLOAT32]):
        is_own = precision == trainer.precision
        passes.append(
            run_pass(
                policy,
                reference,
                loss,
                batches,
                dump.pairs,
                precision=precision,
                context=trainer.precision_plugin.forward_context if is_own else contextlib.nullcontext,
                logits_cache_mib=settings.logits_cache_mib,
                scale=dump.gradient_scale if is_own else 1.0,
                to_float32=not is_own,
            )
        )
    result = Replay(dump=str(path), weights=weights, verdict=verdict(passes, weights), passes=passes)
    output = path.with_suffix(".replay.json")
    write_text(output, result.model_dump_json(indent=2) + "\n")
    print_replay(dump, result)
    print(f"written to {output}")
    return result


def batches_of(dump: StepDump, pad_id: int, layout: Layout) -> list[PairBatch]:
    """Collate the dumped micro-batches, without a split, so that the reference is run live."""
    pairs = []
    for p in dump.pairs:
        chosen, rejected = p.scores or (None, None)
        ids = p.prompt_ids, p.chosen_ids, p.rejected_ids
        pairs.append(TokenizedPair(*ids, chosen, rejected, p.index, p.origin, p.label))
    weight = [float(pair.is_real) for pair in dump.pairs]
    batches, start = [], 0
    for size in dump.micro_batches:
        rows = slice(start, start + size)
        batches.append(collate(pairs[rows], pad_id, layout=layout, weight=weight[rows], step_pairs=dump.step_pairs))
        start += size
    return batches


def require_fit(dump: StepDump, policy: PreTrainedModel, loss: PreferenceLoss, path: Path) -> None:
    """Refuse a dump of another run: with tokens the policy lacks, or without scores the loss needs."""
    size = int(policy.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    largest = max(max(ids) for p in dump.pairs for ids in (p.prompt_ids, p.chosen_ids, p.rejected_ids))
    problem = None
    if largest >= size:
        problem = f"has the token {largest}, and this policy's vocabulary has {size:,}: it is of another model's run"
    elif loss.needs_scores and dump.pairs[0].scores is None:
        problem = "has no scores, which this loss needs"
    if problem is not None:
        raise CaldpoError(problem, key="replay", value=path, remedy="give the overrides of the run that wrote it")


def load_checkpoint_before(dump: StepDump, run_dir: Path, policy: PreTrainedModel) -> str:
    """Load the weights of the last checkpoint from before the step into the policy, and describe them."""
    name = last_checkpoint(run_dir, dump.step)
    if name is None:
        missing = "" if dump.checkpoint is None else f" ({dump.checkpoint} no longer exists)"
        return f"those that the run started from{missing}"
    load_into_policy(policy, policy_weights(run_dir / name), run_dir / name)
    before = dump.step - int(name.rpartition("-")[2])
    return f"{name}, {before} optimiser steps before the batch" if before else f"{name}, those of the step itself"


def _moved(reference: MovingReference, dump: StepDump, run_dir: Path) -> Reference:
    """Return the reference as of the last checkpoint from before the step; where there is none, as it started."""
    name = last_checkpoint(run_dir, dump.step)
    if name is not None:
        reference.load_state_dict(load_training(run_dir / name)[MOVED_REFERENCE])
    return reference.moving


def verdict(passes: list[InspectedPass], weights: str) -> str:
    """State whether the non-finite values were reproduced, and whether the precision causes them."""
    bad = " and in ".join(one.precision for one in passes if one.is_nonfinite)
    good = " and in ".join(one.precision for one in passes if not one.is_nonfinite)
    if not bad:
        return f"not reproduced: everything is finite in {good} (weights: {weights})"
    if not good:
        return f"reproduced in {bad}: the precision is not the cause"
    return f"reproduced in {bad}, and not in {good}: the precision is too narrow"


def print_replay(dump: StepDump, result: Replay) -> None:
    """Print each pair's values and each layer's gradient norm in every pass, and the verdict."""
    share = f"rank {dump.rank} of {dump.ranks}, {counted(len(dump.micro_batches), 'micro-batch')}, {dump.layout}"
    print(f"replay of step {dump.step} ({share}); nothing is trained")
    print(f"dumped because {dump.reason}\nloss: {dump.formula}\nweights: {result.weights}")
    for one in result.passes:
        pairs = sorted(one.pairs, key=_is_finite_now_and_then)[:MAX_PAIRS]
        print(f"\n{one.precision}: {len(pairs)} of {len(one.pairs)} pairs, prompt + chosen / rejected tokens; nats")
        for pair in pairs:
            prompt, chosen, rejected = pair.tokens
            values = ", ".join(f"{name} {value:.4g}" for name, value in pair.values.items())
            print(f"  {pair.origin} ({prompt} + {chosen} / {rejected}): {values}; then loss {pair.then['loss']:.4g}")
        print(f"{one.precision}: gradient norms, and whose entries are not finite")
        for group, norm in one.gradient_norms.items():
            bad = [name.removeprefix(f"{group}.") for name in one.nonfinite_gradients if group_of(name) == group]
            print(f"  {group}: {norm:.4g} {', '.join(bad)}")
    print(f"\n{result.verdict}")


def _is_finite_now_and_then(pair: InspectedPair) -> tuple[bool, bool]:
    return not pair.not_finite, all(map(math.isfinite, pair.then.values()))


def _note_changed_keys(cfg: DictConfig, run_dir: Path) -> None:
    """Note where the configuration is not the run's, on purpose or by mistake."""
    run_config = None
    with contextlib.suppress(CaldpoError):
        run_config = read_config(run_dir)
    if run_config is None:
        print("note: the run's configuration cannot be read: it is not known whether this is the same")
        return
    changes = list(differences(run_config, recorded_config(cfg, str(HydraConfig.get().runtime.choices["loss"]))))
    if changes:
        print(f"note: not the run's configuration: {'; '.join(changes)}")


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
