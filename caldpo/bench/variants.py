"""What can be measured, as data: options of TRL's trainer, or overrides of this project's own training command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Theirs:
    """Options of TRL's ``DPOTrainer``.

    Args:
        title: name in the table.
        options: fields of TRL's ``DPOConfig`` that differ from its defaults.
        kernels: use what makes TRL faster and is installed: Liger's and FlashAttention's CUDA kernels.
    """

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kernels: bool = False
    project = "TRL"


@dataclass(frozen=True)
class Ours:
    """Overrides of ``python -m caldpo.train``.

    Args:
        title: name in the table.
        overrides: as on its command line; ``{max_length}`` and other numbers of the job are filled in.
    """

    title: str
    overrides: tuple[str, ...] = ()
    project = "caldpo"


Variant = Theirs | Ours

_KEPT = {"gradient_checkpointing": False}
_ONCE = {"precompute_ref_log_probs": True}

VARIANTS: dict[str, Variant] = {
    "trl": Theirs("TRL default"),
    "trl_no_checkpointing": Theirs("TRL, no checkpointing", _KEPT),
    "trl_precomputed": Theirs("TRL, precomputed reference", _ONCE),
    "trl_low_memory": Theirs("TRL, one pair at a time", {**_ONCE, "per_device_train_batch_size": 1}),
    "trl_best": Theirs("TRL, fastest", {**_KEPT, **_ONCE}, kernels=True),
    "caldpo": Ours("caldpo default"),
    "caldpo_checkpointing": Ours("caldpo, checkpointing", ("model.gradient_checkpointing=true",)),
    "caldpo_low_memory": Ours(
        "caldpo, least memory",
        ("model.gradient_checkpointing=true", "logits_cache_mib=0", "data.max_tokens_per_micro_batch={max_length}"),
    ),
    "caldpo_resident": Ours("caldpo, resident reference", ("reference=frozen",)),
    "caldpo_padded": Ours("caldpo, padded, resident", ("reference=frozen", "layout=padded")),
    "caldpo_token_budget": Ours("caldpo, token budget", ("data.max_tokens_per_micro_batch={max_length}",)),
}
