"""Time the commands of two builds of this package in turn, each in a process of its own, and report the ratios."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import caldpo
from caldpo.bench import process_tree
from caldpo.bench.benchmark_settings import BenchmarkSettings, read_settings
from caldpo.bench.build_inputs import CACHE, TEMPLATE_STEPS, copy_runs, fill_cache, lengthen_run, write_pairs
from caldpo.bench.build_report import build_facts, build_lines, markdown, print_table
from caldpo.bench.build_rows import CPU, MEMORY, WALL, BuildRow, Figures, arguments, renamed, selected
from caldpo.bench.process_tree import TreeUsage
from caldpo.bench.worker import environment
from caldpo.config.overrides import quoted
from caldpo.config.run_lifecycle import write_json
from caldpo.errors import CaldpoError

BASELINE, OWN = "baseline", "this"
_LOG_LINES = 12  # last lines of a log in an error


@dataclass(frozen=True)
class Build:
    """A version of this package: the folder that holds it, and its names for keys that it calls otherwise."""

    name: str
    root: str
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """What a row has measured: figures of each build, one for each round, and why there are none."""

    figures: dict[str, list[Figures]]
    errors: list[str]


def compare_builds(cfg: DictConfig) -> None:
    """Measure as configured; ``everything.json`` and ``everything.md`` go into Hydra's output folder.

    Raises:
        CaldpoError: a row has failed; the others are reported before.
    """
    settings, _ = read_settings(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir).absolute()
    own = Build(OWN, str(Path(caldpo.__file__).resolve().parents[1]))
    keys = dict(text.split(":") for text in settings.baseline_keys)
    baseline = Build(BASELINE, str(Path(settings.baseline).expanduser().resolve()), keys)
    rows = selected(settings.rows)
    try:
        results = measure_builds(rows, settings, (baseline, own), run_dir)
    finally:
        shutil.rmtree(run_dir / "work", ignore_errors=True)  # copies of caches, and large files
    lines = build_lines(rows, {name: result.figures for name, result in results.items()})
    facts = build_facts(settings, {build.name: build.root for build in (baseline, own)})
    errors = {name: result.errors for name, result in results.items() if result.errors}
    content = {
        "config": OmegaConf.to_container(cfg, resolve=True),
        "facts": facts,
        "lines": [asdict(line) for line in lines],
        "rounds": {name: result.figures for name, result in results.items()},
        "errors": errors,
    }
    write_json(run_dir / "everything.json", content)
    (run_dir / "everything.md").write_text(markdown(lines, facts, errors), encoding="utf-8")
    print_table(Console(), lines, facts | {"report": str(run_dir / "everything.md")})
    if errors:
        raise CaldpoError(
            "\n".join(f"{name}: {message}" for name, messages in errors.items() for message in messages),
            key="rows",
            value=f"[{','.join(errors)}]",
            remedy=f"look at the logs below {run_dir / 'rows'}; the other rows are reported above",
        )


def measure_builds(
    rows: Mapping[str, BuildRow], settings: BenchmarkSettings, builds: tuple[Build, Build], run_dir: Path
) -> dict[str, RowResult]:
    """Run all rows of both builds, in each round in the other order, after what they need is there."""
    results = {name: RowResult({build.name: [] for build in builds}, []) for name in rows}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("inputs", total=len(builds) * len(rows) * settings.repeats)
        needed = {need for row in rows.values() for need in row.needs}
        shared = Inputs.shared(needed, settings, run_dir / "work")
        inputs: dict[str, Inputs] = {}
        for build in builds:
            progress.update(task, description=f"inputs of {build.name}")
            inputs[build.name] = shared.of_build(needed, settings, build, run_dir / "work" / build.name)
            for name, row in rows.items():
                failures = inputs[build.name].failures
                results[name].errors.extend(dict.fromkeys(failures[need] for need in row.needs if need in failures))
        for repeat in range(settings.repeats):
            for name, row in rows.items():
                for build in builds if repeat % 2 == 0 else builds[::-1]:
                    progress.update(task, description=f"round {repeat + 1}: {row.title}, {build.name}")
                    if not results[name].errors:
                        folder = run_dir / "rows" / f"{name}-{build.name}-{repeat + 1}"
                        try:
                            figures = run_row(row, settings, build, inputs[build.name].places, folder)
                            results[name].figures[build.name].append(figures)
                        except CaldpoError as error:
                            results[name].errors.append(error.message)
                    progress.advance(task)
    return results


@dataclass(frozen=True)
class Inputs:
    """What rows need: paths by name, and why a need could not be met."""

    places: dict[str, str]
    failures: dict[str, str]

    @classmethod
    def shared(cls, needed: set[str], settings: BenchmarkSettings, folder: Path) -> Inputs:
        """Make what both builds read."""
        file = settings.data_file
        inputs = cls({} if file is None else {"data_file": str(Path(file).expanduser().absolute())}, {})
        inputs._make("pairs", needed, lambda: write_pairs(settings, folder / "pairs"))
        return inputs

    def of_build(self, needed: set[str], settings: BenchmarkSettings, build: Build, folder: Path) -> Inputs:
        """Add what a build makes for itself: a fitted model, and runs."""

        def run(where: Path, command: list[str]) -> None:
            _run(renamed(command, build.keys), build, where, settings.num_threads, exit_code=0)

        inputs = Inputs(dict(self.places), dict(self.failures))
        steps = TEMPLATE_STEPS if needed & {"runs", "curves"} else 1
        inputs._make("cache", needed, lambda: fill_cache(folder, run, steps))
        if "template" in inputs.places:
            template, runs, rows = Path(inputs.places["template"]), settings.compared_runs, settings.metrics_rows
            inputs._make("runs", needed, lambda: {"runs": copy_runs(template, folder / "runs", runs)})
            inputs._make("curves", needed, lambda: {"curves": lengthen_run(template, folder / "curves", rows)})
        return inputs

    def _make(self, need: str, needed: set[str], make: Callable[[], dict[str, str]]) -> None:
        if need in needed:
            try:
                self.places.update(make())
            except CaldpoError as error:
                self.failures[need] = error.message


def run_row(
    row: BuildRow, settings: BenchmarkSettings, build: Build, places: Mapping[str, str], folder: Path
) -> Figures:
    """Run a row's commands in a folder of their own, which holds a copy of the build's cache.

    Raises:
        CaldpoError: a command ended with another exit code, or left no figures.
    """
    folder.mkdir(parents=True)
    if "cache" in row.needs:
        shutil.copytree(places["cache"], folder / CACHE)
    values = {name: quoted(place) for name, place in places.items()}
    values |= {"out": quoted(str(folder / "out")), "root": build.root}
    usages = []
    for command in row.commands:
        filled = renamed(arguments(command, values, settings), build.keys)
        usages.append(_run(filled, build, folder, settings.num_threads, exit_code=row.exit_code))
    if row.read is not None:
        try:
            return row.read(folder / "out")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CaldpoError(f"{build.name}: its report cannot be read ({error!r})") from error
    figures = {
        CPU: sum(usage.cpu_seconds for usage in usages),
        WALL: sum(usage.wall_seconds for usage in usages),
        MEMORY: max(usage.peak_bytes for usage in usages) / 2**20,
    }
    for path in ("out", "outputs"):
        shutil.rmtree(folder / path, ignore_errors=True)
    return figures


def _run(command: list[str], build: Build, folder: Path, num_threads: int, *, exit_code: int) -> TreeUsage:
    """Run Python with a build first on its path, and measure the process tree.

    Raises:
        CaldpoError: another exit code, with the end of the log.
    """
    answer, log = folder / "usage.json", folder / "log.txt"
    answer.unlink(missing_ok=True)
    with log.open("a", encoding="utf-8") as file:
        subprocess.run(
            [sys.executable, "-I", process_tree.__file__, str(answer), sys.executable, *command],
            cwd=folder,
            env=environment(num_threads) | {"PYTHONPATH": build.root},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    usage = TreeUsage(**json.loads(answer.read_text(encoding="utf-8"))) if answer.exists() else None
    if usage is None or usage.exit_code != exit_code:
        code = "no exit code" if usage is None else f"exit code {usage.exit_code}, not {exit_code}"
        end = "\n    ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LOG_LINES:])
        raise CaldpoError(f"{build.name} ended with {code}: python {' '.join(command)}\n    {end}")
    return usage
