"""Load a reference of another path or of the policy's start: shared by the reference modes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    check_vocabulary(path, model, policy)
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


def check_vocabulary(path: str, reference: PreTrainedModel, policy: PreTrainedModel) -> None:
    """Refuse a reference from ``path`` with another number of tokens than the policy."""
    if reference.config.vocab_size != policy.config.vocab_size:
        raise CaldpoError(
            f"has a vocabulary of {reference.config.vocab_size:,} tokens where the policy has"
            f" {policy.config.vocab_size:,}",
            key="reference.path",
            value=path,
            remedy="name a reference with the policy's tokenizer",
        )


def check_tokens(
    policy: PreTrainedTokenizerBase,
    reference: Mapping[str, int] | None,
    path: str | Path,
    *,
    key: str = "reference.path",
) -> None:
    """Refuse a reference to which an id means another token than to the policy.

    Tokens that only one of them has, at ids that the other does not use, are no difference: they were added.

    Args:
        policy: the tokenizer of the pairs.
        reference: ids of the tokens of the reference's own tokenizer; None where it has none.
        path: of the reference.
        key: what names it.

    Raises:
        CaldpoError: before weights load.
    """
    known = policy.get_vocab()
    if reference is None or reference == known:
        return
    tokens = {number: token for token, number in reference.items()}
    other = [i for token, i in known.items() if (reference[token] != i if token in reference else i in tokens)]
    if other:
        first = min(other)
        theirs = f"the token {tokens[first]!r}" if first in tokens else "no token"
        raise CaldpoError(
            f"its tokenizer is another than the policy's: {len(other):,} of {len(known):,} tokens differ, first id"
            f" {first:,}, which is {policy.convert_ids_to_tokens(first)!r} to the policy and {theirs} to the reference",
            key=key,
            value=path,
            remedy="name a reference with the policy's tokenizer; if it was trained with these ids all the same, a copy"
            " of its folder without tokenizer files",
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
