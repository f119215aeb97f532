"""The policy with its adapter disabled as the reference: no second copy of the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager

from transformers import PreTrainedModel

from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.models.adapted_policy import adapter_off, is_adapted
from caldpo.models.adapters import AdapterSource, NoAdapter
from caldpo.reference.frozen_model import ModelReference
from caldpo.reference.reference_base import ReferenceContext, ReferenceSource
from caldpo.reference.tolerances import rounding_tolerance


class AdapterReference(ModelReference):
    """Runs the frozen base of the policy's adapter."""

    def live(self) -> AbstractContextManager[PreTrainedModel]:
        return adapter_off(self.model)


class Adapter(ReferenceSource):
    """``reference=adapter``: the policy with its adapter disabled."""

    @validated
    def __init__(self) -> None:
        super().__init__()

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
