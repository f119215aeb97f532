"""Models that are named on the command line instead of by a run. No heavy imports here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from caldpo.config.signatures import validated


@validated
@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model of the hub or a folder in its format; see :class:`caldpo.models.hub_model.HubModel`.

    Args:
        path: hub id or folder; None where ``run`` names the policy.
        revision: branch, tag or commit of a hub model.
        tokenizer: hub id or folder of another tokenizer; None takes the model's own.
        dtype: of the weights; ``auto`` keeps the checkpoint's.
        attention: attention implementation of transformers; None lets it choose.
    """

    path: str | None
    revision: str | None
    tokenizer: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None


@validated
@dataclass(frozen=True, kw_only=True)
class NamedReference:
    """Another reference than the run's own.

    Args:
        path: hub id or folder; None takes the run's own.
    """

    path: str | None
