"""Memory of a run by part."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from caldpo.data.collate import Layout
from caldpo.estimate.memory import (
    WEIGHT_DTYPES,
    StepMemory,
    Unknowable,
    bytes_of,
    converted,
    evaluation_step,
    fake_tensors,
    training_step,
    without_content,
)
from caldpo.estimate.optimizer import optimizer_memory
from caldpo.logprobs.attention import use_packed_attention
from caldpo.models.adapter import base_model
from caldpo.models.base import floating_dtype
from caldpo.models.hub import causal_lm_skeleton
from caldpo.reference.adapter import Adapter
from caldpo.reference.auto import Auto, Way, choose
from caldpo.reference.base import ReferenceContext
from caldpo.reference.resident import Resident
from caldpo.types import PairBatch


@dataclass(frozen=True)
class Needs:
    """Bytes on each device, by what they are for.

    Args:
        parameters, trainable: of the policy.
        dtype: of the policy's weights.
        reference: how the reference is kept.
        parts: bytes by part, in the order in which they are shown; they add up to the peak.
        unknown: why activations could not be followed; empty where they could.
    """

    parameters: int
    trainable: int
    dtype: str
    reference: str
    parts: dict[str, int]
    unknown: str = ""

    @property
    def total(self) -> int:
        """Bytes at the most demanding moment."""
        return sum(self.parts.values())


# Names of the parts
WEIGHTS, GRADIENTS, OPTIMIZER, REFERENCE = "policy: weights", "gradients", "optimiser state", "reference: weights"
BUCKETS, CASTS, ACTIVATIONS = "gradient buckets (DDP)", "weights cast to another dtype", "activations kept for backward"
HEAD, WORKING = "log-probs: logits, gradient of the head", "working buffers"
UPDATE, EVALUATION = "more during the optimiser's update", "more during evaluation"


def memory_needs(
    parts: dict[str, Any],
    batch: PairBatch,
    evaluation: PairBatch,
    *,
    layout: Layout,
    device: str,
    pairs: int,
    seen: int,
    accumulates: bool,
    kept_logits_mib: int,
) -> Needs:
    """Go through a step of the run without content and add up what it takes.

    Args:
        parts: the sections of the configuration as objects.
        batch: the largest micro-batch of training.
        evaluation: the largest batch of held-out pairs.
        layout: of both.
        device: ``cpu`` or ``cuda``.
        pairs, seen: of the training split, and of all steps together.
        accumulates: whether a step has several micro-batches.
        kept_logits_mib: of the log-prob engine.
    """
    trainer, loss, spec = parts["trainer"], parts["loss"], parts["reference"]
    dtype = WEIGHT_DTYPES.get(trainer.precision)
    with fake_tensors(device) as mode:
        policy = converted(parts["adapter"].apply(parts["model"].skeleton()), dtype)
        policy.train()
        trained = [p for p in policy.parameters() if p.requires_grad]
        way = way_of_reference(spec, policy, bool(loss.needs_reference), pairs, seen)
        reference = reference_skeleton(spec, way, policy, parts["model"], dtype)
        if layout == "packed":
            for model in filter(None, (policy, reference)):
                use_packed_attention(base_model(model))
        gradients = sum(p.nbytes for p in trained)
        optimizer = optimizer_memory(parts["optim"], trained, device, scaled=trainer.precision == "16-mixed")
        asked = {"adapter": policy, "resident": reference}.get(way) if loss.needs_reference else None
        step, evaluated, unknown = StepMemory(0, 0, 0, 0), 0, ""
        try:
            step = training_step(
                policy,
                without_content(batch, mode),
                precision=trainer.precision,
                reference=asked,
                accumulates=accumulates,
                kept_logits_mib=kept_logits_mib,
            )
            evaluated = evaluation_step(policy, without_content(evaluation, mode), trainer.precision)
        except Unknowable as error:
            unknown = f"{type(policy).__name__} looks into its tensors ({type(error).__name__})"
        found = {
            WEIGHTS: bytes_of([*policy.parameters(), *policy.buffers()]),
            GRADIENTS: gradients,
            OPTIMIZER: optimizer.state,
            REFERENCE: bytes_of([*reference.parameters(), *reference.buffers()]) if reference is not None else 0,
            BUCKETS: gradients if trainer.devices * trainer.num_nodes > 1 else 0,
            CASTS: step.casts,
            ACTIVATIONS: step.activations,
            HEAD: step.head,
            WORKING: step.working,
            UPDATE: max(0, optimizer.temporary - step.total),
            EVALUATION: max(0, evaluated - max(step.total, optimizer.temporary)),
        }
        return Needs(
            parameters=sum(p.numel() for p in policy.parameters()),
            trainable=sum(p.numel() for p in trained),
            dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in policy.parameters()})),
            reference=way,
            parts=found,
            unknown=unknown,
        )


def way_of_reference(spec: Any, policy: PreTrainedModel, needed: bool, pairs: int, seen: int) -> Way:
    """How a run with these many pairs keeps its reference."""
    if isinstance(spec, Resident):
        return "resident"
    if isinstance(spec, Adapter):
        return "adapter"
    if not isinstance(spec, Auto):
        return "cached"
    context = ReferenceContext(
        policy=policy,
        reload=lambda: policy,
        splits={"train": range(pairs)},  # type: ignore[dict-item]  # only its length is looked at
        asked=("train", "test") if needed else ("test",),
        batches=lambda split, rows: [],
        device=torch.device("cpu"),
        precision=contextlib.nullcontext,
        seen=seen,
        facts={},
    )
    return choose(context, own_start=spec.path is None)[0]


def reference_skeleton(
    spec: Any, way: Way, policy: PreTrainedModel, source: Any, dtype: torch.dtype | None
) -> PreTrainedModel | None:
    """The second model that stays in memory, None where none does."""
    if way != "resident":
        return None
    own = spec.path is None
    model = source.skeleton() if own else causal_lm_skeleton(spec.path, key="reference.path", dtype=policy.dtype)
    kept = getattr(spec, "dtype", "same")
    model = converted(model, dtype if kept == "same" else floating_dtype(kept))
    return model.eval().requires_grad_(False)
