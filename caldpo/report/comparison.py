"""``python -m caldpo.compare FOLDER``: page, report, table and pictures of a sweep, from the runs' files."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from caldpo.config.bounds import Port, PositiveInt
from caldpo.config.find_runs import find_runs, is_run, no_folder_error, sweep_overrides
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.metrics_file import NAME
from caldpo.utils.atomic_io import write_text

PAGE = "report.html"
DYNAMICS = ("reward_dynamics.png", "reward_dynamics.svg")

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from caldpo.report.grouping import RunGroup


@validated
def compare_runs(
    sweep: str | list[str],
    output: str | None = None,
    band: Literal["range", "sd"] = "range",
    dpi: PositiveInt = 150,
    watch: bool = False,
    port: Port = 0,
) -> Path:
    """Write ``report.html``, ``report.md``, ``comparison.csv`` and the figures, and print the main figures.

    Args:
        sweep: folder of a sweep, of several sweeps, or of one run, a csv that W&B has exported, or a list of such;
            relative to the current folder.
        output: folder that all is written into; None takes ``sweep``, of several and of files a new one below
            ``outputs``.
        band: what is drawn around a mean over seeds: ``range`` (lowest to highest) or ``sd`` (+-1).
        dpi: resolution of the .png files.
        watch: serve the page on this machine, and let it follow the runs, until Ctrl-C; then write all, unless no run
            has finished. The folders need not exist yet.
        port: that it is served on; 0 takes any that is free.

    Returns:
        The folder that all was written into.

    Raises:
        CaldpoError: a folder is missing or holds no runs, none of them finished, none logged held-out
            log-ratios, or the folder cannot be written to.
    """
    named = [Path(name).expanduser().absolute() for name in ([sweep] if isinstance(sweep, str) else sweep)]
    if not named:
        raise no_folder_error()
    named = [path.parent if path.name == NAME and is_run(path.parent) else path for path in named]
    exports = [path for path in named if path.is_file()]
    folders = [path for path in named if path not in exports]
    root = Path(os.path.commonpath(folders)) if folders else Path.cwd()
    place = Path("outputs").absolute() / f"compare_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    place = root if len(named) == len(folders) == 1 else place
    place = place if output is None else Path(output).expanduser().absolute()

    if watch and exports:
        remedy = "leave it out: only folders of runs are watched"
        raise CaldpoError("an exported file does not grow", key="sweep", value=exports[0], remedy=remedy)
    if watch:
        from caldpo.report.live.watch import watch_runs

        if not watch_runs(folders, root, band, port):
            return place
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(folder)))

    # Heavy from here on: a wrong folder has been answered.
    from rich.console import Console

    from caldpo.report.comparison_console import print_comparison
    from caldpo.report.grouping import group_runs
    from caldpo.report.read_runs import read_runs
    from caldpo.report.shown_metrics import is_drawn

    console = Console()
    with console.status("Reading runs") as status:
        groups = group_runs(read_runs(runs, root, is_whole=is_drawn, exports=exports))
        finished = _require_finished(groups, ", ".join(map(str, named)))
        status.update("Drawing")
        written, failed = _write(place, named, groups, finished, band, dpi)
    print_comparison(console, groups, written, failed)
    return place


def write_sweep_page(folder: Path) -> Path | None:
    """Write ``report.html`` of the runs of a sweep, without anything else; None where no finished run has curves."""
    from caldpo.report.grouping import group_runs
    from caldpo.report.page.page_html import render_page
    from caldpo.report.read_runs import read_runs
    from caldpo.report.shown_metrics import CHOSEN, is_drawn

    groups = group_runs(read_runs(find_runs(folder), folder, is_whole=is_drawn))
    if not any(CHOSEN.curve(run.curves) for group in groups for run in group.finished):
        return None
    tasks = [task] if (task := sweep_overrides(folder)) else []
    write_text(folder / PAGE, render_page(groups, [folder], "range", tasks))
    return folder / PAGE


def _require_finished(groups: Sequence[RunGroup], sweep: str) -> list[RunGroup]:
    from caldpo.report.escaping import shorten
    from caldpo.report.shown_metrics import CHOSEN

    runs = [run for group in groups for run in group.runs]
    finished = [group for group in groups if group.finished]
    if not finished:
        by_reason: dict[str, list[str]] = {}
        for run in runs:
            by_reason.setdefault(f"{run.status}, {shorten(run.error or '')}", []).append(run.name)
        reasons = [f"  {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
        message = "\n".join(["no run finished, so there is nothing to compare", *reasons])
        remedy = "see error.txt and metrics.csv in the runs' folders, mend the cause and train again"
        raise CaldpoError(message, key="sweep", value=sweep, remedy=remedy)
    if not any(CHOSEN.curve(run.curves) for group in finished for run in group.finished):
        notes = [f"  {run.name}: {note}" for run in runs if run.finished for note in run.notes]
        message = "\n".join([f"no finished run has {CHOSEN.name} in its metrics.csv", *notes])
        remedy = "check that the runs' metrics.csv were copied whole, or train again"
        raise CaldpoError(message, key="sweep", value=sweep, remedy=remedy)
    return finished


def _write(
    place: Path,
    folders: Sequence[Path],
    groups: Sequence[RunGroup],
    finished: Sequence[RunGroup],
    band: Literal["range", "sd"],
    dpi: int,
) -> tuple[list[Path], list[str]]:
    """Write everything; return the paths, the page and the report first, and what could not be drawn."""
    from caldpo.report import dynamics_plot, evaluation_plots, frontier_plot, loss_terms_plot
    from caldpo.report.comparison_facts import headline as headline_of
    from caldpo.report.comparison_table import write_comparison
    from caldpo.report.markdown_report import report
    from caldpo.report.page.page_html import render_page

    headline = headline_of(finished)
    figures: dict[tuple[str, ...], Callable[[], Figure | None]] = {
        DYNAMICS: lambda: dynamics_plot.reward_dynamics(finished, headline, band),
        ("reward_kl.png",): lambda: frontier_plot.reward_kl(finished, headline),
        ("loss_terms.png",): lambda: loss_terms_plot.loss_terms(finished, headline),
        ("calibration.png",): lambda: evaluation_plots.calibration(finished, headline),
        ("displacement.png",): lambda: evaluation_plots.displacement(finished, headline),
    }
    drawn: list[str] = []
    failed: list[str] = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for names, make in figures.items():
            drawn += _draw(make, [place / name for name in names], dpi, failed)
        write_comparison(place / "comparison.csv", groups)
        tasks = [task for folder in folders if (task := sweep_overrides(folder))]
        page = _write_page(place, lambda: render_page(groups, folders, band, tasks, failed), failed)
        write_text(place / "report.md", report(groups, folders, band, drawn, tasks, failed))
    except OSError as error:
        raise CaldpoError(
            f"the report cannot be written: {error.strerror or error}",
            key="sweep" if place in folders else "output",
            value=place,
            remedy="make the folder writable, or name another one: output=FOLDER",
        ) from error
    return [place / name for name in (*page, "report.md", *drawn, "comparison.csv")], failed


def _write_page(place: Path, make: Callable[[], str], failed: list[str]) -> list[str]:
    """Write the page; return its name. One that cannot be made costs the page, named in ``failed``, not the rest."""
    from caldpo.config.run_lifecycle import describe_error

    try:
        text = make()
    except Exception as error:  # as of figures
        failed.append(f"{PAGE} could not be made: {describe_error(error)}")
        (place / PAGE).unlink(missing_ok=True)
        return []
    write_text(place / PAGE, text)
    return [PAGE]


def _draw(make: Callable[[], Figure | None], paths: Sequence[Path], dpi: int, failed: list[str]) -> list[str]:
    """Draw a figure into files; return their names. One that cannot be drawn costs that figure, named in ``failed``.

    Files of an earlier comparison of other runs are removed where there is no such figure now.
    """
    from caldpo.config.run_lifecycle import describe_error
    from caldpo.report.plot_style import save

    drawn: list[str] = []
    # Figures are full of circles, which the collector looks for all the time: not among everything that was read.
    frozen_by_caller = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        figure = make()
        if figure is not None:
            for path in paths:
                save(figure, path, dpi)
                drawn.append(path.name)
    except OSError:
        raise
    except Exception as error:  # of whatever is in the runs' files; the other figures and all tables are not to be lost
        missing = [path.name for path in paths if path.name not in drawn]
        failed += [f"{name} could not be drawn: {describe_error(error)}" for name in missing]
    finally:
        figure = None
        gc.collect()  # of the large ones, one at a time has room
        if not frozen_by_caller:
            gc.unfreeze()
    for path in paths:
        if path.name not in drawn:
            path.unlink(missing_ok=True)
    return drawn
