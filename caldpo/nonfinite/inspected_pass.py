"""One pass over a step's batch, forward and backward, with everything in it looked at."""

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
from caldpo.nonfinite.locate import LOGPS, bad_gradients
from caldpo.reference.reference_base import Logps, Reference
from caldpo.types import PairBatch, assembler

_LAYER = re.compile(r".*?\.\d+(?=\.)")  # model.layers.3 of model.layers.3.mlp.up_proj.weight


@dataclass(frozen=True)
class Pass:
    """What a pass gave.

    Args:
        precision: in which it was computed, Lightning's name.
        values: per pair, by name: log-probs as in :class:`caldpo.types.PairLogps` (nats), ``loss``, ``terms/*``.
        norms: of the gradient, by group of parameters: a layer, or a module outside the layers.
        bad: parameters whose gradient is not finite.
    """

    precision: str
    values: dict[str, Tensor]
    norms: dict[str, float]
    bad: list[str]

    def wrong(self, pair: int) -> list[str]:
        """What of a pair is not finite."""
        return [name for name, value in self.values.items() if not bool(value[pair].isfinite())]

    def bad_pairs(self, weight: list[float]) -> list[int]:
        """Real pairs that have something which is not finite."""
        return [i for i, real in enumerate(weight) if real > 0 and self.wrong(i)]

    def is_bad(self, weight: list[float]) -> bool:
        """Whether anything at all is not finite."""
        return bool(self.bad or self.bad_pairs(weight))


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
    wide: bool = False,
) -> Pass:
    """The loss summed over the step's pairs, divided by their number, and its gradient, as in training.

    Args:
        policy: on its device, in training mode; its gradients are those of this pass afterwards.
        reference: asked live; None where the loss needs none.
        loss: of the run.
        batches: the micro-batches, on the device.
        precision: what the pass is called.
        context: in which forward passes have that precision.
        logits_cache_mib: of the engine.
        scale: the gradient is multiplied by it while it is computed, as under float16 arithmetic.
        wide: convert the weights of both models to float32 first, for good.
    """
    if wide:
        policy.float()
    policy.zero_grad(set_to_none=True)
    answers = _asked(reference, batches, context, wide)
    engine = LogprobEngine(policy, logits_cache_mib)
    found: dict[str, list[Tensor]] = {}
    for batch, answer in zip(batches, answers, strict=True):
        assemble = assembler(batch, answer)
        weight, factor = batch.weight, scale / batch.step_pairs

        def summed(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
            values = loss(assemble(chosen, rejected, rows)).loss  # noqa: B023  # called before the next batch
            return torch.where(weight[rows] > 0, values, 0).sum() * factor  # noqa: B023

        with context():
            total, chosen, rejected = engine.loss(batch, summed)
        total.backward()
        with torch.no_grad(), context():
            logps = assemble(chosen, rejected, slice(None))
            values = {name: getattr(logps, name) for name in LOGPS} | loss_metrics(loss(logps))
        for name, value in values.items():
            if value is not None:
                found.setdefault(name, []).append(value.detach().float().cpu())
    for parameter in policy.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale
    return Pass(precision, {n: torch.cat(v) for n, v in found.items()}, group_norms(policy), bad_gradients(policy))


def group_norms(policy: PreTrainedModel) -> dict[str, float]:
    """Norm of the gradient of each layer, and of each module outside the layers, in float64."""
    squares: dict[str, Tensor] = {}
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            group = group_of(name)
            squares[group] = squares.get(group, 0) + parameter.grad.double().square().sum()
    return {group: float(square.sqrt()) for group, square in squares.items()}


def group_of(name: str) -> str:
    """The layer that a parameter lies in, or the module where it lies in none."""
    layer = _LAYER.match(name)
    return layer[0] if layer else name.rpartition(".")[0] or name


@torch.no_grad()
def _asked(
    reference: Reference | None,
    batches: Iterable[PairBatch],
    context: Callable[[], AbstractContextManager[object]],
    wide: bool,
) -> list[Logps | tuple[None, None]]:
    """The reference's log-probs of each batch; the model may be the policy itself, its adapter switched off."""
    if reference is None:
        return [(None, None) for _ in batches]
    with reference.live() as model, evaluating(model), context():
        engine = LogprobEngine(model.float() if wide else model)
        return [engine(batch) for batch in batches]
