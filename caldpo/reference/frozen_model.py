"""A frozen model in memory, beside the policy, as the reference."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from caldpo.config.signatures import validated
from caldpo.distributed.fsdp import is_sharded, reshard
from caldpo.logprobs import LogprobEngine
from caldpo.models.adapted_policy import base_copy
from caldpo.models.model_forward import evaluating
from caldpo.models.model_source import floating_dtype
from caldpo.reference.fingerprint import model_configuration, weights_digest
from caldpo.reference.reference_base import Logps, ReferenceContext, ReferenceSource
from caldpo.reference.reference_load import freeze, load_other
from caldpo.reference.tolerances import rounding_tolerance
from caldpo.types import PairBatch
from caldpo.utils.collectives import max_over_ranks


class ModelReference:
    """Runs a model in memory, and caches log-probs of held-out batches, which recur: two numbers per pair.

    Args:
        model: the reference; or the policy, whose :meth:`live` disables its adapter.
        rounding: of the log-probs, see :attr:`caldpo.reference.reference_base.Reference.rounding`.
        sharded: all ranks run the model at the same time, so that all use the cache, or none does.
    """

    cache: Path | None = None

    def __init__(self, model: PreTrainedModel, rounding: float = 0.0, *, sharded: bool = False) -> None:
        self.model, self.rounding, self.sharded = model, rounding, sharded
        self.engine = LogprobEngine(model)
        self._configuration = model_configuration(model)  # at the start
        self._held_out: dict[tuple[int, ...], Logps] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def facts(self) -> Mapping[str, str]:
        return {**self._configuration, "weights": weights_digest(self.model)}

    def prepare(self) -> None:
        """Do nothing: the model is loaded."""

    def logps(self, batch: PairBatch) -> Logps:
        if batch.split != "test":
            return self._compute(batch)
        rows = tuple(batch.index.tolist())
        missing = rows not in self._held_out
        if self.sharded:
            missing = max_over_ranks(1 if missing else None) is not None
        if missing:
            self._held_out[rows] = self._compute(batch)
        return self._held_out[rows]

    def live(self) -> AbstractContextManager[PreTrainedModel]:
        return nullcontext(self.model)

    def _compute(self, batch: PairBatch) -> Logps:
        with self.live() as model, evaluating(model):
            return self.engine(batch)


class FrozenReference(ModelReference):
    """Runs a frozen model: evaluation mode (no dropout), no gradients, never saved."""

    def __init__(self, model: PreTrainedModel, context: ReferenceContext | None = None) -> None:
        self._context = context
        # it runs the same batches, but not through the policy's compiled layers
        rounding = 0.0 if context is None else rounding_tolerance(context)
        super().__init__(freeze(model, model.dtype), rounding, sharded=context is not None and context.sharded)

    def prepare(self) -> None:
        if self._context is not None:
            self._context.place(self.model)

    def _compute(self, batch: PairBatch) -> Logps:
        if self.model.device != batch.input_ids.device and not is_sharded(self.model):
            torch.nn.Module.to(self.model, batch.input_ids.device)
        logps = super()._compute(batch)
        if self.sharded:
            reshard(self.model)  # no backward pass follows that would
        return logps


@validated
@dataclass
class Frozen(ReferenceSource):
    """``reference=frozen``: the policy's own starting weights, or another model's.

    Args:
        path, distinct: as of :class:`~caldpo.reference.reference_base.ReferenceSource`.
        dtype: of the reference's weights; ``same`` is the policy's.
    """

    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"

    def identity(self, policy: str) -> str:
        return super().identity(policy) + ("" if self.dtype == "same" else f", in {self.dtype}")

    def build(self, context: ReferenceContext) -> FrozenReference:
        """Copy or load the model, and freeze it; see :func:`~caldpo.reference.reference_load.load_other`."""
        model = base_copy(context.policy) if self.path is None else load_other(self.path, context)
        if self.dtype != "same":
            model = freeze(model, floating_dtype(self.dtype))
        return FrozenReference(model, context)
