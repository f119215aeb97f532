"""A run that is made longer than it was begun: ``resume=FOLDER trainer.max_steps=MORE``, also once it has finished.

That is the run that was as long from its beginning, where nothing before its old end depends on the length: neither the
learning rate nor the number of micro-batches that a step is cut into. Elsewhere it is refused. No heavy imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caldpo.checkpointing.manifest import checkpoint_folders
from caldpo.errors import CaldpoError
from caldpo.utils.yaml_io import flatten

LENGTHS = ("trainer.max_steps", "trainer.max_epochs")


def is_longer(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether ``now`` is ``then`` with more optimiser steps or epochs; other keys are not looked at."""
    before, after = flatten(then), flatten(now)
    changed = [(before.get(key), after.get(key)) for key in LENGTHS if before.get(key) != after.get(key)]
    return bool(changed) and all(type(was) is int and type(new) is int and new > was for was, new in changed)


def depends_on_length(config: Mapping[str, Any]) -> str | None:
    """What of a run's steps depends on how many there are going to be; None: nothing does."""
    flat = flatten(config)
    decay, ratio = flat.get("optim.schedule.decay"), flat.get("optim.schedule.warmup_ratio")
    if decay != "constant":
        return f"the learning rate is decayed to the run's end (optim.schedule.decay={decay})"
    if flat.get("optim.schedule.warmup_steps") is None and ratio != 0:
        return f"the warm-up is a share of the run (optim.schedule.warmup_ratio={ratio})"
    if flat.get("data.max_tokens_per_micro_batch") is not None:
        return "steps are cut into as many micro-batches as the largest of them needs (data.max_tokens_per_micro_batch)"
    return None


def require_can_be_longer(then: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Refuse to make a run longer where it would not be the run that was as long from its beginning.

    Args:
        then: what it began with.
        config: that it goes on with.
        folder: the run's.

    Raises:
        CaldpoError: something before its old end depends on the length, or it kept no checkpoint to go on from.
    """
    before, after = flatten(then), flatten(config)
    key = next(key for key in LENGTHS if before.get(key) != after.get(key))
    why = depends_on_length(config)
    if why is None and not checkpoint_folders(folder):
        why = "it kept no checkpoint (callbacks.checkpoint.every)"
    if why is not None:
        raise CaldpoError(
            f"{folder} cannot be made longer: {why}",
            key=key,
            value=after.get(key),
            remedy=from_its_policy(config, folder)
            if (folder / "policy").is_dir()
            else f"leave {key} out to go on with the run as it was begun",
        )


def from_its_policy(config: Mapping[str, Any], folder: Path) -> str:
    """What to do instead: a new run that starts where this one ended."""
    flat, policy = flatten(config), f"{folder}/policy"
    if not str(flat.get("adapter._target_")).endswith(".NoAdapter"):
        start = f"adapter.init_from={policy} beside this run's overrides"
    else:  # models that are made, as random ones are, have no path
        start = f"model.path={policy}" if "model.path" in flat else f"model=hf model.path={policy}"
    return f"start a new run from its policy: {start}"


def without_length(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without its length, where nothing depends on that."""
    if depends_on_length(config) is not None or not isinstance(config.get("trainer"), Mapping):
        return dict(config)
    names = {key.partition(".")[2] for key in LENGTHS}
    return {**config, "trainer": {k: v for k, v in config["trainer"].items() if k not in names}}
