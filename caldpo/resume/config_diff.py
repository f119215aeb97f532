"""Whether a run's configuration is still the one it began with, but for what cannot change its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from caldpo.errors import CaldpoError
from caldpo.resume.extend_run import LENGTHS, is_longer, require_can_be_longer
from caldpo.security.secrets import redact_text
from caldpo.utils.yaml_io import flatten, read_yaml

CONFIG = "config.yaml"
_ABSENT = object()
_SHOWN = 8

# Keys, and sections with a dot at their end, on which no number of the run depends; or which only decide on rows that
# are refused or left out: the tokens that remain are compared.
FREE = (
    "name",
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
    "trainer.metrics_sync_every",
    "trainer.max_skipped_steps",
    "trainer.on_nonfinite",
    "trainer.progress_bar",
)


# Keys whose ``auto`` a run puts what it found in place of, before it writes its configuration down.
SETTLED = ("trainer.accelerator", "trainer.precision")


def read_config(run_dir: Path) -> dict[str, Any] | None:
    """The configuration that a run began with; None where it ended before it wrote it.

    Raises:
        CaldpoError: the file is damaged.
    """
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


def require_same_config(then: Mapping[str, Any], now: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse to go on with a run under a configuration that makes it another one.

    Args:
        then: what the run began with.
        now: resolved and without secrets, as that.
        run_dir: the run's folder.

    Raises:
        CaldpoError: naming every key that differs, with both values; it cannot be made longer.
    """
    longer = is_longer(then, now)
    found = list(differences(then, now, LENGTHS if longer else ()))
    if longer and not found:
        require_can_be_longer(then, now, run_dir)
    if not found:
        return
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise CaldpoError(
        f"{run_dir} was begun with another configuration: {'; '.join(found[:_SHOWN])}{more}",
        key="resume",
        remedy="leave these keys out; where the yamls or the version of caldpo changed, go back to those that the run"
        " began with (its summary.json has the versions), or start a new run",
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str] = ()) -> Iterator[str]:
    """The keys that differ and matter, ``but`` for some, in the order of their names, each with both values."""
    before, after = flatten(then), flatten(now)
    for key in sorted(before.keys() | after.keys()):
        was, is_now = before.get(key, _ABSENT), after.get(key, _ABSENT)
        settled = key in SETTLED and is_now == "auto"
        if was != is_now and key not in but and not _is_free(key) and not settled:
            yield f"{key} was {_shown(was)}, is {_shown(is_now)}"


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of all that a run's numbers depend on in its configuration."""
    return hashlib.sha256(json.dumps(bound(config), sort_keys=True, default=str).encode()).hexdigest()


def bound(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys on which a run's numbers depend, flat: all but :data:`FREE`, so that a new one is among them."""
    return {key: value for key, value in flatten(config).items() if not _is_free(key)}


def _is_free(key: str) -> bool:
    return any(key == free or (free.endswith(".") and f"{key}.".startswith(free)) for free in FREE)


def _shown(value: Any) -> str:
    return "not there" if value is _ABSENT else redact_text("null" if value is None else str(value))
