"""Whether there is one policy and something to ask it, before torch is loaded. No heavy imports here."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from caldpo.config.find_runs import find_runs
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluation_settings import check_target
from caldpo.generation.user_prompts import read_prompts

_SHOWN = 8  # runs named in an error message


def check_generation(cfg: DictConfig) -> None:
    """Whether the keys name one run or model, and prompts or a conversation.

    Raises:
        CaldpoError: no run or model, a folder of several runs, prompts that cannot be read, keys that exclude each
            other.
    """
    asked = cfg.prompts is not None or cfg.chat
    if cfg.run is None and cfg.model.path is not None and cfg.get("data") is None and not asked:
        raise CaldpoError(
            "model.path has no held-out prompts of its own",
            key="prompts",
            remedy='give prompts, prompts=\'["first text", "second text"]\' or prompts=FILE, or chat=true, or data of'
            " which they are taken, for example data=ultrafeedback",
        )
    check_target(cfg)
    if cfg.chat:
        _refuse_beside_chat(cfg)
    if cfg.prompts is not None:
        read_prompts(cfg.prompts)
    if cfg.run is not None:
        _require_one_run(Path(cfg.run).expanduser())


def _refuse_beside_chat(cfg: DictConfig) -> None:
    if cfg.prompts is not None:
        raise CaldpoError("chat=true reads prompts from the terminal", key="prompts", remedy="leave out one of the two")
    if cfg.samples != 1:
        raise CaldpoError(
            "chat=true gives one response a turn", key="samples", value=cfg.samples, remedy="leave out one of the two"
        )


def _require_one_run(folder: Path) -> None:
    runs = find_runs(folder, key="run")
    if len(runs) == 1:
        return
    listed = "".join(f"\n    '{run}'" for run in runs[:_SHOWN])
    more = f"\n    and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
    raise CaldpoError(
        f"{len(runs)} runs lie here, and responses are read of one at a time",
        key="run",
        value=folder,
        remedy=f"name one of them:{listed}{more}",
    )
