"""Memory of a run on each device, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from caldpo.components import Components
from caldpo.data.batching import StepPlan
from caldpo.data.collate import Layout
from caldpo.errors import CaldpoError, one_line
from caldpo.estimation.fake_model import fake_batch, fake_model, fake_tensors, to_dtype
from caldpo.estimation.optimizer_memory import optimizer_memory
from caldpo.estimation.run_flops import ModelCost, model_costs
from caldpo.estimation.sharded_memory import Sharding, ShardUnits, State, gathered_bytes
from caldpo.estimation.step_memory import WEIGHT_DTYPES, StepMemory, bytes_of, evaluation_step, training_step
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.models.adapted_policy import base_model, is_adapted
from caldpo.models.gradient_checkpointing import recomputing
from caldpo.models.hub_model import causal_lm_skeleton
from caldpo.models.model_source import ModelSource, floating_dtype
from caldpo.reference.auto_reference import Auto, ReferenceMode, choose_mode
from caldpo.reference.disabled_adapter import Adapter
from caldpo.reference.frozen_model import Frozen
from caldpo.reference.precomputed import Precomputed
from caldpo.reference.reference_base import ReferenceSource
from caldpo.types import PairBatch

# names of the parts
WEIGHTS, GRADIENTS, OPTIMIZER, REFERENCE = "policy: weights", "gradients", "optimiser state", "reference: weights"
GATHERED = "gathered layers, embedding and head"
BUCKETS, CASTS, ACTIVATIONS = "gradient buckets (DDP)", "weights cast to another dtype", "activations kept for backward"
HEAD, WORKING = "log-probs: logits, gradient of the head", "working buffers"
UPDATE, EVALUATION = "more during the optimiser's update", "more during evaluation"
PROCESS, FRAGMENTATION = "data, tokenizer and code loaded in the process (CPU)", "fragmentation of the heap (CPU)"
PROCESS_BYTES = 50 * 2**20
"""What a process on a CPU takes beyond its imports and its tensors: tokenizer and data, and the code of kernels, which
is read at their first use. Measured: 45 and 56 MiB for two models, once the heap had returned its free blocks. A GPU
has none of it."""
FRAGMENTED = 0.1
"""Share of what a micro-batch allocates, one tensor after another, by which the C library's heap grows beyond its live
tensors: its freed aligned blocks are seldom used again. Measured 0.05 to 0.14; none where all blocks are mapped."""


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes on each device, and what else the model's shapes tell."""

    parameters: int  # of the policy
    trainable: int
    dtype: str  # of its weights
    reference: str  # how it is kept
    parts: dict[str, int]  # bytes by part, in the order of tables; their sum is the peak
    peak_pairs: int = 0  # of the micro-batch at the peak
    recomputes: bool = False  # that micro-batch recomputes its activations
    vocab_size: int = 0
    activations_unknown: str = ""  # why activations are not counted
    host: int = 0  # bytes of each process in CPU memory, where shards are offloaded
    cost: ModelCost | None = field(default=None, repr=False)  # FLOPs per token; None where they are unknown
    reference_cost: ModelCost | None = field(default=None, repr=False)
    flops_unknown: str = ""  # the reason

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())


def memory_breakdown(
    components: Components,
    batches: Sequence[PairBatch],
    held_out: PairBatch,
    *,
    layout: Layout,
    device: str,
    plan: StepPlan,
    logits_cache_mib: int,
    recompute_above: int | None = None,
) -> MemoryBreakdown:
    """Run micro-batches of the run on fake tensors and add up the memory of the one that needs most.

    Args:
        batches: the largest micro-batch, and the largest one that does not recompute where the first does.
        held_out: the largest batch of the validation.
        recompute_above: tokens above which a micro-batch recomputes its activations, if any.

    Raises:
        CaldpoError: the run would raise it as well, or the model cannot be built from fake tensors.
    """
    trainer, source = components.trainer, components.reference
    loss = components.loss
    needs_reference = bool(loss.needs_reference)
    dtype = WEIGHT_DTYPES.get(trainer.precision)
    with fake_tensors(device) as mode:
        policy = to_dtype(components.adapter.apply(fake_model_of(components.model)), dtype)
        policy.train()
        trained = [p for p in policy.parameters() if p.requires_grad]
        pairs = None if components.data.streaming else plan.pairs
        reference_mode = reference_mode_of(
            source,
            policy,
            needs_reference,
            pairs,
            plan.pairs_seen,
            mismatched=loss.needs_mismatched,
            weighs_tokens=loss.weighs_tokens or loss.reference_move is not None,  # both take a model in memory
        )
        reference = fake_reference(source, reference_mode, policy, components.model, dtype)
        if layout == "packed":
            for model in filter(None, (policy, reference)):
                use_packed_attention(base_model(model))
        optimizer = optimizer_memory(components.optim, trained, device, scaled=trainer.precision == "16-mixed")
        with recomputing(policy, recompute_above is not None):
            cost, reference_cost, flops_unknown = model_costs(policy, reference, path_of(source))
        step, evaluation, unknown = StepMemory(0, 0, 0, 0), 0, ""
        peak = batches[0]
        try:
            live = {"adapter": policy, "frozen": reference}.get(reference_mode) if needs_reference else None
            for batch in batches:
                with recomputing(policy, recompute_above is not None and batch.tokens > recompute_above):
                    this = training_step(
                        policy,
                        fake_batch(batch, mode),
                        precision=trainer.precision,
                        reference=live,
                        accumulates=plan.accumulation > 1,
                        logits_cache_mib=logits_cache_mib,
                    )
                if this.total + heap_growth(this, device) > step.total + heap_growth(step, device):
                    step, peak = this, batch
            evaluation = evaluation_step(policy, fake_batch(held_out, mode), trainer.precision)
        except CaldpoError:
            raise
        except Exception as error:  # code that needs values: the parts beside activations stay known
            unknown = f"{type(base_model(policy)).__name__} cannot run on tensors without values ({one_line(error)})"
        sharding = Sharding.of(trainer.strategy, trainer.world_size, cpu_offload=trainer.cpu_offload)
        weights = bytes_of([*policy.parameters(), *policy.buffers()])
        reference_weights = 0 if reference is None else bytes_of([*reference.parameters(), *reference.buffers()])
        gradients = sum(p.nbytes for p in trained)
        temporary = 0  # an offloaded state is updated in CPU memory
        if "optimizer" not in sharding.offloaded:
            temporary = sharding.per_process("optimizer", optimizer.temporary)
        on_cpu = device == "cpu"
        parts = {
            WEIGHTS: sharding.on_device("weights", weights),
            GRADIENTS: sharding.on_device("gradients", gradients),
            OPTIMIZER: sharding.on_device("optimizer", optimizer.state),
            REFERENCE: sharding.on_device("weights", reference_weights),
            GATHERED: gathered_bytes(ShardUnits.of(policy), sharding),
            BUCKETS: gradients if sharding.replicates else 0,
            CASTS: step.casts,
            ACTIVATIONS: step.activations,
            HEAD: step.head,
            WORKING: step.working,
            UPDATE: max(0, temporary - step.total),
            EVALUATION: max(0, evaluation - max(step.total, temporary)),
            FRAGMENTATION: heap_growth(step, device),
            PROCESS: PROCESS_BYTES if on_cpu else 0,
        }
        full: dict[State, int] = {"weights": weights + reference_weights, "gradients": gradients}
        full["optimizer"] = optimizer.state
        return MemoryBreakdown(
            # an element of uint8 holds two weights of 4 bits
            parameters=sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in policy.parameters()),
            trainable=sum(p.numel() for p in trained),
            dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in policy.parameters()})),
            reference=reference_mode,
            parts=parts,
            peak_pairs=peak.pairs,
            recomputes=recompute_above is not None and peak.tokens > recompute_above,
            vocab_size=policy.config.get_text_config().vocab_size,
            activations_unknown=unknown,
            host=sum(sharding.per_process(state, full[state]) for state in sharding.offloaded),
            cost=cost,
            reference_cost=reference_cost,
            flops_unknown=flops_unknown,
        )


def heap_growth(step: StepMemory, device: str) -> int:
    """Bytes by which the C library's heap grows beyond the live tensors of a micro-batch; a GPU's is not estimated."""
    return round(FRAGMENTED * step.from_heap) if device == "cpu" else 0


def fake_model_of(source: ModelSource) -> PreTrainedModel:
    """Build the source's model from fake tensors; see :func:`caldpo.estimation.fake_model.fake_model`."""
    return fake_model(source.skeleton, source.identity)


def reference_mode_of(
    source: ReferenceSource,
    policy: PreTrainedModel,
    needed: bool,
    pairs: int | None,
    pairs_seen: int,
    *,
    mismatched: bool = False,
    weighs_tokens: bool = False,
) -> ReferenceMode:
    """Choose the reference mode as the run will; ``needed``: the loss reads the reference's log-probs."""
    if isinstance(source, Frozen):
        return "frozen"
    if isinstance(source, Adapter):
        return "adapter"
    if not isinstance(source, Auto):
        return "precomputed"
    in_policy = source.path is None and is_adapted(policy)
    return choose_mode(
        trains=needed,
        pairs=pairs,
        pairs_seen=pairs_seen,
        in_policy=in_policy,
        mismatched=mismatched,
        weighs_tokens=weighs_tokens,
    )[0]


def fake_reference(
    source: ReferenceSource,
    mode: ReferenceMode,
    policy: PreTrainedModel,
    policy_source: ModelSource,
    dtype: torch.dtype | None,
) -> PreTrainedModel | None:
    """Build the reference that is kept in memory from fake tensors; None where none is.

    ``dtype`` is the one that the run converts weights to; None keeps theirs, of another reference the policy's.
    """
    if mode != "frozen":
        return None
    path, key = path_of(source), "reference.path"
    if path is None:
        model = fake_model_of(policy_source)
    else:
        model = fake_model(lambda: causal_lm_skeleton(path, key=key, dtype=policy.dtype), lambda: path, key)
    own_dtype = source.dtype if isinstance(source, Frozen) else "same"
    model = to_dtype(model, dtype if own_dtype == "same" else floating_dtype(own_dtype))
    return model.eval().requires_grad_(False)


def path_of(source: ReferenceSource) -> str | None:
    """Hub id or folder of another reference; None where it is the policy's start."""
    return source.path if isinstance(source, Auto | Frozen | Precomputed) else None
