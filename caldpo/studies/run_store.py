"""The output folder of a study: a record per finished run, written atomically, and what all its commands share.

Nothing else survives a command: trials, choices and report are made from the records each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldpo.config.run_lifecycle import write_json
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    from caldpo.studies.study_plan import StudyRun

STUDY, RECORDS, FOLDERS, FAILURES, LOCKS = "study.json", "records", "runs", "failures", "locks"
FINISHED, DIVERGED = "finished", "diverged"  # of a record: measures, or values that were not finite


class RunStore:
    """Reads and writes a study's output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()

    def open(self, fixed: dict[str, Any]) -> None:
        """Begin a study with these settings in the folder, or go on with the one that is there.

        Raises:
            CaldpoError: as :meth:`require_same`.
        """
        self.require_same(fixed)
        for name in (RECORDS, FOLDERS, FAILURES):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with self._locked():
            known = self._content()
            self._write(known | {"fixed": known["fixed"] | fixed})

    def require_same(self, fixed: dict[str, Any]) -> None:
        """Refuse to go on with a study under other settings.

        Raises:
            CaldpoError: the folder's study has others; each is named. Or its file is missing or damaged.
        """
        known, fixed = self._content(), json.loads(json.dumps(fixed))
        changed = [key for key, value in fixed.items() if key in known["fixed"] and known["fixed"][key] != value]
        if changed:
            shown = "\n  ".join(f"{key}: {known['fixed'][key]} there, {fixed[key]} now" for key in changed)
            raise CaldpoError(
                f"the study in this folder was begun with other settings\n  {shown}",
                key="output",
                value=str(self.folder),
                remedy="take its settings, or name another folder",
            )

    def add_arms(self, arms: Iterable[tuple[str, str]], command: str) -> None:
        """Note which arms a command asked for, so that later reports have them."""
        with self._locked():
            known = self._content()
            new = [list(arm) for arm in arms if list(arm) not in known["arms"]]
            commands = known["commands"] + ([command] if command not in known["commands"] else [])
            self._write(known | {"arms": known["arms"] + new, "commands": commands})

    @property
    def arms(self) -> list[tuple[str, str]]:
        """Condition and row of every arm that a command asked for."""
        return [(condition, row) for condition, row in self._content()["arms"]]

    @property
    def commands(self) -> list[str]:
        """The commands of the study."""
        return [str(command) for command in self._content()["commands"]]

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that all commands share."""
        content: dict[str, Any] = self._content()["fixed"]
        return content

    def record_path(self, run: StudyRun) -> Path:
        """Return where the record of a run is, or will be."""
        return self.folder / RECORDS / f"{run.digest}.json"

    def record(self, run: StudyRun) -> dict[str, Any] | None:
        """Read the record of a run; None where it has not ended."""
        try:
            content: dict[str, Any] = json.loads(self.record_path(run).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return content

    def missing(self, runs: Sequence[StudyRun]) -> list[StudyRun]:
        """List the runs without a record, each once."""
        return [run for run in dict.fromkeys(runs) if not self.record_path(run).exists()]

    def failure(self, run: StudyRun) -> str:
        """Read why a run has failed."""
        path = self.folder / FAILURES / f"{run.digest}.txt"
        return path.read_text(encoding="utf-8") if path.is_file() else "it ended without a word"

    def _locked(self) -> AbstractContextManager[None]:
        """Keep other commands from writing the study's file meanwhile."""
        from caldpo.utils.folder_cache import locked  # a hundred modules: not for a command that is refused

        return locked(self.folder / LOCKS, STUDY, key="output")

    def _content(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"fixed": {}, "arms": [], "commands": []}
        path = self.folder / STUDY
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if any((self.folder / RECORDS).glob("*.json")):
                wrong, remedy = "is missing, so that the settings of these records are not known", "name another folder"
                raise CaldpoError(wrong, key=str(path), remedy=remedy) from None
            return empty
        except ValueError as error:
            raise CaldpoError(f"cannot be read: {error}", key=str(path), remedy="name another folder") from error
        return empty | content

    def _write(self, content: dict[str, Any]) -> None:
        write_json(self.folder / STUDY, content)
