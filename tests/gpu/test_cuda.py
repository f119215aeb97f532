"""What only a GPU can tell: the same log-probs, gradients and verdicts as on a CPU, and a run with ``trainer=auto``.

Skipped without one. ``python -m pytest -n 0 -s tests/gpu`` prints the differences that it measures.
"""

from __future__ import annotations

import copy
import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.bench.kernel_checks import compare_attention, compare_logprobs
from caldpo.data.collate import collate
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.layout import choose_layout
from caldpo.logprobs.varlen_attention import why_not_flash
from caldpo.models.model_probes import require_valid_logprobs
from caldpo.models.model_source import prepare_for_training
from caldpo.models.prompt_batching import prompt_batching
from tests.architectures.examine import apart, gradients, one_by_one, relative, some_pairs
from tests.architectures.families import POSITIONS, build
from tests.evaluation.runs import evaluate, inside, result, value
from tests.helpers.command import train
from tests.helpers.tiny import sample_responses, tiny_tokenizer
from tests.resume.child import Kill
from tests.resume.runs import train as train_apart
from tests.road.folders import write_model, write_rows
from tests.road.test_real_run import call_export, call_generate, logprobs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

KINDS = [
    *["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "mixtral", "gpt_oss", "qwen3_moe"],
    *["phi3", "llama4_text", "opt", "falcon", "mamba"],
]
# relative to 1 + |log-prob|; of gradients, to a parameter's largest entry
CLOSE, CLOSE_GRADIENTS, COARSE = 1e-4, 1e-3, 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_float32_as_on_a_cpu(kind: str) -> None:
    plain, pairs = build(kind), some_pairs()
    weights = torch.linspace(-1, 1.3, 2 * len(pairs))
    wanted = one_by_one(plain, pairs)
    wanted_gradients = gradients((wanted * weights).sum(), plain)
    policy = prepare_for_training(copy.deepcopy(plain), gradient_checkpointing=False, dropout=False).cuda().train()
    require_valid_logprobs(policy, training=True, max_length=POSITIONS)
    layout, _ = choose_layout("auto", policy, POSITIONS)
    found = torch.cat(LogprobEngine(policy)(collate(pairs, 0, layout=layout).to(policy.device)))
    found_gradients = gradients((found * weights.cuda()).sum(), policy)
    off = relative(found.cpu(), wanted), apart({n: g.cpu() for n, g in found_gradients.items()}, wanted_gradients)
    assert prompt_batching(policy, device=policy.device) == prompt_batching(plain, device=plain.device)
    print(f"\n{kind}: {layout}, float32: log-probs {off[0]:.1e}, gradients {off[1]:.1e}")
    assert off[0] < CLOSE
    assert off[1] < CLOSE_GRADIENTS


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_sound_and_near(kind: str) -> None:
    """The probes refuse no sound model for rounding, and a long row of a batch changes no short one."""
    plain, pairs = build(kind), some_pairs()
    with torch.no_grad():
        wanted = one_by_one(plain, pairs)
        policy = prepare_for_training(plain, gradient_checkpointing=False, dropout=False).to("cuda", torch.bfloat16)
        require_valid_logprobs(policy.train(), training=True, max_length=POSITIONS)
        layout, why = choose_layout("auto", policy.eval(), POSITIONS)
        found = torch.cat(LogprobEngine(policy)(collate(pairs, 0, layout=layout).to(policy.device))).cpu()
    print(f"\n{kind}: {layout} ({why}), bfloat16: log-probs {relative(found, wanted):.1e}")
    assert relative(found, wanted) < COARSE


@pytest.mark.parametrize("stage", [compare_logprobs, compare_attention])
def test_bfloat16_against_float64(stage: Callable[[str], dict[str, Any]]) -> None:
    """Log-probs, gradients and both ways of attention, at the sizes of the script that measures them."""
    record = stage("cuda")
    print(f"\n{json.dumps(record, indent=2)}")
    assert record["reached"]


def test_packed_rows_take_the_variable_length_kernel() -> None:
    query, key, value = (torch.randn(1, n, 12, 64, device="cuda", dtype=torch.bfloat16) for n in (4, 2, 2))
    assert why_not_flash(query, key, value, None, 0.0) is None


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gemma3_text"])
def test_greedy_responses_are_those_of_each_prompt_alone(kind: str) -> None:
    model = build(kind).cuda()
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]

    def answers(asked: list[list[int]]) -> list[list[int]]:
        return sample_responses(model, tiny_tokenizer(), asked, max_new_tokens=6, temperature=0, seed=0)

    assert answers(prompts) == [answers([prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("adapter", [(), ("adapter=lora", "adapter.rank=4")], ids=["whole", "lora"])
@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_a_run_of_ones_own_model(tmp_path: Path, family: str, adapter: tuple[str, ...]) -> None:
    """``model=hf`` on a GPU: bf16-mixed, killed and resumed, measured, read, exported."""
    if adapter:
        pytest.importorskip("peft")
    write_model(tmp_path / "model", family)
    write_rows(tmp_path)
    run = ["model=hf", "model.path=model", "data.train=train.jsonl", "data.test=test.jsonl", "data.micro_batch_size=8"]
    run += [
        "loss=cal_dpo",
        "trainer.val_check_interval=3",
        "trainer.max_steps=6",
        "trainer.progress_bar=false",
        "logger=csv",
    ]
    run += ["callbacks.samples.prompts=2", "callbacks.samples.max_new_tokens=4", "callbacks.checkpoint.every=2"]
    run += ["optim.lr=0.003", *adapter]
    killed = train_apart(tmp_path, *run, "hydra.run.dir=run", kill=Kill("update", 4, signal.SIGKILL))
    assert killed.codes == (-signal.SIGKILL,), killed.said
    with inside(tmp_path):
        train("resume=run")
        train(*run, "hydra.run.dir=whole")
        summary = json.loads(Path("run/summary.json").read_text())
        assert summary["status"] == "finished"
        assert "precision: bf16-mixed" in Path("run/config.yaml").read_text()
        rows = {name: rows_of(Path(name, "metrics.csv")) for name in ("run", "whole")}
        evaluate("run", "suite=[preference,displacement]", "preference.resamples=10", "displacement.resamples=10")
        call_generate("run", "count=2", "max_new_tokens=4")
        call_export("run", "to=exports/run", *(["merge=true"] if adapter else []))
    assert rows["run"] == rows["whole"], "a resumed run is the run that was never stopped"
    assert 0 <= value(result(tmp_path / "run", "preference"), "accuracy") <= 1
    exact = logprobs(tmp_path / "exports/run").mean(1).tolist()
    logged = [summary["metrics"][f"val/logps/{side}"] for side in ("chosen", "rejected")]
    print(f"\n{family}: logged in bf16-mixed {logged}, float32 on a CPU {exact}")
    for one, other in zip(logged, exact, strict=True):
        assert one == pytest.approx(other, rel=0.02)


def rows_of(file: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, without the clock's column."""
    with file.open(newline="") as lines:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(lines)]
