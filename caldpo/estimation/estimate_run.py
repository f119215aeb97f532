"""An estimate from beginning to end: the data's sample, the schedule, the memory, the verdict."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from caldpo.components import Components
from caldpo.config.run_lifecycle import write_json
from caldpo.data.collate import Layout, collate
from caldpo.data.pair import TokenizedPair
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.estimation.data_sample import Sample, take_sample
from caldpo.estimation.estimate_console import as_dict, print_estimate, print_verdict
from caldpo.estimation.estimate_settings import SAMPLE_PAIRS, UTILISATION
from caldpo.estimation.memory_breakdown import Needs, memory_needs
from caldpo.estimation.memory_capacity import Capacity, capacity
from caldpo.estimation.memory_verdict import Verdict, judge
from caldpo.estimation.run_flops import Flops, Hours, Work, logits_again, run_flops, work_of
from caldpo.estimation.step_memory import fake_tensors, made_of, takes_packed
from caldpo.estimation.step_schedule import Schedule, schedule_of, whole_split
from caldpo.logprobs.layout import why_not_packed
from caldpo.model_data_checks import check_fit, tokenizer_key

FILE = "estimate.json"


@dataclass(frozen=True)
class Estimate:
    """Everything that an estimate says.

    Args:
        policy: what would be trained.
        sample: of the data.
        schedule: steps and tokens.
        needs: memory by part.
        capacity: what a device has.
        verdict: whether it fits.
        layout: of the batches.
        flops: operations of the whole run; None where they are not known.
        hours: what they would take, if it is to be said.
    """

    policy: str
    sample: Sample
    schedule: Schedule
    needs: Needs
    capacity: Capacity
    verdict: Verdict
    layout: Layout
    flops: Flops | None
    hours: Hours | None


def estimate(
    cfg: DictConfig,
    sample_pairs: int = SAMPLE_PAIRS,
    memory_gib: float | None = None,
    device_tflops: float | None = None,
    utilisation: float = UTILISATION,
) -> Estimate:
    """Print what the run that ``cfg`` describes would need, and write it to ``estimate.json`` in the run's folder.

    No weights are loaded. What would be printed about the data goes to ``output.txt``.

    Args:
        cfg: the configuration of a training run.
        sample_pairs: pairs of each split to tokenise.
        memory_gib: memory of a device to compare with; None takes what is free here.
        device_tflops: peak of a device, for hours; None says none.
        utilisation: share of the peak that is assumed.

    Raises:
        CaldpoError: what a run would raise about its configuration and data, but for a missing GPU.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    components = Components.from_config(cfg, tracked=False)
    source, data = components.model, components.data
    components.check(on_this_machine=False)
    tokenizer = source.load_tokenizer()
    with (run_dir / "output.txt").open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        sample = take_sample(
            data,
            tokenizer,
            run_dir,
            pairs=sample_pairs,
            needs_scores=components.loss.needs_scores,
            loss_name=str(hydra.runtime.choices["loss"]),
            needs_rejected=components.loss.needs_rejected,
        )
    check_fit(source, tokenizer, data, reference=components.reference, tokenizer_key=tokenizer_key(cfg.model))
    sketch = needs_of(cfg, components, sample.train_pairs, memory_gib)
    flops = flops_of(sketch, components, sample.test_pairs, cfg.logits_cache_mib)
    hours = None
    if flops is not None and device_tflops is not None:
        hours = Hours.of(flops.total, device_tflops, utilisation, components.trainer.world_size)
    schedule, needs, has = sketch.schedule, sketch.needs, sketch.capacity
    policy, verdict = (
        components.adapter.identity(source.identity()),
        judge(needs, has, components, len(schedule.largest)),
    )
    found = Estimate(policy, sample, schedule, needs, has, verdict, sketch.layout, flops, hours)
    write_json(run_dir / FILE, as_dict(found))
    if cfg.console == "full":
        print_estimate(found, Console())
        Console().print(f"written to {run_dir / FILE}", soft_wrap=True, highlight=False)
    else:
        print_verdict(found, Console(), name=run_dir.name)
    return found


@dataclass(frozen=True)
class Sketch:
    """What an estimate says of steps and memory, without the data's own figures; see :class:`Estimate`."""

    schedule: Schedule
    needs: Needs
    capacity: Capacity
    layout: Layout


def needs_of(cfg: DictConfig, components: Components, pairs: int, memory_gib: float | None = None) -> Sketch:
    """Steps and memory of a run, from the pairs that its data has loaded.

    Args:
        cfg: the configuration of the run.
        components: of the run; the data is prepared, with all of its pairs or a sample of them.
        pairs: of the whole training split.
        memory_gib: memory of a device to compare with; None takes what is free here.
    """
    trainer, data = components.trainer, components.data
    lengths, layout = data.train_pairs.lengths(), layout_of(cfg, components, data.max_length)
    plan = data.plan_steps(layout, **trainer.extent(), lengths=whole_split(lengths, pairs))
    schedule = schedule_of(lengths, plan, layout, exact_steps=trainer.max_steps is not None)
    has = capacity(trainer.accelerator, trainer.devices, memory_gib)
    needs = memory_needs(
        components,
        collate([data.train_pairs[place] for place in schedule.largest], 0, layout=layout),
        collate(longest(data.test_pairs, data.eval_micro_batch_size), 0, layout=layout),
        layout=layout,
        device=has.device,
        pairs=plan.pairs,
        seen=plan.pairs_seen,
        accumulates=plan.accumulation > 1,
        logits_cache_mib=cfg.logits_cache_mib,
    )
    return Sketch(schedule, needs, has, layout)


def flops_of(sketch: Sketch, components: Components, test_pairs: int, logits_cache_mib: int) -> Flops | None:
    """Operations of a run, its evaluations and its reference's passes included; None where they are not known.

    Args:
        sketch: of the run.
        components: of the run; the data is prepared.
        test_pairs: of the whole test split.
        logits_cache_mib: of the log-prob engine.
    """
    schedule, needs, data = sketch.schedule, sketch.needs, components.data
    if needs.cost is None or needs.reference_cost is None:
        return None
    lengths = data.train_pairs.lengths()
    epoch = Work(
        schedule.computed_tokens,
        schedule.response_tokens,
        schedule.attended,
        schedule.response_tokens * logits_again(lengths, needs.vocabulary, logits_cache_mib),
    )
    trained, evaluated = epoch * schedule.epochs, evaluation_work(data, sketch.layout, test_pairs)
    evaluations = evaluations_of(schedule.steps, components.trainer.val_check_interval)
    asked = bool(components.loss.needs_reference)
    if needs.reference == "precomputed":  # once for each pair
        reference_work = evaluated + epoch * (min(1.0, schedule.epochs) * asked)
    else:
        reference_work = evaluated * evaluations + trained * asked
    return run_flops(
        needs.cost,
        trained,
        evaluated=evaluated,
        evaluations=evaluations,
        reference=needs.reference_cost,
        reference_work=reference_work,
    )


def evaluation_work(data: Any, layout: Layout, test_pairs: int) -> Work:
    """What the model runs over in one evaluation, batch by batch in the split's own order."""
    lengths, size = data.test_pairs.lengths(), data.eval_micro_batch_size
    batches = [work_of(lengths[at : at + size], layout) for at in range(0, len(lengths), size)]
    return sum(batches[1:], batches[0]) * (test_pairs / len(lengths))


def evaluations_of(steps: int, val_check_interval: int | None) -> int:
    """Evaluations of a run: before its first step, every so many steps, and after its last."""
    return 1 + (-(-steps // val_check_interval) if val_check_interval else 1)


def layout_of(cfg: DictConfig, components: Components, max_length: int) -> Layout:
    """The layout of the run's batches, by what the model's class and configuration say."""
    if cfg.layout != "auto":
        return cfg.layout
    with fake_tensors("cpu") as mode:
        model = made_of(components.model)
        packed = why_not_packed(model, max_length) is None and takes_packed(model, mode)
    return "packed" if packed else "padded"


def longest(pairs: TokenizedPairs, count: int) -> list[TokenizedPair]:
    """The pairs with most tokens: no batch of held-out pairs takes more memory."""
    order = pairs.lengths().sum(axis=1).argsort()[::-1]
    return [pairs[int(place)] for place in order[:count]]
