"""Compare a configuration with the one that a run began with: the same, longer, or another run.

A run may be made longer (``resume=FOLDER trainer.max_steps=MORE``), also once it has finished. Where nothing before its
old end depends on the length, it is then the run that was as long from its beginning; where the learning rate does, see
:mod:`caldpo.resume.extended_run`. No heavy imports.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from caldpo.checkpointing.manifest import checkpoint_folders
from caldpo.errors import CaldpoError
from caldpo.security.secrets import redact_text
from caldpo.utils.digests import json_digest
from caldpo.utils.yaml_io import flatten, read_yaml

CONFIG = "config.yaml"
LENGTHS = ("trainer.max_steps", "trainer.max_epochs")
RESOLVED = ("trainer.accelerator", "trainer.precision")  # a run records what their ``auto`` stood for
_ABSENT = object()
_LISTED = 8  # differences in a message

# Keys, and sections with a dot at their end, on which no number of the run depends; or which only decide on rows that
# are refused or left out: the tokens that remain are compared.
IGNORED = (
    "name",
    "notes",
    "tags",
    "console",
    "export",
    "dry_run",
    "resume",
    "replay",
    "allow_untrusted_code",
    "optimized_metric",
    "suites",
    "logger.",
    "callbacks.checkpoint.every",
    "callbacks.checkpoint.keep",
    "callbacks.checkpoint.mode",
    "callbacks.checkpoint.monitor",
    "callbacks.displacement.",
    "data.cache",
    "data.max_unknown",
    "data.num_workers",
    "data.on_invalid",
    "data.prefetch_factor",
    "data.preview_pairs",
    "data.source.cache_dir",
    "model.cache",
    "reference.cache",
    "reference.spot_check",
    "trainer.extra.detect_anomaly",
    "trainer.extra.enable_model_summary",
    "trainer.extra.max_time",
    "trainer.extra.profiler",
    "trainer.metrics_sync_every",
    "trainer.max_skipped_steps",
    "trainer.on_nonfinite",
    "trainer.progress_bar",
)


def read_config(run_dir: Path) -> dict[str, Any] | None:
    """Read the configuration that a run began with; None where it ended before writing it, CaldpoError if damaged."""
    file = run_dir / CONFIG
    try:
        config = read_yaml(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CaldpoError(f"cannot be read: {error}", key=str(file)) from error
    if not isinstance(config, dict):
        raise CaldpoError("holds no configuration", key=str(file))
    return config


def require_same_config(began: Mapping[str, Any], config: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse to resume a run under a configuration that makes it another one.

    Both are resolved and without secrets. The CaldpoError names every key that differs, with both values.
    """
    longer = is_longer(began, config)
    changes = list(differences(began, config, LENGTHS if longer else ()))
    if longer and not changes:
        _require_extendable(began, config, run_dir)
    if not changes:
        return
    more = f" and {len(changes) - _LISTED} more" if len(changes) > _LISTED else ""
    raise CaldpoError(
        f"{run_dir} was started with a different configuration: {'; '.join(changes[:_LISTED])}{more}",
        key="resume",
        remedy="leave these keys out; where the yamls or the version of caldpo changed, go back to those that the run"
        " began with (its summary.json has the versions), or start a new run",
    )


def differences(began: Mapping[str, Any], config: Mapping[str, Any], exempt: Collection[str] = ()) -> Iterator[str]:
    """Describe each compared key that differs, except those ``exempt``, sorted by name, with both values."""
    before, after = flatten(began), flatten(config)
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, _ABSENT), after.get(key, _ABSENT)
        same = old == new or (key in RESOLVED and new == "auto")
        if not same and key not in exempt and not is_ignored(key):
            yield f"{key} was {_as_text(old)}, is now {_as_text(new)}"


def config_digest(config: Mapping[str, Any]) -> str:
    """Digest the compared keys."""
    return json_digest(compared_keys(config))


def compared_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the keys on which a run's numbers depend: all but :data:`IGNORED`, so that a new key is compared."""
    return {key: value for key, value in flatten(config).items() if not is_ignored(key)}


def is_longer(began: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Tell whether ``config`` has more optimiser steps or epochs than ``began``; other keys are not compared."""
    changed = [(old, new) for _, old, new in _length_changes(began, config)]
    return bool(changed) and all(_is_number(old) and _is_number(new) and new > old for old, new in changed)


def cut_by_length(config: Mapping[str, Any]) -> bool:
    """Tell whether the micro-batches of a step are cut by all steps of the run: its place in the data then has no
    meaning in a longer one."""
    return flatten(config).get("data.max_tokens_per_micro_batch") not in (None, "auto")


def _require_extendable(began: Mapping[str, Any], config: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse to make a run longer where its micro-batches are cut by its length, or no checkpoint was kept."""
    key, _, length = next(_length_changes(began, config))
    reason = None
    if cut_by_length(config):
        reason = (
            "steps are cut into as many micro-batches as the largest of them needs (data.max_tokens_per_micro_batch)"
        )
    elif not checkpoint_folders(run_dir):
        reason = "it kept no checkpoint (callbacks.checkpoint.every)"
    if reason is not None:
        remedy = f"leave {key} out to resume the run as it was started"
        if (run_dir / "policy").is_dir():
            remedy = new_run_remedy(config, run_dir)
        raise CaldpoError(f"{run_dir} cannot be made longer: {reason}", key=key, value=length, remedy=remedy)


def new_run_remedy(config: Mapping[str, Any], run_dir: Path) -> str:
    """Suggest a new run that starts from this run's policy."""
    flat, policy = flatten(config), f"{run_dir}/policy"
    if not str(flat.get("adapter._target_")).endswith(".NoAdapter"):
        start = f"adapter.init_from={policy} with this run's overrides"
    else:  # generated models, such as random ones, have no path
        start = f"model.path={policy}" if "model.path" in flat else f"model=hf model.path={policy}"
    return f"start a new run from its policy: {start}"


def without_length(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the length out of a configuration that may be made longer."""
    if cut_by_length(config) or not isinstance(config.get("trainer"), Mapping):
        return dict(config)
    names = {key.partition(".")[2] for key in LENGTHS}
    return {**config, "trainer": {k: v for k, v in config["trainer"].items() if k not in names}}


def _length_changes(began: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    before, after = flatten(began), flatten(config)
    yield from ((key, before.get(key), after.get(key)) for key in LENGTHS if before.get(key) != after.get(key))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def is_ignored(key: str) -> bool:
    """Tell whether no number of a run depends on a key."""
    return any(key == ignored or (ignored.endswith(".") and f"{key}.".startswith(ignored)) for ignored in IGNORED)


def _as_text(value: Any) -> str:
    return "not there" if value is _ABSENT else redact_text("null" if value is None else str(value))
