"""What a reference is built with, gathered from the parts of a run."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
from transformers import PreTrainedModel

from caldpo.data.datamodule import PairDataModule
from caldpo.losses.base import PreferenceLoss
from caldpo.models.adapted_policy import set_dora_magnitudes
from caldpo.models.model_source import ModelSource, load_on_rank
from caldpo.reference.reference_base import ReferenceContext


def in_run_dtype(trainer: pl.Trainer, model: PreTrainedModel) -> PreTrainedModel:
    """The model as Lightning is going to have it: ``trainer.precision=bf16-true`` or ``64-true`` changes its weights.

    Done before the reference is built, so that both have the same weights, and step 0 shows log-ratios of 0.
    """
    converted = trainer.precision_plugin.convert_module(model)
    assert isinstance(converted, type(model))
    set_dora_magnitudes(converted)
    return converted


def reference_context(
    policy: PreTrainedModel,
    source: ModelSource,
    loss: PreferenceLoss,
    data: PairDataModule,
    trainer: pl.Trainer,
    pairs_seen: int,
    facts: Mapping[str, str],
) -> ReferenceContext:
    """Everything that building a reference may need.

    Args:
        policy: with its starting weights, its adapter in place, in the run's dtype.
        source: where the policy came from.
        loss: says whether the training pairs' log-probs will be asked for; the held-out pairs' always are.
        data: prepared.
        trainer: built, so that device and precision are known.
        pairs_seen: training pairs of all optimiser steps, repeats counted.
        facts: what a person wants to know of a cache, beside the limits of truncation.
    """
    limits = f"at most {data.max_length} tokens, of which {data.max_prompt_length} of the prompt"
    divide = getattr(trainer.strategy, "shard", None)
    return ReferenceContext(
        policy=policy,
        reload=lambda: in_run_dtype(trainer, load_on_rank(source, sharded=divide is not None)),
        splits={"train": data.train_pairs, "test": data.test_pairs},
        asked=("train", "test") if loss.needs_reference else ("test",),
        batches=data.batches,
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin.forward_context,
        seen=pairs_seen,
        facts={**facts, "truncation": limits},
        divide=divide,
    )
