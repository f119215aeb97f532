"""A frozen model in memory, beside the policy, as the reference."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from transformers import PreTrainedModel

from caldpo.config.signatures import validated
from caldpo.distributed.fsdp import is_sharded, reshard
from caldpo.logprobs import LogprobEngine
from caldpo.models.adapted_policy import base_copy
from caldpo.models.model_source import floating_dtype
from caldpo.reference.fingerprint import model_configuration, weights_digest
from caldpo.reference.reference_base import Logps, ReferenceContext
from caldpo.reference.reference_load import (
    HeldOutCache,
    check_path,
    describe_reference,
    freeze,
    load_other,
    require_path,
)
from caldpo.reference.tolerances import rounding_tolerance
from caldpo.types import PairBatch


class FrozenReference:
    """Runs a frozen model: evaluation mode (no dropout), no gradients, never saved."""

    def __init__(self, model: PreTrainedModel, context: ReferenceContext | None = None) -> None:
        self.model = freeze(model, model.dtype)
        # it runs the same batches, but not through the policy's compiled layers
        self.rounding = 0.0 if context is None else rounding_tolerance(context)
        self.engine = LogprobEngine(self.model)
        self._configuration = model_configuration(self.model)  # at the start
        self._context, self._held_out = context, HeldOutCache(sharded=context is not None and context.sharded)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def prepare(self) -> None:
        if self._context is not None:
            self._context.place(self.model)

    def facts(self) -> dict[str, str]:
        return {**self._configuration, "weights": weights_digest(self.model)}

    @torch.no_grad()
    def logps(self, batch: PairBatch) -> Logps:
        if (cached := self._held_out.get(batch)) is not None:
            return cached
        if self.model.device != batch.input_ids.device and not is_sharded(self.model):
            torch.nn.Module.to(self.model, batch.input_ids.device)
        logps = self.engine(batch)
        if self._context is not None and self._context.sharded:
            reshard(self.model)  # no backward pass follows that would
        self._held_out.put(batch, logps)
        return logps

    def live(self) -> nullcontext[PreTrainedModel]:
        return nullcontext(self.model)


class Frozen:
    """``reference=frozen``: the policy's own starting weights, or another model's.

    Args:
        path: hub id or folder of another reference; None copies the policy's starting weights.
        dtype: of the reference's weights; ``same`` is the policy's.
        distinct: the reference is meant to be another model than the one the policy starts from. Otherwise
            log-ratios have to be 0 before the first step.
    """

    @validated
    def __init__(
        self,
        path: str | None = None,
        dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
        distinct: bool = False,
    ) -> None:
        require_path(path, distinct)
        self.path, self.dtype, self.distinct = path, dtype, distinct

    def identity(self, policy: str) -> str:
        suffix = "" if self.dtype == "same" else f", in {self.dtype}"
        return describe_reference(self.path, policy, self.distinct) + suffix

    def check(self) -> None:
        check_path(self.path)

    def build(self, context: ReferenceContext) -> FrozenReference:
        """Copy or load the model, and freeze it.

        Raises:
            CaldpoError: ``path`` cannot be loaded, or has another vocabulary.
        """
        model = base_copy(context.policy) if self.path is None else load_other(self.path, context)
        if self.dtype != "same":
            model = freeze(model, floating_dtype(self.dtype))
        return FrozenReference(model, context)
