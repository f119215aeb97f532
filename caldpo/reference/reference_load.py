"""Load a reference of another path or of the policy's start: shared by the reference modes."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from caldpo.errors import CaldpoError
from caldpo.logprobs.layout import choose_layout
from caldpo.logprobs.packed_attention import EAGER, SDPA
from caldpo.models.adapted_policy import base_model
from caldpo.models.hub_model import causal_lm_skeleton, load_causal_lm
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.reference.reference_base import ReferenceContext
from caldpo.utils.collectives import is_first_rank


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
