"""Floating-point operations of a run, counted from tokens, weights and attention; and hours, under an assumption.

A product of ``[m, k]`` and ``[k, n]`` counts ``2 m k n``; what is no matrix product counts nothing. Counted is what is
computed: padding where rows are padded, the forward pass again under gradient checkpointing, logits that are not kept,
the reference's pass and the evaluations. Not counted: samples in training, and what fused attention kernels compute
again by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from caldpo.data.collate import Layout
from caldpo.logprobs.head import head_layer

_LOGIT_BYTES = 4  # of the softmax that is kept, in float32
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What determines the operations of a model at a token.

    Args:
        body: elements of the matrices that each position goes through.
        trained: of these, elements that get a gradient of their own.
        head: elements of the output head.
        head_trained: whether it gets a gradient.
        attention: layers x heads x head dimension.
        again: of the body, elements whose product is computed again in the backward pass (gradient checkpointing).
        attended_again: the same of the attention.
    """

    body: int
    trained: int
    head: int
    head_trained: bool
    attention: int
    again: int = 0
    attended_again: int = 0

    @staticmethod
    def of(model: PreTrainedModel) -> ModelCost:
        """The sizes of a model, adapters included; of its weights only shapes are looked at.

        Raises:
            UncountedError: it has weights that are used by some tokens, or in another way than as matrices.
        """
        head = head_layer(model)
        matrices = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        other = {type(m).__name__ for m in model.modules() for p in m.parameters(recurse=False) if p.dim() > 2}
        if head is None or other:
            raise UncountedError(f"{', '.join(sorted(other)) or type(model).__name__} is no plain matrix")
        again, layers = _computed_again(model)
        attention = _attention_sizes(model.config.get_text_config())
        return ModelCost(
            body=sum(map(_elements, matrices)),
            trained=sum(_elements(m) for m in matrices if m.weight.requires_grad),
            head=_elements(head),
            head_trained=bool(head.weight.requires_grad),
            attention=sum(attention),
            again=again,
            attended_again=round(layers * sum(attention) / len(attention)),
        )

    def without_adapters(self) -> ModelCost:
        """The base of a model whose adapters alone are trained; the model itself where all of it is."""
        return self if self.trained == self.body else replace(self, body=self.body - self.trained, trained=0, again=0)


class UncountedError(Exception):
    """A model whose operations do not follow from its shapes, with the reason."""


def _attention_sizes(config: PretrainedConfig) -> list[int]:
    """Heads x head dimension of each layer; Gemma 4 has layers of several sizes.

    Raises:
        UncountedError: the configuration names no attention heads, as xLSTM's.
    """
    layers = list(getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers)
    if any(not getattr(layer, "num_attention_heads", None) for layer in layers):
        raise UncountedError(f"{config.model_type} has layers without attention heads, whose products are not counted")
    sizes = [getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads for layer in layers]
    return [size * layer.num_attention_heads for size, layer in zip(sizes, layers, strict=True)]


def _computed_again(model: nn.Module) -> tuple[int, int]:
    """Elements whose product is computed again, and in how many layers.

    PyTorch stops at the last input that a layer's backward pass needs: the layer's last product is not done again.
    """
    elements = layers = 0
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            matrices = [_elements(m) for m in layer.modules() if isinstance(m, nn.Linear | Conv1D)]
            elements, layers = elements + sum(matrices[:-1]), layers + 1
    return elements, layers


def _elements(layer: nn.Module) -> int:
    """Of the matrix that a layer multiplies by, in whatever form it is stored."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return int(layer.weight.numel())  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class Work:
    """What a model runs over.

    Args:
        positions: tokens of the rows, padding included.
        predicted: response tokens, at which the head is needed.
        attended: couples of a query and a key that attention computes, in one layer and head.
        again: of the predicted tokens, those whose logits are computed a second time in training.
    """

    positions: float
    predicted: float
    attended: float
    again: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.positions + other.positions,
            self.predicted + other.predicted,
            self.attended + other.attended,
            self.again + other.again,
        )

    def __mul__(self, times: float) -> Work:
        return Work(*(times * n for n in (self.positions, self.predicted, self.attended, self.again)))


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of a whole run, on all devices together.

    Args:
        forward: of the training steps.
        backward: likewise.
        recompute: forward passes again, for the backward pass.
        reference: the reference's passes.
        evaluation: the policy's passes over held-out pairs.
    """

    forward: float
    backward: float
    recompute: float
    reference: float
    evaluation: float

    @property
    def training(self) -> float:
        """Of the training steps alone."""
        return self.forward + self.backward + self.recompute

    @property
    def total(self) -> float:
        """All of them."""
        return self.training + self.reference + self.evaluation


@dataclass(frozen=True, slots=True)
class Hours:
    """What operations take at a share of a device's peak: an assumption, and no measurement.

    Args:
        device: hours of all devices together.
        wall: hours that pass, where the devices share the work evenly.
        tflops: peak of a device, 1e12 operations a second.
        utilisation: share of it that is assumed.
    """

    device: float
    wall: float
    tflops: float
    utilisation: float

    @staticmethod
    def of(flops: float, tflops: float, utilisation: float, devices: int) -> Hours:
        """Of so many operations on so many devices."""
        hours = flops / (tflops * 1e12 * utilisation) / SECONDS_PER_HOUR
        return Hours(hours, hours / devices, tflops, utilisation)


def forward_flops(cost: ModelCost, work: Work) -> float:
    """One forward pass: attention multiplies queries with keys, and weights with values."""
    body = 2 * cost.body * work.positions + 4 * cost.attention * work.attended
    return body + 2 * cost.head * work.predicted


def backward_flops(cost: ModelCost, work: Work) -> float:
    """One backward pass: of each product ``y = W x`` the gradient of ``x``, and that of ``W`` where it is trained."""
    head = 2 * cost.head * work.predicted * (1 + cost.head_trained)
    attention = 2 * 4 * cost.attention * work.attended
    return 2 * (cost.body + cost.trained) * work.positions + attention + head


def recompute_flops(cost: ModelCost, work: Work) -> float:
    """What is computed a second time on the way back."""
    body = 2 * cost.again * work.positions + 4 * cost.attended_again * work.attended
    return body + 2 * cost.head * work.again


def run_flops(
    cost: ModelCost,
    trained: Work,
    *,
    evaluated: Work,
    evaluations: int,
    reference: ModelCost | None,
    reference_work: Work,
) -> Flops:
    """Operations of a run.

    Args:
        cost: of the policy.
        trained: of all its steps together.
        evaluated: of one evaluation.
        evaluations: how many there are.
        reference: cost of the reference; None where there is none.
        reference_work: of all its passes together.
    """
    return Flops(
        forward=forward_flops(cost, trained),
        backward=backward_flops(cost, trained),
        recompute=recompute_flops(cost, trained),
        reference=0.0 if reference is None else forward_flops(reference, reference_work),
        evaluation=evaluations * forward_flops(cost, evaluated),
    )


def work_of(lengths: np.ndarray, layout: Layout) -> Work:
    """What one micro-batch is, without padding that evens out devices.

    Args:
        lengths: tokens of prompt, chosen and rejected response of its pairs, shape ``(pairs, 3)``.
        layout: packed pairs attend causally, their prompt with each response; padded rows to all of themselves, since
            attention under a mask computes the whole square.
    """
    prompt, responses = lengths[:, 0].astype(np.int64), lengths[:, 1:].astype(np.int64)
    predicted = int(responses.sum())
    if layout == "packed":
        rows = prompt[:, None] + responses
        return Work(int(lengths.sum()), predicted, int((rows * (rows + 1) // 2).sum()))
    longest = int((prompt + responses.max(axis=1)).max())
    return Work(2 * len(lengths) * longest, predicted, 2 * len(lengths) * longest**2)


def logits_again(lengths: np.ndarray, vocabulary: int, logits_cache_mib: int) -> float:
    """Share of the response tokens whose logits are computed twice: those of a pair beyond what is kept of it.

    Args:
        lengths: as in :func:`work_of`.
        vocabulary: tokens.
        logits_cache_mib: of the log-prob engine.
    """
    tokens = lengths[:, 1:].sum(axis=1)
    kept = logits_cache_mib * 2**20 // (vocabulary * _LOGIT_BYTES)
    return float(np.maximum(tokens - kept, 0).sum() / max(1, tokens.sum()))
