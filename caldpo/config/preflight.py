"""Compose and check every run of a command line before the first one starts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, open_dict, read_write

from caldpo.config.hydra_errors import compose_or_explain
from caldpo.config.hydra_session import HydraSession, hydra_session, outer_config_kept
from caldpo.config.metric_checks import find_search_problems
from caldpo.config.overrides import parse_overrides
from caldpo.config.path_checks import find_escapes
from caldpo.config.run_dir import claim_folder, naming_overrides
from caldpo.config.run_lifecycle import as_caldpo_error
from caldpo.config.sweep_jobs import expand_sweep, find_process_problems, fixed_keys, representative_jobs
from caldpo.config.validation import Problem, find_problems, raise_problems
from caldpo.security.secrets import redact_text
from caldpo.utils.collector import exempt_from_collection
from caldpo.utils.delayed_progress import tracked
from caldpo.utils.process_rank import own_ranks

Agree = Callable[[DictConfig], Iterable[Problem] | None]
_MANY = 20  # runs that are checked in about two seconds; more get a progress bar


def preflight(
    session: HydraSession,
    overrides: Sequence[str],
    *,
    multirun: bool,
    settings: str | None = None,
    agree: Agree | None = None,
) -> tuple[RunMode, list[str]]:
    """Compose and check every run, and make the folder that this command line is going to fill.

    Args:
        session: of the command.
        overrides: as given on the command line.
        multirun: whether ``-m`` was given; a configuration may ask for a sweep too (``hydra.mode``).
        settings: as for :func:`caldpo.config.validation.check_config`.
        agree: finds where good keys contradict each other, or what lies on this machine; may raise CaldpoError.

    Returns:
        Whether it is a run or a sweep, and overrides that name its folders.

    Raises:
        CaldpoError: all problems of all runs at once.
    """
    find = functools.partial(_run_problems, settings, agree)
    try:
        # As a sweep: only the composed configuration knows whether it is one.
        with exempt_from_collection():
            cfg, problems = _compose(session, overrides, RunMode.MULTIRUN, settings, refuse_sweeps=multirun)
            is_sweep = multirun or (cfg is not None and cfg.hydra.mode == RunMode.MULTIRUN)
            if not is_sweep:
                several = any(override.is_sweep_override() for override in parse_overrides(session.loader, overrides))
                if not problems and (cfg is None or several or MISSING in cfg.hydra.runtime.choices.values()):
                    cfg, problems = _compose(
                        session, overrides, RunMode.RUN, settings
                    )  # which says what is wrong with them
                cfg = _good_run(cfg, problems, find)
        if is_sweep:
            return RunMode.MULTIRUN, _check_sweep(session, cfg, problems, find)
        assert cfg is not None
        with own_ranks(cfg):
            return RunMode.RUN, claim_folder(cfg, "run")
    finally:
        HydraConfig.instance().cfg = None


def composed(
    config_name: str,
    overrides: Sequence[str],
    settings: str,
    agree: Agree | None = None,
    extra: Sequence[Path] = (),
) -> DictConfig:
    """Compose and check the configuration of one run as :func:`preflight`, with Hydra's own section; make nothing.

    ``extra``: folders with further options.
    """
    with outer_config_kept(), hydra_session(config_name, extra=extra) as session:
        cfg, problems = _compose(session, overrides, RunMode.RUN, settings)
        return _good_run(cfg, problems, functools.partial(_run_problems, settings, agree))


def check_run(cfg: DictConfig, settings: str, agree: Agree) -> None:
    """Check the configuration of a single run, with Hydra's own section, as :func:`preflight`."""
    raise_problems(_run_problems(settings, agree, cfg))


def check_composes(session: HydraSession, overrides: Sequence[str]) -> None:
    """Check only the keys: a configuration can be shown while values are still missing."""
    raise_problems(_compose(session, overrides, RunMode.RUN)[1])


def _compose(
    session: HydraSession,
    overrides: Sequence[str],
    mode: RunMode,
    settings: str | None = None,
    *,
    refuse_sweeps: bool = True,
) -> tuple[DictConfig | None, list[Problem]]:
    return compose_or_explain(
        lambda texts: session.compose(texts, mode, refuse_sweeps=refuse_sweeps), session.loader, overrides, settings
    )


def _good_run(cfg: DictConfig | None, problems: list[Problem], find: Callable[..., list[Problem]]) -> DictConfig:
    """Return a configuration without problems, of composing or of what was composed without the faulty overrides."""
    unread = {problem.key for problem in problems}  # left out to read the others: of these keys nothing is known
    of_run = [] if cfg is None else find(cfg)
    raise_problems([*problems, *(problem for problem in of_run if problem.key not in unread)])
    assert cfg is not None
    return cfg


def _check_sweep(
    session: HydraSession, sweep_cfg: DictConfig | None, problems: list[Problem], find: Callable[..., list[Problem]]
) -> list[str]:
    """Check a sweep; return the overrides that name its folders."""
    if sweep_cfg is None:
        raise_problems(problems)
    assert sweep_cfg is not None
    loader, sweep = session.loader, expand_sweep(session.loader, sweep_cfg)
    searched = {text.split("=")[0] for job in sweep.jobs for text in job} - fixed_keys(loader, sweep_cfg)
    problems += [*sweep.problems, *find_search_problems(sweep_cfg, searched)]
    for batch in representative_jobs(loader, sweep.jobs):
        for number, job in batch if len(batch) <= _MANY else tracked(batch, "Checking the sweep"):
            cfg, of_job = compose_or_explain(lambda texts: loader.load_sweep_config(sweep_cfg, texts), loader, job)
            problems += of_job
            if cfg is not None:
                problems += [*find(cfg, number), *find_process_problems(cfg)]
        raise_problems(list(dict.fromkeys(problems)))
    HydraConfig.instance().set_config(sweep_cfg)
    with own_ranks(sweep_cfg):
        return naming_overrides(sweep.jobs, sweep_cfg, all_known=sweep.complete) + claim_folder(sweep_cfg, "sweep")


def _run_problems(settings: str | None, agree: Agree | None, cfg: DictConfig, number: int = 0) -> list[Problem]:
    """List the problems of one run's configuration, with the values that Hydra sets at its start in place."""
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = str(Path.cwd())
        cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
    HydraConfig.instance().set_config(cfg)
    problems = [*find_problems(cfg, settings), *find_escapes(cfg)]
    return problems if agree is None else [*problems, *_disagreements(cfg, agree, doubtful=bool(problems))]


def _disagreements(cfg: DictConfig, agree: Agree, *, doubtful: bool) -> list[Problem]:
    """List the problems of ``agree``; its error too, unless the configuration is ``doubtful`` already."""
    problems: list[Problem] = []
    try:
        problems.extend(agree(cfg) or [])  # keeps what comes before an error
    except Exception as error:
        known = as_caldpo_error(error)
        if known is not None and not doubtful:
            value = None if known.value_or_none is None else redact_text(str(known.value))
            problems.append(Problem(known.key or "configuration", value, known.message, known.remedy))
        elif not doubtful:  # else the error is most likely due to a value that is reported already
            raise
    return problems
