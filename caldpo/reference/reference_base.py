"""Where the reference's log-probs come from: one interface, whatever keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.data.token_arrays import TokenizedPairs
from caldpo.types import PairBatch

Logps = tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]


class Reference(Protocol):
    """Log-probs of the frozen reference for a batch of pairs."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the reference's weights."""
        ...

    @property
    def rounding(self) -> float:
        """How far answers may lie on average, by rounding, from the policy's pass with the same weights over the same
        batch, relative to 1 + |log-prob|; see :mod:`caldpo.reference.tolerances`."""
        ...

    def facts(self) -> Mapping[str, str]:
        """What determines its log-probs beside tokens and machine: ``weights`` and
        :func:`~caldpo.reference.fingerprint.model_configuration`, without an adapter that is trained. Known once
        :meth:`prepare` was called; every rank has to ask."""
        ...

    def prepare(self) -> None:
        """Do what takes long. Called on every rank, more than once, first before the first batch and first step."""
        ...

    def logps(self, batch: PairBatch) -> Logps:
        """Summed log-probs (nats) of the chosen and rejected responses, without gradient, on the batch's device."""
        ...

    def live(self) -> AbstractContextManager[PreTrainedModel]:
        """The reference as a model, for generations. It may be the policy itself with its adapter switched off:
        inside the context the policy is then not to be used."""
        ...


@dataclass(frozen=True)
class ReferenceContext:
    """All that building a reference may need.

    Args:
        policy: with the weights it starts from, its adapter (if any) in place, in the run's dtype.
        reload: the weights that the policy starts from anew, without an adapter, in the run's dtype.
        splits: the tokenised pairs of the run by the name that batches carry: ``train`` and ``test``.
        asked: the splits whose log-probs the run will ask for.
        batches: evaluation batches of these rows of a split, in this order, none of them filler.
        device: where this rank computes.
        precision: a context in which forward passes have the run's precision (autocast, if any).
        seen: training pairs that the run will see, repeats counted.
        facts: what the tokens were made from, for people who look into a cache.
        divide: divides a model over the ranks, in place, where the policy is; None: each rank has whole models.
    """

    policy: PreTrainedModel
    reload: Callable[[], PreTrainedModel]
    splits: Mapping[str, TokenizedPairs]
    asked: tuple[str, ...]
    batches: Callable[[str, Sequence[int]], Iterable[PairBatch]]
    device: torch.device
    precision: Callable[[], AbstractContextManager[object]]
    seen: int
    facts: Mapping[str, str]
    divide: Callable[[PreTrainedModel], None] | None = None

    @property
    def together(self) -> bool:
        """Whether models are sharded over the ranks, so that all ranks have to run them at the same time."""
        return self.divide is not None

    def place(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model where it computes: on this rank's device, or sharded over all ranks."""
        if self.divide is not None:
            self.divide(model)
        else:
            torch.nn.Module.to(model, self.device)  # PreTrainedModel's own is typed as something else
        return model


class ReferenceSource(Protocol):
    """What ``reference=`` chooses: says what the reference is, and builds it."""

    distinct: bool  # the reference is meant to be another model than the one the policy starts from
    path: str | None  # of that other model; None has the weights that the policy starts from
    dtype: str  # of the weights; ``same`` as the policy's

    def identity(self, policy: str) -> str:
        """One line that says what the reference is, however it is kept; ``policy`` is the policy's own."""
        ...

    def check(self) -> None:
        """Look whether it can be had, before anything dear is loaded.

        Raises:
            CaldpoError: it cannot.
        """
        ...

    def build(self, context: ReferenceContext) -> Reference:
        """The reference; called before the first step, when the policy has its starting weights."""
        ...
