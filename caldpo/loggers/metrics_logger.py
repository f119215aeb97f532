"""The logger that writes ``metrics.csv``, the record of a run whatever tracks it besides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from caldpo.metrics_file import NAME, RowWriter
from caldpo.utils.collectives import is_first_rank


class MetricsFile(Logger):
    """Append rows to ``metrics.csv`` of the run's folder, each on disk at once; the first rank writes."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._writer = RowWriter(run_dir / NAME) if is_first_rank() else None

    name = version = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._writer is not None:
            self._writer.write(metrics, 0 if step is None else step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` has them."""
