"""The reference's log-probs: one interface, whatever the reference mode, and what a reference is built from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.data.datamodule import PairDataModule
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.distributed.strategy_interface import policy_strategy
from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.models.adapted_policy import set_dora_magnitudes
from caldpo.models.hub_model import check_causal_lm
from caldpo.models.model_source import ModelSource, load_on_rank
from caldpo.types import PairBatch

Logps = tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]


class Reference(Protocol):
    """Log-probs of the frozen reference for a batch of pairs."""

    @property
    def cache(self) -> Path | None:
        """Folder of what is computed once for all runs with this reference; None: nothing is stored."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the reference's weights."""
        ...

    @property
    def rounding(self) -> float:
        """Mean difference by rounding from the policy's pass with the same weights over the same batch, relative to
        ``1 + |log-prob|``; see :mod:`caldpo.reference.tolerances`."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Collect what determines the log-probs besides tokens and machine: ``weights`` and
        :func:`~caldpo.reference.fingerprint.model_configuration`, without an adapter that is trained. Available after
        :meth:`prepare`; to be called on every rank."""
        ...

    def prepare(self) -> None:
        """Do what takes long. Called on every rank, possibly more than once, before the first batch and first step."""
        ...

    def logps(self, batch: PairBatch) -> Logps:
        """Compute summed log-probs (nats) of chosen and rejected responses, without gradient, on the batch's device."""
        ...

    def live(self) -> AbstractContextManager[PreTrainedModel]:
        """Yield the reference as a model, for generation. It may be the policy itself with its adapter disabled: the
        policy is not to be used inside the context."""
        ...


@dataclass(frozen=True)
class ReferenceContext:
    """Everything that a reference may be built from.

    Args:
        policy: with the weights it starts from, its adapter (if any) in place, in the run's dtype.
        reload: loads the policy's starting weights again, without an adapter, in the run's dtype.
        splits: the tokenised pairs of the run, by the name in their batches: ``train`` and ``test``.
        needed_splits: those whose log-probs the run will need.
        batches: makes evaluation batches of rows of a split, in this order, without filler.
        device: where this rank computes.
        precision: makes a context in which forward passes have the run's precision (autocast, if any).
        pairs_seen: training pairs that the run will see, repeats counted.
        facts: sources of the tokens, written beside cached log-probs for people.
        mismatched: the loss needs log-probs of other prompts' responses.
        shard: shards a model over the ranks, in place, as the policy is; None: each rank has full models.
    """

    policy: PreTrainedModel
    reload: Callable[[], PreTrainedModel]
    splits: Mapping[str, TokenizedPairs]
    needed_splits: tuple[str, ...]
    batches: Callable[[str, Sequence[int]], Iterable[PairBatch]]
    device: torch.device
    precision: Callable[[], AbstractContextManager[object]]
    pairs_seen: int
    facts: Mapping[str, str]
    shard: Callable[[PreTrainedModel], None] | None = None
    mismatched: bool = False
    # the training pairs come as they are read or sampled: their log-probs cannot be computed first
    streamed: bool = False
    weighs_tokens: bool = False  # the loss reads sums of weighed tokens, which are not stored

    @property
    def sharded(self) -> bool:
        """Whether models are sharded over the ranks, so that all ranks have to run them at the same time."""
        return self.shard is not None

    def place(self, model: PreTrainedModel) -> PreTrainedModel:
        """Move the model to this rank's device, or shard it over all ranks."""
        if self.shard is not None:
            self.shard(model)
        else:
            torch.nn.Module.to(model, self.device)  # PreTrainedModel's own has another type
        return model


@dataclass
class ReferenceSource:
    """Identifies and builds the reference: what ``reference=`` chooses.

    Args:
        path: hub id or folder of another reference; None is the policy's start.
        distinct: the reference is meant to be another model than the one the policy starts from. Otherwise
            log-ratios have to be 0 before the first step.
    """

    dtype = "same"  # of the weights: the policy's

    path: str | None = None
    distinct: bool = False

    def __post_init__(self) -> None:
        if self.distinct and self.path is None:
            raise CaldpoError(
                "the reference is the policy's own start unless reference.path names another",
                key="reference.distinct",
                value=self.distinct,
                remedy="give reference.path as well",
            )

    def identity(self, policy: str) -> str:
        """Describe the reference in one line, the same in every mode; ``policy`` is the policy's identity."""
        suffix = ", meant to differ from the policy's start" if self.distinct else ""
        return (self.path or f"the policy's starting weights, {policy}") + suffix

    def check(self) -> None:
        """Refuse before weights load a reference that cannot be built."""
        if self.path is not None:
            check_causal_lm(self.path, key="reference.path")

    def build(self, context: ReferenceContext) -> Reference:
        """Build the reference, before the first step, while the policy has its starting weights."""
        raise NotImplementedError


def in_run_dtype(trainer: pl.Trainer, model: PreTrainedModel) -> PreTrainedModel:
    """Convert the model to the dtype in which Lightning trains it, with ``trainer.precision=bf16-true`` or ``64-true``.

    Done before the reference is built, so that both have the same weights, and log-ratios at step 0 are 0.
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
    *,
    sampled: bool = False,
) -> ReferenceContext:
    """Gather what a reference is built from, see :class:`ReferenceContext`.

    Args:
        source: of the policy's weights.
        loss: tells whether the training pairs' log-probs are needed; the held-out pairs' always are.
        data: prepared.
        trainer: built, so that device and precision are determined.
        facts: sources of the tokens, to which the limits of truncation are added.
        sampled: the policy samples the responses that it is trained on.
    """
    later = sampled or data.stream is not None
    limits = f"at most {data.max_length} tokens, of which {data.max_prompt_length} of the prompt"
    strategy = policy_strategy(trainer.strategy)
    shard = strategy.shard if strategy.shards_weights else None
    return ReferenceContext(
        policy=policy,
        reload=lambda: in_run_dtype(trainer, load_on_rank(source, sharded=shard is not None)),
        splits={"train": data.train_pairs, "test": data.test_pairs},
        needed_splits=("train", "test") if loss.needs_reference and not (later or loss.weighs_tokens) else ("test",),
        batches=data.batches,
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin.forward_context,
        pairs_seen=pairs_seen,
        facts={**facts, "truncation": limits},
        shard=shard,
        mismatched=loss.needs_mismatched,
        streamed=sampled or (loss.needs_reference and later),
        weighs_tokens=loss.needs_reference and loss.weighs_tokens,
    )
