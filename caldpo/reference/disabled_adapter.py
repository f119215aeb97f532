"""The reference as the policy itself with its adapter switched off: no second copy of the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel

from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.logprobs import LogprobEngine
from caldpo.models.adapted_policy import adapter_off, is_adapted
from caldpo.models.adapters import AdapterSource, NoAdapter
from caldpo.models.model_forward import evaluating
from caldpo.reference.fingerprint import model_configuration, weights_digest
from caldpo.reference.reference_base import Logps, ReferenceContext, ReferenceSource
from caldpo.reference.reference_load import HeldOutMemory, describe
from caldpo.reference.tolerances import rounding_of
from caldpo.types import PairBatch


class AdapterReference:
    """Runs the frozen base under the policy's adapter."""

    def __init__(self, policy: PreTrainedModel, rounding: float = 0.0, *, together: bool = False) -> None:
        self.policy, self.rounding = policy, rounding
        self.engine, self._memory = LogprobEngine(policy), HeldOutMemory(together=together)
        self._configuration = model_configuration(policy)  # as it begins

    @property
    def dtype(self) -> torch.dtype:
        return self.policy.dtype

    def facts(self) -> dict[str, str]:
        return {**self._configuration, "weights": weights_digest(self.policy)}

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

    distinct = False

    @validated
    def __init__(self) -> None:
        pass

    def identity(self, policy: str) -> str:
        return describe(None, policy, self.distinct)

    def check(self) -> None:
        """Nothing to look for before the policy is there."""

    def build(self, context: ReferenceContext) -> AdapterReference:
        """The policy without its adapter.

        Raises:
            CaldpoError: it has none.
        """
        if not is_adapted(context.policy):
            raise _nothing_to_switch_off()
        return AdapterReference(context.policy, rounding_of(context), together=context.together)


def check_adapter(reference: ReferenceSource, adapter: AdapterSource) -> None:
    """Look whether the reference needs an adapter that the policy will not have, before anything dear is loaded.

    Raises:
        CaldpoError: it does.
    """
    if isinstance(reference, Adapter) and isinstance(adapter, NoAdapter):
        raise _nothing_to_switch_off()


def _nothing_to_switch_off() -> CaldpoError:
    return CaldpoError(
        "the policy has no adapter that could be switched off",
        key="reference",
        value="adapter",
        remedy="train an adapter with adapter=lora, or choose reference=precomputed or reference=frozen",
    )
