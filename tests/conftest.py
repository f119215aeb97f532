"""Shapes in annotations are checked while testing; no test reaches for the network."""

from __future__ import annotations

import os

from jaxtyping import install_import_hook

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

_hook = install_import_hook(["caldpo.losses", "caldpo.metrics", "caldpo.logprobs", "caldpo.types"], "beartype.beartype")
