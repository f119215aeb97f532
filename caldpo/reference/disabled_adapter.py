"""The policy with its adapter disabled as the reference: no second copy of the weights."""

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
from caldpo.reference.reference_load import HeldOutCache, describe_reference
from caldpo.reference.tolerances import rounding_tolerance
from caldpo.types import PairBatch


class AdapterReference:
    """Runs the frozen base of the policy's adapter."""

    def __init__(self, policy: PreTrainedModel, rounding: float = 0.0, *, sharded: bool = False) -> None:
        self.policy, self.rounding = policy, rounding
        self.engine, self._held_out = LogprobEngine(policy), HeldOutCache(sharded=sharded)
        self._configuration = model_configuration(policy)  # at the start

    @property
    def dtype(self) -> torch.dtype:
        return self.policy.dtype

    def facts(self) -> dict[str, str]:
        return {**self._configuration, "weights": weights_digest(self.policy)}

    def prepare(self) -> None:
        """Nothing: the policy is loaded."""

    def logps(self, batch: PairBatch) -> Logps:
        if (cached := self._held_out.get(batch)) is not None:
            return cached
        with self.live() as model, evaluating(model):
            logps = self.engine(batch)
        self._held_out.put(batch, logps)
        return logps

    def live(self) -> AbstractContextManager[PreTrainedModel]:
        return adapter_off(self.policy)


class Adapter:
    """``reference=adapter``: the policy with its adapter disabled."""

    distinct, path, dtype = False, None, "same"

    @validated
    def __init__(self) -> None:
        pass

    def identity(self, policy: str) -> str:
        return describe_reference(None, policy, self.distinct)

    def check(self) -> None:
        """Nothing to check before the policy is loaded."""

    def build(self, context: ReferenceContext) -> AdapterReference:
        """Build the reference from the policy without its adapter.

        Raises:
            CaldpoError: it has none.
        """
        if not is_adapted(context.policy):
            raise _no_adapter_error()
        return AdapterReference(context.policy, rounding_tolerance(context), sharded=context.sharded)


def check_adapter(reference: ReferenceSource, adapter: AdapterSource) -> None:
    """Refuse ``reference=adapter`` for a policy without an adapter, before weights load.

    Raises:
        CaldpoError: it has none.
    """
    if isinstance(reference, Adapter) and isinstance(adapter, NoAdapter):
        raise _no_adapter_error()


def _no_adapter_error() -> CaldpoError:
    return CaldpoError(
        "the policy has no adapter that could be disabled",
        key="reference",
        value="adapter",
        remedy="train an adapter with adapter=lora, or choose reference=precomputed or reference=frozen",
    )
