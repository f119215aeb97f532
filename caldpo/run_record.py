"""The record of a run in its folder: ``config.yaml``, and ``summary.json`` from its start to its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from caldpo.components import Components
from caldpo.config.run_lifecycle import FINISHED, write_json
from caldpo.config.summary_file import SUMMARY, known_summary
from caldpo.lightning_module import PreferenceModule
from caldpo.resume.config_diff import CONFIG, read_config, require_same_config
from caldpo.resume.extended_run import EXTENSIONS
from caldpo.resume.pins import pin
from caldpo.resume.resume_command import OVERRIDES, recorded_config, recorded_overrides
from caldpo.run_settings import RunSettings
from caldpo.utils.atomic_io import write_text
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.devices import peak_memory, reset_peak_memory
from caldpo.utils.versions import versions

# Keys of summary.json: how often the run was started, and its optimiser steps from end to end
STRETCHES, PLANNED = "stretches", "planned_steps"


class RunRecord:
    """What a run writes into its folder; the first rank writes. ``config`` is resolved and without secrets."""

    def __init__(
        self, run_dir: Path, settings: RunSettings, config: dict[str, Any], loss_name: str, *, resumed: bool
    ) -> None:
        self.run_dir, self.settings, self.config = run_dir, settings, config
        self.loss_name, self.resumed = loss_name, resumed
        self.earlier: dict[str, Any] = {}  # summary.json as a resumed run left it
        self._entries: dict[str, Any] = {}  # of summary.json, since this start
        self._started = time.perf_counter()
        reset_peak_memory()

    @classmethod
    def open(cls, run_dir: Path, cfg: DictConfig, settings: RunSettings, components: Components) -> RunRecord:
        """Write ``config.yaml`` and ``summary.json``; pin in the components what could change until a resume.

        Raises:
            CaldpoError: a resumed run has another configuration than it was begun with.
        """
        hydra = HydraConfig.get()
        loss_name = str(hydra.runtime.choices["loss"])
        config = recorded_config(cfg, loss_name)
        resumed = settings.resume is not None and (run_dir / CONFIG).is_file()
        began = read_config(run_dir) if resumed else None
        if began is not None:
            require_same_config(began, config, run_dir)
        record = cls(run_dir, settings, config, loss_name, resumed=resumed)
        summary = record.earlier = known_summary(run_dir) if resumed else {}
        if is_first_rank():
            write_text(run_dir / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        starts = summary.get(STRETCHES, 0)
        record.note(
            {
                OVERRIDES: recorded_overrides(hydra.overrides.task),
                STRETCHES: starts + 1,
                "notes": config.get("notes"),
                "tags": config.get("tags"),
                **({EXTENSIONS: summary[EXTENSIONS]} if EXTENSIONS in summary else {}),
                **pin(components.model, components.data, summary),
                **components.describe(),
                "versions": versions(),
            }
        )
        return record

    def __getitem__(self, key: str) -> Any:
        """An entry of ``summary.json`` that was noted since this start."""
        return self._entries[key]

    def note(self, entries: dict[str, Any]) -> None:
        """Add entries to ``summary.json`` while the run is under way."""
        self._entries |= entries
        if is_first_rank():
            write_json(self.run_dir / SUMMARY, known_summary(self.run_dir) | entries)

    @property
    def extensions(self) -> list[dict[str, Any]]:
        """Where the run was made longer, this start included."""
        return [entry for entry in self._entries.get(EXTENSIONS, ()) if isinstance(entry, dict)]

    @property
    def sweep_name(self) -> str | None:
        """Name of the sweep's folder, which groups its runs in a tracker; None of a single run."""
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            return Path(hydra.sweep.dir).name
        resumed_from_sweep = (self.run_dir.parent / "multirun.yaml").is_file()
        return self.run_dir.absolute().parent.name if resumed_from_sweep else None

    def totals(self, module: PreferenceModule, earlier_seconds: float) -> dict[str, Any]:
        """Figures of the whole run so far, its earlier starts included."""
        memory, memory_of = peak_memory()
        return {
            "steps": module.global_step,
            "wall_seconds": time.perf_counter() - self._started + earlier_seconds,
            "peak_memory_bytes": memory,
            "peak_memory_of": memory_of,
            "start_difference": module.largest_start_ratio,
            "skipped_steps": module.nonfinite.skipped,
        }

    def finish(self, module: PreferenceModule, *, earlier_seconds: float, **entries: Any) -> dict[str, Any]:
        """Write the final ``summary.json``, with further ``entries``, and return it."""
        summary = {
            "status": FINISHED,
            "loss_name": self.loss_name,
            "seed": self.settings.seed,
            "metrics": module.latest,
            **self.totals(module, earlier_seconds),
            **self._entries,
            **entries,
        }
        if is_first_rank():
            write_json(self.run_dir / SUMMARY, summary)
        return summary


def tracked_name(run_dir: Path, loss_name: str, seed: int) -> str:
    """Name a run in a tracker: by its folder, with loss and seed where that does not name them."""
    choices = (f"loss={loss_name}", f"seed={seed}")
    return " ".join([*(choice for choice in choices if choice not in run_dir.name.split(",")), run_dir.name])
