"""FLOPs of a run, from token counts, weight shapes and attention; GPU-hours under an assumed utilisation.

A product of ``[m, k]`` and ``[k, n]`` counts ``2 m k n``; everything else counts 0. Counted is what is computed:
padding of padded rows, the forward pass again under gradient checkpointing, logits that are not cached, the
reference's passes and the evaluations. Not counted: sampling during training, and what fused attention kernels
recompute internally.

The formulas scale to a whole run and hold for any layout; :mod:`torch.utils.flop_counter` counts one executed step, and
the tests compare the two.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from caldpo.data.collate import Layout
from caldpo.errors import CaldpoError, one_line
from caldpo.logprobs.head import head_layer
from caldpo.models.hub_model import causal_lm_skeleton

_LOGIT_BYTES = 4  # of the cached softmax, in float32


class UnknownFlopsError(Exception):
    """FLOPs of the model do not follow from its shapes; the message has the reason."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Sizes that determine a model's FLOPs per token."""

    body: int  # elements of the matrices that every position passes
    trained: int  # of these, elements that get a gradient
    head: int  # elements of the output head
    head_trained: bool
    attention: int  # layers x heads x head dimension
    recomputed: int = 0  # of the body, elements whose product gradient checkpointing computes again
    attention_recomputed: int = 0  # likewise of the attention

    @staticmethod
    def of(model: PreTrainedModel) -> ModelCost:
        """Read the sizes of a model, adapters included, from the shapes of its weights.

        Raises:
            UnknownFlopsError: some weights are no matrices, or serve some tokens only.
        """
        head = head_layer(model)
        matrices = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        other = {type(m).__name__ for m in model.modules() for p in m.parameters(recurse=False) if p.dim() > 2}
        if head is None or other:
            raise UnknownFlopsError(f"{', '.join(sorted(other)) or type(model).__name__} is no plain matrix")
        recomputed, layers = _recomputed_layers(model)
        attention = _attention_sizes(model.config.get_text_config())
        return ModelCost(
            body=sum(map(_elements, matrices)),
            trained=sum(_elements(m) for m in matrices if m.weight.requires_grad),
            head=_elements(head),
            head_trained=bool(head.weight.requires_grad),
            attention=sum(attention),
            recomputed=recomputed,
            attention_recomputed=round(layers * sum(attention) / len(attention)),
        )

    def recomputing(self, tokens: float, attended: float) -> ModelCost:
        """The same model, which recomputes these shares alone of its tokens and of its attention."""
        recomputed, attention = round(tokens * self.recomputed), round(attended * self.attention_recomputed)
        return replace(self, recomputed=recomputed, attention_recomputed=attention)

    def without_adapters(self) -> ModelCost:
        """The base under trained adapters; the model itself where all weights are trained."""
        if self.trained == self.body:
            return self
        return replace(self, body=self.body - self.trained, trained=0, recomputed=0)


def model_costs(
    policy: PreTrainedModel, reference: PreTrainedModel | None, reference_path: str | None
) -> tuple[ModelCost | None, ModelCost | None, str]:
    """Costs of policy and reference; both None, with the reason, where they are unknown.

    Args:
        policy: with its adapter, if any.
        reference: the second model in memory, if any.
        reference_path: hub id or folder of another reference; None: the policy's start.

    Raises:
        CaldpoError: ``reference.path`` cannot be read.
    """
    try:
        cost = ModelCost.of(policy)
        if reference is None and reference_path is not None:
            reference = causal_lm_skeleton(reference_path, key="reference.path")
        return cost, cost.without_adapters() if reference is None else ModelCost.of(reference), ""
    except UnknownFlopsError as error:
        return None, None, str(error)
    except CaldpoError:
        raise
    except Exception as error:  # a configuration of an unknown architecture
        return None, None, f"the sizes of {type(policy).__name__} cannot be read ({one_line(error)})"


def _attention_sizes(config: PretrainedConfig) -> list[int]:
    """Heads x head dimension of each layer; the layers of Gemma 4 differ.

    Raises:
        UnknownFlopsError: the configuration has no attention heads, such as xLSTM's.
    """
    layers = list(getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers)
    if any(not getattr(layer, "num_attention_heads", None) for layer in layers):
        raise UnknownFlopsError(f"{config.model_type} has layers without attention heads, whose FLOPs are not counted")
    sizes = [getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads for layer in layers]
    return [size * layer.num_attention_heads for size, layer in zip(sizes, layers, strict=True)]


def _recomputed_layers(model: nn.Module) -> tuple[int, int]:
    """Elements of the matrices that checkpointing multiplies by again, and the number of checkpointed layers.

    PyTorch stops at the last input that a layer's backward pass needs: the layer's last product is not recomputed.
    """
    elements = layers = 0
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            matrices = [_elements(m) for m in layer.modules() if isinstance(m, nn.Linear | Conv1D)]
            elements, layers = elements + sum(matrices[:-1]), layers + 1
    return elements, layers


def _elements(layer: nn.Module) -> int:
    """Elements of a layer's matrix, also of a quantised one."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return int(layer.weight.numel())  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class Workload:
    """Token counts that a model processes."""

    positions: float  # tokens of the rows, padding included
    response_tokens: float  # whose log-probs need the output head
    attended: float  # query-key pairs of attention, in one layer and head
    logits_recomputed: float = 0.0  # of the response tokens, those whose logits are computed twice in training

    def __add__(self, other: Workload) -> Workload:
        return Workload(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Workload:
        return Workload(*(factor * count for count in astuple(self)))


def batch_workload(lengths: np.ndarray, layout: Layout) -> Workload:
    """Count one micro-batch, without the padding that evens out ranks.

    Packed pairs attend causally, their prompt with each response; padded rows attend to all of the row, since attention
    under a mask computes the whole square.

    Args:
        lengths: tokens of prompt, chosen and rejected response of its pairs, shape ``(pairs, 3)``.
        layout: of the batch.
    """
    positions = computed_tokens(lengths, layout)
    prompt, responses = lengths[:, 0].astype(np.int64), lengths[:, 1:].astype(np.int64)
    if layout == "packed":
        return Workload(positions, int(responses.sum()), int(_causal(prompt[:, None] + responses).sum()))
    longest = positions // (2 * len(lengths))
    return Workload(positions, int(responses.sum()), positions * longest)


def computed_tokens(lengths: np.ndarray, layout: Layout) -> int:
    """Positions of a micro-batch, of ``lengths`` as in :func:`batch_workload`.

    Packed: each prompt once, without padding. Padded: each response after its own prompt, up to the longest.
    """
    if layout == "packed":
        return int(lengths.sum())
    return 2 * len(lengths) * int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max())


def minimal_workload(lengths: np.ndarray) -> Workload:
    """Count what the loss needs at least: each prompt once, no padding, no last tokens, which predict nothing."""
    prompt, responses = lengths[:, 0].astype(np.int64), lengths[:, 1:].astype(np.int64)
    inner = responses - 1
    attended = _causal(prompt) + (inner * prompt[:, None] + _causal(inner)).sum(axis=1)
    return Workload(int(prompt.sum() + inner.sum()), int(responses.sum()), int(attended.sum()))


def _causal(tokens: np.ndarray) -> np.ndarray:
    """Query-key pairs of rows that attend causally."""
    return tokens * (tokens + 1) // 2


def logits_recomputed(lengths: np.ndarray, vocab_size: int, logits_cache_mib: int) -> float:
    """Share of the response tokens whose logits are computed twice: those of each pair beyond the cache."""
    tokens = lengths[:, 1:].sum(axis=1)
    cached = logits_cache_mib * 2**20 // (vocab_size * _LOGIT_BYTES)
    return float(np.maximum(tokens - cached, 0).sum() / max(1, tokens.sum()))


def forward_flops(cost: ModelCost, work: Workload) -> float:
    """FLOPs of a forward pass; attention multiplies queries by keys, and weights by values."""
    body = 2 * cost.body * work.positions + 4 * cost.attention * work.attended
    return body + 2 * cost.head * work.response_tokens


def backward_flops(cost: ModelCost, work: Workload) -> float:
    """FLOPs of a backward pass: per product ``y = W x`` the gradient of ``x``, and of ``W`` where it is trained."""
    head = 2 * cost.head * work.response_tokens * (1 + cost.head_trained)
    attention = 2 * 4 * cost.attention * work.attended
    return 2 * (cost.body + cost.trained) * work.positions + attention + head


def recompute_flops(cost: ModelCost, work: Workload) -> float:
    """FLOPs of what is computed again for the backward pass."""
    body = 2 * cost.recomputed * work.positions + 4 * cost.attention_recomputed * work.attended
    return body + 2 * cost.head * work.logits_recomputed


Flops = dict[str, float]  # by part of the run


def run_flops(
    cost: ModelCost,
    trained: Workload,
    *,
    evaluated: Workload,
    evaluations: int,
    reference: ModelCost,
    reference_work: Workload,
    ahead: Workload | None = None,
) -> Flops:
    """Add up the FLOPs of a run by part, and in ``total``, over all devices.

    ``trained`` is the work of all training steps, ``evaluated`` that of one evaluation, and ``ahead`` that of passes
    before a step's first backward pass, where the loss needs all of the step.
    """
    parts = {
        "forward": forward_flops(cost, trained),
        "backward": backward_flops(cost, trained),
        "recompute": recompute_flops(cost, trained),
        "reference": forward_flops(reference, reference_work),
        "evaluation": evaluations * forward_flops(cost, evaluated),
    }
    if ahead is not None:
        parts["read-ahead"] = forward_flops(cost, ahead)
    return parts | {"total": sum(parts.values())}


def gpu_hours(flops: float, tflops: float, utilisation: float, devices: int) -> dict[str, float]:
    """Hours at an assumed share of a device's peak: summed over the devices, and of wall-clock time."""
    hours = flops / (tflops * 1e12 * utilisation) / 3600
    return {"device": hours, "wall": hours / devices, "tflops": tflops, "utilisation": utilisation}
