"""Configure DeepSpeed, and refuse what it cannot do. DeepSpeed is not imported here: it takes seconds."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from caldpo.config.extras import install
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    import torch
    from torch import nn

ZERO2 = "deepspeed_stage_2"  # value of trainer.strategy

_BUCKET = 200_000_000  # elements reduced, or gathered, at once


def check_zero(precision: str) -> None:
    """Refuse a run that DeepSpeed cannot train, before any weights load."""
    if importlib.util.find_spec("deepspeed") is None:
        raise CaldpoError(
            "needs DeepSpeed, which is not installed",
            key="trainer.strategy",
            value=ZERO2,
            remedy=f"{install('trainer', 'deepspeed_zero2')}, or use trainer=fsdp",
        )
    reason = {
        "16-mixed": "DeepSpeed scales the loss by a schedule of its own and skips steps silently",
        "64-true": "DeepSpeed updates float32 copies of the weights",
    }.get(precision)
    if reason is not None:
        raise CaldpoError(
            f"cannot be combined with trainer.strategy={ZERO2}: {reason}",
            key="trainer.precision",
            value=precision,
            remedy="set trainer.precision=bf16-mixed, bf16-true or 32-true",
        )


def require_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Refuse trainable weights of mixed dtypes: DeepSpeed's optimiser takes all to have that of the first one."""
    trained = [p for p in model.parameters() if p.requires_grad]
    others = sorted({str(p.dtype).removeprefix("torch.") for p in trained if p.dtype != dtype})
    if others:
        wanted = str(dtype).removeprefix("torch.")
        raise CaldpoError(
            f"trains weights in {wanted} with this trainer.precision, and some are in {', '.join(others)}",
            key="trainer.strategy",
            value=ZERO2,
            remedy=f"set model.dtype={wanted}, or another trainer.precision",
        )


def engine_config(*, half: bool, offload: bool) -> dict[str, Any]:
    """Build DeepSpeed's configuration; accumulation (Lightning's), clipping and skipping are the project's own.

    Args:
        half: the weights are bfloat16, with float32 copies that are partitioned over the ranks and updated.
        offload: keep gradients and optimiser in main memory, where PyTorch's own optimiser updates them.
    """
    zero: dict[str, Any] = {
        "stage": 2,
        "contiguous_gradients": True,
        "overlap_comm": False,  # reduce gradients in a fixed order, so that every run sums alike
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
        "compute_grad_norm": offload,  # the project computes it once; offloading requires it
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    return {
        "train_micro_batch_size_per_gpu": 1,  # read by its timers alone
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": half, "check_grad_overflow": False},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
    }
