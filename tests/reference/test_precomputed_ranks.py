"""Two ranks (gloo) that share a cache agree on its faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.reference import logprob_store
from caldpo.reference.precomputed import Precomputed
from tests.helpers.forked import context
from tests.reference.contexts import CountedEngine, make_context, prepared, rewrite, same


def on_a_rank(rank: int, folder: Path) -> None:
    """Two parts are there, both wrong, a third is missing; this rank trusts nothing, the other everything."""
    torch.distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    logprob_store.PAIRS_PER_PART = 8
    reference: Any = Precomputed(cache=str(folder / "cache"), spot_check=3).build(make_context())
    looked_at: list[Any] = []
    judge = reference._fault

    def fault(split: str, rows: list[int], *rest: Any) -> str | None:
        looked_at.append((split, rows))
        return judge(split, rows, *rest) if rank else None

    reference._fault = fault
    reference.prepare()
    torch.save((looked_at, reference._tables), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_look_at_the_same_pairs_and_hold_the_same_values(tmp_path: Path, passes: CountedEngine) -> None:
    expected = prepared(tmp_path / "cache", make_context())._tables
    rewrite(tmp_path / "cache", "train", lambda values: values + 0.5)
    (folder,) = (tmp_path / "cache").glob("train-*")
    (folder / "part-00002.safetensors").unlink()
    context()
    torch.multiprocessing.start_processes(on_a_rank, (tmp_path,), nprocs=2, start_method="forkserver")
    (rows, tables), (other_rows, other_tables) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert rows == other_rows
    assert [len(some) for _, some in rows] == [3, 3]
    assert max(rows[0][1]) < 16  # what any rank has just computed is looked at by none
    for split, values in expected.items():
        assert torch.equal(tables[split], other_tables[split])
        same(tables[split], values)
