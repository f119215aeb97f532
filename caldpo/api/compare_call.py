"""Compare runs, and return the table of the comparison and where its report lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from caldpo.api.trained_run import Run
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """A written comparison.

    Args:
        folder: with ``report.html``, ``report.md``, ``comparison.csv`` and the figures.
        table: ``comparison.csv``: a row per run.
    """

    folder: Path
    table: pd.DataFrame

    @property
    def page(self) -> Path:
        """The report as one file to open in a browser, with switches, zoom and samples."""
        return self.folder / "report.html"

    @property
    def report(self) -> Path:
        """The report in Markdown."""
        return self.folder / "report.md"


@validated
def compare(
    runs: Sequence[Run | str | Path] | Run | str | Path,
    folder: str | Path | None = None,
    *,
    band: Literal["range", "sd"] = "range",
    dpi: int = 150,
) -> Comparison:
    """Compare runs, as ``python -m caldpo.compare`` does: report, table and figures, from the runs' files.

    Args:
        runs: runs, or folders of runs and of sweeps.
        folder: that all is written into; None takes the one that is compared, of several a new one below ``outputs``.
        band: what is drawn around a mean over seeds: ``range`` (lowest to highest) or ``sd`` (+-1).
        dpi: resolution of the figures.

    Raises:
        CaldpoError: a folder holds no runs, none finished, or the folder cannot be written to.
    """
    import pandas as pd

    from caldpo.report.comparison import compare_runs

    several = [runs] if isinstance(runs, Run | str | Path) or not isinstance(runs, Iterable) else list(runs)
    for number, run in enumerate(several):
        if not isinstance(run, Run | str | Path):
            remedy = "give runs, as fit returns them, or folders"
            raise CaldpoError(f"is a {type(run).__name__}", key=f"runs[{number}]", remedy=remedy)
    folders = [str(run.folder if isinstance(run, Run) else run) for run in several]
    output = None if folder is None else str(folder)
    place = compare_runs(folders[0] if len(folders) == 1 else folders, output, band, dpi)
    return Comparison(place, pd.read_csv(place / "comparison.csv"))
