"""A benchmark: prepare once, run every variant in each round, compare, and write down what was found."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from caldpo.bench.benchmark_data import training_order
from caldpo.bench.benchmark_model import Shape
from caldpo.bench.benchmark_rows import Work, make_rows
from caldpo.bench.benchmark_settings import BenchmarkSettings
from caldpo.bench.benchmark_table import markdown, print_table
from caldpo.bench.instantiate import read
from caldpo.bench.loss_agreement import TOLERANCE, compare, disagreements
from caldpo.bench.machine_facts import describe
from caldpo.bench.prepare import discard, prepare
from caldpo.bench.step_flops import ModelSize, step_flops
from caldpo.bench.variants import VARIANTS, Theirs
from caldpo.bench.worker_job import MODEL, Answer, Job
from caldpo.bench.worker_process import OutOfMemoryError, estimated_bytes, run_matmul, run_variant
from caldpo.config.run_lifecycle import write_json
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError


def benchmark(cfg: DictConfig) -> None:
    """Measure as configured; ``benchmark.json`` and ``benchmark.md`` go into Hydra's output folder.

    Raises:
        CaldpoError: what is needed is not there, a variant fails, or the variants do not compute the same.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    settings, shape = read(cfg)
    require_extras(settings, shape)
    device = device_of(settings.device)
    run_dir = Path(HydraConfig.get().runtime.output_dir).absolute()
    work_dir = run_dir / "work"
    console = Console()
    try:
        pairs = prepare(settings, shape, work_dir)
        work = work_of(pairs, settings, ModelSize.of(str(work_dir / MODEL), shape.lora_rank))
        answers, matmul, estimated = measure(settings, shape, device, run_dir, work_dir)
    finally:
        discard(work_dir)
    yardstick = next((n for n in settings.variants if isinstance(VARIANTS[n], Theirs) and answers[n]), None)
    first, later = settings.tolerance or TOLERANCE[shape.dtype]
    differences = {
        name: compare(answers[yardstick][0], rounds[0], (first, later))
        for name, rounds in answers.items()
        if yardstick and rounds and name != yardstick
    }
    titles: dict[str, str] = {name: VARIANTS[name].title for name in settings.variants}
    rows = make_rows(titles, answers, yardstick, differences, work, matmul, estimated)
    facts = describe(settings, shape, device, pairs, answers, matmul, rows, yardstick)
    content: dict[str, Any] = {
        "config": plain,
        "facts": facts,
        "matmul_flops": matmul,
        "work": asdict(work),
        "rows": [asdict(row) for row in rows],
        "rounds": {name: [asdict(answer) for answer in rounds] for name, rounds in answers.items()},
    }
    write_json(run_dir / "benchmark.json", content)
    (run_dir / "benchmark.md").write_text(markdown(rows, facts), encoding="utf-8")
    print_table(console, rows, facts | {"report": str(run_dir / "benchmark.md")})
    if wrong := disagreements(differences):
        raise CaldpoError(
            f"the variants do not compute the same (tolerance {first:g}, later {later:g}): {'; '.join(wrong)}",
            remedy="these timings compare nothing; see the losses and gradient norms in benchmark.json",
        )


def measure(
    settings: BenchmarkSettings, shape: Shape, device: str, run_dir: Path, work_dir: Path
) -> tuple[dict[str, list[Answer]], float, dict[str, int | None]]:
    """Answers of all rounds by variant (none of a variant that ran out of memory), the matmul peak, and estimates."""

    def job(name: str, output: str) -> Job:
        return Job(
            variant=name,
            folder=str(work_dir),
            output=str(run_dir / "runs" / output),
            device=device,
            dtype=shape.dtype,
            lora_rank=shape.lora_rank,
            base_bits=shape.base_bits,
            num_threads=settings.num_threads,
            seed=settings.seed,
            micro_batch_size=settings.micro_batch_size,
            warmup_steps=settings.warmup_steps,
            steps=settings.all_steps,
            lr=settings.lr,
            beta=settings.beta,
            model=shape.model_keys(settings.seed),
            max_length=shape.max_length,
            max_prompt_length=shape.max_prompt_length,
        )

    answers: dict[str, list[Answer]] = {name: [] for name in settings.variants}
    too_large: set[str] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("matmul peak", total=1 + (1 + settings.repeats) * len(settings.variants))
        peak = job(settings.variants[0], "matmul")
        run_matmul(peak)
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
                        answers[name].append(Answer.read(this.answer))
                    except OutOfMemoryError:
                        too_large.add(name)
                        answers[name].clear()
                progress.advance(task)
    return answers, float(json.loads(peak.answer.read_text())["flops"]), estimated


def work_of(pairs: TokenizedPairs, settings: BenchmarkSettings, size: ModelSize) -> Work:
    """What the timed steps consist of: the pairs after those of the warm-up, in the order of training."""
    first = settings.warmup_steps * settings.micro_batch_size
    timed = pairs.lengths()[training_order(len(pairs), settings.micro_batch_size, settings.seed)][first:].tolist()
    return Work(
        pairs=len(timed),
        response_tokens=sum(chosen + rejected for _, chosen, rejected in timed),
        flops=sum(step_flops(size, *lengths) for lengths in timed),
        run_pairs=len(pairs),
    )


def require_extras(settings: BenchmarkSettings, shape: Shape) -> None:
    """Refuse early what cannot run for want of a library.

    Raises:
        CaldpoError: naming the extra that brings it.
    """
    theirs = [name for name in settings.variants if isinstance(VARIANTS[name], Theirs)]
    if theirs and find_spec("trl") is None:
        raise CaldpoError(
            "TRL is not installed",
            key="variants",
            value=f"[{','.join(theirs)}]",
            remedy="install the extra that brings it: pip install 'caldpo[bench]'",
        )
    if shape.base_bits is not None and find_spec("bitsandbytes") is None:
        raise CaldpoError(
            "bitsandbytes is not installed",
            key="benchmark_model.base_bits",
            value=shape.base_bits,
            remedy="install the extra that brings it: pip install 'caldpo[qlora]'",
        )
    if shape.lora_rank is not None and find_spec("peft") is None:
        raise CaldpoError(
            "PEFT is not installed",
            key="benchmark_model.lora_rank",
            value=shape.lora_rank,
            remedy="install the extra that brings it: pip install 'caldpo[peft]'",
        )


def device_of(wanted: str) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        CaldpoError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise CaldpoError("there is no GPU that PyTorch can use", key="device", value=wanted, remedy="use device=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
