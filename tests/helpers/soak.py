"""A long training that saves every few seconds, watched from outside: does memory grow, do file handles?

    python -m tests.helpers.soak MINUTES [FOLDER]

Trains the embedded policy for so long, stops it by SIGTERM, resumes it, stops it again, and prints what was seen. The
test suite does the same for a quarter of a minute.
"""

from __future__ import annotations

import csv
import json
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.helpers.forked import start

EVERY = 25  # optimiser steps between saves: two or three seconds on one core


@dataclass(frozen=True)
class Seen:
    """A look at the training process: seconds since its start, resident memory in MiB, open files, threads."""

    seconds: float
    memory: float
    handles: int
    threads: int


@dataclass(frozen=True)
class Soak:
    """What came out: looks at the process once it had started to save, and what its folder holds."""

    looks: list[Seen]
    codes: list[int]
    steps: int
    saves: int
    gaps: list[int]
    left: list[str]

    def thirds(self, name: str) -> tuple[float, float]:
        """Median of a quantity over the first and over the last third of the looks."""
        values = [getattr(look, name) for look in self.looks]
        third = max(1, len(values) // 3)
        return statistics.median(values[:third]), statistics.median(values[-third:])


def soak(folder: Path, seconds: float, *overrides: str) -> Soak:
    """Train in ``folder/run``, twice for half of the time, with a SIGTERM and a resume in between."""
    run = folder / "run"
    fresh = [
        f"hydra.run.dir={run}",
        "trainer.max_steps=1000000",
        "trainer.val_check_interval=200",
        "trainer.num_threads=1",
    ]
    fresh += [f"callbacks.checkpoint.every={EVERY}", "trainer.progress_bar=false", *overrides]
    looks: list[Seen] = []
    codes = []
    for number, arguments in enumerate((fresh, [f"resume={run}"])):
        before = _steps(run)
        process = start("caldpo.train", *arguments, cwd=Path.cwd())
        begun = time.monotonic()
        while process.poll() is None and _steps(run) < before + 2 * EVERY:
            time.sleep(0.2)
        started = time.monotonic()
        while process.poll() is None and time.monotonic() < started + seconds / 2:
            looks.append(_look(process.pid, time.monotonic() - begun))
            time.sleep(min(5.0, seconds / 40))
        process.send_signal(signal.SIGTERM)
        (folder / f"printed-{number}.txt").write_text("".join(process.communicate(timeout=120)))
        codes.append(process.wait())
    with (run / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]
    gaps = [step for step, there in enumerate(steps) if step != there]
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    return Soak(looks, codes, len(steps), len(steps) // EVERY, gaps, left)


def _steps(run: Path) -> int:
    """Optimiser steps of the last checkpoint."""
    folder = run / "checkpoints"
    names = [p.name for p in folder.glob("step-*")] if folder.is_dir() else []
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def _look(pid: int, seconds: float) -> Seen:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    handles = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Seen(seconds, int(status["VmRSS"].split()[0]) / 1024, handles, int(status["Threads"]))


def main() -> None:
    minutes = float(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    found = soak(folder, minutes * 60)
    (folder / "soak.json").write_text(json.dumps(asdict(found), indent=1))
    print(f"{minutes:g} minutes in {folder}: {found.steps:,} steps, {found.saves:,} saves, codes {found.codes}")
    for name, unit in (("memory", "MiB"), ("handles", "files"), ("threads", "threads")):
        first, last = found.thirds(name)
        values = [getattr(look, name) for look in found.looks]
        extremes = f"from {min(values):.6g} to {max(values):.6g}"
        print(f"{name}: median of the first third {first:.6g}, of the last {last:.6g} {unit} ({extremes})")
    print(f"steps missing or out of order in metrics.csv: {len(found.gaps)}; left: {', '.join(found.left)}")


if __name__ == "__main__":
    main()
