"""The policy as each rank of a run holds it before training."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from caldpo.models.model_source import ModelSource
from caldpo.utils.collectives import is_first_rank


def load_policy(source: ModelSource, *, sharded: bool) -> PreTrainedModel:
    """The policy with its weights; where those are going to be sharded over ranks, the first alone has them.

    Args:
        source: of the model.
        sharded: whether they are. The other ranks' models then are on the meta device, and take no memory.
    """
    if sharded and not is_first_rank():
        with torch.device("meta"):
            return source.skeleton()
    return source.load_policy()
