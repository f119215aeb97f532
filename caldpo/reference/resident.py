"""The reference as a frozen model in memory beside the policy."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.config.signature import validated
from caldpo.logprobs import pair_logprobs
from caldpo.models.base import ModelSource, floating_dtype
from caldpo.types import PairBatch


class ResidentReference:
    """A frozen copy of a model: evaluation mode (no dropout), no gradients, never saved.

    Answers for a fixed set (the held-out pairs) are remembered: two numbers per pair.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self._remembered: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def logps(
        self, batch: PairBatch, key: int | None = None
    ) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        if key is not None and key in self._remembered:
            return self._remembered[key]
        if self.model.device != batch.input_ids.device:
            self.model.to(batch.input_ids.device)
        answer = pair_logprobs(self.model, batch)
        if key is not None:
            self._remembered[key] = answer
        return answer


class Resident:
    """``reference=resident``: the policy's own starting weights, or another model's.

    Args:
        path: hub id or folder of another reference; None keeps the policy's starting weights.
        dtype: of the reference's weights; ``same`` keeps the policy's.
    """

    @validated
    def __init__(
        self,
        path: str | None = None,
        dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
    ) -> None:
        self.path, self.dtype = path, dtype

    @property
    def same_start(self) -> bool:
        """Whether the reference has the weights that the policy starts from, bit for bit."""
        return self.path is None and self.dtype == "same"

    def identity(self, source: ModelSource) -> str:
        """One line that says what the reference is."""
        kept = "" if self.dtype == "same" else f", in {self.dtype}"
        return (self.path or f"the policy's starting weights, {source.identity()}") + kept

    def build(self, policy: PreTrainedModel) -> ResidentReference:
        """The frozen reference; called before the first step.

        Raises:
            CaldpoError: ``path`` cannot be loaded.
        """
        if self.path is None:
            model = copy.deepcopy(policy)
        else:
            from caldpo.models.hub import load_causal_lm

            model = load_causal_lm(self.path, key="reference.path")
        if self.dtype != "same":
            torch.nn.Module.to(model, dtype=floating_dtype(self.dtype))
        return ResidentReference(model)
