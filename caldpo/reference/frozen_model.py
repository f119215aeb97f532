"""The reference as a frozen model in memory beside the policy."""

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
from caldpo.reference.reference_load import HeldOutMemory, check_path, describe, frozen, load_other, require_path
from caldpo.reference.tolerances import rounding_of
from caldpo.types import PairBatch


class FrozenReference:
    """A frozen copy of a model: evaluation mode (no dropout), no gradients, never saved."""

    def __init__(self, model: PreTrainedModel, context: ReferenceContext | None = None) -> None:
        self.model = frozen(model, model.dtype)
        # it is a live pass, but not one through the policy's compiled layers
        self.rounding = 0.0 if context is None else rounding_of(context)
        self.engine = LogprobEngine(self.model)
        self._configuration = model_configuration(self.model)  # as it begins
        self._context, self._memory = context, HeldOutMemory(together=context is not None and context.together)

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
        if (kept := self._memory.recall(batch)) is not None:
            return kept
        if self.model.device != batch.input_ids.device and not is_sharded(self.model):
            torch.nn.Module.to(self.model, batch.input_ids.device)
        answer = self.engine(batch)
        if self._context is not None and self._context.together:
            reshard(self.model)  # no backward pass is going to
        self._memory.keep(batch, answer)
        return answer

    def live(self) -> nullcontext[PreTrainedModel]:
        return nullcontext(self.model)


class Frozen:
    """``reference=frozen``: the policy's own starting weights, or another model's.

    Args:
        path: hub id or folder of another copy of the reference; None keeps the policy's starting weights.
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
        kept = "" if self.dtype == "same" else f", in {self.dtype}"
        return describe(self.path, policy, self.distinct) + kept

    def check(self) -> None:
        check_path(self.path)

    def build(self, context: ReferenceContext) -> FrozenReference:
        """The frozen copy.

        Raises:
            CaldpoError: ``path`` cannot be loaded, or has another vocabulary.
        """
        model = base_copy(context.policy) if self.path is None else load_other(self.path, context)
        if self.dtype != "same":
            model = frozen(model, floating_dtype(self.dtype))
        return FrozenReference(model, context)
