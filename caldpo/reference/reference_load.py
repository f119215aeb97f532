"""Load a reference of another path or of the policy's start, and cache its answers: shared by the reference modes."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from caldpo.errors import CaldpoError
from caldpo.logprobs.layout import choose_layout
from caldpo.logprobs.packed_attention import EAGER, SDPA
from caldpo.models.adapted_policy import base_model
from caldpo.models.hub_model import causal_lm_skeleton, check_causal_lm, load_causal_lm
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.reference.reference_base import ReferenceContext
from caldpo.types import PairBatch
from caldpo.utils.collectives import is_first_rank, max_over_ranks


def require_path(path: str | None, distinct: bool) -> None:
    """Refuse ``reference.distinct`` without another model.

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


def describe_reference(path: str | None, policy: str, distinct: bool) -> str:
    """Describe the reference in one line."""
    suffix = ", meant to differ from the policy's start" if distinct else ""
    return (path or f"the policy's starting weights, {policy}") + suffix


def check_path(path: str | None) -> None:
    """Check before weights load that another reference exists.

    Raises:
        CaldpoError: it does not.
    """
    if path is not None:
        check_causal_lm(path, key="reference.path")


def load_other(path: str, context: ReferenceContext) -> PreTrainedModel:
    """Load the reference of another path, in the policy's dtype and ready for the policy's batches.

    Raises:
        CaldpoError: ``path`` cannot be loaded, has another vocabulary, or cannot take the policy's batches.
    """
    policy = context.policy
    if context.sharded and not is_first_rank():
        with torch.device("meta"):  # the first rank's weights are sharded over all
            model = causal_lm_skeleton(path, key="reference.path")
    else:
        model = load_causal_lm(path, key="reference.path")
    if model.config.vocab_size != policy.config.vocab_size:
        raise vocabulary_error(path, model.config.vocab_size, policy.config.vocab_size)
    longest = max(int((n[:, 0] + n[:, 1:].max(1)).max()) for n in (s.lengths() for s in context.splits.values()))
    require_valid_logprobs(model, training=False, max_length=longest, key="reference.path")
    attention = base_model(policy).config._attn_implementation
    if attention in (SDPA, EAGER) and model.config._attn_implementation != attention:
        layout, reason = choose_layout("auto", model, longest, sharded=context.sharded)
        if layout != "packed":
            raise CaldpoError(
                f"this {type(model).__name__} cannot take the policy's packed batches: {reason}",
                key="reference.path",
                value=path,
                remedy="set layout=padded",
            )
    return freeze(model, policy.dtype)


def vocabulary_error(path: str, reference: int, policy: int) -> CaldpoError:
    """Explain that the reference has other tokens than the policy; sizes of their vocabularies."""
    return CaldpoError(
        f"has a vocabulary of {reference:,} tokens where the policy has {policy:,}",
        key="reference.path",
        value=path,
        remedy="name a reference with the policy's tokenizer",
    )


def match_policy(model: PreTrainedModel, policy: PreTrainedModel) -> PreTrainedModel:
    """Freeze a model of the policy's class, in its dtype and with its attention."""
    attention = base_model(policy).config._attn_implementation
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
    return freeze(model, policy.dtype)


def freeze(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the model to a dtype, and disable dropout and gradients."""
    torch.nn.Module.to(model, dtype=dtype)
    return model.eval().requires_grad_(False)


class HeldOutCache:
    """Caches log-probs of held-out batches, which recur at every evaluation: two numbers per pair.

    Args:
        sharded: all ranks run the reference at the same time, so that all use the cache, or none does.
    """

    def __init__(self, *, sharded: bool = False) -> None:
        self.sharded = sharded
        self._logps: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def get(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Look up the log-probs of the pairs of this batch; None if they are not cached."""
        if batch.split != "test":
            return None
        cached = self._logps.get(tuple(batch.index.tolist()))
        if self.sharded and max_over_ranks(1 if cached is None else None):
            return None
        return cached

    def put(self, batch: PairBatch, logps: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Cache the log-probs of a batch, if its pairs are held out."""
        if batch.split == "test":
            self._logps[tuple(batch.index.tolist())] = logps
