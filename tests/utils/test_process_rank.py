"""Ranks come from the run's own launcher; what other programs have left in the environment makes no run another one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from caldpo.utils.process_rank import LAUNCHERS, own_ranks, process_rank
from tests.config.jobs import run, write_conf
from tests.helpers.messages import names

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_NODEID": "0", "SLURM_NTASKS": "4"}


@pytest.fixture(autouse=True)
def _nothing_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)  # own_ranks sets it and leaves it so


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "rank", "left"),
    [
        # left in a shell: a run of one process is alone, whatever they say
        ({"NODE_RANK": "1"}, 1, 1, 0, set()),
        ({"RANK": "1"}, 1, 1, 0, set()),
        ({"SLURM_PROCID": "1"}, 1, 1, 0, set()),
        ({"LOCAL_RANK": "1"}, 1, 1, 0, set()),
        ({"GROUP_RANK": "1"}, 1, 1, 0, set()),
        ({"JSM_NAMESPACE_RANK": "1"}, 1, 1, 0, set()),
        (TORCHRUN | {"MASTER_ADDR": "far"}, 1, 1, 0, set()),
        (SLURM, 1, 1, 0, set()),
        ({"WORLD_SIZE": "4"}, 1, 1, 0, set()),
        ({"MASTER_ADDR": "far"}, 2, 1, 0, set()),
        ({"RANK": "9", "WORLD_SIZE": "2"}, 2, 1, 0, set()),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 2, 1, 0, set()),  # an interactive job of one task
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "4"}, 2, 1, 0, set()),
        # of the run's own launcher
        (TORCHRUN, 2, 2, 3, set(TORCHRUN)),
        (SLURM, 4, 1, 2, set(SLURM)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 1, 1, 0, set(SLURM)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}, 2, 1, 1, {"LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"}),
        ({"NODE_RANK": "1", "MASTER_ADDR": "a"}, 8, 2, 1, {"NODE_RANK", "MASTER_ADDR"}),
        ({"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"}, 2, 1, 1, {"JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"}),
    ],
)
def test_only_the_runs_own_launcher_counts(
    variables: dict[str, str],
    devices: int,
    nodes: int,
    rank: int,
    left: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with own_ranks(OmegaConf.create({"trainer": {"devices": devices, "num_nodes": nodes}})):
        assert process_rank() == rank
        assert {name for name in LAUNCHERS if name in os.environ} == left
    assert {name: os.environ.get(name) for name in variables} == variables, "as it was"


def test_lightning_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read the environment when it was imported."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with own_ranks(OmegaConf.create({})):
        assert rank_zero_only.rank == 0
    assert "pytorch_lightning.utilities" in sys.modules


@pytest.mark.parametrize("name", ["NODE_RANK", "SLURM_PROCID", "RANK"])
def test_a_foreign_rank_gets_no_run_past_the_lock(name: str, tmp_path: Path) -> None:
    conf = write_conf(tmp_path)
    code, _, err = run(conf, tmp_path, "hydra.run.dir=here", **{name: "1"})
    assert code == 0
    names(err, "note:", f"{name}=1")
    assert '"finished"' in (tmp_path / "here" / "summary.json").read_text(), "the first process has written it"
