"""The reference as a frozen model in memory beside the policy."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.config.signature import validated
from caldpo.errors import CaldpoError
from caldpo.logprobs import pair_logprobs
from caldpo.models.base import floating_dtype
from caldpo.models.hub import check_causal_lm, load_causal_lm
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
        path: hub id or folder of another copy of the reference; None keeps the policy's starting weights.
        dtype: of the reference's weights; ``same`` is the policy's.
        differs: the reference is meant to be another model than the one the policy starts from. Otherwise
            log-ratios have to be 0 before the first step.
    """

    @validated
    def __init__(
        self,
        path: str | None = None,
        dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
        differs: bool = False,
    ) -> None:
        if differs and path is None:
            raise CaldpoError(
                "the reference is the policy's own start unless reference.path names another",
                key="reference.differs",
                value=differs,
                remedy="give reference.path as well",
            )
        self.path, self.dtype, self.differs = path, dtype, differs

    def identity(self, policy: str) -> str:
        """One line that says what the reference is; ``policy`` is the policy's own."""
        kept = "" if self.dtype == "same" else f", in {self.dtype}"
        meant = ", meant to differ from the policy's start" if self.differs else ""
        return (self.path or f"the policy's starting weights, {policy}") + kept + meant

    def check(self) -> None:
        """Look whether another reference is there, before anything dear is loaded.

        Raises:
            CaldpoError: it is not.
        """
        if self.path is not None:
            check_causal_lm(self.path, key="reference.path")

    def build(self, policy: PreTrainedModel) -> ResidentReference:
        """The frozen reference; called before the first step.

        Raises:
            CaldpoError: ``path`` cannot be loaded, or has another vocabulary.
        """
        if self.path is None:
            model = copy.deepcopy(policy)
        else:
            model = load_causal_lm(self.path, key="reference.path")
            theirs, ours = model.config.vocab_size, policy.config.vocab_size
            if theirs != ours:
                raise CaldpoError(
                    f"has a vocabulary of {theirs:,} tokens where the policy has {ours:,}",
                    key="reference.path",
                    value=self.path,
                    remedy="name a reference with the policy's tokenizer",
                )
        dtype = policy.dtype if self.dtype == "same" else floating_dtype(self.dtype)
        torch.nn.Module.to(model, dtype=dtype)
        return ResidentReference(model)
