"""``resume=``: the command line of a run is taken up again, from its own folder.

``resume=FOLDER`` stands for the overrides that the run was started with. Those typed beside it are added, and have to
leave the run what it was. ``resume=auto`` changes nothing about the command: it goes on where the folder holds an
unfinished run, and leaves alone what has finished.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from caldpo.config.cache_dirs import without_cache_dirs
from caldpo.config.find_runs import is_run
from caldpo.config.overrides import quoted
from caldpo.config.run_lifecycle import FINISHED
from caldpo.config.summary_file import SUMMARY, known_summary
from caldpo.config.trusted_config import require_own_code, require_plain_overrides
from caldpo.config.validation import NEEDED
from caldpo.errors import CaldpoError
from caldpo.resume.config_diff import CONFIG, read_config, require_same_config
from caldpo.resume.extend_run import depends_on_length, from_its_policy, is_longer
from caldpo.security.paths import require_no_links_out
from caldpo.security.secrets import MASK, redact, redact_text
from caldpo.utils.yaml_io import read_yaml

AUTO = "auto"
OVERRIDES = "overrides"  # key of summary.json
SECTIONS = NEEDED
_OF_THIS_START = ("resume", "replay", "allow_untrusted_code")  # keys that a run does not keep


def with_run(overrides: Sequence[str], multirun: bool = False, config_dir: str | None = None) -> list[str]:
    """The overrides with those of the run that ``resume=FOLDER`` names, and its folder.

    Args:
        overrides: as typed.
        multirun: whether they are of a sweep, which cannot go on with a single run.
        config_dir: not read: a run's overrides are complete.

    Raises:
        CaldpoError: it is no run, its overrides are lost or would run code, or a secret has to be typed again.
    """
    typed = {_key(text): text for text in overrides}
    folder = _folder(typed.get("resume"))
    if folder is None:
        return list(overrides)
    if multirun:
        raise CaldpoError(
            "goes on with one run",
            key="resume",
            value=folder,
            remedy="leave -m out; for a sweep repeat its command with hydra.sweep.dir=FOLDER resume=auto",
        )
    _require_run(folder)
    require_no_links_out(folder)  # before Hydra, the log or the lock write there
    trusted = typed.get("allow_untrusted_code", "").partition("=")[2].lower() == "true"
    begun = [t for t in _begun_with(folder) if _key(t) not in typed and _key(t) not in _OF_THIS_START]
    for text in begun:
        if MASK in text:
            raise CaldpoError(
                "was left out of the run's files, being a secret",
                key=_key(text),
                remedy="type it again beside resume=",
            )
    if not trusted:
        require_plain_overrides(begun, folder / SUMMARY)
    begun, left_out = without_cache_dirs(begun)
    for text in left_out:
        print(f"note: {redact_text(text)} of the run's files is left out: only the command says where else to write")
    if "replay" in typed:  # computed beside the run, in a folder of its own
        return [*begun, *overrides]
    place = _value(typed.get("hydra.run.dir"))
    if place is None:
        return [*begun, *overrides, f"hydra.run.dir={quoted(str(folder))}"]
    if Path(str(place)).resolve() != folder.resolve():  # Lightning names the same one to its further processes
        raise CaldpoError("a run goes on in its own folder", key="hydra.run.dir", value=place, remedy="leave it out")
    return [*begun, *overrides]


def require_same_run(cfg: DictConfig) -> None:
    """Check a configuration with ``resume=FOLDER`` against the run's.

    Raises:
        CaldpoError: the run has finished, was another one, or builds something that is not the project's own.
    """
    if cfg.get("resume") in (None, AUTO):
        return
    folder = Path(str(cfg.resume)).expanduser()
    config = as_kept(cfg, str(HydraConfig.get().runtime.choices["loss"]))
    if not cfg.allow_untrusted_code:
        require_own_code(config, SECTIONS, folder / CONFIG)
    then = read_config(folder)
    finished = cfg.replay is None and known_summary(folder).get("status") == FINISHED
    if finished and not (then is not None and is_longer(then, config)):
        instead = from_its_policy(config, folder)
        more = "" if depends_on_length(config) else "make it longer by trainer.max_steps=MORE or max_epochs, or "
        raise CaldpoError(
            "this run has finished: there is nothing to go on with", key="resume", value=folder, remedy=more + instead
        )
    if then is not None:
        require_same_config(then, config, folder)


def as_kept(cfg: DictConfig, loss_name: str) -> dict[str, Any]:
    """What ``config.yaml`` of a run holds: everything resolved, no secrets, and the name of the loss's option."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    kept = {key: value for key, value in resolved.items() if key not in _OF_THIS_START and key != "hydra"}
    config: dict[str, Any] = redact({"loss_name": loss_name, **kept})
    return config


def kept_overrides(overrides: Sequence[str]) -> list[str]:
    """What ``summary.json`` keeps of a command line, without secrets."""
    return list(redact([text for text in overrides if _key(text) not in _OF_THIS_START]))


def _folder(text: str | None) -> Path | None:
    """The folder that ``resume=`` names, None where it names none."""
    value = _value(text)
    return None if value is None or value == AUTO else Path(str(value)).expanduser()


def _value(text: str | None) -> Any:
    """The value of an override; None where there is none, or it is none."""
    if text is None:
        return None
    try:
        return OverridesParser.create().parse_override(text).value()
    except (HydraException, ValueError):
        return None  # explained with all else that is wrong with the command line


def _require_run(folder: Path) -> None:
    if not folder.is_dir():
        raise CaldpoError("there is no such folder", key="resume", value=folder, remedy="name a run's folder")
    if is_run(folder):
        return
    sweep = folder / "multirun.yaml"
    if sweep.is_file():
        raise CaldpoError(
            "is a sweep, not a run", key="resume", value=folder, remedy=f"repeat its command: {_command(folder, sweep)}"
        )
    raise CaldpoError("holds no run", key="resume", value=folder, remedy="name the folder of a run that was started")


def _command(folder: Path, sweep: Path) -> str:
    """The command that goes on with a sweep."""
    try:
        given = [str(text) for text in read_yaml(sweep)["hydra"]["overrides"]["task"]]
    except (OSError, ValueError, LookupError, TypeError):
        given = ["..."]
    typed = [text for text in given if _key(text) != "resume"]
    return shlex.join(["python", "-m", "caldpo.train", "-m", *typed, f"hydra.sweep.dir={folder}", "resume=auto"])


def _begun_with(folder: Path) -> list[str]:
    """The overrides that the run was started with."""
    kept = known_summary(folder).get(OVERRIDES)
    if isinstance(kept, list):
        return [str(text) for text in kept]
    file = folder / ".hydra" / "overrides.yaml"
    try:
        written = read_yaml(file) or []
        if not isinstance(written, list):
            raise ValueError(f"it holds {type(written).__name__} in place of a list")
        return [str(text) for text in written if _key(str(text)) not in _OF_THIS_START]
    except (OSError, ValueError):
        raise CaldpoError(
            "does not say what the run was started with",
            key=str(file),
            remedy="repeat the run's command with hydra.run.dir=FOLDER resume=auto",
        ) from None


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~").strip()
