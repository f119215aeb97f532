"""A dumped batch is read back as it was, and other or damaged files are refused."""

from __future__ import annotations

import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

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
    assert path == tmp_path / "nonfinite_batches" / "step-12.json"
    dump = read_dump(path)
    for found, pair in zip(dump.pairs, pairs, strict=True):
        assert (found.prompt_ids, found.chosen_ids, found.rejected_ids, found.index) == (
            pair.prompt_ids,
            pair.chosen_ids,
            pair.rejected_ids,
            pair.index,
        )
        assert found.scores == pytest.approx((pair.score_chosen, pair.score_rejected))
        assert found.origin == f"train.jsonl:{pair.index + 1}"
    assert dump.micro_batches == [3, 4]
    assert [pair.is_real for pair in dump.pairs] == [True, True, True, True, True, False, True]
    assert [pair.values["reference_rejected"] for pair in dump.pairs] == [-i - 0.75 for i in range(7)]
    losses = torch.cat([s.values["loss"] for s in seen]).tolist()
    assert [pair.values["loss"] for pair in dump.pairs] == losses, "to the last bit"
    assert {"terms/contrast", "terms/calibration"} <= dump.pairs[0].values.keys()
    assert (dump.step, dump.step_pairs, dump.layout, dump.gradient_scale) == (12, 7, layout, 1024.0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no draft is left


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    seen = seen_of(tiny_pairs(3), "padded")
    seen.values["loss"] = torch.tensor([math.nan, -math.inf, 1 / 3])
    path = dumped(tmp_path, [seen], reason="the file \udc80.jsonl", origin=lambda row, split: "\udc80:1")
    first, second, third = read_dump(path).pairs
    assert math.isnan(first.values["loss"])
    assert (second.values["loss"], third.values["loss"]) == (-math.inf, seen.values["loss"][2].item())
    assert first.origin == "?:1"


def test_each_rank_writes_its_own_file(tmp_path: Path) -> None:
    names = [dumped(tmp_path, [seen_of(tiny_pairs(2), "padded")], rank=r, ranks=2).name for r in (0, 1)]
    assert names == ["step-12-rank-0.json", "step-12-rank-1.json"]


def test_the_last_checkpoint_before_the_step_is_found(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path, 12) is None
    for step in (3, 12, 13, 100):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").touch()
    (tmp_path / "checkpoints" / "step-11").mkdir()  # nothing in it
    assert last_checkpoint(tmp_path, 12) == "checkpoints/step-12"  # weights that have seen 12 steps, as the batch's had
    assert read_dump(dumped(tmp_path, [seen_of(tiny_pairs(2), "padded")])).checkpoint == "checkpoints/step-12"


def require_refused(path: Path, *facts: Any) -> None:
    with refused(*facts, key="replay", value=path, remedy="nonfinite_batches/"):
        read_dump(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    require_refused(tmp_path / "nowhere.json")
    other = tmp_path / "other.json"
    other.write_text("{}")
    require_refused(other)
    written = json.loads(dumped(tmp_path, [seen_of(tiny_pairs(2), "padded")]).read_text())
    other.write_text(json.dumps({**written, "format": "caldpo nonfinite batch 9"}))
    require_refused(other, "caldpo nonfinite batch 9")
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
        ("pairs", []),
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
    path.write_text(json.dumps({**json.loads(path.read_text()), change: to}))
    require_refused(path)


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("prompt_ids", []),
        ("chosen_ids", [-1]),
        ("rejected_ids", [2**31]),
        ("index", -1),
        ("index", 2**63),
        ("scores", None),
        ("scores", [1.0]),
        ("scores", [1.0, "nan"]),
        ("values", {}),
        ("values", {"loss": "large"}),
        ("origin", 1),
    ],
)
def test_a_pair_that_no_run_writes_is_refused(change: str, to: Any, tmp_path: Path) -> None:
    path = dumped(tmp_path, [seen_of(tiny_pairs(3), "padded")])
    content = json.loads(path.read_text())
    content["pairs"][1][change] = to
    path.write_text(json.dumps(content))
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
