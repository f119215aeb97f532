"""The folders in which W&B keeps the stretches of a run: one for each time that it was started."""

from __future__ import annotations

import re
from pathlib import Path

from caldpo.metrics_file import STEP, iter_rows

REPLACED = "replaced"  # folder of offline stretches that a later one repeats
# a folder in which W&B keeps one stretch of a run; the id in its name may have a number after it, the file's has none
_STRETCH = re.compile(r"(?P<offline>offline-)?run-(?P<time>\d{8}_\d{6})-.+")


def set_aside(folder: Path) -> None:
    """Move the offline stretches of a run to where ``wandb sync`` does not look: the next one repeats them."""
    for stretch in [path for path in folder.glob("offline-run-*") if _STRETCH.fullmatch(path.name)]:
        (folder / REPLACED).mkdir(exist_ok=True)
        stretch.rename(folder / REPLACED / stretch.name)


def latest_stretch(run_dir: Path) -> tuple[str, bool] | None:
    """Return the id of the W&B run that began last in the run's folder, and whether it is offline; None without one."""
    files = ((_STRETCH.fullmatch(path.parent.name), path.stem) for path in run_dir.glob("wandb/*/run-*.wandb"))
    stretches = [(match["time"], stem.removeprefix("run-"), match["offline"]) for match, stem in files if match]
    if not stretches:
        return None
    _, run_id, offline = max(stretches, key=lambda stretch: stretch[0])
    return run_id, offline is not None


def last_logged(metrics: Path) -> dict[str, float]:
    """Return the last value of each column, by its name in W&B."""
    last = {name: float(text) for row in iter_rows(metrics) for name, text in row.items() if text}
    return {"trainer/global_step" if name == STEP else name: value for name, value in last.items()}
