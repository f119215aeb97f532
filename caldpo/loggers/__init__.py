"""Where a run's metrics go: ``metrics.csv`` always, and the trackers that ``logger=`` chooses."""

from caldpo.loggers.metrics_logger import MetricsFile
from caldpo.loggers.mlflow_tracker import MLflow
from caldpo.loggers.tensorboard_tracker import TensorBoard
from caldpo.loggers.tracker_base import NoTracker, Rows, TableLogger, Tracker, Trackers
from caldpo.loggers.trackio_tracker import Trackio
from caldpo.loggers.wandb_tracker import WandB

__all__ = [
    "MLflow",
    "MetricsFile",
    "NoTracker",
    "Rows",
    "TableLogger",
    "TensorBoard",
    "Tracker",
    "Trackers",
    "Trackio",
    "WandB",
]
