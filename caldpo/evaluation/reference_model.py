"""The reference as a model by itself: the run's start, or another one."""

from __future__ import annotations

from transformers import PreTrainedModel

from caldpo.estimation.fake_model import fake_tensors
from caldpo.models.hub_model import causal_lm_skeleton, load_causal_lm
from caldpo.models.model_source import ModelSource, floating_dtype
from caldpo.reference.reference_base import ReferenceSource
from caldpo.reference.reference_load import frozen, other_vocabulary

KEY = "reference.path"


def require_vocabulary(path: str, source: ModelSource) -> None:
    """Refuse another reference with other tokens than the policy's, by their configurations alone.

    Raises:
        CaldpoError: it cannot be found, or has another vocabulary.
    """
    with fake_tensors("cpu"):
        theirs = causal_lm_skeleton(path, key=KEY).config.vocab_size
        ours = source.skeleton().config.vocab_size
    if theirs != ours:
        raise other_vocabulary(path, theirs, ours)


def load_reference(path: str | None, own: ReferenceSource | None, source: ModelSource) -> PreTrainedModel:
    """The model at ``path``, or the weights that the policy started from, in the dtype that the run's reference had.

    Args:
        path: hub id or folder; None takes the start.
        own: what the run's configuration says of its reference.
        source: where the policy came from.

    Raises:
        CaldpoError: it cannot be loaded.
    """
    model = source.load_policy() if path is None else load_causal_lm(path, key=KEY, dtype="auto")
    dtype = getattr(own, "dtype", "same")
    return model if dtype == "same" else frozen(model, floating_dtype(dtype))
