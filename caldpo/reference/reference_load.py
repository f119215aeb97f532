"""A reference that another path names, or that is the policy's own start: what all ways of keeping one share."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from caldpo.errors import CaldpoError
from caldpo.logprobs.layout import settle_layout
from caldpo.logprobs.packed_attention import EAGER, SDPA
from caldpo.models.adapted_policy import base_model
from caldpo.models.hub_model import causal_lm_skeleton, check_causal_lm, load_causal_lm
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.reference.reference_base import ReferenceContext
from caldpo.types import PairBatch
from caldpo.utils.collectives import is_first_rank, max_over_ranks


def require_path(path: str | None, distinct: bool) -> None:
    """Refuse a reference that is meant to differ from the policy's start without being another model.

    Raises:
        CaldpoError: ``distinct`` without ``path``.
    """
    if distinct and path is None:
        raise CaldpoError(
            "the reference is the policy's own start unless reference.path names another",
            key="reference.distinct",
            value=distinct,
            remedy="give reference.path as well",
        )


def describe(path: str | None, policy: str, distinct: bool) -> str:
    """One line that says what the reference is."""
    meant = ", meant to differ from the policy's start" if distinct else ""
    return (path or f"the policy's starting weights, {policy}") + meant


def check_path(path: str | None) -> None:
    """Look whether another reference is there, before anything dear is loaded.

    Raises:
        CaldpoError: it is not.
    """
    if path is not None:
        check_causal_lm(path, key="reference.path")


def load_other(path: str, context: ReferenceContext) -> PreTrainedModel:
    """The reference of another path, in the policy's dtype and ready for the policy's batches.

    Raises:
        CaldpoError: ``path`` cannot be loaded, has another vocabulary, or cannot take the policy's batches.
    """
    policy = context.policy
    if context.together and not is_first_rank():
        with torch.device("meta"):  # the first rank's weights are sharded over all
            model = causal_lm_skeleton(path, key="reference.path")
    else:
        model = load_causal_lm(path, key="reference.path")
    theirs, ours = model.config.vocab_size, policy.config.vocab_size
    if theirs != ours:
        raise other_vocabulary(path, theirs, ours)
    longest = max(int((n[:, 0] + n[:, 1:].max(1)).max()) for n in (s.lengths() for s in context.splits.values()))
    require_valid_logprobs(model, training=False, max_length=longest, key="reference.path")
    attention = base_model(policy).config._attn_implementation
    if attention in (SDPA, EAGER) and model.config._attn_implementation != attention:
        layout, why = settle_layout("auto", model, longest, sharded=context.together)
        if layout != "packed":
            raise CaldpoError(
                f"this {type(model).__name__} cannot take the policy's packed batches: {why}",
                key="reference.path",
                value=path,
                remedy="set layout=padded",
            )
    return frozen(model, policy.dtype)


def other_vocabulary(path: str, theirs: int, ours: int) -> CaldpoError:
    """What to say of a reference with other tokens than the policy's."""
    return CaldpoError(
        f"has a vocabulary of {theirs:,} tokens where the policy has {ours:,}",
        key="reference.path",
        value=path,
        remedy="name a reference with the policy's tokenizer",
    )


def like(policy: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """A model of the policy's class, frozen, in its dtype and with its attention."""
    attention = base_model(policy).config._attn_implementation
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
    return frozen(model, policy.dtype)


def frozen(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in this dtype, without dropout and gradients."""
    torch.nn.Module.to(model, dtype=dtype)
    return model.eval().requires_grad_(False)


class HeldOutMemory:
    """Answers for held-out batches, which come back at every evaluation: two numbers per pair.

    Args:
        together: all ranks have to remember, or none does, since they ask the reference at the same time.
    """

    def __init__(self, *, together: bool = False) -> None:
        self.together = together
        self._answers: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def recall(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What was kept for the pairs of this batch, None for others."""
        if batch.split != "test":
            return None
        kept = self._answers.get(tuple(batch.index.tolist()))
        if self.together and max_over_ranks(1 if kept is None else None):
            return None
        return kept

    def keep(self, batch: PairBatch, answer: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Remember the answer for a batch of held-out pairs."""
        if batch.split == "test":
            self._answers[tuple(batch.index.tolist())] = answer
