"""Memory of a run by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from caldpo.components import Components
from caldpo.data.collate import Layout
from caldpo.errors import CaldpoError, one_line
from caldpo.estimation.optimizer_memory import optimizer_memory
from caldpo.estimation.run_flops import ModelCost, UncountedError
from caldpo.estimation.sharded_memory import Division, Groups, gathered
from caldpo.estimation.step_memory import (
    WEIGHT_DTYPES,
    StepMemory,
    Unknowable,
    bytes_of,
    converted,
    evaluation_step,
    fake_tensors,
    made_of,
    skeleton_without_content,
    training_step,
    without_content,
)
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.models.adapted_policy import base_model, is_adapted
from caldpo.models.hub_model import causal_lm_skeleton
from caldpo.models.model_source import floating_dtype
from caldpo.reference.auto_reference import Auto, ReferenceMode, choose_mode
from caldpo.reference.disabled_adapter import Adapter
from caldpo.reference.frozen_model import Frozen
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
        host: bytes of one process in main memory, where parts are kept there.
        cost, reference_cost: of the policy and the reference, in operations at a token; None where that is not known.
        uncounted: why not.
        vocabulary: tokens that the policy knows.
    """

    parameters: int
    trainable: int
    dtype: str
    reference: str
    parts: dict[str, int]
    unknown: str = ""
    host: int = 0
    cost: ModelCost | None = None
    reference_cost: ModelCost | None = None
    uncounted: str = ""
    vocabulary: int = 0

    @property
    def total(self) -> int:
        """Bytes at the most demanding moment."""
        return sum(self.parts.values())


# Names of the parts
WEIGHTS, GRADIENTS, OPTIMIZER, REFERENCE = "policy: weights", "gradients", "optimiser state", "reference: weights"
GATHERED = "gathered layers, embedding and head"
BUCKETS, CASTS, ACTIVATIONS = "gradient buckets (DDP)", "weights cast to another dtype", "activations kept for backward"
HEAD, WORKING = "log-probs: logits, gradient of the head", "working buffers"
UPDATE, EVALUATION = "more during the optimiser's update", "more during evaluation"


def memory_needs(
    components: Components,
    batch: PairBatch,
    evaluation: PairBatch,
    *,
    layout: Layout,
    device: str,
    pairs: int,
    seen: int,
    accumulates: bool,
    logits_cache_mib: int,
) -> Needs:
    """Go through a step of the run without content and add up what it takes.

    Args:
        components: of the run.
        batch: the largest micro-batch of training.
        evaluation: the largest batch of held-out pairs.
        layout: of both.
        device: ``cpu`` or ``cuda``.
        pairs, seen: of the training split, and of all steps together.
        accumulates: whether a step has several micro-batches.
        logits_cache_mib: of the log-prob engine.
    """
    trainer, loss, spec = components.trainer, components.loss, components.reference
    dtype = WEIGHT_DTYPES.get(trainer.precision)
    with fake_tensors(device) as mode:
        policy = converted(components.adapter.apply(made_of(components.model)), dtype)
        policy.train()
        trained = [p for p in policy.parameters() if p.requires_grad]
        way = way_of_reference(spec, policy, bool(loss.needs_reference), pairs, seen)
        reference = reference_skeleton(spec, way, policy, components.model, dtype)
        if layout == "packed":
            for model in filter(None, (policy, reference)):
                use_packed_attention(base_model(model))
        weights, gradients = bytes_of([*policy.parameters(), *policy.buffers()]), sum(p.nbytes for p in trained)
        groups = Groups.of(policy)
        division = Division.of(trainer.strategy, trainer.world_size, cpu_offload=trainer.cpu_offload)
        cost, reference_cost, uncounted = costs(policy, reference, spec)
        optimizer = optimizer_memory(components.optim, trained, device, scaled=trainer.precision == "16-mixed")
        asked = {"adapter": policy, "frozen": reference}.get(way) if loss.needs_reference else None
        step, evaluated, unknown = StepMemory(0, 0, 0, 0), 0, ""
        try:
            step = training_step(
                policy,
                without_content(batch, mode),
                precision=trainer.precision,
                reference=asked,
                accumulates=accumulates,
                logits_cache_mib=logits_cache_mib,
            )
            evaluated = evaluation_step(policy, without_content(evaluation, mode), trainer.precision)
        except Unknowable as error:
            unknown = f"{type(base_model(policy)).__name__} looks into its tensors ({type(error).__name__})"
        except CaldpoError:  # what the run would refuse, too
            raise
        except Exception as error:  # whatever else an architecture does that needs numbers: the other parts stand
            unknown = (
                f"{type(base_model(policy)).__name__} cannot be run on tensors without content ({one_line(error)})"
            )
        second = bytes_of([*reference.parameters(), *reference.buffers()]) if reference is not None else 0
        temporary = division.part_anywhere("optimizer", optimizer.temporary)
        if "optimizer" in division.offload:  # updated where its states are
            temporary = 0
        found = {
            WEIGHTS: division.part("weights", weights),
            GRADIENTS: division.part("gradients", gradients),
            OPTIMIZER: division.part("optimizer", optimizer.state),
            REFERENCE: division.part("weights", second),
            GATHERED: gathered(groups, division),
            BUCKETS: gradients if division.copies else 0,
            CASTS: step.casts,
            ACTIVATIONS: step.activations,
            HEAD: step.head,
            WORKING: step.working,
            UPDATE: max(0, temporary - step.total),
            EVALUATION: max(0, evaluated - max(step.total, temporary)),
        }
        whole = {"weights": weights + second, "gradients": gradients, "optimizer": optimizer.state}
        return Needs(
            parameters=sum(
                p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in policy.parameters()
            ),  # 4 bits each
            trainable=sum(p.numel() for p in trained),
            dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in policy.parameters()})),
            reference=way,
            parts=found,
            unknown=unknown,
            host=sum(division.part_anywhere(name, whole[name]) for name in division.offload),
            cost=cost,
            reference_cost=reference_cost,
            uncounted=uncounted,
            vocabulary=policy.config.get_text_config().vocab_size,
        )


def costs(
    policy: PreTrainedModel, reference: PreTrainedModel | None, spec: Any
) -> tuple[ModelCost | None, ModelCost | None, str]:
    """Operations at a token of policy and reference, and why they are not known where they are not."""
    try:
        cost = ModelCost.of(policy)
        if reference is None and getattr(spec, "path", None) is not None:
            reference = causal_lm_skeleton(spec.path, key="reference.path")
        if reference is not None:
            return cost, ModelCost.of(reference), ""
    except UncountedError as error:
        return None, None, str(error)
    except CaldpoError:  # of reference.path
        raise
    except Exception as error:  # a configuration of unknown make
        return None, None, f"the sizes of {type(policy).__name__} are not understood ({one_line(error)})"
    return cost, cost.without_adapters(), ""  # the policy's own start


def way_of_reference(spec: Any, policy: PreTrainedModel, needed: bool, pairs: int, seen: int) -> ReferenceMode:
    """How a run with these many pairs keeps its reference."""
    if isinstance(spec, Frozen):
        return "frozen"
    if isinstance(spec, Adapter):
        return "adapter"
    if not isinstance(spec, Auto):
        return "precomputed"
    in_policy = spec.path is None and is_adapted(policy)
    return choose_mode(trains=needed, pairs=pairs, pairs_seen=seen, in_policy=in_policy)[0]


def reference_skeleton(
    spec: Any, way: ReferenceMode, policy: PreTrainedModel, source: Any, dtype: torch.dtype | None
) -> PreTrainedModel | None:
    """The second model that stays in memory, None where none does."""
    if way != "frozen":
        return None
    own = spec.path is None
    key = "reference.path"
    model = (
        made_of(source)
        if own
        else skeleton_without_content(
            lambda: causal_lm_skeleton(spec.path, key=key, dtype=policy.dtype), lambda: str(spec.path), key
        )
    )
    kept = getattr(spec, "dtype", "same")
    model = converted(model, dtype if kept == "same" else floating_dtype(kept))
    return model.eval().requires_grad_(False)
