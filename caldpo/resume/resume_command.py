"""What ``resume`` makes of a command: overrides of the run it names are added, and runs are refused or left alone.

``resume=FOLDER`` stands for the overrides that the run was started with; those typed with it must not make it another
run. ``resume=auto`` leaves the command as it is: it resumes where its folder holds an unfinished run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from caldpo.checkpointing.manifest import FOLDER
from caldpo.config.cache_dirs import without_cache_dirs
from caldpo.config.find_runs import is_run, sweep_overrides
from caldpo.config.overrides import parse_overrides, quoted
from caldpo.config.run_lifecycle import FINISHED, AlreadyDone
from caldpo.config.summary_file import SUMMARY, known_summary
from caldpo.config.trusted_config import SEVERAL, require_own_code, require_plain_overrides
from caldpo.config.validation import NEEDED
from caldpo.errors import CaldpoError
from caldpo.metrics_file import NAME
from caldpo.resume.config_diff import (
    CONFIG,
    cut_by_length,
    is_longer,
    new_run_remedy,
    read_config,
    require_same_config,
)
from caldpo.security.paths import require_no_links_out
from caldpo.security.secrets import MASK, redact, redact_text
from caldpo.utils.file_names import require_enterable
from caldpo.utils.process_rank import process_rank
from caldpo.utils.yaml_io import read_yaml

AUTO = "auto"
OVERRIDES = "overrides"  # key of summary.json
_UNRECORDED = ("resume", "replay", "allow_untrusted_code")  # keys of a single start, which a run does not keep


def with_run_overrides(overrides: Sequence[str], multirun: bool = False, config_dir: str | None = None) -> list[str]:
    """Add the overrides of the run that ``resume=FOLDER`` names, and its folder; ``config_dir`` is not needed for that.

    Raises:
        CaldpoError: it is no run, its overrides are lost or would run code, or a secret has to be typed again.
    """
    typed = {_key(text): text for text in overrides}
    resumed = _value(typed.get("resume"))
    if resumed in (None, AUTO):
        return list(overrides)
    folder = Path(str(resumed)).expanduser()
    if multirun:
        remedy = "leave -m out; for a sweep repeat its command with hydra.sweep.dir=FOLDER resume=auto"
        raise CaldpoError("resumes one run", key="resume", value=folder, remedy=remedy)
    require_enterable(folder, key="resume", value=folder)
    _require_run(folder)
    require_no_links_out(folder)  # before Hydra, the log or the lock write there
    trusted = typed.get("allow_untrusted_code", "").partition("=")[2].lower() == "true"
    recorded = [t for t in _read_overrides(folder) if _key(t) not in typed and _key(t) not in _UNRECORDED]
    for text in recorded:
        if MASK in text:
            wrong = "was left out of the run's files, being a secret"
            raise CaldpoError(wrong, key=_key(text), remedy="type it again with resume=")
    if not trusted:
        require_plain_overrides(recorded, folder / SUMMARY)
    recorded, left_out = without_cache_dirs(recorded)
    for text in left_out:
        print(f"note: {redact_text(text)} of the run's files is left out: only the command says where else to write")
    if "replay" in typed:  # computed beside the run, in a folder of its own
        return [*recorded, *overrides]
    place = _value(typed.get("hydra.run.dir"))
    if place is None:
        return [*recorded, *overrides, f"hydra.run.dir={quoted(str(folder))}"]
    if Path(str(place)).resolve() != folder.resolve():  # Lightning names the same one to its further processes
        raise CaldpoError("a run goes on in its own folder", key="hydra.run.dir", value=place, remedy="leave it out")
    return [*recorded, *overrides]


def require_same_run(cfg: DictConfig) -> None:
    """Refuse ``resume=FOLDER`` where the run cannot be resumed under this configuration.

    Raises:
        CaldpoError: the run has finished, was another one, or builds something that is not the project's own.
    """
    if cfg.get("resume") in (None, AUTO):
        return
    folder = Path(str(cfg.resume)).expanduser()
    config = recorded_config(cfg, str(HydraConfig.get().runtime.choices["loss"]))
    if not cfg.allow_untrusted_code:
        require_own_code(config, (*NEEDED, *SEVERAL), folder / CONFIG)
    began = read_config(folder)
    finished = cfg.replay is None and known_summary(folder).get("status") == FINISHED
    if finished and not (began is not None and is_longer(began, config)):
        instead = new_run_remedy(config, folder)
        more = "" if cut_by_length(config) else "make it longer by trainer.max_steps=MORE or max_epochs, or "
        raise CaldpoError(
            "this run has finished: there is nothing to resume", key="resume", value=folder, remedy=more + instead
        )
    if began is not None:
        require_same_config(began, config, folder)


def finished_outcome(cfg: DictConfig, folder: Path) -> AlreadyDone | None:
    """Return the outcome of a finished run that ``resume=auto`` leaves alone; None where there is work to do.

    Raises:
        CaldpoError: the folder holds another run, or one that the command does not ask to resume.
    """
    is_new = cfg.dry_run or cfg.replay is not None or cfg.resume is None
    began = None if is_new else read_config(folder)
    if began is None:
        # Only the first rank looks at the folder: others may start when it has begun to write there.
        holds_run = (folder / NAME).is_file() or any((folder / FOLDER).glob("step-*"))
        if not holds_run or process_rank() != 0:
            return None
        if is_new:
            raise CaldpoError(
                "this folder holds a run already, which would be overwritten",
                key="hydra.run.dir",
                value=folder,
                remedy="add resume=auto to resume it (a finished one is skipped), or name another folder;"
                " with dry_run=true or replay=FILE leave hydra.run.dir out",
            )
        raise CaldpoError(
            f"{CONFIG} of this run is missing: the configuration that it started with is not known",
            key="resume",
            value=folder,
            remedy="bring that file back, or start a new run in another folder",
        )
    config = recorded_config(cfg, str(HydraConfig.get().runtime.choices["loss"]))
    require_same_config(began, config, folder)
    summary = known_summary(folder)
    if cfg.resume != AUTO or summary.get("status") != FINISHED or is_longer(began, config):
        return None
    return AlreadyDone(summary.get("metrics", {}).get(cfg.optimized_metric))


def recorded_config(cfg: DictConfig, loss_name: str) -> dict[str, Any]:
    """Resolve a configuration as ``config.yaml`` of a run holds it: without secrets, with the name of the loss."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    recorded = {key: value for key, value in resolved.items() if key not in _UNRECORDED and key != "hydra"}
    config: dict[str, Any] = redact({"loss_name": loss_name, **recorded})
    return config


def recorded_overrides(overrides: Sequence[str]) -> list[str]:
    """Leave out what ``summary.json`` does not keep of a command line: keys of a single start, and secrets."""
    return list(redact([text for text in overrides if _key(text) not in _UNRECORDED]))


def _value(text: str | None) -> Any:
    """Parse the value of an override; None where there is none, or it is malformed, which is explained elsewhere."""
    overrides = [] if text is None else parse_overrides(None, [text])
    return overrides[0].value() if overrides else None


def _require_run(folder: Path) -> None:
    if is_run(folder):
        return
    wrong, remedy = "there is no such folder", "name the folder of a run that was started"
    if (folder / "multirun.yaml").is_file():
        typed = [text for text in sweep_overrides(folder) or ["..."] if _key(text) not in ("resume", "hydra.sweep.dir")]
        resumed = ["python", "-m", "caldpo.train", "-m", *typed, f"hydra.sweep.dir={folder}", "resume=auto"]
        wrong, remedy = "is a sweep, not a run", f"repeat its command: {shlex.join(resumed)}"
    elif folder.is_dir():
        wrong = "holds no run"
    raise CaldpoError(wrong, key="resume", value=folder, remedy=remedy)


def _read_overrides(folder: Path) -> list[str]:
    """Read the overrides that the run was started with."""
    recorded = known_summary(folder).get(OVERRIDES)
    if isinstance(recorded, list):
        return [str(text) for text in recorded]
    file = folder / ".hydra" / "overrides.yaml"
    try:
        written = read_yaml(file) or []
        if not isinstance(written, list):
            raise ValueError(f"it holds {type(written).__name__} in place of a list")
        return [str(text) for text in written if _key(str(text)) not in _UNRECORDED]
    except (OSError, ValueError):
        remedy = "repeat the run's command with hydra.run.dir=FOLDER resume=auto"
        raise CaldpoError("does not say what the run was started with", key=str(file), remedy=remedy) from None


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~").strip()
