"""A dumped batch is read back as it was, and other or damaged files are refused."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.losses.cal_dpo import CalDPO
from caldpo.metrics import loss_metrics
from caldpo.nonfinite.locate import SeenBatch
from caldpo.nonfinite.step_dump import dump_step, last_checkpoint, read_dump
from caldpo.types import PairLogps
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_pairs


def seen_of(pairs: list[TokenizedPair], layout: Any, weight: list[float] | None = None) -> SeenBatch:
    """A micro-batch with log-probs that tell pairs apart."""
    batch = collate(pairs, 0, layout=layout, weight=weight, step_pairs=7, split="train")
    columns = [-torch.tensor([float(p.index) + side / 4 for p in pairs]) for side in range(4)]
    logps = PairLogps(*columns, *batch.lengths(), batch.score_chosen, batch.score_rejected)
    return SeenBatch(batch, logps, loss_metrics(CalDPO()(logps)))


def dumped(folder: Path, seen: list[SeenBatch], **keys: Any) -> Path:
    facts: dict[str, Any] = {"reason": "why", "rank": 0, "ranks": 1, "loss": "CalDPO", "formula": "f"}
    return dump_step(folder, 12, seen, **{**facts, **keys})


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_dump_round_trips(layout: str, tmp_path: Path) -> None:
    pairs = tiny_pairs(7)

    def origin(row: int, split: str) -> str:
        return f"{split}.jsonl:{row + 1}"

    seen = [seen_of(pairs[:3], layout), seen_of(pairs[3:], layout, [1, 1, 0, 1])]
    path = dumped(tmp_path, seen, origin=origin, gradient_scale=1024.0)
    assert path == tmp_path / "nonfinite_batches" / "step-12.safetensors"
    dump = read_dump(path)
    for found, pair in zip(dump.pairs, pairs, strict=True):
        assert (found.prompt_ids, found.chosen_ids, found.rejected_ids, found.index) == (
            pair.prompt_ids,
            pair.chosen_ids,
            pair.rejected_ids,
            pair.index,
        )
        assert found.score_chosen == pytest.approx(pair.score_chosen)
        assert found.origin == f"train.jsonl:{pair.index + 1}"
    assert dump.header.micro_batches == [3, 4]
    assert dump.weight == [1, 1, 1, 1, 1, 0, 1]
    assert dump.values["reference_rejected"].tolist() == [-i - 0.75 for i in range(7)]
    assert torch.equal(dump.values["loss"], torch.cat([s.values["loss"] for s in seen]))
    assert {"terms/contrast", "terms/calibration"} <= dump.values.keys()
    header = dump.header
    assert (header.step, header.step_pairs, header.layout, header.gradient_scale) == (12, 7, layout, 1024.0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no draft is left


def test_each_rank_writes_its_own_file(tmp_path: Path) -> None:
    names = [dumped(tmp_path, [seen_of(tiny_pairs(2), "padded")], rank=r, ranks=2).name for r in (0, 1)]
    assert names == ["step-12-rank-0.safetensors", "step-12-rank-1.safetensors"]


def test_the_last_checkpoint_before_the_step_is_found(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path, 12) is None
    for step in (3, 12, 13, 100):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").touch()
    (tmp_path / "checkpoints" / "step-11").mkdir()  # nothing in it
    assert last_checkpoint(tmp_path, 12) == "checkpoints/step-12"  # weights that have seen 12 steps, as the batch's had
    assert read_dump(dumped(tmp_path, [seen_of(tiny_pairs(2), "padded")])).header.checkpoint == "checkpoints/step-12"


def require_refused(path: Path, *facts: Any) -> None:
    with refused(*facts, key="replay", value=path, remedy="nonfinite_batches/"):
        read_dump(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    require_refused(tmp_path / "nowhere.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"w": torch.ones(2)}, other)
    require_refused(other)
    save_file({"w": torch.ones(2)}, other, metadata={"caldpo": json.dumps({"format": "caldpo bad batch 9"})})
    require_refused(other, "caldpo bad batch 9")
    require_refused(tmp_path)  # a folder

    class Marker:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    other.write_bytes(pickle.dumps(Marker()))
    require_refused(other)
    torch.save({"caldpo": Marker()}, other)
    require_refused(other)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("micro_batches", [2, 2]),
        ("micro_batches", []),
        ("micro_batches", [-1, 4]),
        ("origins", ["a"]),
        ("step_pairs", 0),
        ("step_pairs", None),
        ("layout", "both"),
        ("checkpoint", "checkpoints/../../step-1"),
        ("checkpoint", 3),
        ("gradient_scale", "large"),
        ("gradient_scale", None),
        ("gradient_scale", float("nan")),
        ("gradient_scale", 0),
        ("step", float("inf")),
        ("step", -1),
        ("rank", 1),
        ("ranks", "one"),
    ],
)
def test_inconsistent_parts_are_refused(change: str, to: Any, tmp_path: Path) -> None:
    path = dumped(tmp_path, [seen_of(tiny_pairs(3), "padded")])
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["caldpo"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"caldpo": json.dumps({**metadata, change: to})})
    require_refused(path)


def test_a_damaged_dump_is_refused_or_well_formed(tmp_path: Path) -> None:
    """Cut anywhere, or a few bytes changed: either the file is refused, or what comes out has the right shape."""
    path = dumped(tmp_path, [seen_of(tiny_pairs(3), "packed")])
    whole, rng = path.read_bytes(), random.Random(0)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        require_refused(path)
    refusals = 0
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(bytes(broken))
        try:
            assert len(read_dump(path).pairs) == 3
        except CaldpoError:
            refusals += 1
    assert refusals > 100
