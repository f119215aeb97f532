"""Dispatch a training configuration: train, estimate (``dry_run``) or replay a dumped step."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import transformers
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from caldpo.console import print_line
from caldpo.estimation.estimate_run import estimate
from caldpo.in_process_run import run_in_process
from caldpo.replay.replay_run import replay
from caldpo.run_settings import RunSettings
from caldpo.security.redacted_streams import RedactedStream
from caldpo.training_run import Announce, train_run
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.devices import resolve_devices


def run(cfg: DictConfig) -> float | None:
    """Train, estimate or replay, as the configuration says, in Hydra's output folder.

    A configuration that Hydra's ``compose`` made, where no command runs, is checked first, and gets a folder below
    ``outputs``, as by the command; see :func:`caldpo.train`, which returns more.

    Returns:
        The final metric named by ``optimized_metric``, for sweepers that search; None where nothing is trained.
    """
    if not HydraConfig.initialized() or "hydra" in cfg:
        value: float | None = run_in_process(run, cfg)[1]
        return value
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    resolve_devices(cfg)
    settings = RunSettings(**{key: cfg[key] for key in RunSettings.__dataclass_fields__})
    if settings.dry_run:
        estimate(cfg)
        return None
    if settings.replay is not None:
        replay(cfg, settings, Path(settings.replay).expanduser())
        return None
    with compact_output(run_dir, settings) as announce:
        summary = train_run(cfg, settings, run_dir, announce)
    if announce is not None and is_first_rank():
        print_line(run_dir.name, summary)
    metric: float | None = summary["metrics"].get(settings.optimized_metric)
    return metric


@contextlib.contextmanager
def compact_output(run_dir: Path, settings: RunSettings) -> Iterator[Announce | None]:
    """With ``console=compact``, redirect the output into the run's ``output.txt``; that of other ranks to nowhere.

    Yields a function that prints a line past the redirection; None where nothing is redirected.
    """
    first_rank = is_first_rank()
    if settings.console == "full" and first_rank:
        yield None
        return
    transformers.utils.logging.disable_progress_bar()
    announce: Announce = functools.partial(print, file=sys.stdout, flush=True) if first_rank else lambda line: None
    path = run_dir / "output.txt" if first_rank else Path(os.devnull)
    with (
        path.open("a" if settings.resume else "w", encoding="utf-8") as file,
        contextlib.redirect_stdout(RedactedStream(file)),
    ):
        yield announce
