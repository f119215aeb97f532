"""Forward passes in the precision of a run, on one device, without a Trainer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from caldpo.errors import CaldpoError

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_WEIGHTS = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


def find_device(name: str) -> torch.device:
    """The device of ``device=``.

    Raises:
        CaldpoError: a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise CaldpoError("there is no GPU here", key="device", value=name, remedy="use device=cpu, or device=auto")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def forward_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context that Lightning computes a forward pass in, under its name of the precision."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[precision])
    return nullcontext()


def placed(model: PreTrainedModel, precision: str, device: torch.device) -> PreTrainedModel:
    """The model on the device, its weights in the dtype of the precision where that names one; in place."""
    torch.nn.Module.to(model, device=device, dtype=_WEIGHTS.get(precision))
    return model
