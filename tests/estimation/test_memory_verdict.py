"""What a device has, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caldpo.estimation.memory_breakdown import ACTIVATIONS, GRADIENTS, OPTIMIZER, REFERENCE, WEIGHTS, MemoryBreakdown
from caldpo.estimation.memory_verdict import GIB, DeviceMemory, available_ram, device_memory, memory_verdict
from tests.helpers.messages import names


def components(checkpointing: bool | str = False, tokens: int | None = None) -> Any:
    return SimpleNamespace(
        trainer=SimpleNamespace(accumulate_grad_batches=2),
        data=SimpleNamespace(micro_batch_size=5, max_tokens_per_micro_batch=tokens),
        model=SimpleNamespace(gradient_checkpointing=checkpointing),
    )


def needs(unknown: str = "", **changes: int) -> MemoryBreakdown:
    sizes = {WEIGHTS: 2, GRADIENTS: 2, OPTIMIZER: 4, REFERENCE: 2, ACTIVATIONS: 10}
    full = dict.fromkeys(["more during the optimiser's update", "more during evaluation"], 0)
    full |= {"working buffers": 0, "weights cast to another dtype": 0, "log-probs: logits, gradient of the head": 0}
    return MemoryBreakdown(
        100,
        100,
        "float32",
        "frozen",
        full | {k: v * GIB for k, v in sizes.items()} | changes,
        peak_pairs=5,
        activations_unknown=unknown,
    )


class TestMemoryOfThisMachine:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
        meminfo.write_text("MemTotal:  2000 kB\nMemAvailable:    1500 kB\n")
        cgroup.mkdir()
        return meminfo, cgroup

    def test_available(self, files: tuple[Path, Path]) -> None:
        assert available_ram(*files) == 1500 * 1024

    def test_a_container_has_less(self, files: tuple[Path, Path]) -> None:
        """Of 1,000,000 bytes 600,000 are used, but 100,000 of those are files it can drop."""
        for name, text in {"max": "1000000", "current": "600000", "stat": "anon 5\ninactive_file 100000"}.items():
            (files[1] / f"memory.{name}").write_text(text + "\n")
        assert available_ram(*files) == 500_000
        (files[1] / "memory.max").write_text("max\n")
        assert available_ram(*files) == 1500 * 1024

    def test_processes_share_it(self) -> None:
        one, four = (device_memory("cpu", devices, None) for devices in (1, 4))
        assert one.bytes is not None
        assert four.bytes == pytest.approx(one.bytes / 4, rel=0.2)
        names(four.source, "4 processes")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_missing_gpu_is_not_known_unless_given(self) -> None:
        missing = device_memory("gpu", 2, None)
        assert (missing.bytes, missing.device) == (None, "cuda")
        names(missing.source, "2 GPU", 0)
        fixed = device_memory("gpu", 2, 80)
        assert (fixed.bytes, fixed.device) == (80 * GIB, "cuda")
        assert device_memory("auto", 1, None).device == "cpu"


class TestVerdict:
    @pytest.mark.parametrize(
        ("gib", "fits", "start"),
        [(40, True, "fits"), (21, True, "tight"), (20, True, "tight"), (19.9, False, "does not fit")],
    )
    def test_of_twenty_gib(self, gib: float, fits: bool, start: str) -> None:
        verdict = memory_verdict(needs(), DeviceMemory(int(gib * GIB), "free", "cuda"), components())
        assert verdict.fits is fits
        assert verdict.text.startswith(start)
        names(verdict.text, "20.00 GiB")
        assert bool(verdict.advice) is (start != "fits")

    def test_advice_names_what_is_large_first(self) -> None:
        advice = memory_verdict(needs(), DeviceMemory(GIB, "free", "cuda"), components()).advice
        assert advice[0].startswith("data.micro_batch_size=3 trainer.accumulate_grad_batches=4")
        assert advice[1].startswith("model.gradient_checkpointing=true")
        keys = " ".join(advice)
        assert "adapter=lora" in keys
        assert "optim=rmsprop" in keys
        assert "reference=precomputed" in keys

    def test_a_budget_of_tokens_is_what_is_lowered(self) -> None:
        full, has = needs(), DeviceMemory(GIB, "free", "cuda")
        advice = memory_verdict(full, has, components(tokens=4097)).advice
        assert advice[0].startswith("data.max_tokens_per_micro_batch=2049:")
        # the longest pair fills its micro-batch
        alone = " ".join(memory_verdict(replace(full, peak_pairs=1), has, components(tokens=4097)).advice)
        assert "max_tokens_per_micro_batch" not in alone
        assert "micro_batch_size" not in alone.replace("eval_micro_batch_size", "")

    def test_advice_asks_for_nothing_that_is_done_already(self) -> None:
        lean = needs(**{REFERENCE: 0, OPTIMIZER: 2 * GIB})
        keys = " ".join(memory_verdict(lean, DeviceMemory(GIB, "free", "cuda"), components(checkpointing=True)).advice)
        for absent in ("gradient_checkpointing", "reference=", "rmsprop"):
            assert absent not in keys

    def test_what_is_not_known(self) -> None:
        assert memory_verdict(needs(), DeviceMemory(None, "no GPU", "cuda"), components()).fits is None
        unknown = needs(unknown="looks into its tensors")
        assert memory_verdict(unknown, DeviceMemory(40 * GIB, "free", "cuda"), components()).fits is None
        assert (
            memory_verdict(unknown, DeviceMemory(19 * GIB, "free", "cuda"), components()).fits is False
        )  # too much already

    def test_a_pair_at_the_peak_that_recomputes_is_asked_for_neither(self) -> None:
        has, auto = DeviceMemory(GIB, "free", "cuda"), components(checkpointing="auto", tokens=4097)
        keys = " ".join(memory_verdict(needs(), has, auto).advice)
        names(keys, "model.gradient_checkpointing=true", "data.max_tokens_per_micro_batch=2049")
        keys = " ".join(memory_verdict(replace(needs(), recomputes=True), has, auto).advice)
        assert "gradient_checkpointing" not in keys
        assert "max_tokens_per_micro_batch" not in keys
