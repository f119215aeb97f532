"""Refuse configurations that are certain to overflow, before data and weights load, with the arithmetic.

Log-probs, the loss and its slopes by the log-probs are computed in float32 (float64 with ``precision=64-true``),
whatever the weights' dtype. So ``(1 / (2 beta))^2`` itself never meets float16. What does is the gradient on its way
from the log-probs into the model, ``slope / pairs x (W_y - sum_v p_v W_v)``, W being the output head's rows: it is
rounded to the dtype of the hidden states, and under ``16-mixed`` it is multiplied by a scale before, which starts at
65,536 and is halved at each step that overflows. With float16 weights there is no such scale, and the gradient's norm
and the optimiser's state are float16 as well.

Only what no data and no weights can mend is refused: slopes are those of a pair for which policy and reference agree,
and a log-prob's gradient is taken to be as small as :data:`SMALLEST`, far below any language model's.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.models.adapters import AdapterSource, NoAdapter
from caldpo.models.model_source import ModelSource
from caldpo.optim.optimizer_base import OptimizerChoice
from caldpo.optim.torch_optimizers import AdamW
from caldpo.types import PairLogps

if TYPE_CHECKING:
    from caldpo.lightning_trainer import TrainerSettings

SMALLEST = 1e-3  # per nat, of a log-prob's gradient by the hidden states, and by all weights together
SCALE = 2.0**16  # that float16 arithmetic starts with
SCORES_APART = 1e-3  # of a pair, where the targets are the data's scores
HALF_MAX, SINGLE_MAX = (torch.finfo(dtype).max for dtype in (torch.float16, torch.float32))


class InitialLoss(NamedTuple):
    """A pair's loss where policy and reference agree, and the larger of its slopes by the two log-probs."""

    loss: float
    slope: float


def initial_loss(loss: PreferenceLoss, tokens: int, dtype: torch.dtype) -> InitialLoss:
    """Evaluate a loss on a mild pair: log-probs of -0.1 nats, ``tokens`` in each response, scores hardly apart."""
    nats = torch.full((1,), -0.1, dtype=dtype)
    chosen, rejected = nats.clone().requires_grad_(), nats.clone().requires_grad_()
    lengths = torch.full_like(nats, tokens)
    half = torch.full_like(nats, SCORES_APART / 2)
    logps = PairLogps(chosen, rejected, nats, nats, lengths, lengths, half, -half)
    value = loss(replace(logps, chosen_alignment=nats, rejected_alignment=nats)).loss.sum()
    if not value.requires_grad:  # refused when it is trained, with a better reason
        return InitialLoss(value.item(), 0.0)
    slopes = torch.autograd.grad(value, (chosen, rejected), allow_unused=True)
    largest = max(0.0 if s is None else abs(s.item()) for s in slopes)  # max keeps a leading nan
    return InitialLoss(value.item(), largest)


def check_overflow(
    *,
    loss: PreferenceLoss,
    model: ModelSource,
    adapter: AdapterSource,
    optim: OptimizerChoice,
    max_length: int,
    micro_batch_size: int,
    trainer: TrainerSettings,
) -> None:
    """Refuse what is certain to overflow.

    Raises:
        CaldpoError: a loss, a gradient or the optimiser's state would, from the first step on; or the gradient is 0
            for rounding alone.
    """
    dtype = torch.float64 if trainer.precision == "64-true" else torch.float32
    start = initial_loss(loss, max_length, dtype)
    if not (math.isfinite(start.loss) and math.isfinite(start.slope)):
        exact = initial_loss(loss, max_length, torch.float64)
        name, largest = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
        raise _overflow_error(
            loss,
            f"with policy and reference alike, a pair's loss is {exact.loss:.3g} and its slope {exact.slope:.3g}, and"
            f" {name}, in which both are computed, ends at {largest:.3g}",
        )
    if start.slope == 0 and dtype != torch.float64 and initial_loss(loss, max_length, torch.float64).slope > 0:
        raise CaldpoError(
            f"the slope of the loss {loss.formula} is 0 in {dtype}: nothing would be trained",
            **_extreme_setting(loss),
            remedy="raise it: published values of beta begin at 5e-5",
        )
    pairs = micro_batch_size * trainer.accumulate_grad_batches * trainer.world_size
    smallest = start.slope / pairs * SMALLEST
    arithmetic = f"slope {start.slope:.3g} / {pairs} pairs x {SMALLEST:g} = {smallest:.3g}"
    converted = trainer.precision in ("bf16-true", "64-true")
    has_float16_weights = not converted and getattr(model, "dtype", None) == "float16"
    if dtype == torch.float32 and smallest > math.sqrt(SINGLE_MAX):
        raise _overflow_error(
            loss,
            f"the gradient's norm is at least {arithmetic}, and its square is beyond float32's {SINGLE_MAX:.3g}",
        )
    if trainer.precision == "16-mixed" and trainer.accelerator == "gpu":  # on a CPU, Lightning takes bfloat16 instead
        if has_float16_weights:
            raise CaldpoError(
                "float16 arithmetic scales its gradients, and cannot take the scale off gradients that are themselves"
                " float16, as those of model.dtype=float16 are",
                key="trainer.precision",
                value="16-mixed",
                remedy="set model.dtype=float32, or trainer.precision=bf16-mixed",
            )
        skipped = steps_to_scale(smallest)
        if skipped > trainer.max_skipped_steps:
            raise _overflow_error(
                loss,
                f"the gradient by the hidden states is at least {arithmetic}; times float16's first scale of {SCALE:g}"
                f" it is beyond {HALF_MAX:g}, and {skipped} steps in a row would be skipped to halve that scale until"
                f" it fits, where trainer.max_skipped_steps={trainer.max_skipped_steps}",
            )
    elif has_float16_weights:
        if smallest > HALF_MAX:
            raise _overflow_error(loss, f"the gradient is at least {arithmetic}, and float16 ends at {HALF_MAX:g}")
        _check_optimizer(optim, adapter)


def steps_to_scale(smallest: float) -> int:
    """Count the steps whose scaled gradient overflows float16, until the scale has been halved often enough."""
    return max(0, math.ceil(math.log2(smallest * SCALE / HALF_MAX))) if smallest > 0 else 0


def _check_optimizer(optim: OptimizerChoice, adapter: AdapterSource) -> None:
    """Refuse an epsilon that float16 rounds to 0: it divides by 0 where a squared gradient is 0, at once, and often."""
    in_float32 = isinstance(optim, AdamW) and optim.fused is not False  # fused kernels compute in float32
    if in_float32 or optim.eps is None or not isinstance(adapter, NoAdapter):
        return
    if float(torch.tensor(optim.eps, dtype=torch.float16)) == 0:
        raise CaldpoError(
            "is 0 in float16, in which the optimiser keeps the state of float16 weights; so is the square of any small"
            " gradient, and the first update divides by their sum",
            key="optim.eps",
            value=f"{optim.eps:g}",
            remedy="set model.dtype=float32 with trainer.precision=bf16-mixed, optim=adamw optim.fused=true, or"
            " optim.eps=1e-6",
        )


def _overflow_error(loss: PreferenceLoss, reason: str) -> CaldpoError:
    setting = _extreme_setting(loss)
    too_large = setting["key"] == "loss.beta" and float(setting["value"]) > 1
    remedy = "lower loss.beta" if too_large else "raise loss.beta, or lower the weight that makes the loss this large"
    return CaldpoError(f"the loss {loss.formula} is certain to overflow: {reason}", **setting, remedy=remedy)


def _extreme_setting(loss: PreferenceLoss) -> dict[str, Any]:
    """Return key and value of the setting furthest from 1; the loss alone where none is far."""
    loss = loss.unmodified
    names = inspect.signature(type(loss).__init__).parameters
    settings = {
        name if name in names else f"{part}_{name}": value  # the weight of ``calibration`` is calibration_weight
        for part, module in loss.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and value != 0
    }
    far = max(settings, key=lambda name: abs(math.log10(abs(settings[name]))), default=None)
    if far is None or 1e-6 < abs(settings[far]) < 1e6:
        return {"key": "loss"}
    return {"key": f"loss.{far}", "value": f"{settings[far]:g}"}
