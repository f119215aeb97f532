"""The script for a GPU, on the CPU: its comparisons run on small sizes, and the rest says that it was not measured."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.bench import gpu_report, kernel_checks
from caldpo.bench.gpu_report import NOT_MEASURED, main, variants
from caldpo.utils.atomic_io import is_alive
from tests.helpers.messages import names

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it trains models of 7B")


@on_cpu
def test_what_a_cpu_can_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    stages = json.loads((tmp_path / "gpu_report.json").read_text())["stages"]
    assert list(stages) == ["logprobs", "attention", "mistral_7b_lora", "mistral_7b"]
    errors = stages["logprobs"]["relative errors"]
    assert list(errors) == ["transformers", "padded", "padded, streamed head", "packed", "packed, streamed head"]
    for error in errors.values():  # of bfloat16, whose numbers have 8 bits
        assert 1e-5 < error["log-probs"] < 0.01
        assert 1e-4 < error["gradients"] < 0.05
    assert stages["attention"]["kernel"].startswith("written out")
    assert stages["attention"]["times faster"] is None
    assert all(1e-4 < error < 0.02 for error in stages["attention"]["relative errors"].values())
    assert [stages[name]["skipped"] for name in ("mistral_7b_lora", "mistral_7b")] == [NOT_MEASURED] * 2
    names(capsys.readouterr().out, "logprobs", "attention", "not measured")


@on_cpu
def test_wrong_figures_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs of one way are a tenth off, and so is attention by two calls of the kernel."""
    right, two_calls = kernel_checks._by_engine, kernel_checks.attend_in_two_calls

    def wrong(model: Any, pairs: Any, layout: str, device: str, *, streamed: bool) -> Any:
        logprobs, gradients = right(model, pairs, layout, device, streamed=streamed)
        return logprobs * (1.1 if layout == "packed" and streamed else 1), gradients

    def wrong_in_16_bits(query: torch.Tensor, *others: Any) -> torch.Tensor:
        return two_calls(query, *others) * (1.1 if query.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(kernel_checks, "_by_engine", wrong)
    monkeypatch.setattr(kernel_checks, "attend_in_two_calls", wrong_in_16_bits)
    for stage in ("logprobs", "attention"):
        assert main([str(tmp_path), "--stages", stage]) == 1
        record = json.loads((tmp_path / "gpu_report.json").read_text())["stages"][stage]
        assert record["reached"] is False


@on_cpu
def test_a_stage_that_fails_costs_that_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(device: str) -> None:
        raise RuntimeError("the kernel is missing")

    monkeypatch.setattr(gpu_report, "compare_logprobs", breaks)
    assert main([str(tmp_path), "--stages", "logprobs", "attention"]) == 1
    stages = json.loads((tmp_path / "gpu_report.json").read_text())["stages"]
    names(stages["logprobs"]["error"], "RuntimeError", "the kernel is missing")
    assert stages["attention"]["reached"] is True


def row(**changed: Any) -> dict[str, Any]:
    return {
        "name": "caldpo",
        "pairs_per_second": [2.0, 1.0, 3.0],
        "response_tokens_per_second": 800.0,
        "speed": 2.5,
        "peak_bytes": 3 * 2**30,
        "memory": 1.5,
        "peak_share": 0.5,
        "estimated_bytes": 2.7 * 2**30,
        **changed,
    }


def test_figures_of_a_benchmark() -> None:
    of_estimate = {
        name: variants([row(estimated_bytes=size)])["caldpo"]
        for name, size in {"good": 2.7 * 2**30, "low": 2.5 * 2**30, "high": 3.6 * 2**30, "none": None}.items()
    }
    assert {name: record["reached"] for name, record in of_estimate.items()} == {
        "good": True,
        "low": False,
        "high": False,
        "none": None,
    }
    assert of_estimate["good"]["peak GiB"] == 3
    assert of_estimate["good"]["response tokens/s"] == 800
    missing = dict.fromkeys(("pairs_per_second", "peak_bytes", "speed", "memory", "response_tokens_per_second"))
    assert variants([row(**missing)])["caldpo"]["peak GiB"] is None


CHILD = """
import json, pathlib, subprocess, sys, time
folder = pathlib.Path("mistral_7b")
(folder / "runs" / "trl_best-1").mkdir(parents=True)
answer = {"seconds": 7.0, "memory": {"peak": 2**31}}
(folder / "runs" / "trl_best-1" / "answer.json").write_text(json.dumps(answer))
case, report = sys.argv[1:]
if case == "over time":
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path("worker").write_text(str(worker.pid))
    time.sleep(60)
elif case == "fails":
    sys.exit("CUDA is gone")
else:
    (folder / "benchmark.json").write_text(report)
"""


@pytest.mark.parametrize("case", ["ends", "fails", "over time"])
def test_a_benchmark_is_run_read_and_ended(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = json.dumps({"facts": {"device": "a GPU"}, "rows": [row()]})
    names(
        " ".join(gpu_report.benchmark_command("mistral_7b")), "caldpo.benchmark", "benchmark_model=mistral_7b", "caldpo"
    )
    monkeypatch.setattr(gpu_report, "benchmark_command", lambda model: [sys.executable, "-c", CHILD, case, report])
    record = gpu_report.benchmark("mistral_7b", tmp_path, 5.0 if case == "over time" else 60.0)
    if case == "ends":
        assert record["variants"]["caldpo"]["x speed of TRL"] == 2.5
        assert not gpu_report.failed(record)
        return
    assert gpu_report.failed(record)
    assert record["answers"] == {"trl_best-1": {"seconds": 7.0, "peak GiB": 2.0}}
    if case == "fails":
        names(record["error"], "exit code 1")
        assert record["log"] == ["CUDA is gone"]
    else:
        names(record["error"], "5 s")
        worker = int((tmp_path / "worker").read_text())
        deadline = time.monotonic() + 10
        while is_alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(worker)
