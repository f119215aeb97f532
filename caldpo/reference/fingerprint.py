"""Fingerprint of a reference's log-probs, under which they are stored: everything that determines them.

Tokenizer, chat template and truncation determine them through the token ids, which enter the key; their names are only
written beside it, for people. The same holds for the names of models: the weights themselves enter.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from caldpo.distributed.fsdp import full_tensor
from caldpo.models.adapted_policy import base_model, base_weights, reference_adapter
from caldpo.utils.collectives import all_gather, is_first_rank
from caldpo.utils.delayed_progress import DelayedProgress
from caldpo.utils.digests import file_digest, json_digest

ENGINE_VERSION = "2"
"""Version of the log-prob engine: raised when it computes other values from the same weights and tokens."""

MANIFEST = "manifest.json"
CHUNK = 32 * 2**20  # bytes hashed at a time: large enough for threads to pay, small enough to share them out
_NO_EFFECT = {
    "_name_or_path",
    "architectures",
    "transformers_version",
    "use_cache",
    "dtype",
    "torch_dtype",
    "_commit_hash",
}


def model_facts(
    model: PreTrainedModel, device: torch.device, precision: AbstractContextManager[object]
) -> dict[str, str]:
    """Collect what determines log-probs besides the tokens: a reference, and where and in which context it computes."""
    with precision:
        enabled = torch.is_autocast_enabled(device.type)
        autocast = str(torch.get_autocast_dtype(device.type)) if enabled else "off"
    configuration = model_configuration(model)
    dtype = configuration.pop("dtype")
    return {
        **configuration,
        "weights": weights_digest(model),
        "dtype": dtype,
        "attention": str(base_model(model).config._attn_implementation).removeprefix("caldpo_"),  # one for both layouts
        "autocast": autocast,
        "device": device.type,
        "matmul precision": torch.get_float32_matmul_precision(),
        "engine": ENGINE_VERSION,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def model_configuration(model: PreTrainedModel) -> dict[str, str]:
    """Collect what determines a model's outputs besides its weights, on any machine: class, code, settings, dtype.

    An adapter that is trained is left out; the reference's is included, with its scale, which is not in its weights.
    """
    base = base_model(model)
    # a sharded model has a class made by FSDP, whose base is the model's own
    own = next(kind for kind in type(base).__mro__ if not issubclass(kind, FSDPModule))
    config = {k: v for k, v in base.config.to_dict().items() if k not in _NO_EFFECT}
    facts = {"model class": own.__name__, "model configuration": json_digest(config), "dtype": str(base.dtype)}
    if not own.__module__.startswith("transformers."):  # whose version enters
        facts["model code"] = file_digest(Path(inspect.getfile(own)))
    if (adapter := reference_adapter(model)) is not None:
        facts["adapter"] = json_digest(adapter)
    return facts


def weights_digest(model: PreTrainedModel) -> str:
    """Compute SHA-256 over all weights without the adapter, with their names, shapes and dtypes.

    It is the same for a model that is sharded over ranks, where all ranks have to call: the first one reads.
    """
    weights = dict(base_weights(model))
    sharded = any(isinstance(value, DTensor) for value in weights.values())
    reads = not sharded or is_first_rank()
    # sharded weights are gathered one at a time; else hashlib, which releases the GIL, has all at once
    batches = [[item] for item in weights.items()] if sharded else [list(weights.items())]
    contents: list[list[Any]] = []
    total = sum(value.nbytes for value in weights.values())
    with (
        DelayedProgress("Reading the reference's weights", total) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for batch in batches:
            full_values = [(name, full_tensor(value)) for name, value in batch]
            pieces = [(name, *piece) for name, value in full_values for piece in _pieces(value)] if reads else []
            for (name, start, piece), digest in zip(pieces, pool.map(_content, [p for *_, p in pieces]), strict=True):
                contents.append([name, start, digest])
                bar.advance(piece.nbytes)
    shapes = {name: [str(value.dtype), *value.shape] for name, value in weights.items()}
    digest = json_digest([shapes, sorted(contents)])
    return all_gather(digest)[0] if sharded else digest


def key_of(facts: Mapping[str, str]) -> str:
    """Compute the hex digest of everything that determines a split's log-probs."""
    return json_digest(dict(facts))


def difference(cache: Path, split: str, facts: Mapping[str, str]) -> str | None:
    """Name the facts in which the most similar log-probs of ``split`` in ``cache`` differ; None if there are none."""
    others = [read_manifest(path) for path in cache.glob(f"{split}-*/{MANIFEST}")]
    differing = [tuple(name for name in facts if other.get(name) != facts[name]) for other in others if other]
    nearest = min(differing, key=len, default=None)
    return None if nearest is None else ", ".join(nearest)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the facts that determine the values beside the manifest; empty where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["determined by"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _pieces(value: Tensor) -> list[tuple[int, Tensor]]:
    flat = value.detach().reshape(-1)
    step = max(CHUNK // value.element_size(), 1)
    return [(start, flat[start : start + step]) for start in range(0, len(flat), step)]


def _content(piece: Tensor) -> str:
    return _digest(piece.cpu().contiguous().view(torch.uint8).numpy())


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
