"""Folders of runs and sweeps, named after their overrides (``loss=dpo,seed=0``), and ``.hydra/`` in them."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from caldpo.config.did_you_mean import as_yaml
from caldpo.config.overrides import quoted
from caldpo.config.run_lock import require_free
from caldpo.errors import CaldpoError
from caldpo.security.paths import require_no_links_out_of_sweep
from caldpo.security.secrets import is_secret_name, redact, redact_text
from caldpo.utils.atomic_io import write_text
from caldpo.utils.file_names import is_there, why_unwritable

# override under which Hydra leaves its folder to write_hydra_dir: Hydra would write it before anything is checked, over
# the one of a run that lies there, and with the secrets in it
NOT_BY_HYDRA = "hydra.output_subdir=null"
_HYDRA_DIR = ".hydra"
LONGEST = 120  # characters; file systems allow 255, but checkpoints and caches append to it
RUN_NAME = "run_name"  # the resolver of the yamls
_NAMELESS = ("resume",)  # how a run is started, not what it is: begun and gone on with, it has one folder


def run_name(overrides: Sequence[str], excluded: Sequence[str] = ()) -> str:
    """Make a folder name of overrides: paths by their last component, only ``[A-Za-z0-9=._,+-]``, no ``..``.

    Overrides of Hydra's own keys, of ``resume`` and of ``excluded`` keys are left out. A name beyond ``LONGEST``
    characters is cut and ends in a hash of all of it.
    """
    name = ",".join(filter(None, (_part(override, tuple(excluded)) for override in overrides))) or "run"
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9].rstrip('-.,')}-{_digest(overrides)}"


def naming_overrides(jobs: Sequence[Sequence[str]], master: DictConfig, *, all_known: bool) -> list[str]:
    """Make the overrides that keep the folder names of a sweep short and distinct.

    Where names grow too long, the overrides that all runs share are left out of them. Where two runs would share a
    folder, or not ``all_known`` runs are among the ``jobs``, since the sweeper draws values, the run's number is
    appended. A ``hydra.sweep.subdir`` set by the user is kept.
    """
    subdir = _written(master, "hydra.sweep.subdir")
    if f"${{{RUN_NAME}:" not in subdir:
        return []
    added = []
    excluded = tuple(master.hydra.job.config.override_dirname.exclude_keys)
    shared = set(jobs[0]).intersection(*jobs[1:])
    too_long = any(len(",".join(_part(text, excluded) for text in job)) > LONGEST for job in jobs)
    if too_long and not excluded and any(set(job) - shared for job in jobs):
        excluded = tuple(sorted({_parse(text).key_or_group for text in shared}))
        added.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(excluded)}]")
    names = {run_name(job, excluded).casefold() for job in jobs}  # some file systems ignore case
    if len(names) < len(jobs) or not all_known:
        added.append(f"hydra.sweep.subdir='{subdir}-${{hydra.job.num}}'")
    return added


def claim_folder(cfg: DictConfig, kind: str) -> list[str]:
    """Make the folder ``hydra.<kind>.dir`` of a run or sweep; return the override that names it.

    Two command lines started in the same second would otherwise write into one folder. A folder that is named
    without the time is the user's own choice and stays as it is.

    Raises:
        CaldpoError: when the folder cannot be made, another process trains there, links lead out of a sweep's, or
            it would be another one in each of several processes.
    """
    key = f"hydra.{kind}.dir"
    if "${now:" not in _written(cfg, key):
        named = Path(str(OmegaConf.select(cfg, key)))
        is_made = is_there(named) and named.is_dir()
        if not is_made and (why := why_unwritable(named)):  # which Hydra would answer with a traceback
            remedy = "name a folder that you may write to"
            raise CaldpoError(f"cannot be made: {why}", key=key, value=named, remedy=remedy)
        # Hydra writes its own record of the command there before anything else can refuse.
        if kind == "sweep":
            require_no_links_out_of_sweep(named, _written(cfg, "hydra.sweep.subdir").count("/") + 1)
        elif OmegaConf.select(cfg, "hydra.output_subdir") is not None:
            require_free(named, key)
        return []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        wrong = "is required: each process started from outside (torchrun) would name a folder of its own"
        raise CaldpoError(wrong, key=key, remedy=f"add {key}=outputs/NAME to the command line")
    resolved = folder = str(OmegaConf.select(cfg, key))
    for count in itertools.count(2):
        try:
            Path(folder).mkdir(parents=True)
            break
        except FileExistsError:
            folder = f"{resolved}-{count}"
        except OSError as error:
            raise CaldpoError(f"cannot be made: {error.strerror}", key=key, value=folder) from error
    return [f"{key}={quoted(folder)}"]


def write_hydra_dir(cfg: DictConfig, folder: Path) -> None:
    """Write the files that Hydra would: configuration and overrides, unresolved, with secrets masked."""
    hydra = HydraConfig.get()
    place = folder / _HYDRA_DIR
    place.mkdir(exist_ok=True)
    contents: dict[str, Any] = {
        "config.yaml": OmegaConf.to_container(cfg, resolve=False),
        "hydra.yaml": {"hydra": OmegaConf.to_container(hydra, resolve=False, enum_to_str=True)},
        "overrides.yaml": list(hydra.overrides.task),
    }
    for name, content in contents.items():
        write_text(place / name, OmegaConf.to_yaml(OmegaConf.create(redact(content))))


def _written(cfg: DictConfig, key: str) -> str:
    """Select the value of ``key`` before interpolation."""
    section, _, name = key.rpartition(".")
    return str(OmegaConf.select(cfg, section)._get_node(name)._value())


@functools.cache
def _part(text: str, excluded: tuple[str, ...]) -> str:
    override = _parse(text)
    key = override.key_or_group
    if key in excluded or key in _NAMELESS or key.split(".")[0] == "hydra" or key.startswith("hydra/"):
        return ""
    if override.is_delete():
        return _sanitised(f"no_{key}")
    return _sanitised(f"{key}={'hidden' if is_secret_name(key) else redact_text(_short(override.value()))}")


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_short, value))
    if isinstance(value, dict):
        return "+".join(f"{key}={_short(item)}" for key, item in value.items())
    text = as_yaml(value)
    return PurePath(text).name or "root" if "/" in text else text


def _sanitised(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9=._,+]+", "-", text)
    return re.sub(r"\.\.+", ".", plain).strip("-.")


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:  # composed in code, not on a command line
        key, _, value = text.partition("=")
        return OverridesParser.create().parse_override(f"{key.strip('+~')}='{_sanitised(value)}'")


def _digest(overrides: Sequence[str]) -> str:
    telling = [text for text in overrides if text.partition("=")[0].lstrip("+") not in _NAMELESS]
    return hashlib.sha256("\n".join(telling).encode()).hexdigest()[:8]
