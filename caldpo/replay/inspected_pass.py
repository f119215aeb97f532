"""Run one forward and backward pass over a dumped step, and inspect every value and gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.logprobs import LogprobEngine
from caldpo.losses.base import PreferenceLoss
from caldpo.metrics import loss_metrics
from caldpo.models.model_forward import evaluating
from caldpo.nonfinite.locate import LOGPS, nonfinite_gradients
from caldpo.nonfinite.step_dump import DumpedPair, PlainFacts
from caldpo.reference.reference_base import Reference
from caldpo.types import PairBatch, assembler

_LAYER = re.compile(r".*?\.\d+(?=\.)")  # model.layers.3 of model.layers.3.mlp.up_proj.weight


class InspectedPair(PlainFacts):
    """A real pair in one pass."""

    origin: str  # file and line, or split and row
    tokens: tuple[int, int, int]  # of prompt, chosen and rejected response
    values: dict[str, float]  # by name: log-probs and log-ratios in nats, loss, terms/* and diagnostics/*
    then: dict[str, float]  # as the run computed them
    not_finite: list[str]  # names of the values that are not


class InspectedPass(PlainFacts):
    """Values and gradients of one pass, in Lightning's ``precision``; a group of parameters is a layer or a module."""

    precision: str
    pairs: list[InspectedPair]
    gradient_norms: dict[str, float]
    nonfinite_gradients: list[str]

    @property
    def is_nonfinite(self) -> bool:
        """Whether any value or gradient is not finite."""
        return bool(self.nonfinite_gradients) or any(pair.not_finite for pair in self.pairs)


def run_pass(
    policy: PreTrainedModel,
    reference: Reference | None,
    loss: PreferenceLoss,
    batches: Sequence[PairBatch],
    pairs: Sequence[DumpedPair],
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
        pairs: of all batches.
        precision, context: name of the pass, and in which its forward passes run.
        logits_cache_mib: of the engine.
        scale: of the gradient while it is computed, as under float16 arithmetic.
        to_float32: convert the weights of both models to float32 first, for good.
    """
    if to_float32:
        policy.float()
    policy.zero_grad(set_to_none=True)
    references: list[tuple[Tensor | None, Tensor | None]] = [(None, None) for _ in batches]
    if reference is not None:  # its model may be the policy with its adapter disabled
        with torch.no_grad(), reference.live() as model, evaluating(model), context():
            reference_engine = LogprobEngine(model.float() if to_float32 else model)
            references = [reference_engine(batch) for batch in batches]
    engine = LogprobEngine(policy, logits_cache_mib)
    columns: dict[str, list[float]] = {}
    start = 0
    for batch, reference_logps in zip(batches, references, strict=True):
        assemble = assembler(batch, reference_logps, _of_step(pairs[start : start + batch.pairs], batch.weight))
        start += batch.pairs
        weight, factor = batch.weight, scale / batch.pairs_in_step(len(batches))

        def summed(chosen: Tensor, rejected: Tensor, rows: slice) -> Tensor:
            values = loss(assemble(chosen, rejected, rows)).loss  # noqa: B023  # called before the next batch
            return torch.where(weight[rows] > 0, values, 0).sum() * factor  # noqa: B023

        with context():
            total, chosen, rejected = engine.loss(batch, summed)
        total.backward()
        with torch.no_grad(), context():
            logps = assemble(chosen, rejected, slice(None))
            values = {name: getattr(logps, name) for name in LOGPS} | loss_metrics(loss(logps))
            if reference is not None:
                values |= {"log_ratio_chosen": logps.chosen_log_ratio, "log_ratio_rejected": logps.rejected_log_ratio}
        for name, value in values.items():
            if value is not None:
                columns.setdefault(name, []).extend(value.tolist())
    for parameter in policy.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale
    inspected = [
        InspectedPair(
            origin=pair.origin,
            tokens=(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)),
            values={name: column[i] for name, column in columns.items()},
            then=pair.values,
            not_finite=[
                name
                for name, column in columns.items()
                if not math.isfinite(column[i]) and not name.startswith("log_ratio_")  # follow from log-probs
            ],
        )
        for i, pair in enumerate(pairs)
        if pair.is_real
    ]
    return InspectedPass(
        precision=precision,
        pairs=inspected,
        gradient_norms=group_norms(policy),
        nonfinite_gradients=nonfinite_gradients(policy),
    )


def _of_step(pairs: Sequence[DumpedPair], like: Tensor) -> dict[str, Tensor] | None:
    """What the loss computed over the whole step as the run had it: other ranks' pairs are not in the dump."""
    rows = [pair.of_step() for pair in pairs]
    return {name: like.new_tensor([row[name] for row in rows]) for name in rows[0]} or None


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
