"""A run with sharded weights that is killed and resumed is the run that was never killed; damage to a part is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.checkpointing.manifest import DamagedCheckpointError, checkpoint_folders, newest_intact, verify
from tests.evaluation.runs import write_data
from tests.helpers.messages import names
from tests.resume.child import Kill
from tests.resume.runs import BASE, NOT_THE_RUN, train

pytestmark = pytest.mark.slow

KILL, TERM = signal.SIGKILL, signal.SIGTERM
THOROUGH = "CALDPO_KILLS" in os.environ  # every kill in every way
RANKS = ("trainer.devices=2", "trainer.strategy=fsdp", "data.micro_batch_size=2", "trainer.max_steps=12")
WAYS = {
    "full-adamw-packed": ("layout=packed",),
    "full-rmsprop-padded": ("optim=rmsprop", "layout=padded", "model.tie_word_embeddings=true"),
    "lora-adamw-packed": ("adapter=lora", "adapter.dropout=0.3", "layout=packed", "reference=adapter"),
}
# in a window, before an update, between parts and manifest, complete but for its name, in an evaluation, at the end
KILLS = [
    Kill("step", 9, KILL),
    Kill("update", 6, TERM),
    Kill("tensors", 2, KILL),
    Kill("rename", 1, KILL),
    Kill("evaluation", 5, TERM),
    Kill("export", 1, KILL),
]


def outcome(run: Path) -> dict[str, Any]:
    """Everything that two runs have to agree on to the last bit."""
    last = list(checkpoint_folders(run).values())[-1]
    bits = {}
    for file in sorted([*last.rglob("*.safetensors"), *(run / "policy").glob("*.safetensors")]):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                value = opened.get_tensor(name).contiguous().reshape(-1)
                bits[f"{file.relative_to(run)}: {name}"] = value.view(torch.uint8).numpy().tobytes()
    training = torch.load(last / "training.pt", weights_only=True)
    rows = (run / "metrics.csv").read_text().splitlines()
    clock = rows[0].split(",").index(NOT_THE_RUN[0])
    return {
        "bits": bits,
        "rows": [[cell for place, cell in enumerate(row.split(",")) if place != clock] for row in rows],
        "samples": (run / "samples.jsonl").read_text(),
        "loops": training["loops"]["fit_loop"],
        "schedule": training["lr_schedulers"],
        "plain": training["optimizer_plain"],
        "status": json.loads((run / "summary.json").read_text())["status"],
    }


def kill_and_resume(place: Path, given: tuple[str, ...], kill: Kill, whole: dict[str, Any]) -> None:
    """A run of two ranks that is killed and resumed has the outcome of the whole one."""
    killed = train(place, *given, "hydra.run.dir=killed", kill=kill, ranks=2)
    assert killed.codes[0] == (-KILL if kill.number == KILL else 128 + kill.number), (kill, killed.said)
    resumed = train(place, "resume=killed", ranks=2)
    assert resumed.codes == (0, 0), (kill, resumed.said)
    found = outcome(place / "killed")
    assert [name for name in whole if found[name] != whole[name]] == [], kill
    shutil.rmtree(place / "killed")


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_resumes_bit_for_bit(way: str, tmp_path: Path) -> None:
    if "lora" in way:
        pytest.importorskip("peft")
    write_data(tmp_path)
    given = (*BASE, *RANKS, *WAYS[way])
    ended = train(tmp_path, *given, "hydra.run.dir=whole", ranks=2)
    assert ended.codes == (0, 0), ended.said
    whole = outcome(tmp_path / "whole")
    assert len(whole["bits"]) > 40
    for kill in KILLS if THOROUGH else KILLS[:: 2 if way == "full-adamw-packed" else 3]:
        kill_and_resume(tmp_path, given, kill, whole)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sharded")
    write_data(place)
    ended = train(place, *BASE, *RANKS, "model.tie_word_embeddings=true", "hydra.run.dir=run", ranks=2)
    assert ended.codes == (0, 0), ended.said
    return place / "run"


def test_one_process_merges_the_shards(run: Path) -> None:
    """Those of the end are the exported policy's, under the names of the training module and with the ties."""
    from transformers import AutoModelForCausalLM

    folders = checkpoint_folders(run)
    weights = load_weights(folders[12])
    policy = AutoModelForCausalLM.from_pretrained(run / "policy").state_dict()
    assert weights.keys() == {f"policy.{name}" for name in policy}
    assert all(torch.equal(weights[f"policy.{name}"], value) for name, value in policy.items())
    assert weights["policy.lm_head.weight"] is weights["policy.model.embed_tokens.weight"]
    before = load_weights(folders[10])
    assert not torch.equal(before["policy.lm_head.weight"], weights["policy.lm_head.weight"])


def test_a_damaged_or_missing_shard_is_named_and_the_checkpoint_before_it_used(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    last = checkpoint_folders(copy)[12]
    assert verify(last).step == 12
    parts = sorted(last.rglob("*.safetensors"))
    assert len(parts) == 4, "a file a rank of weights and of the optimiser"
    for part in parts:
        good = part.read_bytes()
        part.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
        with pytest.raises(DamagedCheckpointError, match=re.escape(f"{part.parent.name}/{part.name}")):
            verify(last)
        part.unlink()
        with pytest.raises(DamagedCheckpointError, match=rf"{re.escape(part.name)} .*missing"):
            verify(last)
        folder, manifest, damages = newest_intact(copy)
        assert (folder, manifest and manifest.step) == (checkpoint_folders(copy)[10], 10)
        assert len(damages) == 1
        part.write_bytes(good)
    assert newest_intact(copy)[2] == []


def test_a_full_disk_on_one_rank_stops_all(tmp_path: Path) -> None:
    """No file may grow beyond 20 kB from the second checkpoint on; the first stays, and all can go on with it.

    With another number of ranks, or whole weights, they cannot: such a run would not be the same.
    """
    write_data(tmp_path)
    given = (*BASE, *RANKS, "hydra.run.dir=run")
    ended = train(tmp_path, *given, kill=Kill("quota", 2, 20_000), ranks=2)
    assert all(code not in (0, None) for code in ended.codes), ended.said
    names(ended.said, "step 5", "step 3", f"resume={tmp_path / 'run'}")
    assert list(checkpoint_folders(tmp_path / "run")) == [3]
    for changed in ("trainer.devices=1", "trainer.strategy=ddp"):
        refusal = train(tmp_path, "resume=run", changed)
        assert refusal.codes == (2,), refusal.said
        names(refusal.said, changed.partition("=")[0])
    resumed = train(tmp_path, "resume=run", ranks=2)
    assert resumed.codes == (0, 0), resumed.said


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_an_error_on_one_rank_ends_all(strategy: str, tmp_path: Path) -> None:
    """With rows that are still to be fetched: the rank that fails must not wait for the others to do so."""
    write_data(tmp_path)
    given = (*BASE, *RANKS, f"trainer.strategy={strategy}", "trainer.metrics_sync_every=10", "hydra.run.dir=run")
    ended = train(tmp_path, *given, kill=Kill("fail", 5, 0), ranks=2, patience=100)
    assert all(code not in (0, None) for code in ended.codes), ended
    assert "made to fail" in ended.said
    assert "made to fail" in (tmp_path / "run" / "error.txt").read_text()
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") > 2, "the rows before it are kept"


def test_a_nonfinite_step_stops_all_ranks_and_is_replayed_by_one(tmp_path: Path) -> None:
    """What is said is what whole models say: names of weights, whoever holds the part that is no number."""
    write_data(tmp_path)
    wild = ("optim=rmsprop", "optim.lr=1e30", "optim.schedule.warmup_steps=0", "trainer.gradient_clip_val=null")
    said = {}
    for strategy in ("ddp", "fsdp"):
        ended = train(
            tmp_path, *BASE, *RANKS, *wild, f"trainer.strategy={strategy}", f"hydra.run.dir={strategy}", ranks=2
        )
        assert ended.codes == (1, 1), ended.said
        told = [line for line in ended.said.splitlines() if line.startswith("error: ")]
        assert len(set(told)) == 1
        said[strategy] = told[0]
    assert said["fsdp"] == said["ddp"]
    names(said["fsdp"], "loss", "step 1", "8 of 8 pairs")
    (batch, *_) = sorted((tmp_path / "fsdp" / "nonfinite_batches").glob("*.json"))
    replayed = train(tmp_path, "resume=fsdp", f"replay={batch}")
    assert replayed.codes == (0,), replayed.said
    assert "step-1-rank-0.replay.json" in replayed.said
