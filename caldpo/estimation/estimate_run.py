"""Estimate a run: sample the data, plan the steps, add up memory and FLOPs, compare with the device."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from caldpo.components import Components
from caldpo.config.run_lifecycle import write_json
from caldpo.data.batching import StepPlan
from caldpo.data.collate import Layout, collate
from caldpo.data.datamodule import PairDataModule
from caldpo.data.pair import TokenizedPair
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.estimation.estimate_console import data_values, memory_values, print_estimate, print_verdict
from caldpo.estimation.estimate_settings import SAMPLE_PAIRS, UTILISATION
from caldpo.estimation.fake_model import fake_tensors, supports_packing
from caldpo.estimation.memory_breakdown import MemoryBreakdown, fake_model_of, memory_breakdown
from caldpo.estimation.memory_verdict import DeviceMemory, device_memory, memory_verdict
from caldpo.estimation.run_flops import Flops, Workload, batch_workload, gpu_hours, logits_recomputed, run_flops
from caldpo.estimation.step_schedule import StepSchedule, repeated_lengths, sample_data, step_schedule
from caldpo.estimation.token_budget import TokenBudget, choose_budget
from caldpo.logprobs.layout import why_not_packed
from caldpo.model_data_checks import check_fit

FILE = "estimate.json"


def estimate(
    cfg: DictConfig,
    sample_pairs: int = SAMPLE_PAIRS,
    memory_gib: float | None = None,
    device_tflops: float | None = None,
    utilisation: float = UTILISATION,
) -> None:
    """Print what the run of ``cfg`` would need, and write it to ``estimate.json`` in the run's folder.

    Loads no weights. The report about the data goes to ``output.txt``. The other arguments are those of
    :class:`~caldpo.estimation.estimate_settings.EstimateSettings`.

    Raises:
        CaldpoError: any fault of configuration or data that the run would refuse.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    components = Components.from_config(cfg, tracked=False)
    components.check(on_this_machine=False)
    model, data = components.model, components.data
    tokenizer = model.load_tokenizer()
    with (run_dir / "output.txt").open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        sample = sample_data(
            data,
            tokenizer,
            run_dir,
            pairs=sample_pairs,
            loss_name=str(hydra.runtime.choices["loss"]),
            **components.row_needs(),
        )
    check_fit(
        model,
        tokenizer,
        data,
        reference=components.reference,
        model_section=cfg.model,
        rollouts=components.rollouts,
    )
    needs = estimate_needs(cfg, components, sample.train_pairs, memory_gib)
    verdict = memory_verdict(needs.memory, needs.has, components)
    flops = estimate_flops(needs, components, sample.test_pairs, cfg.logits_cache_mib)
    hours = None
    if flops is not None and device_tflops is not None:
        hours = gpu_hours(flops["total"], device_tflops, utilisation, components.trainer.world_size)
    values = {
        "estimate": True,
        "policy": components.adapter.identity(model.identity()),
        **data_values(sample, needs.schedule, needs.layout, streaming=data.streaming),
        "micro_batches": {
            "most_tokens": data.budget,
            "reason": None if needs.budget is None else needs.budget.reason,
            "recompute_above": needs.recompute_above,
            "recomputed_share": needs.schedule.recomputed[0],
        },
        **memory_values(needs.memory, needs.has, verdict),
        "flops": flops,
        "assumed": hours,
    }
    write_json(run_dir / FILE, values)
    if cfg.console == "full":
        print_estimate(values, Console())
        Console().print(f"written to {run_dir / FILE}", soft_wrap=True, highlight=False)
    else:
        print_verdict(values, Console(), name=run_dir.name)


@dataclass(frozen=True)
class Needs:
    """Steps and memory of a run."""

    schedule: StepSchedule
    memory: MemoryBreakdown
    has: DeviceMemory
    layout: Layout
    budget: TokenBudget | None  # that was chosen; None where the configuration or the run's record has it
    recompute_above: int | None  # tokens above which a micro-batch recomputes its activations, if any


def estimate_needs(cfg: DictConfig, components: Components, pairs: int, memory_gib: float | None = None) -> Needs:
    """Estimate steps and memory of a run from the pairs that its data module holds: all of its ``pairs``, or a sample.

    ``memory_gib`` is the memory of a device to compare with, GiB; None takes what is free here.
    """
    trainer, data = components.trainer, components.data
    lengths, layout = data.train_pairs.lengths(), estimated_layout(cfg, components, data.max_length)
    with fake_tensors("cpu"):
        policy = components.adapter.apply(fake_model_of(components.model))
    budget = None

    def choose(plan: StepPlan) -> int:
        nonlocal budget
        keys = {"logits_cache_mib": cfg.logits_cache_mib, "memory_gib": memory_gib}
        budget = choose_budget(components, policy, plan, layout, **keys)
        return budget.tokens

    of_run = repeated_lengths(lengths, pairs)
    plan = data.plan_steps(
        layout, **trainer.extent(), lengths=of_run, choose_budget=choose, **components.step_reading()
    )
    above = components.recompute_above(policy, data.budget)
    exact_steps = trainer.max_steps is not None
    schedule = step_schedule(lengths, plan, layout, exact_steps=exact_steps, recompute_above=above)
    has = device_memory(trainer.accelerator, trainer.devices, memory_gib)
    batches = [
        [data.train_pairs[index] for index in rows] for rows in (schedule.largest, schedule.largest_kept) if rows
    ]
    memory = memory_breakdown(
        components,
        [collate(rows, 0, layout=layout) for rows in batches],
        collate(longest_pairs(data.test_pairs, data.eval_micro_batch_size), 0, layout=layout),
        layout=layout,
        device=has.device,
        plan=plan,
        logits_cache_mib=cfg.logits_cache_mib,
        recompute_above=above,
    )
    return Needs(schedule, memory, has, layout, budget, above)


def estimate_flops(needs: Needs, components: Components, test_pairs: int, logits_cache_mib: int) -> Flops | None:
    """Estimate the FLOPs of a run, evaluations and reference passes included; None where they are unknown.

    ``test_pairs`` are those of the full test split.
    """
    schedule, memory, data = needs.schedule, needs.memory, components.data
    if memory.cost is None or memory.reference_cost is None:
        return None
    share = logits_recomputed(data.train_pairs.lengths(), memory.vocab_size, logits_cache_mib)
    responses = schedule.response_tokens
    epoch = Workload(schedule.computed_tokens, responses, schedule.attended, responses * share)
    trained, evaluated = epoch * schedule.epochs, evaluation_workload(data, needs.layout, test_pairs)
    cost = memory.cost if needs.recompute_above is None else memory.cost.recomputing(*schedule.recomputed)
    evaluations = count_evaluations(schedule.steps, components.trainer.val_check_interval)
    loss = components.loss
    needs_reference, passes = bool(loss.needs_reference), 1 + loss.needs_mismatched  # over a pair, and its mismatched
    evaluated = evaluated * passes
    if memory.reference == "precomputed":  # once per pair
        reference_work = evaluated + epoch * (min(1.0, schedule.epochs) * needs_reference)
    else:
        reference_work = evaluated * evaluations + trained * (needs_reference * passes)
    return run_flops(
        cost,
        trained,
        evaluated=evaluated,
        evaluations=evaluations,
        reference=memory.reference_cost,
        reference_work=reference_work,
        ahead=trained * passes if loss.depends_on_batch else None,
    )


def evaluation_workload(data: PairDataModule, layout: Layout, test_pairs: int) -> Workload:
    """Count the tokens of one evaluation, batch by batch in the split's order."""
    lengths, size = data.test_pairs.lengths(), data.eval_micro_batch_size
    batches = [batch_workload(lengths[at : at + size], layout) for at in range(0, len(lengths), size)]
    return sum(batches[1:], batches[0]) * (test_pairs / len(lengths))


def count_evaluations(steps: int, val_check_interval: int | None) -> int:
    """Count the evaluations of a run: before its first step, every ``val_check_interval`` steps, after its last."""
    return 1 + (-(-steps // val_check_interval) if val_check_interval else 1)


def estimated_layout(cfg: DictConfig, components: Components, max_length: int) -> Layout:
    """Choose the layout of the batches as the run will, from the model's class and configuration."""
    if cfg.layout != "auto":
        return cfg.layout
    with fake_tensors("cpu") as mode:
        model = fake_model_of(components.model)
        packed = why_not_packed(model, max_length) is None and supports_packing(model, mode)
    return "packed" if packed else "padded"


def longest_pairs(pairs: TokenizedPairs, count: int) -> list[TokenizedPair]:
    """Take the pairs with most tokens: no batch of held-out pairs needs more memory."""
    order = pairs.lengths().sum(axis=1).argsort()[::-1]
    return [pairs[int(index)] for index in order[:count]]
