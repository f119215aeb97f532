"""Load a policy: one interface for hub models, random ones and the embedded ones."""

from __future__ import annotations

from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.models.dropout import copy_configuration, dropout_rates, zero_settings
from caldpo.models.gradient_checkpointing import Checkpointing, enable_checkpointing
from caldpo.utils.collectives import is_first_rank


class ModelSource(Protocol):
    """Loads a tokenizer (cheap) and a policy (expensive), and identifies them."""

    gradient_checkpointing: Checkpointing | None = None
    """The key of that name; None where there is none."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer, without reading weights."""
        ...

    def load_policy(self) -> PreTrainedModel:
        """Load the causal language model to train; a new copy at each call."""
        ...

    def skeleton(self) -> PreTrainedModel:
        """Build the same model from its configuration alone, with uninitialised weights.

        To be called where tensors are fake, so that it takes no memory either.
        """
        ...

    def identity(self) -> str:
        """Describe in one line the name and revision, or the settings, of these weights."""
        ...

    def repository(self) -> Repository | None:
        """Return the repository or folder of the weights; None where they are of this project's own making."""
        return None


class Repository(Protocol):
    """A repository of the hub, or a folder in its format."""

    path: str
    revision: str | None

    def commit(self) -> str | None:
        """Look up the commit that the revision resolves to now; None for a folder, or where the hub does not tell."""
        ...

    def pin(self, commit: str) -> None:
        """Load tokenizer and weights of this commit from now on."""
        ...


class WrappedSource(ModelSource):
    """Base of the model sources that change the weights of another ``source``."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.gradient_checkpointing = getattr(source, "gradient_checkpointing", None)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.source.load_tokenizer()

    def repository(self) -> Repository | None:
        return self.source.repository()


def load_on_rank(source: ModelSource, *, sharded: bool) -> PreTrainedModel:
    """Load the policy as each rank holds it before training.

    ``sharded``: the weights are going to be sharded over ranks; the first one loads them, and the others get a model on
    the meta device, which takes no memory.
    """
    if sharded and not is_first_rank():
        with torch.device("meta"):
            return source.skeleton()
    return source.load_policy()


def prepare_for_training(
    policy: PreTrainedModel, *, gradient_checkpointing: Checkpointing, dropout: bool
) -> PreTrainedModel:
    """Set gradient checkpointing and dropout of a loaded policy; ``auto`` is decided for each micro-batch.

    Dropout is off by default, as in the DPO reference implementation: the policy's log-probs are compared
    with a reference that has none, and noise in them is noise in the implicit reward. Noise by other names than
    dropout or jitter stays on, and is refused by :func:`caldpo.models.model_probes.require_valid_logprobs`.

    Raises:
        CaldpoError: the model does not support gradient checkpointing.
    """
    copy_configuration(policy)
    if gradient_checkpointing is True:
        enable_checkpointing(policy)
    if not dropout:
        zero_settings(policy, dropout_rates(policy))
    # RWKV divides weights in place in evaluation mode, against overflow in float16, and would be saved so
    if getattr(policy.config, "rescale_every", 0):
        zero_settings(policy, [(policy.config, "rescale_every", policy.config.rescale_every)])
    policy.config.use_cache = False
    return policy


def floating_dtype(name: str) -> torch.dtype:
    """Parse ``float32``, ``bfloat16``, ... as a torch dtype."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
