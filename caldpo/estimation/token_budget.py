"""Choose the budget of a micro-batch, in tokens, that ``data.max_tokens_per_micro_batch=auto`` stands for.

From some size on, larger micro-batches are no faster and cost memory alone: that size is the budget, or half of it, a
quarter, ... where memory does not suffice. An upper bound from the model's shape decides at once where there is plenty;
else the estimate of :mod:`caldpo.estimation.memory_breakdown` does, on tensors without content.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from transformers import PreTrainedModel

from caldpo.components import Components
from caldpo.data.batching import ByTokens, StepPlan
from caldpo.data.collate import Layout, collate
from caldpo.data.pair_stream import ENDLESS
from caldpo.distributed.fsdp import decoder_layers
from caldpo.errors import CaldpoError
from caldpo.estimation.memory_breakdown import FRAGMENTED, PROCESS_BYTES, memory_breakdown
from caldpo.estimation.memory_verdict import GIB, TIGHT, memory_limit
from caldpo.estimation.step_memory import AUTOCAST_DTYPES, WEIGHT_DTYPES
from caldpo.logprobs.lm_head_ops import CHUNK_BYTES
from caldpo.models.adapted_policy import base_model
from caldpo.types import PairBatch
from caldpo.utils.text_format import counted

SATURATING = {"cpu": 512, "cuda": 16384}
"""Tokens of a micro-batch beyond which steps get no faster; measured on a CPU, see docs/performance.md."""
UNKNOWN_MEMORY = 4096
"""Budget for a model whose memory cannot be estimated, at most."""
LEAST = 256
"""Budget below which none is tried: most pairs have a micro-batch to themselves then."""
NEGLIGIBLE = 256 * 2**20
"""Bytes of activations, by the upper bound, that are not worth cutting a micro-batch for."""
REMEDY = "python -m caldpo.estimate with the same overrides lists what saves most, such as adapter=lora"
ALLOCATED = 3
"""All that a micro-batch allocates, one tensor after another, over the bound of what it keeps without recomputation."""
BOUND = 2.5
"""Activations of a token over the inputs and outputs of all matrices that it passes; measured: 1.1 to 2.2."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Most tokens of a micro-batch, padding included, and why."""

    tokens: int
    reason: str
    warning: str = ""  # where nothing fits the memory

    def describe(self, plan: StepPlan) -> str:
        """Describe in one line how steps are cut."""
        if isinstance(plan.micro_batching, ByTokens):
            return f"at most {self.tokens:,} tokens each ({self.reason})"
        pairs = -(-plan.step_size // (plan.accumulation * plan.world_size))
        each = f"at most {counted(pairs, 'pair')} each (data.micro_batch_size)"
        return f"{each}, within {self.tokens:,} tokens ({self.reason})"


def describe_recomputed(plan: StepPlan, recompute_above: int | None) -> str:
    """Describe in one line whose activations ``model.gradient_checkpointing=auto`` recomputes; empty where none are."""
    if recompute_above is None:
        return ""
    if plan.pairs == ENDLESS:  # whose lengths are not known
        return f"of pairs above {recompute_above:,} tokens"
    longer = plan.micro_batching.longer_pairs() if isinstance(plan.micro_batching, ByTokens) else 0
    return f"of {longer:,} of {counted(plan.pairs, 'pair')}, above {recompute_above:,} tokens" if longer else ""


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
    per_token = per_long_token = activation_bound(policy, trainer.precision)
    heap = round(FRAGMENTED * ALLOCATED * activation_bound(policy, trainer.precision, recomputes=False))
    enough = max(SATURATING[device], NEGLIGIBLE // per_token)
    recomputes = components.recompute_above(policy, enough) is not None
    if recomputes:
        per_long_token = activation_bound(policy, trainer.precision, recomputes=True)
    if limit is None:  # as a device with plenty of memory
        return TokenBudget(enough, "the memory of the device is not known")
    room = f"{limit / GIB:,.1f} GiB"
    fixed = fixed_bound(policy, trainer.precision, logits_cache_mib, CHUNK_BYTES[device])
    longest = ByTokens.of(enough, components.data.train_pairs.lengths(), layout).most_tokens(1)
    bound = fixed + max(per_token * enough, per_long_token * longest)
    if device == "cpu":
        bound += heap * max(enough, longest) + PROCESS_BYTES
    if bound <= TIGHT * limit:
        return TokenBudget(enough, f"more would be no faster on a {'GPU' if device == 'cuda' else 'CPU'}")
    tokens = enough
    while True:
        batches = _largest_batches(components, plan, layout, tokens, recomputes=recomputes)
        above = tokens if recomputes else None
        needed = _estimated(components, batches, plan, layout, device, logits_cache_mib, above)
        if needed is None:
            return TokenBudget(min(enough, UNKNOWN_MEMORY), "what this model needs cannot be estimated")
        if needed <= TIGHT * limit:
            why = f"{room} of memory" if tokens < enough else f"no more would be faster, and these fit {room}"
            return TokenBudget(tokens, why)
        undivided = not recomputes and batches[0].pairs == 1
        if undivided or tokens <= LEAST:
            why = f"about {needed / GIB:,.1f} GiB are needed even so, of {room} of memory"
            return TokenBudget(
                tokens, why, f"data.max_tokens_per_micro_batch=auto found none that fits: {why}; {REMEDY}"
            )
        tokens //= 2


def activation_bound(policy: PreTrainedModel, precision: str, *, recomputes: bool | None = None) -> int:
    """Bound the bytes that a training step keeps for each token between its forward and its backward pass.

    ``recomputes``: with gradient checkpointing; None: as the policy is set.
    """
    base = base_model(policy)
    dtype = AUTOCAST_DTYPES.get(precision) or _weight_dtype(policy, precision)
    layers = decoder_layers(base) or [base]
    widths = [_width(layer) for layer in layers]
    if recomputes is None:
        recomputes = any(getattr(part, "gradient_checkpointing", False) for part in base.modules())
    inputs = len(layers) * getattr(base.config.get_text_config(), "hidden_size", 0)
    kept = inputs + max(widths) if recomputes else sum(widths)  # one layer at a time, or all
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


def _largest_batches(
    components: Components, plan: StepPlan, layout: Layout, budget: int, *, recomputes: bool
) -> list[PairBatch]:
    """Collate the longest pairs that share a micro-batch of ``budget`` tokens, at least one.

    Where a longer pair ``recomputes``, also the longest ones within the budget.
    """
    pairs = components.data.train_pairs
    by_tokens = ByTokens.of(budget, pairs.lengths(), layout)
    longest_first = (by_tokens.packed if layout == "packed" else by_tokens.longest).argsort()[::-1].tolist()
    batches = [next(by_tokens.in_order(longest_first, plan.step_size))]
    if recomputes and by_tokens.tokens(batches[0]) > budget:
        within = [row for row in longest_first if by_tokens.tokens([row]) <= budget]
        batches += islice(by_tokens.in_order(within, plan.step_size), 1)
    return [collate([pairs[row] for row in rows], 0, layout=layout) for rows in batches]


def _estimated(
    components: Components,
    batches: list[PairBatch],
    plan: StepPlan,
    layout: Layout,
    device: str,
    logits_cache_mib: int,
    recompute_above: int | None,
) -> int | None:
    """Estimate the bytes of a run with these micro-batches; None where that is not possible."""
    try:
        memory = memory_breakdown(
            components,
            batches,
            batches[0],
            layout=layout,
            device=device,
            plan=plan,
            logits_cache_mib=logits_cache_mib,
            recompute_above=recompute_above,
        )
    except CaldpoError:
        return None
    return None if memory.activations_unknown else memory.total
