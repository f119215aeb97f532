"""Run a benchmark: prepare once, run every variant in each round, compare, report."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from caldpo.bench.benchmark_data import prepare, training_order
from caldpo.bench.benchmark_report import markdown, print_table, report_facts
from caldpo.bench.benchmark_rows import TOLERANCE, TimedWork, compare, disagreements, make_rows
from caldpo.bench.benchmark_settings import VARIANTS, BenchmarkModel, BenchmarkSettings, TrlVariant, read_settings
from caldpo.bench.worker import OutOfMemoryError, estimated_bytes, run_matmul, run_variant
from caldpo.bench.worker_job import Answer, Job, read
from caldpo.config.run_lifecycle import write_json
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError
from caldpo.estimation.run_flops import ModelCost, backward_flops, forward_flops, minimal_workload
from caldpo.evaluation.model_loading import find_device


def benchmark(cfg: DictConfig) -> None:
    """Measure as configured; ``benchmark.json`` and ``benchmark.md`` go into Hydra's output folder.

    Raises:
        CaldpoError: a library or GPU is missing, a variant fails, or the variants disagree.
    """
    settings, model = read_settings(cfg)
    require_extras(settings, model)
    device = find_device(settings.device).type
    run_dir = Path(HydraConfig.get().runtime.output_dir).absolute()
    work_dir = run_dir / "work"
    try:
        pairs, cost = prepare(settings, model, work_dir)
        work = timed_work(pairs, settings, cost)
        answers, matmul, estimated = measure(settings, model, device, run_dir, work_dir)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)  # the weights may be large
    baseline = next((n for n in settings.variants if isinstance(VARIANTS[n], TrlVariant) and answers[n]), None)
    tolerance = settings.tolerance or TOLERANCE[model.dtype]
    differences = {
        name: compare(answers[baseline][0], rounds[0], tolerance)
        for name, rounds in answers.items()
        if baseline and rounds and name != baseline
    }
    rows = make_rows(answers, baseline, differences, work, matmul, estimated)
    facts = report_facts(settings, model, device, pairs, answers, matmul, rows, baseline)
    content = {
        "config": OmegaConf.to_container(cfg, resolve=True),
        "facts": facts,
        "matmul_flops": matmul,
        "work": asdict(work),
        "rows": [asdict(row) for row in rows],
        "rounds": {name: [asdict(answer) for answer in rounds] for name, rounds in answers.items()},
    }
    write_json(run_dir / "benchmark.json", content)
    (run_dir / "benchmark.md").write_text(markdown(rows, facts), encoding="utf-8")
    print_table(Console(), rows, facts | {"report": str(run_dir / "benchmark.md")})
    if problems := disagreements(differences):
        raise CaldpoError(
            f"the variants disagree (tolerance {tolerance[0]:g}, later {tolerance[1]:g}): {'; '.join(problems)}",
            remedy="do not compare these timings; see the losses and gradient norms in benchmark.json",
        )


def measure(
    settings: BenchmarkSettings, model: BenchmarkModel, device: str, run_dir: Path, work_dir: Path
) -> tuple[dict[str, list[Answer]], float, dict[str, int | None]]:
    """Run the worker processes of all rounds.

    Returns:
        Answers by variant, none of one that ran out of memory; the matmul peak, FLOP/s; estimated bytes by variant.
    """

    def job(name: str, output: str) -> Job:
        return Job(name, str(work_dir), str(run_dir / "runs" / output), device, settings, model)

    answers: dict[str, list[Answer]] = {name: [] for name in settings.variants}
    too_large: set[str] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("matmul peak", total=1 + (1 + settings.repeats) * len(settings.variants))
        matmul = run_matmul(job(settings.variants[0], "matmul"))
        progress.advance(task)
        estimated: dict[str, int | None] = {}
        for name in settings.variants:
            progress.update(task, description=f"estimate: {VARIANTS[name].title}")
            estimated[name] = estimated_bytes(job(name, f"{name}-estimate"))
            progress.advance(task)
        for repeat in range(settings.repeats):
            for name in settings.variants:
                progress.update(task, description=f"round {repeat + 1}: {VARIANTS[name].title}")
                if name not in too_large:
                    this = job(name, f"{name}-{repeat + 1}")
                    try:
                        run_variant(this)
                        answers[name].append(read(Answer, this.answer))
                    except OutOfMemoryError:
                        too_large.add(name)
                        answers[name].clear()
                progress.advance(task)
    return answers, matmul, estimated


def timed_work(pairs: TokenizedPairs, settings: BenchmarkSettings, cost: ModelCost) -> TimedWork:
    """Count the content of the timed steps: the pairs after those of the warm-up, in the order of training."""
    first = settings.warmup_steps * settings.micro_batch_size
    timed = pairs.lengths()[training_order(len(pairs), settings)][first:]
    minimal = minimal_workload(timed)
    return TimedWork(
        pairs=len(timed),
        response_tokens=int(timed[:, 1:].sum()),
        flops=int(forward_flops(cost, minimal) + backward_flops(cost, minimal)),
        run_pairs=len(pairs),
    )


def require_extras(settings: BenchmarkSettings, model: BenchmarkModel) -> None:
    """Refuse what a missing library makes impossible, before anything runs.

    Raises:
        CaldpoError: naming the extra that brings it.
    """
    of_trl = ",".join(name for name in settings.variants if isinstance(VARIANTS[name], TrlVariant))
    for title, extra, key, value in (
        ("TRL", "bench", "variants", f"[{of_trl}]" if of_trl else None),
        ("bitsandbytes", "qlora", "benchmark_model.base_bits", model.base_bits),
        ("PEFT", "peft", "benchmark_model.lora_rank", model.lora_rank),
    ):
        if value is not None and find_spec(title.lower()) is None:
            raise CaldpoError(
                f"{title} is not installed",
                key=key,
                value=value,
                remedy=f"install the extra that brings it: pip install 'caldpo[{extra}]'",
            )
