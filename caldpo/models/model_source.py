"""Where a policy comes from: one interface for hub models, random ones and the embedded ones."""

from __future__ import annotations

from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.errors import CaldpoError
from caldpo.models.dropout import own_configuration, set_to_zero, switch_off


class ModelSource(Protocol):
    """Loads a tokenizer (cheap) and a policy (dear), and says what it loads."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, without touching any weights."""
        ...

    def load_policy(self) -> PreTrainedModel:
        """The causal language model to train; new weights at each call."""
        ...

    def skeleton(self) -> PreTrainedModel:
        """The same model with weights of no meaning: nothing is read but its configuration.

        To be called where tensors are fake, so that it takes no memory either.
        """
        ...

    def identity(self) -> str:
        """One line: name and revision or settings of these weights."""
        ...


def prepare_for_training(policy: PreTrainedModel, *, gradient_checkpointing: bool, dropout: bool) -> PreTrainedModel:
    """Switch gradient checkpointing and dropout of a loaded policy.

    Dropout is off by default, as in the DPO reference implementation: the policy's log-probs are compared
    with a reference that has none, and noise in them is noise in the implicit reward. What goes by another name than
    dropout or jitter stays on, and is refused by :func:`caldpo.models.model_probes.require_sound`.
    """
    own_configuration(policy)
    if gradient_checkpointing:
        require_checkpointing(policy)
        # renamed in transformers 5; both names take torch.utils.checkpoint's keywords first
        enable = getattr(policy, "activation_checkpointing_enable", None) or policy.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if not dropout:
        switch_off(policy)
    # RWKV divides weights in place when it is evaluated, against overflow in float16: they would be saved like that
    if getattr(policy.config, "rescale_every", 0):
        set_to_zero(policy, [(policy.config, "rescale_every", policy.config.rescale_every)])
    policy.config.use_cache = False
    return policy


def require_checkpointing(policy: PreTrainedModel) -> None:
    """Refuse gradient checkpointing of a model whose layers have none, before its weights load.

    Raises:
        CaldpoError: naming ``model.gradient_checkpointing``.
    """
    if not policy.supports_gradient_checkpointing:
        raise CaldpoError(
            f"{type(policy).__name__} has no gradient checkpointing: its layers cannot compute their activations again",
            key="model.gradient_checkpointing",
            value="true",
            remedy="set model.gradient_checkpointing=false; activations are then kept, which takes more memory",
        )


def floating_dtype(name: str) -> torch.dtype:
    """``float32`` and its like as a torch dtype."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
