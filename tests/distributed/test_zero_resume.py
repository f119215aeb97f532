"""A run on ZeRO-2 that is killed and resumed is the run that was never killed; nothing it leaves is a pickle."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.checkpointing.manifest import DamagedCheckpointError, checkpoint_folders, newest_intact, verify
from tests.distributed.test_resume import KILLS, kill_and_resume, outcome
from tests.evaluation.runs import write_data
from tests.helpers.messages import names
from tests.resume.child import Kill
from tests.resume.runs import BASE, train

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

RANKS = ("trainer.devices=2", "trainer.strategy=deepspeed_stage_2", "data.micro_batch_size=2", "trainer.max_steps=12")
WAYS = {
    "full-adamw": ((), KILLS[::2]),
    "offload-rmsprop-tied": (
        ("trainer.cpu_offload=true", "optim=rmsprop", "model.tie_word_embeddings=true", "layout=padded"),
        KILLS[:1],
    ),
    "lora": (("adapter=lora", "adapter.dropout=0.3", "reference=adapter"), KILLS[1:2]),
    "bfloat16": (("trainer.precision=bf16-true",), KILLS[1:2]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_resumes_bit_for_bit(way: str, tmp_path: Path) -> None:
    if way == "lora":
        pytest.importorskip("peft")
    write_data(tmp_path)
    words, kills = WAYS[way]
    given = (*BASE, *RANKS, *words)
    ended = train(tmp_path, *given, "hydra.run.dir=whole", ranks=2)
    assert ended.codes == (0, 0), ended.said
    whole = outcome(tmp_path / "whole")
    assert len([name for name in whole["bits"] if "optimizer/rank-" in name]) >= 4, "copies of the weights and moments"
    for kill in kills:
        kill_and_resume(tmp_path, given, kill, whole)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("zero")
    write_data(place)
    ended = train(place, *BASE, *RANKS, "hydra.run.dir=run", ranks=2)
    assert ended.codes == (0, 0), ended.said
    return place / "run"


def test_checkpoint_files_hold_no_code(run: Path) -> None:
    """The one zip archive is read with ``weights_only``; the weights are the exported policy's."""
    from transformers import AutoModelForCausalLM

    last = checkpoint_folders(run)[12]
    names = sorted(path.relative_to(last).as_posix() for path in last.rglob("*") if path.is_file())
    parts = [f"optimizer/rank-0000{rank}-of-00002.safetensors" for rank in (0, 1)]
    assert names == ["manifest.json", *parts, "training.pt", "weights.safetensors"]
    assert [path.name for path in run.rglob("*") if path.is_file() and zipfile.is_zipfile(path)] == ["training.pt"] * 2
    torch.load(last / "training.pt", weights_only=True)
    weights, policy = load_weights(last), AutoModelForCausalLM.from_pretrained(run / "policy").state_dict()
    assert all(torch.equal(weights[f"policy.{name}"], value) for name, value in policy.items())


def test_a_damaged_or_missing_shard_is_named_and_the_checkpoint_before_it_used(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    last = checkpoint_folders(copy)[12]
    for part in (last / "weights.safetensors", *sorted((last / "optimizer").iterdir())):
        good = part.read_bytes()
        part.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
        with pytest.raises(DamagedCheckpointError, match=re.escape(part.name)):
            verify(last)
        part.unlink()
        with pytest.raises(DamagedCheckpointError, match=rf"{re.escape(part.name)} .*missing"):
            verify(last)
        assert newest_intact(copy)[0] == checkpoint_folders(copy)[10]
        part.write_bytes(good)
    assert newest_intact(copy)[2] == []


def test_a_full_disk_on_one_rank_stops_all_and_other_strategies_cannot_resume(tmp_path: Path) -> None:
    """No file may grow beyond 20 kB once the tensors of the second checkpoint are there: the third is not written."""
    write_data(tmp_path)
    ended = train(tmp_path, *BASE, *RANKS, "hydra.run.dir=run", kill=Kill("quota", 2, 20_000), ranks=2)
    assert all(code not in (0, None) for code in ended.codes), ended.said
    names(ended.said, "step 6", "step 5", f"resume={tmp_path / 'run'}")
    assert list(checkpoint_folders(tmp_path / "run")) == [3, 5]
    for changed in ("trainer.devices=1", "trainer.strategy=ddp", "trainer.cpu_offload=true"):
        refusal = train(tmp_path, "resume=run", changed)
        assert refusal.codes == (2,), refusal.said
        names(refusal.said, changed.partition("=")[0])
    resumed = train(tmp_path, "resume=run", ranks=2)
    assert resumed.codes == (0, 0), resumed.said
