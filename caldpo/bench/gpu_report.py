"""``python -m caldpo.bench.gpu_report FOLDER``: what only a GPU can tell, within ten minutes on one of 80 GiB.

First whether log-probs and gradients are right, then what attention of packed rows costs, then training of a 7B model
against TRL. Each stage prints its figures when it ends, and ``FOLDER/gpu_report.json`` has those of all stages so far.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from caldpo.bench.benchmark_report import device_name
from caldpo.bench.kernel_checks import Record, compare_attention, compare_logprobs
from caldpo.bench.worker import environment
from caldpo.config.run_lifecycle import write_json

NOT_MEASURED = "no GPU: not measured"
REPORT = "gpu_report.json"
ESTIMATE_WITHIN = 0.15  # of the measured peak
# what runs, and the share of the time that is then left
MODELS = {
    "mistral_7b_lora": ("variants=[trl_low_memory,trl_best,caldpo]", 0.55),
    "mistral_7b": ("variants=[trl_low_memory,caldpo]", 1.0),
}
_LOG_LINES = 8


def benchmark(model: str, folder: Path, seconds: float) -> Record:
    """Train a benchmark model with TRL and with this project, and read the report; what is over time is ended."""
    log = folder / f"{model}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            benchmark_command(model),
            cwd=folder,
            env=environment(4),
            stdout=file,
            stderr=file,
            start_new_session=True,  # its workers hold the GPU, and have to end with it
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"error": f"over the {seconds:.0f} s that were left", "answers": answers(folder / model)}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    report = folder / model / "benchmark.json"
    if not report.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LOG_LINES:]
        return {"error": f"exit code {code}", "log": lines, "answers": answers(folder / model)}
    content = json.loads(report.read_text(encoding="utf-8"))
    return {"exit_code": code, "device": content["facts"]["device"], "variants": variants(content["rows"])}


def benchmark_command(model: str) -> list[str]:
    """Write the command line of a benchmark."""
    overrides = (f"benchmark_model={model}", MODELS[model][0], "device=cuda", "steps=2", "repeats=1")
    return [sys.executable, "-m", "caldpo.benchmark", *overrides, f"hydra.run.dir={model}"]


def variants(rows: Sequence[dict[str, Any]]) -> dict[str, Record]:
    """Choose the figures of a benchmark's rows, and say whether the estimate of memory was right."""
    chosen = {}
    for row in rows:
        peak, estimated = row["peak_bytes"], row["estimated_bytes"]
        ratio = peak / estimated if peak and estimated else None
        chosen[row["name"]] = {
            "pairs/s": None if row["pairs_per_second"] is None else row["pairs_per_second"][0],
            "response tokens/s": row["response_tokens_per_second"],
            "x speed of TRL": row["speed"],
            "peak GiB": None if peak is None else peak / 2**30,
            "x less memory than TRL": row["memory"],
            "share of the matmul peak": row["peak_share"],
            "measured peak / estimate": ratio,
            "reached": None if ratio is None else 1 / (1 + ESTIMATE_WITHIN) <= ratio <= 1 + ESTIMATE_WITHIN,
        }
    return chosen


def answers(folder: Path) -> dict[str, Record]:
    """Read what the variants that did end have measured."""
    ended = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("runs/*/answer.json")
    }
    return {
        name: {"seconds": answer["seconds"], "peak GiB": answer["memory"]["peak"] / 2**30}
        for name, answer in ended.items()
        if "memory" in answer
    }


def stages(folder: Path, device: str, deadline: float) -> dict[str, Callable[[], Record]]:
    """Name the stages, in their order."""

    def of_model(model: str, share: float) -> Callable[[], Record]:
        if device != "cuda":
            return lambda: {"skipped": NOT_MEASURED}
        return lambda: benchmark(model, folder, max(1.0, share * (deadline - time.monotonic())))

    return {
        "logprobs": lambda: compare_logprobs(device),
        "attention": lambda: compare_attention(device),
        **{model: of_model(model, share) for model, (_, share) in MODELS.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; returns 1 where one failed or a bound was not met."""
    parser = argparse.ArgumentParser(prog="python -m caldpo.bench.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of gpu_report.json and of the benchmarks' own reports")
    parser.add_argument("--stages", nargs="+", choices=[*stages(Path(), "cpu", 0)], help="only these")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything; what is over it is ended")
    arguments = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    report: Record = {"device": device_name(device), "torch": torch.__version__, "stages": {}}
    print(f"device: {report['device']}", flush=True)
    for name, stage in stages(folder, device, time.monotonic() + 60 * arguments.minutes).items():
        if arguments.stages is not None and name not in arguments.stages:
            continue
        started = time.monotonic()
        try:
            record = stage()
        except Exception as error:  # the other stages are still worth their figures
            record = {"error": f"{type(error).__name__}: {error}"}
        report["stages"][name] = record | {"wall seconds": time.monotonic() - started}
        write_json(folder / REPORT, report)
        print(f"{name}: {json.dumps(report['stages'][name], indent=2)}", flush=True)
    return int(any(failed(record) for record in report["stages"].values()))


def failed(record: Record) -> bool:
    """Tell whether a stage could not be measured, or a bound in it was not met."""
    inner = record.get("variants", {}).values()
    return (
        "error" in record or bool(record.get("exit_code")) or any(r.get("reached") is False for r in (record, *inner))
    )


if __name__ == "__main__":
    raise SystemExit(main())
