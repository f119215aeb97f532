"""The budget that ``auto`` stands for: from the model, the pairs and the memory there is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from caldpo.data.batching import ByTokens, StepPlan
from caldpo.data.pair import TokenizedPair
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.estimation import token_budget
from caldpo.estimation.fake_model import fake_batch, fake_tensors
from caldpo.estimation.memory_verdict import GIB, memory_limit, total_ram
from caldpo.estimation.step_memory import training_step
from caldpo.estimation.token_budget import TokenBudget, activation_bound, choose_budget
from caldpo.models.adapters import Lora
from tests.estimation.test_step_memory import BATCH, LENGTHS, model
from tests.helpers.messages import names

TOKENS = sum(map(sum, LENGTHS))


def chosen(
    policy: Any,
    *,
    accelerator: str = "cpu",
    gib: float | None = 64,
    longest: int = 60,
    shorter: int = 0,
    recomputes: bool = False,
) -> TokenBudget:
    """Choose for 8 pairs of ``longest`` tokens and two more, and as many of half that length as ``shorter``."""
    lengths = [longest] * 8 + [longest // 2] * shorter
    pairs = TokenizedPairs([TokenizedPair([1], [1] * n, [1], None, None, i, "") for i, n in enumerate(lengths)])
    components: Any = SimpleNamespace(
        trainer=SimpleNamespace(accelerator=accelerator, devices=1, precision="32-true"),
        data=SimpleNamespace(train_pairs=pairs),
        recompute_above=lambda policy, budget: budget if recomputes else None,
    )
    plan = StepPlan(len(pairs), 4)
    return choose_budget(components, policy, plan, "packed", logits_cache_mib=64, memory_gib=gib)


@pytest.fixture
def no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bound decides, no model is run."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing had to be estimated")

    monkeypatch.setattr(token_budget, "memory_breakdown", refuse)


@pytest.mark.usefixtures("no_estimate")
class TestPlentyOfMemory:
    def test_a_cpu_gets_what_saturates_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(token_budget, "NEGLIGIBLE", 0)
        budget = chosen(model("llama", False, "packed"))
        assert budget.tokens == token_budget.SATURATING["cpu"]
        names(budget.reason, "CPU")

    def test_a_gpu_gets_more(self) -> None:
        budget = chosen(model("llama", False, "packed"), accelerator="gpu")
        assert budget.tokens == token_budget.SATURATING["cuda"]
        names(budget.reason, "GPU")

    def test_activations_of_a_few_mebibytes_are_not_cut(self) -> None:
        small = model("llama", False, "packed")
        assert chosen(small).tokens == token_budget.NEGLIGIBLE // activation_bound(small, "32-true")
        assert chosen(small).tokens > 2 * token_budget.SATURATING["cpu"]

    def test_a_gpu_that_is_not_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        budget = chosen(model("llama", False, "packed"), accelerator="gpu", gib=None)
        assert budget.tokens == token_budget.SATURATING["cuda"], "as many as on one with plenty of memory"
        names(budget.reason, "not known")


class TestShortMemory:
    def test_it_is_halved_until_the_estimate_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each token takes a mebibyte, in the largest micro-batch of pairs of 62 tokens that the budget holds."""
        tried: list[int] = []

        def estimate(components: Any, batches: Any, held_out: Any, **keys: Any) -> Any:
            assert keys["recompute_above"] is None
            (batch,) = batches
            tried.append(batch.tokens)
            return SimpleNamespace(total=tried[-1] * 2**20, activations_unknown="")

        monkeypatch.setattr(token_budget, "memory_breakdown", estimate)
        monkeypatch.setattr(token_budget, "NEGLIGIBLE", 0)
        monkeypatch.setattr(token_budget, "SATURATING", {"cpu": 400})
        monkeypatch.setattr(token_budget, "LEAST", 10)
        budget = chosen(model("llama", False, "packed"), gib=0.1)  # of which 92 MiB are used
        assert (budget.tokens, tried) == (100, [4 * 62, 3 * 62, 62])
        names(budget.reason, "0.1 GiB")
        assert not budget.warning

    def test_what_is_longer_than_the_budget_is_recomputed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each token takes a mebibyte where it is kept, and a tenth of that where it is recomputed."""
        tried: list[tuple[list[int], int]] = []

        def estimate(components: Any, batches: Any, held_out: Any, **keys: Any) -> Any:
            tokens, above = [batch.tokens for batch in batches], keys["recompute_above"]
            tried.append((tokens, above))
            return SimpleNamespace(
                total=max(n if n <= above else n // 10 for n in tokens) << 20, activations_unknown=""
            )

        monkeypatch.setattr(token_budget, "memory_breakdown", estimate)
        monkeypatch.setattr(token_budget, "NEGLIGIBLE", 0)
        monkeypatch.setattr(token_budget, "SATURATING", {"cpu": 400})
        monkeypatch.setattr(token_budget, "LEAST", 10)
        budget = chosen(model("llama", False, "packed"), gib=0.1, longest=60, shorter=8, recomputes=True)
        assert budget.tokens == 100
        assert tried == [([4 * 62], 400), ([3 * 62], 200), ([62], 100)]
        tried.clear()
        budget = chosen(model("llama", False, "packed"), gib=0.05, longest=60, shorter=8, recomputes=True)
        assert budget.tokens == 50, "of which 46 MiB are used: a pair of 32 tokens fits, one of 62 is recomputed"
        assert tried[-1] == ([62, 32], 50)

    def test_what_cannot_be_estimated_gets_a_moderate_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        unknown = SimpleNamespace(total=0, activations_unknown="it needs values")
        monkeypatch.setattr(token_budget, "memory_breakdown", lambda *args, **keys: unknown)
        budget = chosen(model("llama", False, "packed"), accelerator="gpu", gib=0.001, longest=5000)
        assert budget.tokens == token_budget.UNKNOWN_MEMORY
        names(budget.reason, "cannot be estimated")

    def test_what_does_not_fit_with_one_pair_either_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried: list[int] = []

        def estimate(components: Any, batches: Any, held_out: Any, **keys: Any) -> Any:
            tried.append(batches[0].pairs)
            return SimpleNamespace(total=200 * GIB, activations_unknown="")

        monkeypatch.setattr(token_budget, "memory_breakdown", estimate)
        budget = chosen(model("llama", False, "packed"), accelerator="gpu", gib=0.001, longest=5000)
        assert tried[-1] == 1
        assert tried.count(1) == 1
        names(budget.reason, "200.0 GiB", "0.0 GiB")
        names(budget.warning, "data.max_tokens_per_micro_batch", "200.0 GiB", "caldpo.estimate")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("precision", "lora"), [("32-true", False), ("bf16-mixed", False), ("32-true", True)])
def test_the_bound_is_above_the_step_on_fake_tensors(
    architecture: str, checkpointing: bool, precision: str, lora: bool
) -> None:
    """And not far above it, or large models would be estimated for nothing."""
    with fake_tensors("cpu") as mode:
        policy: Any = model(architecture, checkpointing, "packed")
        policy = Lora(rank=4).apply(policy).train() if lora else policy
        step = training_step(
            policy, fake_batch(BATCH["packed"], mode), precision=precision, reference=None, accumulates=True
        )
        bound = TOKENS * activation_bound(policy, precision)
    assert step.activations + step.working <= bound
    assert bound <= 5 * (step.activations + step.working)


def test_the_memory_of_a_device_is_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_limit("gpu", 2, 80) == 80 * GIB
    alone, shared = (memory_limit("cpu", devices, None) for devices in (1, 2))
    assert alone is not None
    assert shared == alone // 2
    own = tmp_path / "own"
    own.write_text("0::/\n")
    whole = total_ram(tmp_path, own)
    assert whole is not None
    (tmp_path / "memory.max").write_text(f"{whole // 2}\n")
    assert total_ram(tmp_path, own) == whole // 2
    (tmp_path / "memory.max").write_text("max\n")
    assert total_ram(tmp_path, own) == whole
    job = tmp_path / "system.slice/job_7/step_0"
    job.mkdir(parents=True)
    (job.parent / "memory.max").write_text(f"{whole // 3}\n")
    (job / "memory.max").write_text("max\n")
    assert total_ram(tmp_path, own) == whole
    own.write_text("0::/system.slice/job_7/step_0\n")
    assert total_ram(tmp_path, own) == whole // 3, "of a group around this one"


def test_the_limit_of_control_groups_of_version_1(tmp_path: Path) -> None:
    own, job = tmp_path / "own", tmp_path / "memory/slurm/job_7"
    job.mkdir(parents=True)
    own.write_text("12:cpu,cpuacct:/slurm/job_7\n9:memory:/slurm/job_7\n")
    whole = total_ram(tmp_path, own)
    assert whole is not None
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert total_ram(tmp_path, own) == whole
    (job / "memory.limit_in_bytes").write_text(f"{whole // 4}\n")
    assert total_ram(tmp_path, own) == whole // 4


def test_how_steps_are_cut_is_said_in_a_line() -> None:
    lengths = np.array([[2, 2, 2]] * 8)
    cut, counted = (StepPlan(8, 4).within(tokens, lengths, "packed") for tokens in (12, 24))
    assert isinstance(cut.micro_batching, ByTokens)
    names(TokenBudget(1200, "it saturates").describe(cut), "1,200 tokens", "it saturates")
    names(TokenBudget(2400, "it saturates").describe(counted), "data.micro_batch_size", "2,400 tokens")
