"""Gradient checkpointing: layers keep their inputs alone, and the backward pass computes the rest again, bit-equal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from transformers import PreTrainedModel

from caldpo.errors import CaldpoError
from caldpo.models.adapted_policy import base_model

Checkpointing = bool | Literal["auto"]
"""Of ``model.gradient_checkpointing``: in every micro-batch, in none, or in those above the budget of tokens."""


def enable_checkpointing(policy: PreTrainedModel) -> None:
    """Recompute activations in every backward pass of a policy in training mode.

    Raises:
        CaldpoError: the model does not support gradient checkpointing.
    """
    if not policy.supports_gradient_checkpointing:
        raise CaldpoError(
            f"{type(policy).__name__} does not support gradient checkpointing: its layers cannot recompute activations",
            key="model.gradient_checkpointing",
            value="true",
            remedy="set model.gradient_checkpointing=false; activations are then kept, which takes more memory",
        )
    # renamed in transformers 5; both names take torch.utils.checkpoint's keywords first
    enable = getattr(policy, "activation_checkpointing_enable", None) or policy.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@contextlib.contextmanager
def recomputing(policy: Any, active: bool) -> Iterator[None]:
    """Recompute, where ``active``, the activations of forward passes in this context.

    Their backward passes may be outside it, since what a layer recomputes is settled in its forward pass.
    """
    if not active:
        yield
        return
    base = base_model(policy)
    enable_checkpointing(base)
    try:
        yield
    finally:
        disable = getattr(base, "activation_checkpointing_disable", None) or base.gradient_checkpointing_disable
        disable()
