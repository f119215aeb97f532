"""The reference as the policy itself with its adapter switched off: no second copy of the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel

from caldpo.config.signature import validated
from caldpo.errors import CaldpoError
from caldpo.logprobs import LogprobEngine
from caldpo.models.adapter import adapter_off, is_adapted
from caldpo.models.modes import evaluating
from caldpo.reference.base import Logps, ReferenceContext
from caldpo.reference.named import HeldOutMemory, describe
from caldpo.types import PairBatch


class AdapterReference:
    """Runs the frozen base under the policy's adapter."""

    rounding = 0.0  # it is a live pass

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy
        self.engine, self._memory = LogprobEngine(policy), HeldOutMemory()

    @property
    def dtype(self) -> torch.dtype:
        return self.policy.dtype

    def prepare(self) -> None:
        """Nothing: the policy is there."""

    def logps(self, batch: PairBatch) -> Logps:
        if (kept := self._memory.recall(batch)) is not None:
            return kept
        with self.live() as model, evaluating(model):
            answer = self.engine(batch)
        self._memory.keep(batch, answer)
        return answer

    def live(self) -> AbstractContextManager[PreTrainedModel]:
        return adapter_off(self.policy)


class Adapter:
    """``reference=adapter``: the weights under the policy's adapter."""

    differs = False

    @validated
    def __init__(self) -> None:
        pass

    def identity(self, policy: str) -> str:
        return describe(None, policy, self.differs)

    def check(self) -> None:
        """Nothing to look for before the policy is there."""

    def build(self, context: ReferenceContext) -> AdapterReference:
        """The policy without its adapter.

        Raises:
            CaldpoError: it has none.
        """
        if not is_adapted(context.policy):
            raise CaldpoError(
                "the policy has no adapter that could be switched off",
                key="reference",
                value="adapter",
                remedy="train an adapter with adapter=lora, or choose reference=cached or reference=resident",
            )
        return AdapterReference(context.policy)
