"""A dumped step is computed again by the command, and reported."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from caldpo.config.find_runs import is_run
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.losses.cal_dpo import CalDPO
from caldpo.nonfinite.locate import SeenBatch
from caldpo.nonfinite.step_dump import dump_step, read_dump
from caldpo.reference.frozen_model import FrozenReference
from caldpo.replay.inspected_pass import InspectedPair, InspectedPass, group_of, run_pass
from caldpo.replay.replay_run import MAX_PAIRS, Replay, batches_of, print_replay
from caldpo.types import PairLogps, assembler
from tests.helpers.command import RANDOM_MODEL, train
from tests.helpers.messages import names
from tests.helpers.tiny import batch_of, tiny_model, tiny_pairs
from tests.helpers.tiny_trainer import make_module

RUN = [*RANDOM_MODEL, "loss=dpo", "optim.lr=1e30", "optim.schedule.warmup_steps=0", "trainer.gradient_clip_val=null"]
QUIET = ["trainer.progress_bar=false", "logger=csv", "callbacks.samples.prompts=0", "data.preview_pairs=0"]
MORE = ["trainer.max_steps=4", "callbacks.checkpoint.every=1"]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_replayed_pass_computes_what_training_does(layout: Any, tmp_path: Path) -> None:
    """Log-probs, loss and gradient of a dumped step in two micro-batches are those of its pairs in one."""
    pairs, loss = tiny_pairs(6), CalDPO(beta=0.5)
    reference = FrozenReference(tiny_model(seed=1))
    module = make_module(loss)
    seen = []
    for some in (pairs[:2], pairs[2:]):
        batch = batch_of(some)
        batch.step_pairs = 6
        with torch.no_grad():
            logps = assembler(batch, reference.logps(batch))(*module.engine(batch), slice(None))
        seen.append(SeenBatch(batch, logps, {"loss": loss(logps).loss}))
    path = dump_step(tmp_path, 3, seen, reason="", rank=0, ranks=1, loss="CalDPO", formula="")
    dump = read_dump(path)
    policy = tiny_model()
    if layout == "packed":
        for model in (policy, reference.model):
            use_packed_attention(model)
    plain, whole = make_module(loss), batch_of(pairs)
    answers = FrozenReference(tiny_model(seed=1)).logps(whole)
    loss(assembler(whole, answers)(*plain.engine(whole), slice(None))).loss.mean().backward()
    squares: dict[str, float] = {}
    for name, parameter in plain.policy.named_parameters():
        squares[group_of(name)] = squares.get(group_of(name), 0.0) + float(parameter.grad.double().norm()) ** 2
    for scale in (1.0, 256.0):
        found = run_pass(
            policy,
            reference,
            loss,
            batches_of(dump, 0, layout),
            dump.pairs,
            precision="32-true",
            context=nullcontext,
            logits_cache_mib=1,
            scale=scale,
        )
        for name in ("policy_chosen", "policy_rejected", "reference_chosen", "loss"):
            values = [pair.values[name] for pair in found.pairs]
            assert values == pytest.approx([pair.values[name] for pair in dump.pairs], rel=1e-4, abs=1e-4)
        assert found.gradient_norms == pytest.approx(
            {group: square**0.5 for group, square in squares.items()}, rel=1e-3
        )
        assert not found.is_nonfinite


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("transformer.h.11.attn.c_attn.bias", "transformer.h.11"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "base_model.model.model.layers.0"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("lm_head.weight", "lm_head"),
        ("weight", "weight"),
    ],
)
def test_groups_of_parameters(name: str, group: str) -> None:
    assert group_of(name) == group


def test_pairs_that_were_not_finite_are_printed_though_they_are_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of more pairs than are printed, where a replay does not reproduce what the run met."""
    seen = SeenBatch(batch_of(tiny_pairs(MAX_PAIRS + 2)), assembled(MAX_PAIRS + 2), {})
    seen.values["loss"] = torch.tensor([*[0.5] * (MAX_PAIRS + 1), math.nan])
    path = dump_step(
        tmp_path, 3, [seen], reason="", rank=0, ranks=1, loss="", formula="", origin=lambda row, _: f"row {row}"
    )
    dump = read_dump(path)
    pairs = [
        InspectedPair(origin=p.origin, tokens=(1, 1, 1), values={"loss": 0.5}, then=p.values, not_finite=[])
        for p in dump.pairs
    ]
    one = InspectedPass(precision="32-true", pairs=pairs, gradient_norms={}, nonfinite_gradients=[])
    print_replay(dump, Replay(dump="", weights="", verdict="", passes=[one]))
    lines = [line for line in capsys.readouterr().out.splitlines() if "row " in line]
    assert len(lines) == MAX_PAIRS
    names(lines[0], f"row {MAX_PAIRS + 1} ", "then loss nan")


def assembled(count: int) -> PairLogps:
    nats, lengths = torch.zeros(count), torch.ones(count)
    return PairLogps(nats, nats, nats, nats, lengths, lengths)


def found_in(folder: str) -> Path:
    (path,) = Path(folder, "nonfinite_batches").glob("step-*.json")
    return path


def replayed(path: Path, *overrides: str) -> dict[str, Any]:
    train(*RUN, *QUIET, *MORE, *overrides, f"replay={path}", "hydra.run.dir=other")
    return json.loads(path.with_suffix(".replay.json").read_text())


def test_a_nonfinite_step_is_replayed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*RUN, *QUIET, *MORE, "hydra.run.dir=run", fails=1)
    path = found_in("run")
    step = read_dump(path).step
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    capsys.readouterr()

    said = replayed(path)
    names(said["weights"], f"checkpoints/step-{step}")
    assert "before" not in said["weights"], "those of the step itself"
    (one,) = said["passes"]
    assert len(one["pairs"]) == 6
    assert all(pair["origin"].startswith("pairs.jsonl:") for pair in one["pairs"])
    assert all("policy_chosen" in pair["not_finite"] for pair in one["pairs"])
    assert one["pairs"][0]["values"]["policy_chosen"] == "NaN"
    assert one["pairs"][0]["then"]["policy_chosen"] == "NaN"
    assert isinstance(one["pairs"][0]["values"]["reference_chosen"], float)
    assert "lm_head.weight" in one["nonfinite_gradients"]
    printed = capsys.readouterr().out
    names(printed, "reproduced in 32-true")
    assert "note:" not in printed, "it is the run's configuration"
    now = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    assert now == before | {path.with_suffix(".replay.json"): path.with_suffix(".replay.json").read_bytes()}
    assert not is_run(Path("other"))  # nothing was trained there: no report takes it for a run

    shutil.rmtree("run/checkpoints")
    said = replayed(path, "trainer.precision=bf16-mixed")
    names(said["verdict"], "not reproduced", "bf16-mixed and in 32-true")
    assert "start" in said["weights"]
    assert f"(checkpoints/step-{step} " in said["weights"], "which is no longer there"
    values = [one["pairs"][0]["values"]["policy_chosen"] for one in said["passes"]]
    assert values[0] == pytest.approx(values[1], rel=0.05)
    assert values[0] != values[1]
    norms = [one["gradient_norms"] for one in said["passes"]]
    assert norms[0].keys() == norms[1].keys() >= {"lm_head", "model.layers.0", "model.embed_tokens"}
    assert all(0 < norms[1][name] == pytest.approx(norms[0][name], rel=0.2) for name in norms[0])
    (note,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note:"))
    names(note, "trainer.precision", "32-true", "bf16-mixed")

    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    train(*RUN, *QUIET, f"replay={path}", "hydra.run.dir=other", fails=1)
    names(capsys.readouterr().err, f"error: replay={path}:", remedy="nonfinite_batches/")


def test_a_dump_of_another_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tiny_pairs(4)
    batch = batch_of(pairs)
    zeros = torch.zeros(4)
    logps = assembler(batch, (zeros, zeros))(zeros, zeros, slice(None))
    seen = [SeenBatch(batch, logps, {"loss": zeros})]
    Path("run").mkdir()
    path = dump_step(Path("run"), 3, seen, reason="", rank=0, ranks=1, loss="DPO", formula="")
    command = [*RUN, *QUIET, f"replay={path}", "hydra.run.dir=other"]

    checkpoint = Path("run/checkpoints/step-2")
    checkpoint.mkdir(parents=True)
    save_file({"policy.lm_head.weight": torch.ones(2, 2)}, checkpoint / "weights.safetensors")
    train(*command, fails=1)
    names(capsys.readouterr().err, f"{checkpoint.absolute()}:", "damaged")
    shutil.rmtree(checkpoint)

    content = json.loads(path.read_text())
    content["pairs"][0]["prompt_ids"][0] = 44
    path.write_text(json.dumps(content))
    train(*command, fails=1)
    names(capsys.readouterr().err, f"replay={path}:", "token 44", "vocabulary has 44")
