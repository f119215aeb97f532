"""The rank of this process, by the environment variables of the run's own launcher alone.

A shell may hold the variables of another program: of a job that has ended, of the interactive job it was opened in, of
a container. A launcher's variables are this run's where they tell of as many processes as the run has, which is for
``trainer.devices`` and ``trainer.num_nodes`` to say. No heavy imports.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from omegaconf import DictConfig, OmegaConf

_TORCHRUN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE")  # all of them, as Lightning wants them
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES")
_LSF = ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
_ADDRESS = "MASTER_ADDR"
_NODE = "NODE_RANK"
LAUNCHERS = (*_TORCHRUN, "WORLD_SIZE", _NODE, _ADDRESS, *_SLURM, *_LSF)
# of those, what says which process this is; Lightning's order
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
NODES = (_NODE, "GROUP_RANK")


def process_rank() -> int:
    """Read the rank of this process from the environment, within :func:`own_ranks`; 0: the first, or only one."""
    values = (os.environ.get(name) for name in RANKS)
    rank = next((int(value) for value in values if value and value.isdigit()), 0)
    # Lightning's own processes on a second node, the first of which has no rank yet
    node = next((int(value) for name in NODES if (value := os.environ.get(name, "")).isdigit()), 0)
    return rank or node


@contextlib.contextmanager
def own_ranks(cfg: DictConfig, *, announce: bool = False) -> Iterator[None]:
    """Hide other launchers' variables from the environment within the context.

    Where one would have made this another process of the run, ``announce`` prints so.
    """
    devices, nodes = _count(cfg, "trainer.devices"), _count(cfg, "trainer.num_nodes")
    hidden = {name: os.environ.pop(name) for name in _foreign(os.environ, devices * nodes, nodes)}
    ranks = [f"{name}={value}" for name, value in hidden.items() if name in (*RANKS, *NODES) and value not in ("", "0")]
    if ranks and announce:
        print(
            f"note: {', '.join(ranks)} in the environment: ignored, since by trainer.devices and trainer.num_nodes this"
            f" run has {devices * nodes} process(es)",
            file=sys.stderr,
        )
    from lightning_utilities.core.rank_zero import rank_zero_only  # a tenth of a second, not spent on a mistake

    # Lightning asks the environment once, when it is imported
    rank_zero_only.rank = process_rank()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in hidden.items() if name not in os.environ})


def _foreign(variables: Mapping[str, str], world: int, nodes: int) -> list[str]:
    """List the launchers' variables that are not of a run of so many processes on so many nodes."""
    own: set[str] = set()
    size = variables.get("WORLD_SIZE") == str(world)
    if size and set(_TORCHRUN) <= set(variables) and _below(variables, "RANK", world):
        own |= {*_TORCHRUN, "WORLD_SIZE", _NODE, _ADDRESS}
    elif size and _below(variables, "LOCAL_RANK", world):  # a process that Lightning has started
        own |= {"LOCAL_RANK", "WORLD_SIZE", _NODE, _ADDRESS}
    elif nodes > 1 and _below(variables, _NODE, nodes):  # started by hand on each node, and on it by Lightning
        own |= {_NODE, _ADDRESS}
    if variables.get("SLURM_NTASKS") == str(world) and _below(variables, "SLURM_PROCID", world):
        own |= {*_SLURM, _ADDRESS}
    if variables.get("JSM_NAMESPACE_SIZE") == str(world) and _below(variables, "JSM_NAMESPACE_RANK", world):
        own |= {*_LSF, _ADDRESS}
    return [name for name in LAUNCHERS if name in variables and name not in own]


def _below(variables: Mapping[str, str], name: str, bound: int) -> bool:
    value = variables.get(name, "")
    return value.isdecimal() and int(value) < bound


def _count(cfg: DictConfig, key: str) -> int:
    value = OmegaConf.select(cfg, key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 1
