"""``python -m caldpo.compare FOLDER``: report, table and pictures of a sweep, from the runs' files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from caldpo.compare.discover import find_runs
from caldpo.config.bounds import PositiveInt
from caldpo.config.signature import validated
from caldpo.errors import CaldpoError
from caldpo.files import write_text

if TYPE_CHECKING:
    from caldpo.compare.grouping import Setting


def compare(cfg: DictConfig) -> None:
    """Compare the runs that ``conf/compare.yaml`` names.

    Raises:
        CaldpoError: see :func:`compare_runs`.
    """
    compare_runs(**{str(key): cfg[key] for key in cfg if key != "hydra"})


@validated
def compare_runs(sweep: str, band: Literal["range", "sd"] = "range", dpi: PositiveInt = 150) -> None:
    """Write ``report.md``, ``comparison.csv`` and the figures into ``sweep``, and print the main figures.

    Args:
        sweep: folder of a sweep, of several sweeps, or of one run; relative to the current folder.
        band: what is drawn around a mean over seeds: ``range`` (lowest to highest) or ``sd`` (+-1).
        dpi: resolution of the .png files.

    Raises:
        CaldpoError: the folder is missing or holds no runs, none of them finished, none logged held-out
            log-ratios, or the folder cannot be written to.
    """
    folder = Path(sweep).expanduser().absolute()
    runs = find_runs(folder)

    # Heavy from here on: a wrong folder has been answered.
    from rich.console import Console

    from caldpo.compare.collect import read_runs
    from caldpo.compare.grouping import group
    from caldpo.compare.terminal import print_outcome

    console = Console()
    with console.status("Reading runs") as status:
        settings = group(read_runs(runs, folder))
        finished = _require_finished(settings, sweep)
        status.update("Drawing")
        written = _write(folder, settings, finished, band, dpi)
    print_outcome(console, settings, written)


def _require_finished(settings: Sequence[Setting], sweep: str) -> list[Setting]:
    """The settings that have figures to compare."""
    from caldpo.compare.quantities import CHOSEN
    from caldpo.compare.text import shorten

    runs = [run for setting in settings for run in setting.runs]
    finished = [setting for setting in settings if setting.finished]
    if not finished:
        reasons: dict[str, list[str]] = {}
        for run in runs:
            reasons.setdefault(f"{run.status}, {shorten(run.error or '')}", []).append(run.name)
        why = [f"  {', '.join(names)}: {reason}" for reason, names in reasons.items()]
        raise CaldpoError(
            "\n".join(["no run finished, so there is nothing to compare", *why]),
            key="sweep",
            value=sweep,
            remedy="see error.txt and metrics.csv in the runs' folders, mend the cause and train again",
        )
    if not any(CHOSEN.curve(run.curves) for setting in finished for run in setting.finished):
        noted = [f"  {run.name}: {note}" for run in runs if run.finished for note in run.notes]
        raise CaldpoError(
            "\n".join([f"no finished run has {CHOSEN.key} in its metrics.csv", *noted]),
            key="sweep",
            value=sweep,
            remedy="check that the runs' metrics.csv were copied whole, or train again",
        )
    return finished


def _write(
    folder: Path,
    settings: Sequence[Setting],
    finished: Sequence[Setting],
    band: Literal["range", "sd"],
    dpi: int,
) -> list[Path]:
    """Write everything; the paths, the report first."""
    from caldpo.compare import calibration, displacement, document, dynamics, facts, frontier, table, terms
    from caldpo.compare.style import save

    headline = facts.headline(finished)
    dynamic = dynamics.reward_dynamics(finished, headline, band)
    figures = {
        "reward_dynamics.png": dynamic,
        "reward_dynamics.svg": dynamic,
        "reward_kl.png": frontier.reward_kl(finished, headline),
        "loss_terms.png": terms.loss_terms(finished, headline),
        "calibration.png": calibration.calibration(finished, headline),
        "displacement.png": displacement.displacement(finished, headline),
    }
    drawn = [name for name, figure in figures.items() if figure is not None]
    try:
        for name, figure in figures.items():
            if figure is not None:
                save(figure, folder / name, dpi)
            else:
                (folder / name).unlink(missing_ok=True)  # of an earlier comparison of other runs
        table.write_comparison(folder / "comparison.csv", settings)
        text = document.report(settings, folder, band, drawn, _sweep_overrides(folder))
        write_text(folder / "report.md", text)
    except OSError as error:
        raise CaldpoError(
            f"the report cannot be written: {error.strerror or error}",
            key="sweep",
            value=folder,
            remedy="make the folder writable, or copy it and compare the copy",
        ) from error
    return [folder / name for name in ("report.md", *drawn, "comparison.csv")]


def _sweep_overrides(folder: Path) -> list[str] | None:
    """The overrides that started the sweep, from Hydra's record of it."""
    from caldpo.config.redact import redact_text
    from caldpo.config.tree import read_yaml

    try:
        task = read_yaml(folder / "multirun.yaml")["hydra"]["overrides"]["task"]
        return [redact_text(str(text)) for text in task if not str(text).startswith("-")]
    except (OSError, ValueError, LookupError, TypeError):
        return None
