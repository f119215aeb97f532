"""Write a made-up sweep, to see how long its comparison takes: not a test.

``python -m tests.helpers.large_sweep FOLDER RUNS EVALUATIONS``, then ``time python -m caldpo.compare FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from caldpo.report.loss_style import LOSSES
from tests.report.runs import finals, held_out, write_run

SEEDS = 5


def main(folder: Path, runs: int, evaluations: int) -> None:
    """Write runs of all losses and five seeds, at as many values of beta as that takes."""
    for number in range(runs):
        seed, setting = number % SEEDS, number // SEEDS
        loss, beta = LOSSES[setting % len(LOSSES)], 0.1 * (1 + setting // len(LOSSES))
        slope = (1 + setting % 7) / evaluations
        rows = [held_out(step, slope * step + seed, -2 * slope * step) for step in range(evaluations)]
        known = {"oracle__reward": slope, "oracle__kl": slope * evaluations}
        metrics = finals(rows[-1], **known)
        write_run(folder / f"run{number}", loss, seed, rows=rows, metrics=metrics, loss_keys={"beta": beta})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
