"""Choose the budget of a micro-batch, in tokens, that ``data.max_tokens_per_micro_batch=auto`` stands for.

From some size on, larger micro-batches are no faster and cost memory alone: that size is the budget, or half of it, a
quarter, ... where memory does not suffice. An upper bound from the model's shape decides at once where there is plenty;
else the estimate of :mod:`caldpo.estimation.memory_breakdown` does, on tensors without content.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from caldpo.components import Components
from caldpo.data.batching import ByTokens, StepPlan
from caldpo.data.collate import Layout, collate
from caldpo.distributed.fsdp import decoder_layers
from caldpo.errors import CaldpoError
from caldpo.estimation.memory_breakdown import FRAGMENTED, PROCESS_BYTES, memory_breakdown
from caldpo.estimation.memory_verdict import GIB, TIGHT, memory_limit
from caldpo.estimation.step_memory import AUTOCAST_DTYPES, WEIGHT_DTYPES
from caldpo.logprobs.lm_head_ops import CHUNK_BYTES
from caldpo.models.adapted_policy import base_model
from caldpo.types import PairBatch
from caldpo.utils.text_format import counted

SATURATING = {"cpu": 1024, "cuda": 16384}
"""Tokens of a micro-batch beyond which steps get no faster; measured on a CPU, see docs/performance.md."""
UNKNOWN_MEMORY = 4096
"""Budget for a model whose memory cannot be estimated, at most."""
LEAST = 256
"""Budget below which none is tried: most pairs have a micro-batch to themselves then."""
NEGLIGIBLE = 160 * 2**20
"""Bytes of activations, by the upper bound, that are not worth cutting a micro-batch for."""
BOUND = 2.5
"""Activations of a token over the inputs and outputs of all matrices that it passes; measured: 1.1 to 2.2."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Most tokens of a micro-batch, padding included, and why."""

    tokens: int
    reason: str

    def describe(self, plan: StepPlan) -> str:
        """Describe in one line how steps are cut."""
        if isinstance(plan.micro_batching, ByTokens):
            return f"at most {self.tokens:,} tokens each ({self.reason})"
        pairs = -(-plan.step_size // (plan.accumulation * plan.world_size))
        each = f"at most {counted(pairs, 'pair')} each (data.micro_batch_size)"
        return f"{each}, within {self.tokens:,} tokens ({self.reason})"


def choose_budget(
    components: Components,
    policy: PreTrainedModel,
    plan: StepPlan,
    layout: Layout,
    *,
    logits_cache_mib: int,
    memory_gib: float | None = None,
) -> TokenBudget:
    """Choose the budget of a run from the policy's shape, its pairs and the memory of a device.

    Memory is the device's in all, not what is free at the moment: so all ranks of like devices choose the same.

    Args:
        components: of the run; its data is prepared.
        policy: with its adapter; only shapes are read.
        plan: of the run, by count.
        layout: of the batches.
        logits_cache_mib: of the log-prob engine.
        memory_gib: of a device, GiB; None takes this machine's.
    """
    trainer = components.trainer
    device = "cuda" if trainer.accelerator == "gpu" else "cpu"
    limit = memory_limit(trainer.accelerator, trainer.devices, memory_gib)
    per_token = activation_bound(policy, trainer.precision)
    enough = max(SATURATING[device], NEGLIGIBLE // per_token)
    if limit is None:  # as a device with plenty of memory
        return TokenBudget(enough, "the memory of the device is not known")
    room = f"{limit / GIB:,.1f} GiB"
    fixed = fixed_bound(policy, trainer.precision, logits_cache_mib, CHUNK_BYTES[device])
    if device == "cpu":
        fixed, per_token = round((1 + FRAGMENTED) * fixed) + PROCESS_BYTES, round((1 + FRAGMENTED) * per_token)
    if fixed + per_token * _largest(components, enough, layout) <= TIGHT * limit:
        return TokenBudget(enough, f"more would be no faster on a {'GPU' if device == 'cuda' else 'CPU'}")
    tokens = enough
    while True:
        batch = _longest_batch(components, plan, layout, tokens)
        needed = _estimated(components, batch, plan, layout, device, logits_cache_mib)
        if needed is None:
            return TokenBudget(min(enough, UNKNOWN_MEMORY), "what this model needs cannot be estimated")
        if needed <= TIGHT * limit:
            why = f"{room} of memory" if tokens < enough else f"no more would be faster, and these fit {room}"
            return TokenBudget(tokens, why)
        if len(batch.index) == 1 or tokens <= LEAST:
            return TokenBudget(tokens, f"about {needed / GIB:,.1f} GiB are needed even so, of {room} of memory")
        tokens //= 2


def activation_bound(policy: PreTrainedModel, precision: str) -> int:
    """Bound the bytes that a training step keeps for each token between its forward and its backward pass."""
    base = base_model(policy)
    dtype = AUTOCAST_DTYPES.get(precision) or _weight_dtype(policy, precision)
    layers = decoder_layers(base) or [base]
    widths = [_width(layer) for layer in layers]
    if any(getattr(part, "gradient_checkpointing", False) for part in base.modules()):  # inputs, and one layer again
        kept = len(layers) * base.config.get_text_config().hidden_size + max(widths)
    else:
        kept = sum(widths)
    return max(1, round(BOUND * kept * dtype.itemsize))


def fixed_bound(policy: PreTrainedModel, precision: str, logits_cache_mib: int, chunk_bytes: int) -> int:
    """Bound the bytes of a training step that do not depend on its tokens.

    Weights, a second copy of them for a reference, gradients, a second copy of these in buckets, two moments of the
    optimiser in float32, what its update takes, copies of the weights in autocast's dtype, the gradient of the output
    head in float32, and its logits.
    """
    size = _weight_dtype(policy, precision).itemsize
    elements = sum(p.numel() for p in policy.parameters())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    casts = AUTOCAST_DTYPES[precision].itemsize if precision in AUTOCAST_DTYPES else 0
    head = base_model(policy).get_output_embeddings()
    gradient = 0 if head is None else 2 * 4 * sum(p.numel() for p in head.parameters())
    of_trained = trained * (3 * size + 8)
    return elements * (2 * size + casts) + of_trained + gradient + logits_cache_mib * 2**20 + 2 * chunk_bytes


def _width(module: nn.Module) -> int:
    """Sum inputs and outputs of all matrices inside a module; of a layer of experts, those of one."""
    total = 0
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Embedding) or next(part.children(), None) is not None:
            continue
        if isinstance(part, nn.Linear):  # a quantised weight has another shape
            total += part.in_features + part.out_features
        elif isinstance(weight, torch.Tensor) and weight.dim() > 1:
            total += sum(weight.shape[-2:])
    return total


def _weight_dtype(policy: PreTrainedModel, precision: str) -> torch.dtype:
    dtype = WEIGHT_DTYPES.get(precision) or next((p.dtype for p in policy.parameters() if p.is_floating_point()), None)
    return dtype or torch.float32


def _largest(components: Components, budget: int, layout: Layout) -> int:
    """Tokens of the largest micro-batch: those of the budget, or of a pair that is longer."""
    return max(budget, ByTokens.of(budget, components.data.train_pairs.lengths(), layout).most_tokens(1))


def _longest_batch(components: Components, plan: StepPlan, layout: Layout, budget: int) -> PairBatch:
    """Collate the longest pairs that share a micro-batch of ``budget`` tokens: at least one."""
    pairs = components.data.train_pairs
    longest_first = pairs.lengths().sum(axis=1).argsort()[::-1].tolist()
    rows = next(ByTokens.of(budget, pairs.lengths(), layout).in_order(longest_first, plan.step_size))
    return collate([pairs[row] for row in rows], 0, layout=layout)


def _estimated(
    components: Components, batch: PairBatch, plan: StepPlan, layout: Layout, device: str, logits_cache_mib: int
) -> int | None:
    """Estimate the bytes of a run with this micro-batch; None where that is not possible."""
    try:
        memory = memory_breakdown(
            components, batch, batch, layout=layout, device=device, plan=plan, logits_cache_mib=logits_cache_mib
        )
    except CaldpoError:
        return None
    return None if memory.activations_unknown else memory.total
