"""Run one forward and backward pass over a step's batch, and inspect every value and gradient."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.logprobs import LogprobEngine
from caldpo.losses.base import PreferenceLoss
from caldpo.metrics import loss_metrics
from caldpo.models.model_forward import evaluating
from caldpo.nonfinite.locate import LOGPS, nonfinite_gradients
from caldpo.reference.reference_base import Logps, Reference
from caldpo.types import PairBatch, assembler

_LAYER = re.compile(r".*?\.\d+(?=\.)")  # model.layers.3 of model.layers.3.mlp.up_proj.weight


@dataclass(frozen=True)
class InspectedPass:
    """Values and gradients of one pass.

    Args:
        precision: Lightning's name.
        values: per pair, by name: log-probs as in :class:`caldpo.types.PairLogps` (nats), ``loss``, ``terms/*``.
        norms: of the gradient, by group of parameters: a layer, or a module outside the layers.
        nonfinite: parameters whose gradient is not finite.
    """

    precision: str
    values: dict[str, Tensor]
    norms: dict[str, float]
    nonfinite: list[str]

    def nonfinite_values(self, pair: int) -> list[str]:
        """Name the values of a pair that are not finite."""
        return [name for name, value in self.values.items() if not bool(value[pair].isfinite())]

    def nonfinite_pairs(self, weight: list[float]) -> list[int]:
        """List the real pairs with a non-finite value."""
        return [i for i, real in enumerate(weight) if real > 0 and self.nonfinite_values(i)]

    def is_nonfinite(self, weight: list[float]) -> bool:
        """Whether any value or gradient is not finite."""
        return bool(self.nonfinite or self.nonfinite_pairs(weight))


def run_pass(
    policy: PreTrainedModel,
    reference: Reference | None,
    loss: PreferenceLoss,
    batches: list[PairBatch],
    *,
    precision: str,
    context: Callable[[], AbstractContextManager[object]],
    logits_cache_mib: int,
    scale: float = 1.0,
    to_float32: bool = False,
) -> InspectedPass:
    """Compute the step's loss (the mean over its pairs) and its gradient, as in training.

    Args:
        policy: on its device, in training mode; its gradients are those of this pass afterwards.
        reference: run live; None where the loss needs none.
        loss: of the run.
        batches: the micro-batches, on the device.
        precision: name of the pass.
        context: in which forward passes have that precision.
        logits_cache_mib: of the engine.
        scale: of the gradient while it is computed, as under float16 arithmetic.
        to_float32: convert the weights of both models to float32 first, for good.
    """
    if to_float32:
        policy.float()
    policy.zero_grad(set_to_none=True)
    references = _reference_logps(reference, batches, context, to_float32)
    engine = LogprobEngine(policy, logits_cache_mib)
    columns: dict[str, list[Tensor]] = {}
    for batch, reference_logps in zip(batches, references, strict=True):
        assemble = assembler(batch, reference_logps)
        weight, factor = batch.weight, scale / batch.step_pairs

        def summed(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
            values = loss(assemble(chosen, rejected, rows)).loss  # noqa: B023  # called before the next batch
            return torch.where(weight[rows] > 0, values, 0).sum() * factor  # noqa: B023

        with context():
            total, chosen, rejected = engine.loss(batch, summed)
        total.backward()
        with torch.no_grad(), context():
            logps = assemble(chosen, rejected, slice(None))
            of_batch = {name: getattr(logps, name) for name in LOGPS} | loss_metrics(loss(logps))
        for name, value in of_batch.items():
            if value is not None:
                columns.setdefault(name, []).append(value.detach().float().cpu())
    for parameter in policy.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale
    values = {name: torch.cat(parts) for name, parts in columns.items()}
    return InspectedPass(precision, values, group_norms(policy), nonfinite_gradients(policy))


def group_norms(policy: PreTrainedModel) -> dict[str, float]:
    """Compute the gradient's norm of each layer, and of each module outside the layers, in float64."""
    squares: dict[str, Tensor] = {}
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            group = group_of(name)
            squares[group] = squares.get(group, 0) + parameter.grad.double().square().sum()
    return {group: float(square.sqrt()) for group, square in squares.items()}


def group_of(name: str) -> str:
    """Name the layer of a parameter, or its module where it is in none."""
    layer = _LAYER.match(name)
    return layer[0] if layer else name.rpartition(".")[0] or name


@torch.no_grad()
def _reference_logps(
    reference: Reference | None,
    batches: Iterable[PairBatch],
    context: Callable[[], AbstractContextManager[object]],
    to_float32: bool,
) -> list[Logps | tuple[None, None]]:
    """Compute the reference's log-probs of each batch; its model may be the policy with its adapter disabled."""
    if reference is None:
        return [(None, None) for _ in batches]
    with reference.live() as model, evaluating(model), context():
        engine = LogprobEngine(model.float() if to_float32 else model)
        return [engine(batch) for batch in batches]
